"""`subscribe`: everything a session announces, as files, as it comes.

A snapshot's folder appears whole, with maps verified against the manifest, its poses as STAR and
its preview; snapshots already there are left alone, so a subscriber may be stopped and restarted.
Where maps come from is in `streamer.maps`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from reconstruct.euler import euler_from_matrix
from reconstruct.io.atomic import replace_atomically
from reconstruct.io.star_text import quoted
from schemas.assignments import AssignmentBatch
from schemas.codec import CodecError, decode
from schemas.topics import Topics
from schemas.volumes import VolumeSnapshot
from streamer.maps import write_maps
from streamer.transports.base import Consumer, Transport

__all__ = ["Received", "subscribe"]

Array = npt.NDArray[Any]

_COLUMNS = (
    "rlnImageName",
    "rlnAngleRot",
    "rlnAngleTilt",
    "rlnAnglePsi",
    "rlnOriginXAngst",
    "rlnOriginYAngst",
    "rlnClassNumber",
    "rlnMaxValueProbDistribution",
    "rlnRandomSubset",
    "rlnLogLikeliContribution",
)


@dataclass(frozen=True)
class Received:
    """A snapshot that is now on this side."""

    snapshot_id: str
    folder: Path
    is_final: bool
    maps: int
    poses: int
    problems: tuple[str, ...]


@dataclass
class _Table:
    """The parts of one snapshot's assignments that have come so far."""

    total: int
    parts: dict[int, tuple[AssignmentBatch, Mapping[str, Array]]] = field(default_factory=dict)

    def rows(self) -> int:
        return sum(batch.count for batch, _ in self.parts.values())


def subscribe(
    transport: Transport,
    topics: Topics,
    to: Path,
    *,
    session_id: str | None,
    source: Path | None = None,
    stop: Callable[[], bool] = lambda: False,
    poll_s: float = 0.5,
) -> Iterator[Received]:
    """Write snapshots below ``to`` as they are announced, from the first that the bus still has.

    Ends when ``stop`` says so, or after the last snapshot of the session asked for.

    Parameters
    ----------
    session_id
        Only this session; None for all.
    source
        The session's output folder as it is called here; by default as the session calls it.
    """
    tables: dict[str, _Table] = {}
    with transport.consumer([topics.volumes, topics.assignments]) as consumer:
        consumer.seek_to_beginning()
        waiting: list[tuple[VolumeSnapshot, Mapping[str, Array]]] = []
        while not stop():
            for record, arrays in _records(consumer, session_id, poll_s):
                if isinstance(record, AssignmentBatch):
                    table = tables.setdefault(record.snapshot_id, _Table(record.total_rows))
                    table.parts[record.first_row] = (record, arrays)
                else:
                    waiting.append((record, arrays))
            # A transaction shows whole, but its records may come in several polls, by partition.
            idle = consumer.position(topics.assignments) >= consumer.end_offset(topics.assignments)
            for snapshot, arrays in list(waiting):
                found = tables.get(snapshot.snapshot_id)
                if (found is None and not idle) or (found and found.rows() < found.total):
                    continue
                waiting.remove((snapshot, arrays))
                received = _write(to, snapshot, arrays, found, source=source)
                tables.pop(snapshot.snapshot_id, None)
                if received is not None:
                    yield received
                if snapshot.is_final and session_id is not None:
                    return


def _records(
    consumer: Consumer, session_id: str | None, poll_s: float
) -> Iterator[tuple[VolumeSnapshot | AssignmentBatch, Mapping[str, Array]]]:
    for raw in consumer.poll(200, poll_s):
        try:
            decoded = decode(raw.value)
        except CodecError:
            continue  # somebody else's bytes; the session that owns the topic never writes such
        record = decoded.record
        wanted = session_id is None or record.envelope.session_id == session_id
        if wanted and isinstance(record, VolumeSnapshot | AssignmentBatch):
            yield record, decoded.arrays


def _write(
    to: Path,
    snapshot: VolumeSnapshot,
    arrays: Mapping[str, Array],
    table: _Table | None,
    *,
    source: Path | None,
) -> Received | None:
    """Write one snapshot's folder; None when it was there already."""
    target = to / snapshot.snapshot_id
    if target.exists():
        return None
    temporary = to / f".{snapshot.snapshot_id}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    maps, problems = write_maps(temporary, snapshot, arrays, source)
    for name in ("projections", "slices"):
        if name in arrays:
            np.save(temporary / f"{name}.npy", arrays[name], allow_pickle=False)
    poses = 0
    if table is not None:
        poses = _write_poses(temporary / "particles.star", table)
    manifest = snapshot.model_dump(mode="json")
    (temporary / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    temporary.rename(target)
    return Received(snapshot.snapshot_id, target, snapshot.is_final, maps, poses, tuple(problems))


def _write_poses(path: Path, table: _Table) -> int:
    """Write the used particles' poses; return how many there are."""
    written = 0
    with replace_atomically(path) as temporary, temporary.open("w", encoding="utf-8") as out:
        out.write("\n# version 30001\n\ndata_particles\n\nloop_\n")
        out.writelines(f"_{name} #{k}\n" for k, name in enumerate(_COLUMNS, start=1))
        for start in sorted(table.parts):
            batch, arrays = table.parts[start]
            rotation = arrays["rotation"]
            euler = rotation if batch.rotation_kind == "euler" else euler_from_matrix(rotation)
            degrees = np.degrees(euler)
            for row in np.flatnonzero(arrays["class_index"] >= 0).tolist():
                rot, tilt, psi = degrees[row]
                x, y = arrays["shift_angstrom"][row]
                out.write(
                    f"{quoted(batch.image_names[row])} {rot:.5f} {tilt:.5f} {psi:.5f} "
                    f"{x:.5f} {y:.5f} {arrays['class_index'][row] + 1} "
                    f"{arrays['max_probability'][row]:.6f} {arrays['half'][row]} "
                    f"{arrays['log_likelihood'][row]:.6g}\n"
                )
                written += 1
        out.write("\n")
    return written
