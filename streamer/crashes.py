"""Which record was being worked on when the process died, and how often that happened.

A note is left before a record is touched and taken away when its work is done. It survives a kill
(not a power cut, which no record causes): a record that kills the process is known by its offset.
A record read ahead has a note of its own; where both stood, both are suspects, and nothing is read
ahead until the checkpoint is past them, so that the next crash names one.
"""

from __future__ import annotations

import json
import os
import threading
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
        self._reading: str | None = None
        self._lock = threading.Lock()  # records are read ahead by another thread
        if path.exists():
            try:
                content = json.loads(path.read_text())
                self._counts = dict(content["counts"])
                for died_on in {content["current"], content.get("reading")} - {None}:
                    self._counts[str(died_on)] = self._counts.get(str(died_on), 0) + 1
            except (ValueError, KeyError, TypeError):
                self._counts = {}  # a torn note only costs one more try of the record
        self._write()

    def crashes(self, where: TopicPartition, offset: int) -> int:
        """Give how often the process died on this record."""
        return self._counts.get(_key(where, offset), 0)

    @property
    def suspects(self) -> bool:
        """Some record ahead may have killed the process: look at one at a time, to know which."""
        return bool(self._counts)

    def begin(self, where: TopicPartition, offset: int) -> None:
        """Note that work on a record begins."""
        with self._lock:
            self._current = _key(where, offset)
            self._write()

    def done(self) -> None:
        """Note that the work is done, or the process stops on purpose."""
        with self._lock:
            if self._current is not None:
                self._current = None
                self._write()

    def begin_reading(self, where: TopicPartition, offset: int) -> None:
        """Note that a record is read ahead, while another may be worked on."""
        with self._lock:
            self._reading = _key(where, offset)
            self._write()

    def done_reading(self) -> None:
        """Note that it has been read."""
        with self._lock:
            self._reading = None
            self._write()

    def forget(self, positions: Mapping[TopicPartition, int]) -> None:
        """Drop the counts of records that a checkpoint has passed."""
        with self._lock:
            self._forget(positions)

    def _forget(self, positions: Mapping[TopicPartition, int]) -> None:
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
        temporary.write_text(
            json.dumps({"current": self._current, "reading": self._reading, "counts": self._counts})
        )
        temporary.replace(self._path)


def _key(where: TopicPartition, offset: int) -> str:
    return f"{where.topic}/{where.partition}/{offset}"
