"""How the embedded bus opens its SQLite database and how its errors become words.

This file owns the schema, the locking and the durability: a file is in WAL mode on a local disk, a
write waits up to ``BUSY_S`` for other processes, a commit is on disk when it returns. In memory
one connection serves every user of the name, one at a time.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from streamer.transports.base import BusUnreachableError, TransportError

__all__ = ["BUSY_S", "Database", "Handle", "memory_database", "open_file"]

BUSY_S = 30.0
_APPLICATION_ID = 0x61624C69  # "abLi"
_LAYOUT_VERSION = 1
_PAGE_BYTES = (
    32768  # records are up to 1 MiB: fewer, larger pages; SQLite's 4 KiB default is slower
)
_CHECKPOINT_PAGES = 1024

_SCHEMA = (
    """CREATE TABLE IF NOT EXISTS partitions (
        id INTEGER PRIMARY KEY, topic TEXT NOT NULL, number INTEGER NOT NULL,
        low INTEGER NOT NULL DEFAULT 0, next INTEGER NOT NULL DEFAULT 0,
        size_bytes INTEGER NOT NULL DEFAULT 0, retention_bytes INTEGER, retention_ns INTEGER,
        max_record_bytes INTEGER, UNIQUE (topic, number))""",
    # The value comes last: reading the other columns does not touch its overflow pages.
    """CREATE TABLE IF NOT EXISTS log (
        id INTEGER PRIMARY KEY, timestamp_ns INTEGER NOT NULL, size_bytes INTEGER NOT NULL,
        key BLOB, headers TEXT NOT NULL, value BLOB NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS producers (
        transactional_id TEXT PRIMARY KEY, epoch INTEGER NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS commits (
        group_name TEXT NOT NULL, topic TEXT NOT NULL, number INTEGER NOT NULL,
        position INTEGER NOT NULL, PRIMARY KEY (group_name, topic, number))""",
    f"PRAGMA application_id = {_APPLICATION_ID}",
    f"PRAGMA user_version = {_LAYOUT_VERSION}",
)


class Database:
    """One connection, used by one thread at a time, closed by its last user."""

    def __init__(self, target: str) -> None:
        self.users = 1
        self._name = target
        self._lock = threading.RLock()
        self._connection = sqlite3.connect(
            target, timeout=BUSY_S, isolation_level=None, check_same_thread=False
        )

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """One consistent view of the file."""
        with self._lock, self._in_words():
            nested = self._connection.in_transaction
            if not nested:
                self._connection.execute("BEGIN")
            try:
                yield self._connection
            finally:
                if not nested:
                    self._connection.execute("COMMIT")

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """All of the block or nothing; other writers wait."""
        with self._lock, self._in_words():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                # A full disk has rolled back by itself; the error that matters is the first one.
                with suppress(sqlite3.OperationalError):
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            if error.sqlite_errorname == "SQLITE_BUSY":
                raise TransportError(
                    f"{self._name} was locked by another process for {BUSY_S:.0f} s: end the "
                    "process that holds it, or use one bus file per session"
                ) from error
            raise TransportError(
                f"{self._name}: {error}: check free space and permissions of its folder"
            ) from error
        except sqlite3.ProgrammingError as error:
            if "closed database" not in str(error):
                raise
            raise TransportError(f"{self._name} is closed: open the bus again") from error
        except sqlite3.DatabaseError as error:
            raise TransportError(f"{self._name}: {error}: choose another bus file") from error

    def prepare(self) -> None:
        """Make the tables, or check that the file is ours."""
        with self._in_words():
            self._connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
            (tables,) = self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            (owner,) = self._connection.execute("PRAGMA application_id").fetchone()
            (version,) = self._connection.execute("PRAGMA user_version").fetchone()
            if tables and owner != _APPLICATION_ID:
                raise TransportError(f"{self._name} is another program's file: choose another path")
            if tables and version != _LAYOUT_VERSION:
                raise TransportError(
                    f"{self._name} has layout {version}, this version reads {_LAYOUT_VERSION}: "
                    "start a new file, or use the version that made it"
                )
            self._use_write_ahead_log()
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
        if not tables:
            with self.writing() as connection:
                for statement in _SCHEMA:
                    connection.execute(statement)

    def _use_write_ahead_log(self) -> None:
        # SQLite does not wait for a lock while it switches the mode: two openers take turns.
        deadline_s = time.monotonic() + BUSY_S
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode = WAL").fetchone()
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorname != "SQLITE_BUSY" or time.monotonic() > deadline_s:
                    raise
            time.sleep(0.005)

    def close(self) -> None:
        """Give the connection up; the last user closes it."""
        with _MEMORY_LOCK:
            self.users -= 1
            if self.users > 0:
                return
            for name, database in list(_MEMORY.items()):
                if database is self:
                    del _MEMORY[name]
        self._connection.close()


class Handle:
    """Something with a share of a database to give back."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._open = True

    def close(self) -> None:
        """Give the share back; twice is harmless."""
        if self._open:
            self._open = False
            self._database.close()


_MEMORY: dict[str, Database] = {}
_MEMORY_LOCK = threading.Lock()


def open_file(path: Path) -> Database:
    """Connect to the bus file at ``path`` and make it if it is new.

    Raises
    ------
    BusUnreachableError
        The folder is missing, or the file cannot be opened.
    """
    path = path.resolve()
    try:
        database = Database(str(path))
    except sqlite3.OperationalError as error:
        raise BusUnreachableError(
            f"the bus file {path} cannot be opened ({error}): make its folder or mend its "
            "permissions; sqlite:///name is relative to the working folder, sqlite:////name is not"
        ) from error
    try:
        database.prepare()
    except BaseException:
        database.close()
        raise
    return database


def memory_database(name: str) -> Database:
    """Join, or make, the database ``name`` of this process."""
    with _MEMORY_LOCK:
        database = _MEMORY.get(name)
        if database is not None:
            database.users += 1
            return database
        database = _MEMORY[name] = Database(":memory:")
        for statement in _SCHEMA:
            database._connection.execute(statement)
        return database
