"""The state of a session on disk: one atomic file per checkpoint, immutable rows beside it.

A checkpoint holds everything that changes (model, schedule, random state, input offsets, counters)
and names the row segments (particle store, identities) it builds on by digest. Segments are never
changed; small neighbours are written together again, so that their number stays small.
A damaged checkpoint is passed over for the one before it, and the caller is told.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from streamer.arrayfile import ArrayFileError, read_arrays, write_arrays
from streamer.errors import CheckpointError

__all__ = ["Checkpoint", "CheckpointStore", "Saved"]

Array = npt.NDArray[Any]
RowsFrom = Callable[[int], Mapping[str, Array]]

_FORMAT = 1
_MERGE_LIMIT_BYTES = 512 << 20


@dataclass(frozen=True)
class _Segment:
    name: str
    start: int
    end: int
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class Checkpoint:
    """A state read back."""

    sequence: int
    meta: dict[str, Any]
    arrays: dict[str, Array]
    rows: dict[str, Array]  # first axis: every row ever stored, in order
    notes: tuple[str, ...]  # what was damaged and passed over, in words


@dataclass(frozen=True)
class Saved:
    """A state written."""

    sequence: int
    path: Path
    size_bytes: int  # bytes written now, new rows included


class CheckpointStore:
    """The checkpoints of one session in one folder.

    Parameters
    ----------
    folder
        Made if missing.
    keep
        How many checkpoints to keep.
    """

    def __init__(self, folder: Path, *, keep: int = 3) -> None:
        self.folder = folder
        self._keep = keep
        self._segments: list[_Segment] = []
        self._sequence = 0
        self._named: dict[str, frozenset[str]] = {}  # segments that each checkpoint builds on
        folder.mkdir(parents=True, exist_ok=True)

    def save(
        self,
        meta: Mapping[str, Any],
        arrays: Mapping[str, Array],
        *,
        rows: int,
        rows_from: RowsFrom,
        capped: Collection[str] = (),
    ) -> Saved:
        """Write one checkpoint; on return it will be found by `load`, even after a power cut.

        Parameters
        ----------
        meta
            JSON-able.
        arrays
            All that changes.
        rows
            How many immutable rows there are now.
        rows_from
            Gives the rows from a number on; every array has ``rows - start`` of them.
        capped
            Arrays that may have fewer: they end before the others.

        Raises
        ------
        OSError
            The disk is full or not writable; the previous checkpoint stays the newest.
        """
        segments, written_bytes = self._extend(rows, rows_from, capped)
        sequence = self._sequence + 1
        path = self.folder / f"checkpoint-{sequence:09d}.ckpt"
        header = {
            "format": _FORMAT,
            "meta": dict(meta),
            "segments": [asdict(segment) for segment in segments],
        }
        write_arrays(path, header, arrays)
        self._segments, self._sequence = segments, sequence
        self._named[path.name] = frozenset(segment.name for segment in segments)
        self._collect_garbage()
        return Saved(sequence, path, written_bytes + path.stat().st_size)

    def load(self) -> Checkpoint | None:
        """Read the newest checkpoint that is whole; None when there has never been one.

        Raises
        ------
        CheckpointError
            There are checkpoints and none can be read, or a newer program wrote them.
        """
        notes: list[str] = []
        paths = self._paths()
        for path in reversed(paths):
            try:
                header, arrays, _ = read_arrays(path)
                if header.get("format") != _FORMAT:
                    raise CheckpointError(
                        f"{path} has format {header.get('format')}, this program reads {_FORMAT}",
                        "Run the version that wrote it, or give another state folder",
                    )
                segments = [_Segment(**entry) for entry in header["segments"]]
                parts = [
                    read_arrays(self.folder / segment.name, sha256=segment.sha256)[1]
                    for segment in segments
                ]
            except ArrayFileError as error:
                notes.append(f"checkpoint {path.name} passed over: {error}")
                continue
            self._segments = segments
            self._sequence = _sequence(paths[-1])
            rows = {
                name: np.concatenate([part[name] for part in parts]) for name in (parts or [{}])[0]
            }
            return Checkpoint(_sequence(path), header["meta"], arrays, rows, tuple(notes))
        if notes:
            raise CheckpointError(
                f"no checkpoint in {self.folder} can be read ({notes[0]})",
                "Restore the folder from a copy, or start a new session with another --session and "
                "--out",
            )
        return None

    def _extend(
        self, rows: int, rows_from: RowsFrom, capped: Collection[str]
    ) -> tuple[list[_Segment], int]:
        """Put the rows that are not on disk yet into one new segment."""
        segments = list(self._segments)
        start = segments[-1].end if segments else 0
        if rows == start:
            return segments, 0
        while segments and self._worth_merging(segments[-1], rows - start):
            start = segments.pop().start
        arrays = rows_from(start)
        wanted = rows - start
        wrong = {
            name: len(array)
            for name, array in arrays.items()
            if len(array) > wanted or (len(array) < wanted and name not in capped)
        }
        if wrong:
            raise ValueError(f"expected {wanted} rows, got {wrong}")
        temporary = self.folder / f"rows-{start:09d}-{rows:09d}.new"
        digest = write_arrays(temporary, {}, arrays)
        name = f"rows-{start:09d}-{rows:09d}-{digest[:16]}.seg"
        temporary.replace(self.folder / name)
        size_bytes = (self.folder / name).stat().st_size
        segments.append(_Segment(name, start, rows, digest, size_bytes))
        return segments, size_bytes

    @staticmethod
    def _worth_merging(last: _Segment, new_rows: int) -> bool:
        return last.end - last.start <= new_rows and last.size_bytes < _MERGE_LIMIT_BYTES

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("checkpoint-*.ckpt"))

    def _collect_garbage(self) -> None:
        """Remove old checkpoints, and segments that no kept checkpoint names."""
        paths = self._paths()
        for path in paths[: -self._keep]:
            path.unlink(missing_ok=True)
        named: set[str] = set()
        for path in paths[-self._keep :]:
            if path.name not in self._named:
                self._named[path.name] = _segments_named(path)
            named |= self._named[path.name]
        for segment in self.folder.glob("rows-*"):
            if segment.name not in named:
                segment.unlink(missing_ok=True)


def _sequence(path: Path) -> int:
    return int(path.stem.partition("-")[2])


def _segments_named(path: Path) -> frozenset[str]:
    try:
        header, _, _ = read_arrays(path)
    except ArrayFileError:
        return frozenset()  # damaged: nothing will be loaded through it
    return frozenset(entry["name"] for entry in header["segments"])
