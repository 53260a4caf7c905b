"""Which record was being worked on when the process died, and how often that happened.

A note is left before a record is touched and taken away when its work is done. It survives a kill
(not a power cut, which no record causes): a record that kills the process is known by its offset.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from streamer.transports.base import TopicPartition

__all__ = ["CrashNotes"]


class CrashNotes:
    """Notes about crashes in one file of the state folder.

    Parameters
    ----------
    path
        The file; absent means no crash is known.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._counts: dict[str, int] = {}
        self._current: str | None = None
        if path.exists():
            try:
                content = json.loads(path.read_text())
                self._counts = dict(content["counts"])
                if content["current"] is not None:
                    died_on = str(content["current"])
                    self._counts[died_on] = self._counts.get(died_on, 0) + 1
            except (ValueError, KeyError, TypeError):
                self._counts = {}  # a torn note only costs one more try of the record
        self._write()

    def crashes(self, where: TopicPartition, offset: int) -> int:
        """Give how often the process died on this record."""
        return self._counts.get(_key(where, offset), 0)

    def begin(self, where: TopicPartition, offset: int) -> None:
        """Note that work on a record begins."""
        self._current = _key(where, offset)
        self._write()

    def done(self) -> None:
        """Note that the work is done, or the process stops on purpose."""
        if self._current is not None:
            self._current = None
            self._write()

    def forget(self, positions: Mapping[TopicPartition, int]) -> None:
        """Drop the counts of records that a checkpoint has passed."""
        kept = {
            key: count
            for key, count in self._counts.items()
            if any(
                key.startswith(f"{where.topic}/{where.partition}/")
                and int(key.rpartition("/")[2]) >= position
                for where, position in positions.items()
            )
        }
        if kept != self._counts:
            self._counts = kept
            self._write()

    def _write(self) -> None:
        # No fsync: this is written once per record and has to outlive the process, not the machine.
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps({"current": self._current, "counts": self._counts}))
        temporary.replace(self._path)


def _key(where: TopicPartition, offset: int) -> str:
    return f"{where.topic}/{where.partition}/{offset}"
