"""How well one class would explain the particles of another: whether they can be told apart.

Classes that compete for particles seem surer of them than they are, so their shares of a particle
say little. Instead particles of each class are searched in every class alone, against the map of
the half-set that they are not in. Where two classes are one structure, each explains half of the
other's particles better; only a few particles are asked, of which the maps know little.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor

import numpy as np
import numpy.typing as npt

from reconstruct.learner import Learner
from reconstruct.search import WeightedBatch
from reconstruct.store import ParticleStore

__all__ = ["class_overlaps", "little_remembered"]

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
    every = (np.flatnonzero(classes == i) for i in range(n_classes))
    samples = [
        little_remembered(own[store.holds(own)], float(mass), SAMPLE)
        for own, mass in zip(every, learner.mass, strict=True)
    ]
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


def little_remembered(own: Rows, mass: float, count: int) -> Rows:
    """Give up to ``count`` particles of a class that its map knows little of.

    Parameters
    ----------
    own
        All of the class's that can be searched, in order of arrival.
    mass
        Particles that the map remembers.

    Returns
    -------
    The latest that it has forgotten; where it remembers nearly all, as in replay, some from
    everywhere, which the map of the other half-set does not know.
    """
    gone = max(0, len(own) - int(mass))
    if gone >= count:
        return own[gone - count : gone]
    return own[np.linspace(0, len(own) - 1, min(count, len(own))).astype(np.intp)]
