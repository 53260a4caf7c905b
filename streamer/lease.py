"""One process per session: the newer takes over, the older leaves, neither writes over the other.

The bus fences the older producer; this file covers the state folder. The newer process writes its
name into ``owner``, the older sees that at its next turn and stops, and only then does the newer
get the lock and read the checkpoint.
"""

from __future__ import annotations

import fcntl
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from reconstruct.io.atomic import replace_atomically
from streamer.errors import TwinError

__all__ = ["Lease"]

_RETRY_S = 0.05


class Lease:
    """Exclusive use of a state folder.

    Parameters
    ----------
    folder
        Made if missing.
    wait_s
        How long the older process has to finish its step and leave.

    Raises
    ------
    TwinError
        Another process still holds the folder after ``wait_s``.
    """

    def __init__(
        self, folder: Path, *, wait_s: float, pause: Callable[[float], None] = time.sleep
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._owner = folder / "owner"
        self._name = f"{os.getpid()} {uuid.uuid4().hex}"
        with replace_atomically(self._owner) as temporary:
            temporary.write_text(self._name)
        self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o666)
        deadline_s = time.monotonic() + wait_s
        while not self._try_lock():
            if time.monotonic() >= deadline_s:
                os.close(self._lock)
                raise TwinError(
                    f"another process still uses {folder} after {wait_s:.0f} s",
                    "Stop it, or give this session its own --out",
                )
            pause(_RETRY_S)
        self.check()

    def _try_lock(self) -> bool:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def check(self) -> None:
        """Raise TwinError when a newer process has asked for the folder."""
        try:
            owner = self._owner.read_text()
        except FileNotFoundError:
            owner = "nobody"
        if owner != self._name:
            raise TwinError(
                "a newer process has taken over this session, so this one stops",
                "Keep one process per session",
            )

    def close(self) -> None:
        """Let the next process in."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
