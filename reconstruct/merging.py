"""Whether two classes are one species: tried out, by letting one of them learn from both.

That a class explains another's particles well does not say that they are one species: a particle
and its larger half do so as well. But one map of a species, made from all its particles, explains
particles that it knows little of at least as well as two maps explain each their own, whereas one
map of two species is a compromise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from reconstruct.class_actions import Session, alone, asked, score
from reconstruct.learner import Learner

__all__ = ["Merger", "candidates", "try_merger"]

Float64 = npt.NDArray[np.float64]
Rows = npt.NDArray[np.intp]

ALIKE = 0.65  # (E_own - E_other) / E_own on a class's own particles, for a merger to be tried
KIND = 0.25  # E_other over what the other class makes of its own: less, and it is but a poor fit
AS_GOOD = 0.99  # of the evidence of two maps, that one must reach
LESSON = 150  # latest particles of either class that the one map learns from
EPOCHS = 2
BATCH = 100


@dataclass(frozen=True)
class Merger:
    """What one map makes of the particles of two classes."""

    source: Learner  # of one class
    apart: float  # nats per particle, each in its own class
    together: float

    @property
    def holds(self) -> bool:
        """Whether one map is as good as two."""
        return self.together >= AS_GOOD * self.apart


def candidates(evidence: Float64) -> tuple[tuple[int, int], ...]:
    """Pairs (class that would go, class that would stay) worth a try, the most alike first.

    Parameters
    ----------
    evidence
        (K, K) mean evidence of each class's own particles (rows) in every class; NaN: not judged.
    """
    own = np.diag(evidence)
    with np.errstate(invalid="ignore", divide="ignore"):
        judged = (own[:, None] > 0) & (evidence >= KIND * own)
        loss = np.where(judged, (own[:, None] - evidence) / own[:, None], np.nan)
    np.fill_diagonal(loss, np.nan)
    found: dict[tuple[int, int], None] = {}  # in order, each pair once
    for place in np.argsort(loss, axis=None, kind="stable"):
        j, k = (int(i) for i in np.unravel_index(place, loss.shape))
        if not loss[j, k] < ALIKE:
            break
        found[(k, j) if own[j] > own[k] else (j, k)] = None  # the better map stays
    return tuple(found)


def try_merger(session: Session, j: int, k: int, *, number: int) -> Merger:
    """Let the map of class ``k`` learn from both classes' latest particles.

    ``number`` keys what is random.
    """
    source = alone(session, k, number)
    lesson = np.concatenate([session.of_class(one)[-LESSON:] for one in (j, k)])
    memory = float(session.learner.mass[j] + session.learner.mass[k])
    for epoch in range(EPOCHS):
        order = np.random.default_rng([*source.seed, epoch]).permutation(lesson)
        for i in range(0, len(order), BATCH):
            rows, half = session.store.by_half(order[i : i + BATCH])
            source.learn(
                session.weigh(rows, source.insert_radius),
                half,
                window=max(memory, float(BATCH)),
                cold=False,
                workers=session.workers,
            )
    source.make_references(session.workers)  # a class of many particles waits with them
    apart, together = 0.0, 0.0
    for one in (j, k):
        rows = asked(session, one)
        for learner, of_class in ((session.learner, one), (source, 0)):
            _, found = score(session, learner, rows, of_class, crossed=True)
            mean = 0.5 * float(found.poses.evidence.mean(dtype=np.float64))
            apart, together = (
                (apart + mean, together) if learner is session.learner else (apart, together + mean)
            )
    return Merger(source, apart, together)
