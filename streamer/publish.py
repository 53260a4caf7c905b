"""A snapshot made public: files first, then one transaction that announces them.

The manifest, the assignments and the event become visible together or not at all, under ids that
follow from session and step; publishing the same step again is recognised and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from reconstruct.types import Assignments, ClassSnapshot, EngineEvent, Snapshot, StepReport
from schemas.assignments import AssignmentBatch
from schemas.base import MAX_ROWS
from schemas.codec import encoded_size
from schemas.events import SessionEvent
from schemas.split import split_batch
from schemas.topics import Topics
from schemas.volumes import ClassManifest, VolumeSnapshot, snapshot_id
from streamer.caption import caption_of, symmetry_words
from streamer.findings import Told, find, news, still, with_all_views
from streamer.outbox import Outbox, Outgoing
from streamer.preview import preview_arrays
from streamer.series import point_latest, write_series_folder
from streamer.state import SessionState

__all__ = ["Made", "Publisher", "Taken", "software_version"]

Array = npt.NDArray[Any]
T = TypeVar("T", Assignments, ClassSnapshot)
InlineVolumes = Literal["auto", "always", "never"]

_ROOM_BYTES = 4096  # key, headers and framing around a record


def software_version() -> str:
    """Give the version that is installed, or say that none is."""
    try:
        return version("abinitio-live")
    except PackageNotFoundError:
        return "0+source"


@dataclass(frozen=True)
class Taken:
    """All that a snapshot is made of, taken between two steps and changed by none."""

    name: str
    snapshot: Snapshot
    assignments: Assignments
    image_names: Array | None  # of all particles; None where no assignments are published
    parent_id: str | None
    group: str
    verdicts: Told
    is_final: bool
    is_out: bool  # before a crash; only what follows from it is wanted


@dataclass(frozen=True)
class Made:
    """A snapshot whose files are in place, and the records that announce it."""

    name: str
    folder: str  # in the series
    snapshot: Snapshot | None  # None where it was out already
    found: Told
    told: tuple[EngineEvent, ...] = ()
    records: tuple[Outgoing, ...] = ()
    warnings: tuple[Outgoing, ...] = ()


class Publisher:
    """Publishes one session's snapshots and events.

    Parameters
    ----------
    out
        Output folder.
    digest
        Digest of the settings that decide the model.
    inline_volumes
        ``auto`` sends the maps with the manifest when they fit, ``never`` does not, ``always``
        also warns, once, when they do not fit.
    pictures
        Draw each snapshot.
    symmetry
        What was asked for.
    tell
        Told what was found out, when it is out.
    """

    def __init__(
        self,
        outbox: Outbox,
        topics: Topics,
        *,
        session_id: str,
        out: Path,
        digest: str,
        inline_volumes: InlineVolumes = "auto",
        pictures: bool = True,
        symmetry: str = "C1",
        hook: Callable[[str], None] = lambda _: None,
        tell: Callable[[EngineEvent], None] = lambda _: None,
    ) -> None:
        self._outbox = outbox
        self._topics = topics
        self._session_id = session_id
        self._out = out
        self._digest = digest
        self._inline_volumes = inline_volumes
        self._pictures = pictures
        self._symmetry = symmetry
        self._hook = hook
        self._tell = tell

    def take(self, state: SessionState, *, is_final: bool, assign: bool) -> Taken | None:
        """Take what belongs to a snapshot of this very step; None without a model.

        Parameters
        ----------
        assign
            The table of assignments belongs to it.
        """
        if state.engine is None:
            return None
        name = self.name(state, is_final=is_final)
        return Taken(
            name=name,
            snapshot=_owned_snapshot(state.engine.snapshot()),
            assignments=_owned(state.engine.assignments()),
            image_names=state.roster.rows_from(0).get("image_name") if assign else None,
            parent_id=state.last_snapshot_id,
            group=state.imposed_group,
            verdicts=dict(state.verdicts),
            is_final=is_final,
            is_out=self._outbox.said(name),
        )

    def name(self, state: SessionState, *, is_final: bool) -> str:
        """Give the id of a snapshot of this very step."""
        return snapshot_id(self._session_id, state.step) + ("-final" if is_final else "")

    def make(self, taken: Taken) -> Made:
        """Write a snapshot's files and make its records; touches neither session nor bus."""
        snapshot, views = with_all_views(taken.snapshot, taken.assignments, group=taken.group)
        found = find(snapshot, views, group=taken.group, is_final=taken.is_final)
        found |= still(taken.verdicts)
        told = tuple(news(taken.verdicts, found))
        if taken.is_out:
            return Made(taken.name, _folder_of(taken), None, found)
        classes = self._files(snapshot, taken)
        self._hook("renamed")
        manifest, warnings = self._manifest_record(snapshot, taken, classes)
        records = [manifest, *self._assignment_records(taken)]
        records.append(self._snapshot_event(snapshot, name=taken.name, is_final=taken.is_final))
        for number, event in enumerate(told):
            about = f"{taken.name}-verdict-{number}"
            records.append(
                self._engine_event(
                    event, about, step=snapshot.step, phase=snapshot.phase, snapshot_id=taken.name
                )
            )
        return Made(
            taken.name, _folder_of(taken), snapshot, found, told, tuple(records), tuple(warnings)
        )

    def announce(self, made: Made, state: SessionState) -> None:
        """Say it in one transaction, unless it is out."""
        state.verdicts = made.found  # also where the snapshot is out: its verdicts are out with it
        if made.snapshot is None:
            point_latest(self._out, made.folder)  # a crash may have come between
            return
        self._outbox.say(made.warnings)
        self._outbox.say(made.records)
        self._hook("announced")
        point_latest(self._out, made.folder)
        for event in made.told:
            self._tell(event)

    def event(
        self, record_id: str, kind: str, message: str, *, severity: str = "info", **more: Any
    ) -> None:
        """Publish something worth telling, once."""
        self._outbox.say([self._event(record_id, kind, message, severity=severity, **more)])

    def _event(
        self, record_id: str, kind: str, message: str, *, severity: str = "info", **more: Any
    ) -> Outgoing:
        event = SessionEvent(
            envelope=self._outbox.envelope(SessionEvent, record_id),
            kind=kind,
            severity=severity,  # type: ignore[arg-type]
            message=message,
            **more,
        )
        return Outgoing(self._topics.events, event)

    def step_events(self, report: StepReport) -> None:
        """Publish what the engine found worth telling in one step."""
        records = [
            self._engine_event(
                event,
                f"{self._session_id}-step-{report.step:08d}-event-{number}",
                step=report.step,
                phase=report.phase,
            )
            for number, event in enumerate(report.events)
        ]
        self._outbox.say(records)

    def contrast(self, found: EngineEvent) -> None:
        """Publish that the particles are dark, once in a session."""
        self._outbox.say([self._engine_event(found, f"{self._session_id}-contrast")])
        self._tell(found)

    def _engine_event(self, event: EngineEvent, record_id: str, **more: Any) -> Outgoing:
        return Outgoing(
            self._topics.events,
            SessionEvent(
                envelope=self._outbox.envelope(SessionEvent, record_id),
                kind=event.kind,
                severity="info" if event.kind not in _WARNINGS else "warning",
                message=event.message,
                class_index=event.class_index,
                values={
                    key: float(value) for key, value in event.values.items() if np.isfinite(value)
                },
                **more,
            ),
        )

    def _files(self, snapshot: Snapshot, taken: Taken) -> tuple[ClassManifest, ...]:
        picture = None
        if self._pictures:
            from streamer.pictures import snapshot_png  # matplotlib: only when pictures are wanted

            caption = caption_of(
                snapshot,
                title=self._session_id,
                symmetry=symmetry_words(
                    self._symmetry, taken.group, snapshot.phase, taken.verdicts
                ),
                over=taken.is_final,
            )
            picture = snapshot_png(snapshot, caption)
        return write_series_folder(
            self._out,
            snapshot,
            name=_folder_of(taken),
            session_id=self._session_id,
            manifest={
                "snapshot_id": taken.name,
                "session_id": self._session_id,
                "parent_snapshot_id": taken.parent_id,
                "step": snapshot.step,
                "phase": snapshot.phase,
                "is_final": taken.is_final,
                "config_digest": self._digest,
                "software_version": software_version(),
                "particles_seen": snapshot.particles_seen,
                "particles_presented": snapshot.particles_presented,
            },
            picture=picture,
            over=taken.is_final,
            before_rename=lambda: self._hook("written"),
        )

    def _manifest_record(
        self,
        snapshot: Snapshot,
        taken: Taken,
        classes: tuple[ClassManifest, ...],
    ) -> tuple[Outgoing, list[Outgoing]]:
        warnings = []
        record = VolumeSnapshot(
            envelope=self._outbox.envelope(VolumeSnapshot, taken.name),
            snapshot_id=taken.name,
            parent_snapshot_id=taken.parent_id,
            step=snapshot.step,
            phase=snapshot.phase,
            is_final=taken.is_final,
            config_digest=self._digest,
            software_version=software_version(),
            particles_seen=snapshot.particles_seen,
            particles_presented=snapshot.particles_presented,
            classes=classes,
            output_folder=_folder_name(self._out),
        )
        arrays: dict[str, Array] = dict(preview_arrays(snapshot))
        limit_bytes = self._outbox.max_record_bytes - _ROOM_BYTES
        optional: dict[str, Array] = {
            "fsc": np.stack([item.fsc for item in snapshot.classes]).astype(np.float32),
            "view_histogram": np.stack([item.view_histogram for item in snapshot.classes]).astype(
                np.float32
            ),
        }
        if self._inline_volumes != "never":
            optional["volumes"] = _compact(np.stack([item.volume for item in snapshot.classes]))
        for key, array in optional.items():
            size_bytes = encoded_size(record, arrays | {key: array})
            if size_bytes <= limit_bytes:
                arrays[key] = array
            elif key == "volumes" and self._inline_volumes == "always":
                warnings.append(self._too_large(size_bytes, limit_bytes))
        return Outgoing(self._topics.volumes, record, arrays), warnings

    def _too_large(self, size_bytes: int, limit_bytes: int) -> Outgoing:
        return self._event(
            f"{self._session_id}-maps-too-large",
            "maps_too_large",
            f"The maps do not fit a record of the bus: {size_bytes / 2**20:.1f} MiB with them, "
            f"{limit_bytes / 2**20:.1f} MiB allowed; subscribers need the output folder.",
            severity="warning",
            values={"size_bytes": float(size_bytes), "limit_bytes": float(limit_bytes)},
        )

    def _assignment_records(self, taken: Taken) -> list[Outgoing]:
        if taken.image_names is None:
            return []
        name, assignments = taken.name, taken.assignments
        names = [each.decode("utf-8") for each in taken.image_names.tolist()]
        arrays: dict[str, Array] = {
            "particle_id": assignments.particle_ids.astype(np.uint64),
            "class_index": assignments.class_index.astype(np.int32),
            "rotation": assignments.rotations.astype(np.float32),
            "shift_angstrom": assignments.shifts_angstrom.astype(np.float32),
            "max_probability": assignments.max_probability.astype(np.float32),
            "log_likelihood": assignments.log_likelihood.astype(np.float32),
            "half": assignments.half.astype(np.uint8),
        }
        records: list[Outgoing] = []
        for start in range(0, len(names), MAX_ROWS):
            stop = min(start + MAX_ROWS, len(names))
            batch = AssignmentBatch(
                envelope=self._outbox.envelope(AssignmentBatch, f"{name}-assignments-{start}"),
                snapshot_id=name,
                step=taken.snapshot.step,
                first_row=start,
                total_rows=len(names),
                image_names=tuple(names[start:stop]),
            )
            part = {key: array[start:stop] for key, array in arrays.items()}
            records += [
                Outgoing(self._topics.assignments, record, rows)
                for record, rows in split_batch(
                    batch, part, self._outbox.max_record_bytes - _ROOM_BYTES
                )
            ]
        return records

    def _snapshot_event(self, snapshot: Snapshot, *, name: str, is_final: bool) -> Outgoing:
        known = [c.resolution_angstrom for c in snapshot.classes if c.resolution_angstrom]
        best = f", best resolution {min(known):.1f} A" if known else ""
        which = "the last maps" if is_final else "new maps"
        event = SessionEvent(
            envelope=self._outbox.envelope(SessionEvent, f"{name}-event"),
            kind="session_end" if is_final else "snapshot",
            message=f"Published {which} from {snapshot.particles_seen} particles{best}.",
            step=snapshot.step,
            phase=snapshot.phase,
            snapshot_id=name,
            values={"particles": float(snapshot.particles_seen)},
        )
        return Outgoing(self._topics.events, event)


def _folder_of(taken: Taken) -> str:
    return f"step-{taken.snapshot.step:08d}" + ("-final" if taken.is_final else "")


def _owned(values: T) -> T:
    """Copy the arrays of a dataclass: the engine goes on writing into its own."""
    found = {field.name: getattr(values, field.name) for field in fields(values)}
    copies: dict[str, Any] = {
        name: np.array(value) for name, value in found.items() if isinstance(value, np.ndarray)
    }
    return replace(values, **copies)


def _owned_snapshot(snapshot: Snapshot) -> Snapshot:
    return replace(snapshot, classes=tuple(_owned(item) for item in snapshot.classes))


def _folder_name(out: Path) -> str | None:
    """Give the absolute folder, unless its name is not one that a record can carry."""
    name = str(out.resolve())
    return name if name.isprintable() else None


def _compact(volumes: npt.NDArray[np.float32]) -> Array:
    """Give float16 maps, or float32 where float16 would overflow or round visibly."""
    with np.errstate(over="ignore", under="ignore"):
        half = volumes.astype(np.float16)
    largest = float(np.abs(volumes).max(initial=0.0))
    # float16 rounds at 2**-11 of a value; more is lost only beyond its range
    exact = float(np.abs(half.astype(np.float32) - volumes).max(initial=0.0)) <= 2**-10 * largest
    return half if exact else volumes


_WARNINGS = frozenset(
    {"contrast_inverted", "preferred_orientation", "flattened_disc", "device_error"}
)
