"""Whether a class's map stands against a fresh start on the class's own particles.

Half-sets that took the same wrong turn agree about a wrong map, so their FSC cannot tell. A start
that knows nothing of the map can: where it explains particles that it has not seen better than the
map does, the map is a local minimum and the start takes its place; where it found the same map, the
map is confirmed; where it found another that is no better, neither is to be trusted.
docs/decisions/classes.md has the measurements behind the numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count

import numpy as np
import numpy.typing as npt

from reconstruct.agreement import AGREED, agreement
from reconstruct.centring import centre
from reconstruct.class_actions import Session, alone, learn_cold, score
from reconstruct.learner import Learner
from reconstruct.pace import mean_evidence, particles_for

__all__ = [
    "FEWEST",
    "JUNK_SHARE",
    "Challenge",
    "Pair",
    "challenge",
    "challenge_by_two",
    "explained",
]

Rows = npt.NDArray[np.intp]

FEWEST = 300  # particles of a class that is challenged
MOST = 1000  # latest of them that a start learns from; more of dim particles
PRESENTED = 3000  # presentations of a start, times what the session's start takes
# Dim particles are found of a sudden, after as many presentations as it takes: a start goes on
# until it explains so much of what the map does, or for so many times as long.
GETS_THERE, LONGER = 0.85, 3
STARTS = 4  # that race until TRIED: of symmetric particles one in two is half right. Not of dim
# particles, of which nearly all starts get there and take long
TRIED = 1000  # presentations of each: a third of them costs a fifth of the time
RIVAL_SEEDS = 100_000  # between the numbers of starts that race
# A start that races begins with so many shells, remembers so many particles and learns from so many
# at a time: more are right than with those of the session's first race (docs/decisions/classes.md).
RACED_RADIUS, RACED_WINDOW, RACED_BATCH = 4, 70.0, 25
BATCH = 50  # particles of an update of others, times what the session's start takes
JUDGES = 96  # particles, spread over the latest, that neither side learns from as of now
# Of the map's evidence that a start must exceed. Wrong maps had 0.76 to 0.96 of a start's, right
# ones 0.95 and more; a right start in place of a right map costs a few shells for a while.
BETTER = 1.02
TWO_BETTER = 1.05  # likewise, of two classes, which have twice the freedom
LEAST_SHARE = 0.1  # of the judges that each of two classes must explain better than the other
JUNK_SHARE = 0.3  # of the usual evidence, under which a class, or one of its particles, is junk
BLENDED = 0.7  # agreement under which a map may be of two species


@dataclass(frozen=True)
class Challenge:
    """What a map and a fresh start make of the same particles, at the same resolution."""

    source: Learner  # of one class: the fresh start, its half-sets apart already if it won
    map_evidence: float  # nats per particle
    start_evidence: float
    raced: bool  # whether it was the best of several
    agreed: float | None  # mean FSC of the two maps; None: not looked at, it is clear who won

    @property
    def clear(self) -> bool:
        """Whether the start explains so much more that its map needs no other look."""
        return self.start_evidence > max(BETTER * self.map_evidence, 0.0)

    @property
    def won(self) -> bool:
        """Whether the start is to take the map's place.

        Where the best of several starts found another map, the better of the two is taken: the
        start's, though it remembers fewer particles.
        """
        other = self.raced and self.agreed is not None and self.agreed < AGREED
        return self.clear or (other and self.start_evidence > max(self.map_evidence, 0.0))

    @property
    def confirms(self) -> bool:
        """Whether both are one map."""
        return not self.clear and self.agreed is not None and self.agreed >= AGREED

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
        Times what bright particles need (``pace``); of bright ones several starts race.

    Raises
    ------
    ValueError
        Fewer than ``FEWEST`` particles of the class are held.
    """
    if len(session.of_class(k)) < FEWEST:
        raise ValueError(f"class {k + 1} has too few particles to be challenged")
    own = explained(session, k)[-particles_for(MOST, stretch) :]
    raced = stretch == 1.0
    starts = [session.new_learner(number + RIVAL_SEEDS * i) for i in range(STARTS if raced else 1)]
    for start in starts if raced else ():
        start.hold_radius(min(RACED_RADIUS, start.max_radius))
        start.schedule = replace(start.schedule, cold_window=RACED_WINDOW)
    batch = RACED_BATCH if raced else round(BATCH * stretch)
    judges, source = _learn_anew(session, own, starts, stretch=stretch, batch=batch)
    holder = alone(session, k, number)
    before, after = _judged(session, judges, holder, source)
    found = Challenge(source, float(before.mean()), float(after.mean()), raced, agreed=None)
    if not found.clear:
        found = replace(found, agreed=agreement(holder, source))
    if found.won:
        # what its half-sets learned from one shared reference would flatter them
        source.split_halves(source.schedule.join_radius + 1)
    return found


def explained(session: Session, k: int) -> Rows:
    """Particles of class ``k`` that its map explains, in order of arrival: junk misleads starts.

    All of them where too few are left. Particles whose pose is wrong are explained by more.
    """
    own = session.of_class(k)
    evidence = np.asarray(session.store["evidence"][own], np.float64)
    usual = np.median(evidence) if len(own) else 0.0
    kept = own[evidence >= JUNK_SHARE * usual]
    return kept if usual > 0 and len(kept) >= FEWEST else own


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
    own = session.of_class(k)[-2 * particles_for(MOST, stretch) :]
    starts = [session.new_learner(number, n_classes=2)]
    batch = round(2 * BATCH * stretch)
    judges, both = _learn_anew(session, own, starts, stretch=stretch, batch=batch)
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
    session: Session, own: Rows, starts: Sequence[Learner], *, stretch: float, batch: int
) -> tuple[Rows, Learner]:
    """Let starts learn from the particles ``own``, less some judges, which come first.

    Of several the one that explains the judges best after ``TRIED`` presentations goes on.
    """
    judges = own[np.linspace(0, len(own) - 1, JUDGES).astype(np.intp)]
    pupils = np.setdiff1d(own, judges)
    if not len(pupils):
        raise ValueError(f"{len(own)} particles are judges all: a start has none to learn from")
    lessons = [_lessons(start, pupils, batch) for start in starts]

    def teach(i: int, least: float, most: float = 0.0, wanted: float = 0.0) -> None:
        """Present ``least`` particles, and up to ``most`` until ``wanted`` nats are explained."""
        one = starts[i]
        while one.presented < least or (one.presented < most and mean_evidence(one) < wanted):
            learn_cold(session, one, next(lessons[i]))

    def told(i: int) -> float:
        teach(i, TRIED * stretch)
        found = score(session, starts[i], judges, 0)[1]
        return float(found.poses.evidence.mean(dtype=np.float64))

    best = max(range(len(starts)), key=told) if len(starts) > 1 else 0
    wanted = GETS_THERE * float(np.mean(session.store["evidence"][own]))
    least = PRESENTED * stretch
    teach(best, least, LONGER * least if stretch > 1 else 0.0, wanted)
    if centre(starts[best]).any():  # as the map is that it is compared with
        starts[best].make_references(session.workers)
    return judges, starts[best]


def _lessons(start: Learner, pupils: Rows, size: int) -> Iterator[Rows]:
    """Batches of ``pupils`` without end, in another order each time."""
    for epoch in count():
        order = np.random.default_rng([*start.seed, epoch]).permutation(pupils)
        for i in range(0, len(order), size):
            yield order[i : i + size]


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
