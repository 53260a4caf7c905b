"""How well one class would explain the particles of another: whether they can be told apart.

Classes that compete for particles seem surer of them than they are, so their shares of a particle
say little. Instead particles of each class are searched in every class alone, against the map of
the half-set that they are not in. Where two classes are one structure, each explains half of the
other's particles better; only a few particles are asked, those first that the maps have forgotten.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor

import numpy as np
import numpy.typing as npt

from reconstruct.learner import Learner
from reconstruct.search import WeightedBatch
from reconstruct.store import ParticleStore

__all__ = ["class_overlaps"]

Float64 = npt.NDArray[np.float64]
Rows = npt.NDArray[np.intp]
Weigh = Callable[[Rows, int], WeightedBatch]

SAMPLE = 32  # particles of a class that are searched
FEWEST = 8


def class_overlaps(
    learner: Learner,
    store: ParticleStore,
    weigh: Weigh,
    workers: Executor,
    *,
    trained: int,
) -> Float64:
    """Share (K, K) of particles of class i that class j explains better, from 0 to about 1/2.

    0 in the rows and columns of classes at rest or with too few particles.
    """
    n_classes = learner.n_classes
    shares = np.zeros((n_classes, n_classes))
    if n_classes == 1 or learner.cubes is None:
        return shares
    classes = np.asarray(store["class_index"][:trained], np.int32)
    samples = [_sample(classes, i, float(learner.mass[i]), store) for i in range(n_classes)]
    used = [i for i, rows in enumerate(samples) if len(rows) >= FEWEST and not learner.resting[i]]
    for i in used:
        rows, half = store.by_half(samples[i], crossed=True)
        batch = weigh(rows, learner.insert_radius)
        evidence = {}
        for j in used:
            rng = np.random.default_rng([*learner.seed, learner.updates, j])
            alone = learner.score_class(batch, half, j, rng=rng, workers=workers)
            evidence[j] = alone.poses.evidence
        for j in used:
            shares[i, j] = (evidence[j] > evidence[i]).mean()
    return shares


def _sample(classes: npt.NDArray[np.int32], i: int, mass: float, store: ParticleStore) -> Rows:
    """The latest particles of a class that its map has forgotten, or its first ones."""
    own = np.flatnonzero(classes == i)
    own = own[store.holds(own)]
    return own[: max(SAMPLE, len(own) - int(mass))][-SAMPLE:]
