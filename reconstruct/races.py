"""Which of the random starts goes on: the race of every session, and that of near-spherical ones.

``Races`` is the part of the engine that decides it; the engine says how an update is made.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import ThreadpoolController

from reconstruct import spherical
from reconstruct.agreement import AGREED, agreement
from reconstruct.backend import Backend
from reconstruct.centring import recentre
from reconstruct.course import Course
from reconstruct.engine_events import (
    ball_event,
    centred_events,
    groups_event,
    mask_event,
    pace_event,
    race_event,
    spherical_event,
    with_events,
)
from reconstruct.imposing import release
from reconstruct.layout import Layout
from reconstruct.learner import Learner
from reconstruct.learner_state import new_learner
from reconstruct.lifecycle import Lifecycle
from reconstruct.memory import memory_need
from reconstruct.pace import BRIGHT, DIM, mean_evidence, stretch_for, stretched
from reconstruct.search import WeightedBatch
from reconstruct.spherical import Sphericity
from reconstruct.store import ParticleStore
from reconstruct.symmetry_course import SymmetryCourse
from reconstruct.types import EngineEvent, EngineSettings, Geometry, StepReport

__all__ = ["Races"]

Rows = npt.NDArray[np.intp]

SLOW_SEEDS = 500  # numbers of the starts that begin anew
DIM_STARTS = 2  # of which there are no more than so many: nearly all of them get there
FOUND = 3.3  # times what the first look explained: a start that explains as much has found the map
MOST_GOAL = 40.0  # nats that are asked of it
SECOND = 0.75  # of the goal: what a second start must explain to vouch for the map
_BLAS = ThreadpoolController()


class Races(ABC):
    """The starts of a session, until one is left."""

    settings: EngineSettings
    geometry: Geometry
    backend: Backend
    _course: Course
    _layout: Layout
    _life: Lifecycle
    _learners: list[Learner]
    _new_learner: Callable[..., Learner]
    _store: ParticleStore
    _symmetry: SymmetryCourse
    _workers: Executor

    @abstractmethod
    def _update(
        self,
        rows: Rows,
        *,
        new: int,
        cold: bool,
        local: bool = False,
        window: float | None = None,
    ) -> StepReport:
        """One update of every start."""

    @abstractmethod
    def _weighted(self, rows: Rows, radius: int) -> WeightedBatch:
        """Particles ready to be scored."""

    @property
    @abstractmethod
    def _standing(self) -> dict[str, Any]:
        """What a report says of the leader, which may change after its update."""

    @property
    def _awake(self) -> list[Learner]:
        """Learners that learn: all but one that waits while others are raced."""
        return [learner for learner in self._learners if not learner.aside]

    @property
    def _leader(self) -> Learner:
        return max(self._awake, key=lambda learner: learner.evidence)

    @property
    def _replayable(self) -> Rows:
        return self._store.replayable(self._course.trained)

    @property
    def _held(self) -> int:
        """How many particles can be presented again."""
        return self._store.held(self._course.trained)

    @property
    def _again_due(self) -> bool:
        """Whether earlier particles are shown again next, between new ones."""
        return self._course.new_before_again(self._held) == 0

    @property
    def _starts(self) -> int:
        """Starts of the race."""
        wanted = self.settings.starts
        return min(wanted, DIM_STARTS) if self._course.race_goal else wanted

    def _set_pace(self, stretch: float) -> None:
        """Let starts take ``stretch`` times as long as they do for bright particles."""
        schedule = stretched(self._layout.schedule, stretch)
        self._course.stretch, self._course.schedule = stretch, schedule
        self._life.doubts.stretch = stretch
        layout = replace(self._layout, schedule=schedule)
        self._new_learner = partial(new_learner, self.settings, layout, backend=self.backend)
        for learner in self._learners:
            learner.schedule = schedule

    def _choose_pace(self) -> EngineEvent | None:
        """Begin anew and slower if a first look at the race's particles explains little."""
        course, looked_at = self._course, self._course.race_particles
        if course.paced or not course.racing or course.trained < looked_at:
            return None
        course.paced = True
        explained = mean_evidence(self._leader)
        self._life.doubts.faint = bool(explained < BRIGHT)
        if self.settings.start_stretch is not None:
            return None
        stretch = stretch_for(explained)
        if stretch == 1.0:
            return None
        self._set_pace(stretch)
        course.race_goal = float(np.clip(FOUND * explained, DIM, MOST_GOAL))
        self._learners = [self._new_learner(SLOW_SEEDS + number) for number in range(self._starts)]
        return pace_event(explained, stretch, looked_at=looked_at, particles=course.race_particles)

    def _race_again(self, particles: int) -> StepReport:
        """Present the race's particles again; decide it after the last epoch."""
        if self._course.spherical_cursor >= 0:
            return self._spherical_again()
        report = self._update(self._course.race_rows(particles), new=0, cold=True)
        if self._course.race_halves(particles) and len(self._learners) > 2:
            ranking = sorted(self._learners, key=lambda learner: -learner.evidence)
            self._learners = ranking[: (len(ranking) + 1) // 2]
        over = self._course.race_over(particles, mean_evidence(self._leader))
        return self._decide_race(report) if over else report

    def _decide_race(self, report: StepReport) -> StepReport:
        event = race_event(
            [learner.evidence for learner in self._learners],
            starts=self._starts,
            particles=self._course.trained,
        )
        seen = self._near_ball(self._leader)
        if found := self._begin_spherical(self._leader, seen):
            return with_events(report, event, found)
        self._settle_dim()
        if doubt := self._doubt_ball(seen):
            if self._groups_to_race:
                self._race_groups(self._leader)
                return with_events(report, event, doubt)
            report = with_events(report, doubt)
        return with_events(report, event, self._begin_halves(self._course.schedule.join_radius + 1))

    def _settle_dim(self) -> None:
        """Trust the map of dim particles if two starts found it, and found the same."""
        goal, rivals = self._course.race_goal, self._learners
        if not goal or self.settings.n_classes > 1 or len(rivals) < 2:
            return
        told = [mean_evidence(one) for one in rivals]
        found = max(told) >= goal and min(told) >= SECOND * goal
        if found and self._rivals_agree() >= AGREED:
            self._life.doubts.stood = (0,)

    def _rivals_agree(self) -> float:
        """How well the maps of the two best starts agree."""
        best, second = sorted(self._learners, key=lambda learner: -learner.evidence)[:2]
        with _BLAS.limit(limits=1, user_api="blas"):
            return agreement(best, second)

    def _doubt_ball(self, seen: Sphericity | None) -> EngineEvent | None:
        """Doubt the map of a particle that is nearly a ball, unless two starts found the same."""
        if seen is None or self._life.doubts.stood or self.settings.cubic:
            return None
        agreed = self._rivals_agree() if len(self._learners) > 1 else None
        if agreed is not None and agreed >= AGREED:
            return None
        self._life.doubts.unsettled = True
        return ball_event(seen.share, agreed, tried=self._groups_to_race)

    @property
    def _groups_to_race(self) -> tuple[str, ...]:
        """Groups that are tried on a near-ball whose starts disagree, where that can help.

        Starts on dim particles, or after a short race, disagree for other reasons: with these
        groups are tried where ``auto`` asks.
        """
        course = self._course
        found = course.stretch == 1.0 and self._leader.presented >= course.schedule.cold_presented
        found &= len(self._learners) > 1  # one start, as for a quick look, tells nothing
        asked = self._symmetry.auto or found
        can = self._symmetry.wanted == "C1" and spherical.within_reach(self._leader)
        return spherical.TRIED if asked and can else ()

    def _near_ball(self, leader: Learner) -> Sphericity | None:
        """How little views explain of some particles, if it is little and matters; or None.

        None as well of fewer particles than starts of a near-ball learn from at once.
        """
        if self.settings.n_classes > 1 or len(self._replayable) < spherical.BATCH:
            return None
        rows, half = self._store.by_half(self._replayable[: spherical.PROBED])
        batch = self._weighted(rows, leader.insert_radius)
        with _BLAS.limit(limits=1, user_api="blas"):
            seen = spherical.sphericity(leader, batch, half, workers=self._workers)
        return seen if seen.near_ball else None

    def _begin_halves(self, radius: int) -> EngineEvent:
        """Go on with the leader alone, its half-sets on their own from ``radius`` shells on."""
        leader = self._leader
        self._learners = [leader]
        self._course.racing = False
        recentre(leader, self._store)
        leader.split_halves(radius)  # a wide coarse pass stays: a ball's low shells stay blind
        return mask_event(2 * float(leader.mask_radius.max()) * self.geometry.pixel_size_angstrom)

    def _centred(self, report: StepReport) -> StepReport:
        """Bring maps that lie off their particles' boxes there, with the references of now."""
        leader = self._leader
        if leader.stale or not (moves := recentre(leader, self._store)).any():
            return report
        leader.make_references(self._workers)
        off = self.geometry.pixel_size_angstrom * np.linalg.norm(moves, axis=1)
        return with_events(report, *centred_events(off))

    def _begin_spherical(self, leader: Learner, seen: Sphericity | None) -> EngineEvent | None:
        """Race by other rules where the particle is nearly a ball and its group is known."""
        group = self._symmetry.wanted
        if seen is None or not self.settings.cubic:
            return None
        with _BLAS.limit(limits=1, user_api="blas"):
            if spherical.shows_axes(leader, group):
                return None
        self._learners = self._spherical_starts(leader, (group,))
        return spherical_event(seen.share, group, starts=len(self._learners))

    def _race_groups(self, leader: Learner) -> None:
        """Race starts of every group of near-balls; the map without one waits."""
        leader.aside = True
        self._learners = [leader, *self._spherical_starts(leader, spherical.TRIED)]

    def _spherical_starts(self, leader: Learner, groups: Sequence[str]) -> list[Learner]:
        """Fresh starts of every group, as many as there is memory for with their opposites."""
        self._course.spherical_cursor = 0
        need = memory_need(
            replace(self.settings, race_starts=1),
            self._layout.grid,
            max_radius=self._layout.max_radius,
            max_shift_pixels=self._layout.max_shift_pixels,
        )
        room = self.backend.memory()[0] // (need.statistics + need.references)
        most = int(np.clip(room // (2 * len(groups)), 1, spherical.STARTS))
        numbers = count(self.settings.starts)
        return [
            start
            for group in groups
            for start in spherical.prepare_starts(
                [self._new_learner(next(numbers)) for _ in range(most)], leader, group
            )
        ]

    def _spherical_again(self) -> StepReport:
        """One update of the course of near-spherical particles."""
        for learner in self._awake:
            spherical.steer(learner)
        before = self._leader.presented
        rows = self._course.spherical_rows(spherical.BATCH, self._replayable)
        report = self._update(rows, new=0, cold=True, window=spherical.WINDOW)
        starts, waiting = self._awake, [one for one in self._learners if one.aside]
        presented = starts[0].presented
        if spherical.race_ends(before, presented):
            numbers = count(self.settings.starts + len(starts))
            starts += [
                spherical.make_opposite(start, self._new_learner(next(numbers))) for start in starts
            ]
        if spherical.is_over(before, presented, spherical.best_of_groups(starts)):
            events = self._end_spherical(starts, waiting)
            return with_events(replace(report, **self._standing), *events)
        self._learners = waiting + spherical.keep_best(starts, before)
        return report

    def _end_spherical(
        self, starts: list[Learner], waiting: list[Learner]
    ) -> tuple[EngineEvent, EngineEvent]:
        """Go on with the best start, or with the map without a group if no group is better.

        The group is kept if the session may take one up; with C1 it is named and let go of.
        """
        best = spherical.best_of_groups(starts)
        if waiting:
            told, kept = spherical.told_apart(best), self._symmetry.auto
            event = groups_event(best, told=told, kept=kept)
            self._life.doubts.unsettled = not (told and kept)
            if not told:
                waiting[0].aside = False
                self._learners = waiting
                return event, self._begin_halves(self._course.schedule.join_radius + 1)
        else:
            event = race_event(
                [start.evidence for start in starts],
                starts=2 * spherical.STARTS,
                particles=self._course.trained,
                kind="starts and opposites",
            )
        self._learners = starts
        found = event, self._begin_halves(spherical.restart_radius(self._leader))
        if waiting and not self._symmetry.auto:
            release(self._leader)
            self._life.doubts.guided = True
        return found
