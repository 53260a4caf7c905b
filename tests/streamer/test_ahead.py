"""Reading and writing go on beside training: in order, within bounds, and owned by one thread."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from streamer.ahead import Ahead, Idle, ReadAhead
from streamer.crashes import CrashNotes
from streamer.intake import Refused
from streamer.parts import StopRequest
from streamer.transports.base import Consumer, Record, TopicPartition
from streamer.transports.errors import OffsetOutOfRangeError, TransportError
from tests.streamer.bench import Bench, batch_bytes, fingerprint

WHERE = TopicPartition("t", 0)
PATIENCE_S = 30.0  # only a failing test waits so long
_numbers = itertools.count()


class Log:
    """A consumer of one log with a hole in it; notes which threads used it."""

    partitions = (WHERE,)

    def __init__(self, length: int, hole: tuple[int, int] | None = None) -> None:
        self.length, self.hole, self.at = length, hole, 0
        self.threads: set[str] = set()
        self.committed: list[Mapping[TopicPartition, int]] = []

    def _here(self) -> None:
        self.threads.add(threading.current_thread().name)

    def seek(self, topic: str, partition: int, offset: int) -> None:
        self._here()
        self.at = offset

    def position(self, topic: str, partition: int = 0) -> int:
        self._here()
        return self.at

    def poll(self, most: int, timeout_s: float) -> list[Record]:
        self._here()
        start, end = self.hole or (self.length, self.length)
        if start <= self.at < end:
            raise OffsetOutOfRangeError(
                "t", 0, offset=self.at, low_watermark=end, end_offset=self.length
            )
        stop = min(self.at + most, self.length if self.at >= end else start)
        found = [Record("t", 0, n, None, b"%d" % n, (), 0) for n in range(self.at, stop)]
        self.at = stop
        return found

    def end_offset(self, topic: str, partition: int = 0) -> int:
        self._here()
        return self.length

    def commit(self, positions: Mapping[TopicPartition, int]) -> None:
        self._here()
        self.committed.append(positions)


def reader(log: Log, *, most: int = 4, reads: list[int] | None = None) -> ReadAhead:
    def read(record: Record) -> Refused:
        if reads is not None:
            reads.append(record.offset)
        return Refused("a", str(record.offset))

    return ReadAhead(
        log,  # type: ignore[arg-type]
        read=read,
        most_records=most,
        most_bytes=1 << 20,
        poll_records=3,
        wait_s=0.01,
    )


def offsets_until_idle(ahead: ReadAhead) -> Iterator[int]:
    while True:
        for item in ahead.take(2, PATIENCE_S):
            if isinstance(item, Idle):
                return
            yield item.record.offset


def test_records_come_in_the_order_of_the_log_and_then_idleness() -> None:
    log = Log(50)
    ahead = reader(log)
    ahead.start()
    assert list(offsets_until_idle(ahead)) == list(range(50))
    ahead.close()
    assert log.threads == {"read-ahead"}


def test_no_more_is_read_ahead_than_the_bound() -> None:
    log, reads = Log(50), []
    ahead = reader(log, most=5, reads=reads)
    ahead.start()
    while len(reads) < 5:
        ahead.ends_now()  # each answer is one turn of the thread
    for _ in range(20):
        ahead.ends_now()
    assert reads == [0, 1, 2, 3, 4]
    first = ahead.take(1, PATIENCE_S)
    assert isinstance(first[0], Ahead)
    assert first[0].found == Refused("a", "0")
    while len(reads) < 6:
        ahead.ends_now()
    ahead.close()
    assert reads == [0, 1, 2, 3, 4, 5]


def test_a_hole_is_met_after_what_lies_before_it_and_reading_goes_on_where_told() -> None:
    log = Log(9, hole=(4, 7))
    ahead = reader(log)
    ahead.start()
    seen: list[int] = []
    with pytest.raises(OffsetOutOfRangeError):
        seen.extend(offset for offset in _forever(ahead, seen))
    assert seen == [0, 1, 2, 3]
    ahead.go_on(WHERE, 7)
    assert list(offsets_until_idle(ahead)) == [7, 8]
    ahead.close()


def _forever(ahead: ReadAhead, seen: list[int]) -> Iterator[int]:
    while True:
        seen.extend(
            item.record.offset for item in ahead.take(9, PATIENCE_S) if isinstance(item, Ahead)
        )
        yield from ()


def test_what_was_asked_for_is_done_before_the_thread_ends_and_a_failure_is_told() -> None:
    log = Log(0)
    ahead = reader(log)
    ahead.start()
    ahead.commit({WHERE: 3})
    ahead.close()
    assert log.committed == [{WHERE: 3}]

    class Broken(Log):
        def poll(self, most: int, timeout_s: float) -> list[Record]:
            raise TransportError("gone")

    ahead = reader(Broken(1))
    ahead.start()
    with pytest.raises(TransportError, match="gone"):
        ahead.take(1, PATIENCE_S)
    ahead.close()


def test_two_suspects_of_one_crash_are_looked_at_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "crashes.json"
    notes = CrashNotes(path)
    notes.begin(WHERE, 7)
    notes.begin_reading(WHERE, 9)  # and the process dies
    notes = CrashNotes(path)
    assert notes.suspects
    assert [notes.crashes(WHERE, offset) for offset in (7, 8, 9)] == [1, 0, 1]
    notes.begin_reading(WHERE, 8)
    notes.done_reading()  # what was read without harm is no suspect
    notes = CrashNotes(path)
    assert notes.crashes(WHERE, 8) == 0
    notes.forget({WHERE: 10})
    assert not notes.suspects


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A session that saves only when a snapshot is due."""
    made = Bench(
        tmp_path, f"memory://ahead-{next(_numbers)}", {"checkpoint.every_particles": 10**6}
    )
    made.send_batches(*range(10))
    made.control("end")
    yield made
    made.close()


def test_the_model_trains_on_while_a_snapshot_is_written(bench: Bench) -> None:
    under_way, trained_on = threading.Event(), threading.Event()
    seen: list[str] = []

    def hook(point: str) -> None:
        seen.append(point)
        if point == "written":
            under_way.set()
            assert trained_on.wait(PATIENCE_S), "training waited for the files"
        elif point == "trained" and seen.count("committed") == 3:  # new, asked to end, owing
            assert under_way.wait(PATIENCE_S)
            trained_on.set()

    finished = bench.run(hook)
    assert finished.state.balance().trained == 300
    owing = [at for at, point in enumerate(seen) if point == "committed"][2]
    assert "trained" in seen[owing : seen.index("announced")]


def test_no_checkpoint_is_written_before_the_snapshot_that_it_no_longer_owes(bench: Bench) -> None:
    seen: list[str] = []
    bench.run(seen.append)
    owed = 0
    for point in seen:
        owed += {"written": 1, "announced": -1}.get(point, 0)
        assert 0 <= owed <= 1
        assert point != "saving" or owed == 0


def test_what_is_read_ahead_changes_no_bit(bench: Bench, tmp_path: Path) -> None:
    expected = bench.run()
    (tmp_path / "one").mkdir()
    one = Bench(
        tmp_path / "one",
        f"memory://ahead-{next(_numbers)}",
        # a record that may be tried once only is never read ahead
        {
            "checkpoint.every_particles": 10**6,
            "limits.crashes_per_record": 1,
            "batch.max_records": 1,
        },
    )
    for number in range(10):
        one.send(batch_bytes(number))
    one.control("end")
    assert fingerprint(one.run()) == fingerprint(expected)
    one.close()


class LateRecord(ReadAhead):
    """What the loop asks first is not answered in time; then one record comes, and then nothing.

    The log has been polled in vain twice since the record was read when the loop is told that its
    time was up. It is stopped before it can look at what it is given next.
    """

    send: Callable[[], None]
    stop: StopRequest
    answer_behind: bool

    def __init__(self, consumer: Consumer, **more: Any) -> None:
        super().__init__(consumer, **more)
        self._late = False
        self._quiet_polls: int | None = None  # since the record came
        self._quiet = threading.Event()
        polled = consumer.poll

        def poll(most: int, timeout_s: float) -> list[Record]:
            found = polled(most, timeout_s)
            if found:
                self._quiet_polls = 0
            elif self._quiet_polls is not None:
                self._quiet_polls += 1
                if self._quiet_polls == 2:
                    self._quiet.set()
            return list(found)

        consumer.poll = poll  # type: ignore[method-assign]

    def take(self, most: int, wait_s: float) -> list[Ahead | Idle]:
        if not self._late:
            taken = super().take(most, 0.0)
            if taken:  # it was answered in time
                return taken
            self._late = True
            type(self).send()
            assert self._quiet.wait(PATIENCE_S)
            return []
        taken = super().take(most, wait_s)
        assert isinstance(taken[0], Ahead)
        assert len(taken) == 1, "an answer to an earlier question stands behind the record"
        self.stop.requested = True
        where = TopicPartition(taken[0].record.topic, 0)
        behind = {where: taken[0].record.offset + 1}
        return [*taken, Idle(behind)] if self.answer_behind else taken


@pytest.mark.parametrize("answer_behind", [False, True])
def test_a_record_that_was_read_ahead_and_not_looked_at_is_not_moved_past(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer_behind: bool
) -> None:
    bench = Bench(tmp_path, f"memory://ahead-{next(_numbers)}")
    stop = StopRequest()
    with monkeypatch.context() as patched:
        patched.setattr("streamer.loop.ReadAhead", LateRecord)
        patched.setattr(LateRecord, "send", lambda: bench.send_batches(0), raising=False)
        patched.setattr(LateRecord, "stop", stop, raising=False)
        patched.setattr(LateRecord, "answer_behind", answer_behind, raising=False)
        stopped = bench.run(stop=stop)
    assert stopped.outcome == "stopped"
    assert stopped.state.balance().received == 0
    assert stopped.state.positions[TopicPartition(bench.topics.particles, 0)] == 0
    bench.control("end")
    assert bench.run().state.balance().trained == 30
    bench.close()
