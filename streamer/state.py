"""Everything about a session that a checkpoint must bring back, in one object.

The engine's arrays and the positions in the input are saved together, in one file: that is what
makes each particle count exactly once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from reconstruct.types import (
    Assignments,
    EngineSettings,
    Geometry,
    ParticleImages,
    Phase,
    Snapshot,
    StepReport,
)
from schemas.particles import OpticsGroup
from streamer.checkpoint import Checkpoint
from streamer.ledger import Balance, Ledger, RecentRecords, balance
from streamer.roster import Roster
from streamer.transports.base import TopicPartition

__all__ = [
    "CAPPED_ROWS",
    "EngineFactory",
    "EngineLike",
    "SessionState",
    "from_checkpoint",
    "rows_from",
    "to_checkpoint",
]

Array = npt.NDArray[Any]

_ENGINE, _ROSTER = "engine.", "roster."  # prefixes of the two kinds of rows in a segment
CAPPED_ROWS = (_ENGINE + "spectra",)  # a bounded store keeps those of its first particles only


class EngineLike(Protocol):
    """What the loop asks of the engine."""

    @property
    def ready(self) -> bool:
        """A full minibatch is queued."""

    @property
    def particles_stored(self) -> int:
        """Rows in the store."""

    def add(self, particles: ParticleImages) -> None:
        """Preprocess, store and queue."""

    def step(self) -> StepReport:
        """Do one update."""

    def finish(self) -> Iterator[StepReport]:
        """Train what is left, then replay."""

    def snapshot(self) -> Snapshot:
        """Give every class's maps."""

    def assignments(self) -> Assignments:
        """Give what is known about each particle."""

    def dump(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """Give all that changes."""

    def dump_store(self, start: int) -> dict[str, Array]:
        """Give the immutable rows from ``start`` on."""


class EngineFactory(Protocol):
    """Makes an engine, new or from a dump; the engine's class is one."""

    def __call__(self, settings: EngineSettings, geometry: Geometry) -> EngineLike:
        """Make a new engine."""

    def load(
        self,
        settings: EngineSettings,
        geometry: Geometry,
        meta: Mapping[str, Any],
        arrays: Mapping[str, Array],
        rows: Mapping[str, Array],
    ) -> EngineLike:
        """Make one that goes on where the dump was made."""


@dataclass
class SessionState:
    """One session in memory."""

    positions: dict[TopicPartition, int] = field(default_factory=dict)  # next offsets to read
    output_positions: dict[TopicPartition, int] = field(default_factory=dict)
    ledger: Ledger = field(default_factory=Ledger)
    recent: RecentRecords = field(default_factory=lambda: RecentRecords(10_000))
    roster: Roster = field(default_factory=Roster)
    optics: list[OpticsGroup] = field(default_factory=list)
    geometry: Geometry | None = None
    engine: EngineLike | None = None
    step: int = 0
    phase: Phase = "waiting"
    trained: int = 0
    presented: int = 0
    paused: bool = False
    end_at: dict[TopicPartition, int] | None = None  # where the stream ends, once asked to end
    finished: bool = False
    snapshot_due: str | None = None  # why a snapshot of this very step is owed
    last_snapshot_id: str | None = None
    last_snapshot_step: int = 0
    last_snapshot_particles: int = 0
    imposed_group: str = "C1"  # the symmetry that poses are in now
    verdicts: dict[str, dict[str, Any]] = field(default_factory=dict)  # see `streamer.findings`
    contrast: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])  # count, sum, squares
    contrast_told: bool = False
    assigned_rows: int = 0  # rows in the last published table of assignments
    last_refusal: str = ""  # in words; of this process only
    first_problem: str = ""  # of a particle, likewise

    def balance(self) -> Balance:
        """Close the books; see `streamer.ledger.balance`."""
        stored = 0 if self.engine is None else self.engine.particles_stored
        return balance(self.ledger, stored=stored, trained=self.trained)

    def note(self, report: StepReport) -> None:
        """Take over what a step changed."""
        self.imposed_group = report.symmetry
        self.step = report.step
        self.phase = report.phase
        self.trained = report.particles_seen
        self.presented = report.particles_presented

    def optics_index(self, groups: tuple[OpticsGroup, ...]) -> Array:
        """Give the session's index of each group of a batch, adding those that are new."""
        for group in groups:
            if group not in self.optics:
                self.optics.append(group)
        return np.array([self.optics.index(group) for group in groups], np.int32)


_PLAIN = (
    "step",
    "phase",
    "trained",
    "presented",
    "paused",
    "finished",
    "snapshot_due",
    "last_snapshot_id",
    "last_snapshot_step",
    "last_snapshot_particles",
    "imposed_group",
    "verdicts",
    "contrast",
    "contrast_told",
    "assigned_rows",
)


def to_checkpoint(
    state: SessionState, *, session_id: str, digest: str, training: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Array]]:
    """Give the part of a session that changes, ready to write.

    Parameters
    ----------
    digest
        Of the settings that decide the model.
    training
        These settings, to name those that are others when it goes on.
    """
    engine_meta, arrays = (None, {}) if state.engine is None else state.engine.dump()
    meta = {
        "session": session_id,
        "training_digest": digest,
        "training": dict(training),
        "geometry": None if state.geometry is None else asdict(state.geometry),
        "engine": engine_meta,
        "positions": _positions_out(state.positions),
        "output_positions": _positions_out(state.output_positions),
        "end_at": None if state.end_at is None else _positions_out(state.end_at),
        "ledger": state.ledger.as_dict(),
        "recent": state.recent.as_list(),
        "optics": [group.model_dump() for group in state.optics],
        **{name: getattr(state, name) for name in _PLAIN},
    }
    return meta, arrays


def rows_from(state: SessionState, start: int) -> dict[str, Array]:
    """Give the immutable rows from ``start`` on: the engine's store and the roster."""
    if state.engine is None:
        return {}
    rows = {_ENGINE + name: array for name, array in state.engine.dump_store(start).items()}
    return rows | {_ROSTER + name: array for name, array in state.roster.rows_from(start).items()}


def from_checkpoint(
    checkpoint: Checkpoint, factory: EngineFactory, settings: EngineSettings, *, recent_limit: int
) -> SessionState:
    """Make the session as it was."""
    meta = checkpoint.meta
    state = SessionState(
        positions=_positions_in(meta["positions"]),
        output_positions=_positions_in(meta["output_positions"]),
        ledger=Ledger.from_dict(meta["ledger"]),
        recent=RecentRecords(recent_limit, meta["recent"]),
        roster=Roster(_with_prefix(checkpoint.rows, _ROSTER)),
        optics=[OpticsGroup(**group) for group in meta["optics"]],
        end_at=None if meta["end_at"] is None else _positions_in(meta["end_at"]),
        **{name: meta[name] for name in _PLAIN},
    )
    if meta["geometry"] is not None:
        state.geometry = Geometry(**meta["geometry"])
        state.engine = factory.load(
            settings,
            state.geometry,
            meta["engine"],
            checkpoint.arrays,
            _with_prefix(checkpoint.rows, _ENGINE),
        )
    return state


def _with_prefix(rows: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    return {
        name.removeprefix(prefix): array for name, array in rows.items() if name.startswith(prefix)
    }


def _positions_out(positions: Mapping[TopicPartition, int]) -> list[list[Any]]:
    return [[where.topic, where.partition, offset] for where, offset in positions.items()]


def _positions_in(rows: list[list[Any]]) -> dict[TopicPartition, int]:
    return {TopicPartition(topic, partition): offset for topic, partition, offset in rows}
