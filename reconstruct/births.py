"""A new class from particles that no class explains: a race of cold starts on the worst of them.

The starts see some of the latest particles and are judged on the others, so that a start that only
learned noise gains nothing. A class is born if it explains enough of them well enough.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from reconstruct.centring import centre
from reconstruct.class_actions import Session, learn_cold, score
from reconstruct.learner import Learner

__all__ = ["Birth", "attempt_birth"]

Rows = npt.NDArray[np.intp]

STARTS = 3
HALVE_AFTER = 2  # epochs, after which only the best start goes on
EPOCHS = 5
FRESH_EVERY = 4  # of the latest particles, every so many are kept for the judgement
WORST = 240  # of the others, those that a class is made from
BATCH = 50
GAIN = 0.3  # nats per particle, on particles that the class was not made from
SHARE = 0.1  # of these particles that must prefer the class


@dataclass(frozen=True)
class Birth:
    """A class that is worth having."""

    source: Learner  # of one class
    gain: float  # nats per particle, on ``tested`` others
    share: float  # of these that prefer it
    tested: int


def attempt_birth(session: Session, *, number: int, window: int) -> Birth | None:
    """Race cold starts on the worst explained of the ``window`` latest particles.

    ``number`` keys what is random.
    """
    latest = session.held(np.arange(max(0, session.trained - window), session.trained))
    fresh = latest[::FRESH_EVERY]
    others = np.setdiff1d(latest, fresh)
    evidence = np.asarray(session.store["evidence"], np.float64)
    worst = others[np.argsort(evidence[others], kind="stable")[:WORST]]
    source = _race(session, worst, number)
    share = 0.5 / session.learner.n_classes
    fresh, found = score(session, source, fresh, 0)
    mine = found.poses.evidence.astype(np.float64) + np.log(share)
    before = evidence[fresh]
    after = np.logaddexp(before + np.log1p(-share), mine)
    gain, taken = float((after - before).mean()), float((mine > before).mean())
    if gain < GAIN or taken < SHARE:
        return None
    return Birth(source, gain, taken, len(fresh))


def _race(session: Session, rows: Rows, number: int) -> Learner:
    starts = [session.new_learner(1000 * number + i) for i in range(STARTS)]
    for epoch in range(EPOCHS):
        if epoch == HALVE_AFTER:
            starts = [max(starts, key=lambda one: one.evidence)]
        for learner in starts:
            rng = np.random.default_rng([*learner.seed, epoch])
            order = rng.permutation(rows)
            for i in range(0, len(order), BATCH):
                learn_cold(session, learner, order[i : i + BATCH])
    best = max(starts, key=lambda one: one.evidence)
    if centre(best).any():  # as the maps are that it is compared with
        best.make_references(session.workers)
    return best
