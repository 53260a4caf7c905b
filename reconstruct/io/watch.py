"""Watch the metadata file of a live session, which its owner rewrites whole again and again.

Promise: a file is looked at only when its size and time stood still since the previous poll and
its last line is complete; new particles are told by image name, so reordered or shortened files
never bring a particle twice.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reconstruct.io.errors import InputFileError
from reconstruct.io.star import read_star
from reconstruct.io.table import ParticleTable
from reconstruct.types import IntArray

__all__ = ["StarUpdate", "StarWatcher"]


@dataclass(frozen=True)
class StarUpdate:
    """What one poll found."""

    table: ParticleTable | None  # the whole file, if there was anything new to read
    new_rows: IntArray  # rows of ``table`` whose image names were not seen before
    waiting_for: str  # in words; empty when the file was read or has not changed


NO_ROWS = np.zeros(0, dtype=np.int64)


class StarWatcher:
    """Remembers what was read of one live file.

    Parameters
    ----------
    path
        The file; it may not exist yet.
    read
        Reads it; ``functools.partial`` adds a data root or another format.
    """

    def __init__(
        self, path: Path | str, *, read: Callable[[Path], ParticleTable] = read_star
    ) -> None:
        self.path = Path(path)
        self._read = read
        self._seen: set[str] = set()
        self._glimpsed: tuple[int, int, int] | None = None
        self._accepted: tuple[int, int, int] | None = None

    def poll(self, *, last_call: bool = False) -> StarUpdate:
        """Look at the file once.

        Parameters
        ----------
        last_call
            The session has ended: read the file without waiting for it to stand still, and
            accept a last line without a line end.

        Raises
        ------
        InputFileError
            The file is complete but cannot be used, or anything is wrong at the last call.
        """
        state = _state(self.path)
        if state is None and not last_call:
            return StarUpdate(None, NO_ROWS, f"{self.path} to appear")
        if state is not None and state == self._accepted:
            return StarUpdate(None, NO_ROWS, "")
        if not last_call:
            if state != self._glimpsed:
                self._glimpsed = state
                return StarUpdate(None, NO_ROWS, f"{self.path} to stand still")
            if not _ends_with_line(self.path):
                return StarUpdate(None, NO_ROWS, f"the last line of {self.path}")
        try:
            table = self._read(self.path)
        except InputFileError as error:
            if error.may_pass and not last_call:
                return StarUpdate(None, NO_ROWS, str(error))
            raise
        if not last_call and _state(self.path) != state:
            return StarUpdate(None, NO_ROWS, f"{self.path} to stand still")
        self._accepted = state
        fresh = []
        for row, name in enumerate(table.image_names):
            if name not in self._seen:
                self._seen.add(name)
                fresh.append(row)
        return StarUpdate(table, np.asarray(fresh, dtype=np.int64), "")


def _state(path: Path) -> tuple[int, int, int] | None:
    """Return what changes when a file is rewritten; None when it is not there."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _ends_with_line(path: Path) -> bool:
    """Whether a text file ends with a line end; other files (.cs) know their own length."""
    if path.suffix != ".star":
        return True
    with open(path, "rb") as stream:
        if stream.seek(0, os.SEEK_END) == 0:
            return False
        stream.seek(-1, os.SEEK_END)
        return stream.read(1) == b"\n"
