"""Whether a class's map stands against a fresh start on the class's own particles.

Half-sets that took the same wrong turn agree about a wrong map, so their FSC cannot tell. A start
that knows nothing of the map can: where it explains particles that it has not seen better than the
map does, the map is a local minimum and the start takes its place; where it found the same map, the
map is confirmed; where it found another that is no better, neither is to be trusted.
docs/decisions/classes.md has the measurements behind the numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from reconstruct.agreement import AGREED, agreement
from reconstruct.class_actions import Session, alone, learn_cold, score
from reconstruct.learner import Learner

__all__ = ["FEWEST", "Challenge", "Pair", "challenge", "challenge_by_two"]

Rows = npt.NDArray[np.intp]

FEWEST = 300  # particles of a class that is challenged
MOST = 1000  # latest of them that a start learns from, times what the session's start takes
PRESENTED = 3000  # presentations of a start, likewise
BATCH = 50  # particles of an update, likewise
JUDGES = 96  # particles, spread over the latest, that neither side learns from as of now
# Of the map's evidence that a start must exceed. Wrong maps had 0.76 to 0.96 of a start's, right
# ones 0.95 and more; a right start in place of a right map costs a few shells for a while.
BETTER = 1.02
TWO_BETTER = 1.05  # likewise, of two classes, which have twice the freedom
LEAST_SHARE = 0.1  # of the judges that each of two classes must explain better than the other
JUNK_SHARE = 0.3  # of the mean evidence, under which a class is more likely junk
BLENDED = 0.7  # agreement under which a map may be of two species


@dataclass(frozen=True)
class Challenge:
    """What a map and a fresh start make of the same particles, at the same resolution."""

    source: Learner  # of one class: the fresh start
    map_evidence: float  # nats per particle
    start_evidence: float
    agreed: float | None  # mean FSC of the two maps; None: not looked at, the start won

    @property
    def won(self) -> bool:
        """Whether the start is to take the map's place."""
        return self.start_evidence > max(BETTER * self.map_evidence, 0.0)

    @property
    def confirms(self) -> bool:
        """Whether both are one map."""
        return not self.won and self.agreed is not None and self.agreed >= AGREED

    def may_blend(self, evidence: float) -> bool:
        """Whether the map may be of two species; ``evidence`` is what all classes explain.

        Starts on one species agree on more of it, and junk is explained by no map.
        """
        known = self.map_evidence > JUNK_SHARE * evidence
        return known and self.agreed is not None and self.agreed < BLENDED


def challenge(session: Session, k: int, *, number: int, stretch: float) -> Challenge:
    """Start anew on the particles of class ``k``, and compare.

    Parameters
    ----------
    number
        Keys what is random.
    stretch
        Times what bright particles need (``pace``).

    Raises
    ------
    ValueError
        Fewer than ``FEWEST`` particles of the class are held.
    """
    if len(session.of_class(k)) < FEWEST:
        raise ValueError(f"class {k + 1} has too few particles to be challenged")
    own = session.of_class(k)[-round(MOST * stretch) :]
    judges, source = _learn_anew(session, own, session.new_learner(number), stretch=stretch)
    holder = alone(session, k, number)
    before, after = _judged(session, judges, holder, source)
    found = Challenge(source, float(before.mean()), float(after.mean()), agreed=None)
    if not found.won:
        return replace(found, agreed=agreement(holder, source))
    # what its half-sets learned from one shared reference would flatter them
    source.split_halves(source.schedule.join_radius + 1)
    return found


@dataclass(frozen=True)
class Pair:
    """What one map and two fresh ones make of the same particles."""

    sources: tuple[Learner, Learner]  # of one class each
    map_evidence: float  # nats per particle
    pair_evidence: float  # of the better of two, less what the choice is worth
    shares: tuple[float, float]  # of the judges, that each explains better

    @property
    def won(self) -> bool:
        """Whether the particles are of two species."""
        better = self.pair_evidence > max(TWO_BETTER * self.map_evidence, 0.0)
        return better and min(self.shares) >= LEAST_SHARE


def challenge_by_two(session: Session, k: int, *, number: int, stretch: float) -> Pair:
    """Start anew with two classes on the particles of class ``k``, and compare.

    For a class whose map another start neither confirms nor beats: it may hold two species, of
    which a start with one class makes another blend.
    """
    own = session.of_class(k)[-2 * round(MOST * stretch) :]
    both = session.new_learner(number, n_classes=2)
    judges, both = _learn_anew(session, own, both, stretch=stretch, batch=2 * BATCH)
    found = replace(session, learner=both)
    sources = alone(found, 0, number), alone(found, 1, number)
    holder = alone(session, k, number)
    map_, first, second = _judged(session, judges, holder, *sources)
    first_share = float((first > second).mean())
    pair = Pair(
        sources,
        float(map_.mean()),
        float((np.maximum(first, second) - np.log(2.0)).mean()),
        (first_share, 1.0 - first_share),
    )
    for source in sources if pair.won else ():
        source.split_halves(source.schedule.join_radius + 1)
    return pair


def _learn_anew(
    session: Session, own: Rows, source: Learner, *, stretch: float, batch: int = BATCH
) -> tuple[Rows, Learner]:
    """Let ``source`` learn from the particles ``own``, less some judges, which come first."""
    judges = own[np.linspace(0, len(own) - 1, JUDGES).astype(np.intp)]
    pupils = np.setdiff1d(own, judges)
    batch = round(batch * stretch)
    epoch = 0
    while source.presented < PRESENTED * stretch:
        order = np.random.default_rng([*source.seed, epoch]).permutation(pupils)
        for i in range(0, len(order), batch):
            learn_cold(session, source, order[i : i + batch])
        epoch += 1
    return judges, source


def _judged(
    session: Session, judges: Rows, holder: Learner, *starts: Learner
) -> list[npt.NDArray[np.float64]]:
    """Evidence of the judges (n,) in the map of ``holder`` and in those of fresh starts.

    Like with like: at one radius, which none is asked beyond, and maps of half the particles.
    """
    learners = (holder, *starts)
    radius = min(learner.radius for learner in learners)
    for learner in learners:
        learner.hold_radius(radius)
    for start in starts if holder.split else ():
        start.split = True
        start.make_references()
    # the map may remember a judge, but only in the half-set that it is of; the starts know none
    found = [score(session, learner, judges, 0, crossed=True)[1] for learner in learners]
    return [one.poses.evidence.astype(np.float64) for one in found]
