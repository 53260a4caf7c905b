"""Records read ahead of the loop: polled, decoded and looked over while the model trains.

One thread owns the consumer from `ReadAhead.start` to `ReadAhead.close`; what others want of it is
done there, between two polls. Records come out in the order of the log, one error among them where
it happened, and no more are held than the bounds allow. What is read and dropped costs nothing:
positions are the loop's, and advance with what it has looked at.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

from streamer.intake import Read, Refused, Skipped
from streamer.transports.base import Consumer, Record, TopicPartition
from streamer.transports.errors import OffsetOutOfRangeError

__all__ = ["Ahead", "Idle", "ReadAhead"]

T = TypeVar("T")

_ENDS_EVERY_S = 1.0


@dataclass(frozen=True)
class Ahead:
    """One record, with what reading it gave; None where that is left to the loop."""

    record: Record
    found: Read | Refused | Skipped | None

    @property
    def size_bytes(self) -> int:
        """Memory that it holds, about."""
        more = self.found.size_bytes if isinstance(self.found, Read) else 0
        return len(self.record.value) + more


@dataclass(frozen=True)
class Idle:
    """The log held nothing more when the loop asked; where reading goes on."""

    positions: Mapping[TopicPartition, int]


class ReadAhead:
    """Reads one consumer in a thread of its own.

    Parameters
    ----------
    consumer
        Not to be used by anyone else between `start` and `close`.
    read
        Looks at a record as far as that needs no session; None leaves it to the loop.
    most_records, most_bytes
        Bounds of what is held; one record more may be under way.
    poll_records, wait_s
        Of each poll.
    """

    def __init__(
        self,
        consumer: Consumer,
        *,
        read: Callable[[Record], Read | Refused | Skipped | None],
        most_records: int,
        most_bytes: int,
        poll_records: int,
        wait_s: float,
    ) -> None:
        self._consumer = consumer
        self._read = read
        self._most_records, self._most_bytes = most_records, most_bytes
        self._poll_records, self._wait_s = poll_records, wait_s
        self._changed = threading.Condition()
        self._items: deque[Ahead | Idle | Exception] = deque()
        self._held_bytes = 0
        self._calls: deque[Callable[[], None]] = deque()
        self._wanted = False  # the loop has nothing left to look at
        self._halted = False  # at a hole in the log, until told where to go on
        self._closing = False
        self._raw: deque[Record] = deque()  # the thread's own: polled, not yet read
        self._ends_at_s = float("-inf")
        self._ends: Mapping[TopicPartition, int] | None = None
        self._thread = threading.Thread(target=self._work, name="read-ahead", daemon=True)

    # the loop's side --------------------------------------------------------------------------

    def start(self) -> None:
        """Begin; the consumer has its positions."""
        self._thread.start()

    def close(self) -> None:
        """End the thread, after what it was told to do; the consumer is free again."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def take(self, most: int, wait_s: float) -> list[Ahead | Idle]:
        """Give what is there, in order; wait for the first of it, and not for long.

        Raises
        ------
        TransportError
            Reading went wrong here, after all that was given before.
        """
        with self._changed:
            if not self._items:
                self._wanted = True
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._items, wait_s)
            taken: list[Ahead | Idle] = []
            while self._items and len(taken) < most:
                item = self._items[0]
                if isinstance(item, Exception):
                    if taken:
                        break
                    self._items.popleft()
                    raise item
                self._items.popleft()
                taken.append(item)
                if isinstance(item, Ahead):
                    self._held_bytes -= item.size_bytes
            if taken:
                self._wanted = False
                self._changed.notify_all()
        return taken

    def go_on(self, where: TopicPartition, offset: int) -> None:
        """Read on behind a hole."""

        def seek() -> None:
            self._consumer.seek(where.topic, where.partition, offset)
            self._halted = False

        self._post(seek)

    def commit(self, positions: Mapping[TopicPartition, int]) -> None:
        """Tell monitoring how far the session is, soon."""
        self._post(lambda: self._consumer.commit(positions))

    @property
    def ends(self) -> Mapping[TopicPartition, int] | None:
        """Where the log ended a second ago or less, for monitoring; None when not known yet."""
        return self._ends

    def ends_now(self) -> Mapping[TopicPartition, int]:
        """Ask where the log ends."""
        answer: Future[Mapping[TopicPartition, int]] = Future()

        def ask() -> None:
            try:
                answer.set_result(self._measure_ends())
            except Exception as error:
                answer.set_exception(error)

        self._post(ask)
        return answer.result()

    def _post(self, call: Callable[[], None]) -> None:
        with self._changed:
            if self._thread.is_alive() and not self._closing:
                self._calls.append(call)
                self._changed.notify_all()
                return
        call()  # the thread has ended: the consumer is ours

    # the thread's side ------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            try:
                if not self._turn():
                    return
            except OffsetOutOfRangeError as error:
                self._halted = True
                self._put(error)
            except Exception as error:
                self._halted = True  # it is the loop's to end the session
                self._put(error)

    def _turn(self) -> bool:
        """Do one thing: what was asked for, or read one record, or poll."""
        with self._changed:
            self._changed.wait_for(self._something_to_do)
            call = self._calls.popleft() if self._calls else None
            closing, wanted = self._closing, self._wanted
        if call is not None:
            call()
            return True
        if closing:
            return False
        if self._halted or not self._has_room():
            return True
        if self._raw:
            record = self._raw.popleft()
            self._put(Ahead(record, self._read(record)))
            return True
        now_s = time.monotonic()
        if now_s - self._ends_at_s >= _ENDS_EVERY_S:
            self._ends_at_s, self._ends = now_s, self._measure_ends()
        self._raw.extend(self._consumer.poll(self._poll_records, self._wait_s))
        if wanted and not self._raw:
            where_now = self._consumer.position
            self._put(Idle({w: where_now(w.topic, w.partition) for w in self._consumer.partitions}))
        return True

    def _something_to_do(self) -> bool:
        return bool(self._closing or self._calls or (self._has_room() and not self._halted))

    def _has_room(self) -> bool:
        return len(self._items) < self._most_records and self._held_bytes < self._most_bytes

    def _put(self, item: Ahead | Idle | Exception) -> None:
        with self._changed:
            self._wanted = False  # answered: what is idle now may stand behind this
            if isinstance(item, Ahead):
                self._held_bytes += item.size_bytes
            self._items.append(item)
            self._changed.notify_all()

    def _measure_ends(self) -> dict[TopicPartition, int]:
        consumer = self._consumer
        return {w: consumer.end_offset(w.topic, w.partition) for w in consumer.partitions}
