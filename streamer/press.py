"""The thread that writes a snapshot's files and pictures while the model trains on.

One snapshot at a time: the next one, and the next checkpoint, wait for the one before. Files and
records are made here; they are announced by the loop, which alone talks to the bus.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from streamer.publish import Made, Publisher, Taken

__all__ = ["Press", "Printed"]


@dataclass(frozen=True)
class Printed:
    """A snapshot whose files are in place, to be announced."""

    made: Made
    created_ns: Sequence[int]  # when the records were made that are new in it


class Press:
    """Writes one session's snapshots, in order.

    Parameters
    ----------
    publisher
        Knows what belongs to a snapshot.
    announce
        Tells the world; called by `settle`, in the caller's thread.
    """

    def __init__(self, publisher: Publisher, announce: Callable[[Printed], None]) -> None:
        self._publisher = publisher
        self._announce = announce
        self._threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="press")
        self._under_way: tuple[Future[Made], Sequence[int]] | None = None

    def start(self, taken: Taken, created_ns: Sequence[int]) -> None:
        """Begin with a snapshot; the one before is announced first."""
        self.settle()
        self._under_way = self._threads.submit(self._publisher.make, taken), created_ns

    def settle_if_made(self) -> None:
        """Announce the snapshot under way, if its files are in place."""
        if self._under_way is not None and self._under_way[0].done():
            self.settle()

    def settle(self) -> None:
        """Wait for the snapshot under way, if any, and announce it.

        Raises
        ------
        OSError, ServiceError, TransportError
            Its files could not be written, or it could not be announced.
        """
        if self._under_way is None:
            return
        (future, created_ns), self._under_way = self._under_way, None
        self._announce(Printed(future.result(), created_ns))

    def close(self) -> None:
        """End the thread; what is not announced will be, by who goes on with the session."""
        self._threads.shutdown(wait=True)
