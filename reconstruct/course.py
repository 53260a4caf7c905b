"""Where a session stands in its course: the race, the pass over the stream, replay.

A course says which particles come next and counts them; it never looks at images or maps. Orders
are random but keyed by (seed, stage, pass), so they follow from the counters alone.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from reconstruct.pace import particles_for
from reconstruct.schedule import Schedule
from reconstruct.types import EngineSettings

__all__ = ["Course", "Replay"]

Rows = npt.NDArray[np.intp]

COUNTERS = (
    "trained",
    "racing",
    "race_cursor",
    "spherical_cursor",
    "replay_cursor",
    "owed",
    "again_cycle",
    "again_cursor",
    "again_of",
    "radius_at_pass",
    "stretch",
    "paced",
    "race_goal",
)
REPLAYED_AT_LEAST = 10_000  # presentations that replay makes up to, in at most 8 passes
REPLAYED_AT_ONCE = 16  # a replayed minibatch is this part of the particles
FADES = 0.4  # of what was learned before, as a pass over all begins; of a sample's pass its share
DIM_EPOCHS = 8  # times a race of dim particles presents them, unless a start finds them earlier
LARGEST = 3000  # particles of a replayed minibatch, unless more are asked for
GLOBAL_EVERY = 8  # of the replayed minibatches, this fraction searches everywhere again
RACE_ORDER, REPLAY_ORDER, SPHERICAL_ORDER, AGAIN_ORDER = 1, 2, 3, 4  # keys of the random orders


@dataclass(frozen=True)
class Replay:
    """One minibatch of particles that are presented again, in the stream or after its end."""

    rows: Rows
    kept: float  # what was learned before counts for so much from here on; 1 but as a pass begins
    everywhere: bool  # search all poses again, not only around the known one
    last_chance: bool  # nothing that is changed after it would be learned with


@dataclass
class Course:
    """Counters of one session's course; the methods that take particles advance them."""

    settings: EngineSettings
    schedule: Schedule
    trained: int = 0  # distinct particles learned from: the store's first rows
    racing: bool = True  # until the first map is chosen
    race_cursor: int = 0  # particles presented again by the race
    spherical_cursor: int = -1  # presented by the course of near-spherical particles; -1: none
    replay_cursor: int = 0  # particles presented again after the stream's end
    owed: float = 0.0  # presentations of earlier particles that the stream's new ones call for
    again_cycle: int = 0  # rounds of these that have begun
    again_cursor: int = 0  # particles of the round presented
    again_of: int = 0  # particles that the round shows, each once
    radius_at_pass: int = 0  # working radius when the last replay pass began
    stretch: float = 1.0  # of the start, for particles that show little; see ``pace``
    paced: bool = False  # whether that was decided
    race_goal: float = 0.0  # nats per particle that a race of dim particles goes on for; 0: bright

    def minibatch(self, presented: float) -> int:
        """Particles of an update after ``presented`` presentations."""
        cold = self.racing or presented < self.schedule.cold_presented
        if cold:
            return self._cold_minibatch
        return max(self.settings.minibatch_final * self._classes_fed, self._cold_minibatch)

    @property
    def _cold_minibatch(self) -> int:
        return round(self.settings.minibatch_initial * self.stretch) * self._classes_fed

    @property
    def _classes_fed(self) -> int:
        """Several classes share a minibatch, so it is twice as large."""
        return min(2, self.settings.n_classes)

    # ---- the race

    @property
    def race_particles(self) -> int:
        """Particles of the race, as far as the store keeps them: of dim ones more are different."""
        wanted = particles_for(self.settings.race_particles, self.stretch)
        return min(wanted, self.settings.store_particles or wanted)

    @property
    def race_due(self) -> bool:
        """Whether the race has all the particles that it presents again."""
        return self.racing and self.trained >= self.race_particles

    def race_rows(self, particles: int) -> Rows:
        """Take the next of the race's ``particles`` first particles again."""
        epoch, position = divmod(self.race_cursor, particles)
        order = _order(self.settings.seed, RACE_ORDER, epoch, particles)
        rows = order[position : position + self._cold_minibatch]
        self.race_cursor += len(rows)
        return rows

    def race_halves(self, particles: int) -> bool:
        """Whether the field is to be halved: after the second epoch the ranking is good.

        After the first it is not.
        """
        return self.race_cursor == particles

    def race_over(self, particles: int, evidence: float) -> bool:
        """Whether the race is over, of whose starts the best explains ``evidence`` nats.

        After its epochs, or with dim particles once a start found them.
        """
        epochs = self.settings.race_epochs
        if evidence < self.race_goal:
            epochs = max(epochs, DIM_EPOCHS)
        return self.race_cursor >= particles * (epochs - 1)

    # ---- the course of near-spherical particles

    def spherical_rows(self, size: int, held: Rows) -> Rows:
        """Take the next ``size`` of the rows ``held``, each once a pass."""
        epoch, position = divmod(self.spherical_cursor, len(held))
        order = _order(self.settings.seed, SPHERICAL_ORDER, epoch, len(held))
        rows = held[order[position : position + size]]
        self.spherical_cursor += len(rows)
        return rows

    # ---- replay

    def again_each(self, held: int) -> float:
        """Earlier particles that are shown again for each new one, once there is a map.

        Of a sample ``held`` of all as large a part, or its particles would count for more.
        """
        return (self.settings.stream_replays or 0.0) * min(1.0, held / max(self.trained, 1))

    def train(self, new: int, *, held: int) -> None:
        """Count ``new`` particles, and once there is a map what is to be shown again for them."""
        self.trained += new
        if not self.racing:
            self.owed += self.again_each(held) * new

    def new_before_again(self, held: int) -> int:
        """New particles until earlier ones of the ``held`` are shown again."""
        each = self.again_each(held)
        if not each:
            return sys.maxsize
        return max(0, math.ceil((self._replayed_at_once(held) - self.owed) / each))

    def again(self, particles: Rows) -> Replay:
        """Take the next of ``particles`` to be shown again in the stream, in rounds over all."""
        size = self._replayed_at_once(len(particles))
        if self.again_cursor >= self.again_of:
            self.again_cycle += 1
            self.again_cursor, self.again_of = 0, len(particles)
        order = _order(self.settings.seed, AGAIN_ORDER, self.again_cycle, self.again_of)
        rows = particles[order[self.again_cursor : self.again_cursor + size]]
        turn = self.again_cursor // size
        self.again_cursor += size
        self.owed -= size
        everywhere = self.again_cycle == 1 or turn % GLOBAL_EVERY == 0
        return Replay(rows=rows, kept=1.0, everywhere=everywhere, last_chance=False)

    def _replayed_at_once(self, particles: int) -> int:
        one = max(self.settings.minibatch_final, min(LARGEST, particles // REPLAYED_AT_ONCE))
        return one * self._classes_fed

    def replayed_enough(self, radius: int, particles: int) -> bool:
        """Whether replay is over: the passes that were set, or passes that add nothing.

        By default there are two passes, and up to eight where few particles, or dim ones, have to
        be shown often, as long as each pass adds a shell to the working ``radius``. A pass is over
        the ``particles`` that are still held; of less than half of all there is one, since they
        would count for more than others with each.
        """
        if not particles:
            return True
        done, position = divmod(self.replay_cursor, particles)
        least = self._least_passes(particles)
        if self.settings.replay_passes is not None or least == 1:
            return done >= least
        if position or done < least:
            return False
        most = max(2, min(8, math.ceil(REPLAYED_AT_LEAST * self.stretch / particles)))
        return done >= most or radius <= self.radius_at_pass

    def _least_passes(self, particles: int) -> int:
        if self.settings.replay_passes is not None:
            return self.settings.replay_passes
        return 1 if 2 * particles < self.trained else 2

    def replay(self, radius: int, particles: Rows) -> Replay:
        """Take the next of ``particles`` to be replayed; ``radius`` is the working radius."""
        size = self._replayed_at_once(len(particles))
        index, position = divmod(self.replay_cursor, len(particles))
        if not position:
            self.radius_at_pass = radius
        order = _order(self.settings.seed, REPLAY_ORDER, index, len(particles))
        rows = particles[order[position : position + size]]
        self.replay_cursor += len(rows)
        # A group that is taken up needs a pass to be learned with: the first is the last chance.
        more = self._least_passes(len(particles)) != 1
        kept = 1.0 if position else 1.0 - FADES * len(particles) / self.trained
        return Replay(
            rows=rows,
            kept=kept,
            everywhere=index == 0 or (position // size) % GLOBAL_EVERY == 0,
            last_chance=self.replay_cursor == len(particles) and more,
        )

    # ---- state

    def dump(self) -> dict[str, int | bool | float]:
        """Everything that changes."""
        return {name: getattr(self, name) for name in COUNTERS}

    def restore(self, meta: Mapping[str, Any]) -> None:
        """Take over a state that ``dump`` returned."""
        for name in COUNTERS:
            setattr(self, name, meta.get(name, getattr(self, name)))


@lru_cache(maxsize=2)
def _order(seed: int, stage: int, index: int, particles: int) -> Rows:
    return np.random.default_rng([seed, stage, index]).permutation(particles)
