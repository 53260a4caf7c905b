"""Each particle counts once, each snapshot is announced once, nothing wedges the session."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from schemas.assignments import AssignmentBatch
from schemas.codec import decode
from schemas.control import ControlReply
from schemas.dead_letter import DeadLetter
from schemas.events import SessionEvent
from schemas.volumes import VolumeSnapshot
from streamer.errors import AccountingError, CheckpointError, RetentionGapError, TwinError
from streamer.ledger import Ledger, RecentRecords, balance
from streamer.observe import Observer
from streamer.outbox import Outbox
from streamer.parts import StopRequest
from tests.streamer.bench import Bench, Crash, batch_bytes, crash_at, fingerprint

_numbers = itertools.count()
MakeBench = Callable[..., Bench]

POINTS = (
    "polled",
    "checked",
    "trained",
    "saving",
    "saved",
    "written",
    "renamed",
    "announced",
    "committed",
    "replayed",
)


@pytest.fixture(autouse=True)
def _no_power_cuts_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """These crashes are of the process, so nothing needs to reach the platter (10 times faster)."""
    monkeypatch.setattr("os.fsync", lambda handle: None)


@pytest.fixture(params=["memory", "sqlite"])
def make_bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakeBench]:
    benches: list[Bench] = []

    def make(**overrides: object) -> Bench:
        folder = tmp_path / str(len(benches))
        folder.mkdir()
        bus = (
            f"memory://loop-{next(_numbers)}"
            if request.param == "memory"
            else f"sqlite:///{folder}/bus.db"
        )
        benches.append(Bench(folder, bus, overrides))
        return benches[-1]

    yield make
    for bench in benches:
        bench.close()


def fill(bench: Bench) -> None:
    """Put a session with everything in it on the bus: 10 batches, poison, repeats, bad rows."""
    bench.send_batches(0, 1, 2)
    bench.send(b"not a record at all")
    bench.send(batch_bytes(1))  # sent twice by its producer
    bench.send(batch_bytes(3, change=_spoil_two_rows))
    bench.send_batches(4, 5, 6, 7, 8, 9)
    bench.send(batch_bytes(4, record_id="the-same-particles-again"))
    bench.control("end")


def _spoil_two_rows(images: np.ndarray, rows: dict[str, np.ndarray]) -> None:
    images[3] = 7.0
    rows["defocus_u_angstrom"][5] = 0.0


def announced(bench: Bench) -> Counter[str]:
    records = bench.read(bench.topics.volumes)
    return Counter(record.snapshot_id for record in records if isinstance(record, VolumeSnapshot))


def final_files(bench: Bench) -> dict[str, bytes]:
    series = bench.settings.out / "series"
    return {
        str(path.relative_to(series)): path.read_bytes()
        for path in sorted(series.rglob("*"))
        if path.is_file()
    }


def test_an_uninterrupted_session_accounts_for_every_particle(make_bench: MakeBench) -> None:
    bench = make_bench()
    fill(bench)
    finished = bench.run()
    books = finished.state.balance()
    assert finished.outcome == "ended"
    assert books.received == 12 * 30
    assert books.quarantined == 2
    assert books.duplicate == 60
    assert books.trained == 298
    assert books.in_flight == 0
    assert finished.state.ledger.dead_lettered == {"bad_magic": 1}
    assert finished.state.ledger.quarantined == {"constant_image": 1, "defocus_zero": 1}
    snapshots = announced(bench)
    assert len(snapshots) >= 3
    assert set(snapshots.values()) == {1}
    assert sum(1 for name in snapshots if name.endswith("-final")) == 1
    letters = [r for r in bench.read(bench.topics.dead_letter) if isinstance(r, DeadLetter)]
    assert [letter.scope for letter in letters] == ["record", "particles"]
    assert [(p.row, p.reason) for p in letters[1].particles] == [
        (3, "constant_image"),
        (5, "defocus_zero"),
    ]


@pytest.mark.parametrize("point", POINTS)
def test_a_crash_at_any_boundary_leaves_the_same_bits(make_bench: MakeBench, point: str) -> None:
    calm = make_bench()
    fill(calm)
    expected = calm.run()
    expected_files = final_files(calm)
    crashes = 0
    for nth in (1, 2, 4) if calm.bus.startswith("memory") else (2,):
        bench = make_bench()
        fill(bench)
        try:
            bench.run(crash_at(point, nth))
        except Crash:
            crashes += 1
        again = bench.run()
        assert again.outcome == "ended"
        assert fingerprint(again) == fingerprint(expected)
        assert again.state.balance() == expected.state.balance()
        assert again.state.ledger == expected.state.ledger
        assert announced(bench) == announced(calm)
        assert final_files(bench) == expected_files
        ids = Counter(
            (type(record).__name__, record.envelope.record_id)
            for topic in (bench.topics.events, bench.topics.dead_letter, bench.topics.assignments)
            for record in bench.read(topic)
        )
        assert max(ids.values()) == 1
    assert crashes >= 1


def test_crashing_again_and_again_still_ends_with_the_same_bits(make_bench: MakeBench) -> None:
    calm = make_bench()
    fill(calm)
    expected = calm.run()
    bench = make_bench(**{"limits.crashes_per_record": 1000})
    fill(bench)
    crashes = 0
    for point in itertools.islice(itertools.cycle(POINTS), 60):
        try:
            finished = bench.run(crash_at(point, 1 + crashes % 4))
        except Crash:
            crashes += 1
            continue
        if finished.outcome == "ended":
            break
    else:
        finished = bench.run()
    assert crashes >= 4
    assert fingerprint(finished) == fingerprint(expected)
    assert announced(bench) == announced(calm)


def test_poison_first_does_not_stop_what_comes_after(make_bench: MakeBench) -> None:
    bench = make_bench()
    good = batch_bytes(0)
    poison = [
        b"",
        b"ABIL",
        good[:-1],
        good + b"x",
        good[:100] + b"\xff" * 200 + good[300:],
        b"\0" * 4096,
        batch_bytes(1, box=24)[:40],
    ]
    for value in poison:
        bench.send(value)
    bench.send(good)
    bench.send(batch_bytes(2, box=24))  # another box than the session's
    bench.control("end")
    finished = bench.run()
    assert finished.state.balance().trained == 30
    assert finished.state.ledger.dead_lettered.total() == len(poison) + 1
    assert finished.state.ledger.dead_lettered["wrong_box"] == 1
    offsets = [r.source_offset for r in bench.read(bench.topics.dead_letter)]
    assert offsets == [*range(len(poison)), len(poison) + 1]


def test_a_dead_letter_holds_the_bytes_that_were_refused(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.send(b"rubbish" * 10)
    bench.control("end")
    bench.run()
    (raw,) = bench.read_raw(bench.topics.dead_letter)
    assert bytes(decode(raw.value).arrays["payload"]) == b"rubbish" * 10


def test_particles_of_other_sessions_are_left_alone(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.send(batch_bytes(0, session="other"), key=b"other")
    bench.send(batch_bytes(1, session="other"), key=None)
    bench.send_batches(2)
    bench.control("end")
    finished = bench.run()
    assert finished.state.balance().received == 30
    assert finished.state.ledger.other_sessions == 2


def test_a_record_that_keeps_killing_the_process_is_dead_lettered(make_bench: MakeBench) -> None:
    bench = make_bench(**{"limits.crashes_per_record": 3})
    bench.send_batches(0, 1, 2)
    bench.control("end")

    def dies_on_second_record(point: str, seen: Counter[str]) -> None:
        seen[point] += 1
        if point == "checked" and seen[point] == 2:
            raise Crash

    deaths = 0
    while True:
        seen: Counter[str] = Counter()
        # The restart begins at the checkpoint before the first record each time.
        try:
            finished = bench.run(lambda point, seen=seen: dies_on_second_record(point, seen))
        except Crash:
            deaths += 1
            assert deaths <= 3
            if deaths == 3:
                finished = bench.run()
                break
            continue
        break
    assert deaths == 3
    assert finished.state.ledger.dead_lettered == {"crashed_the_process": 1}
    assert finished.state.balance().trained == 60


def test_retention_stops_the_session_or_is_skipped_and_counted(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.send_batches(0, 1)
    bench.run_until_idle()
    bench.send_batches(2, 3, 4)
    low = bench.read_raw(bench.topics.particles)[4].offset
    bench.transport.delete_records(bench.topics.particles, 0, low)
    bench.control("end")
    with pytest.raises(RetentionGapError, match="--skip-gap"):
        bench.run()
    skipping = Bench(bench.folder, bench.bus, {**bench.overrides, "limits.skip_gap": True})
    finished = skipping.run()
    skipping.close()
    assert finished.outcome == "ended"
    assert finished.state.ledger.gap_offsets == 2
    assert finished.state.balance().trained == 90


def test_the_newer_of_two_processes_goes_on_and_the_older_stops(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.send_batches(0, 1)
    inner: list[object] = []

    class Twin(Observer):
        def activity(self, name: str) -> None:
            if name == "waiting" and not inner:
                inner.append(None)
                # A twin on another machine: same session, its own state folder.
                outbox = Outbox(bench.transport, bench.topics, "s")
                inner[0] = outbox
                bench.send_batches(2, 3)

    with pytest.raises(TwinError, match="newer process"):
        bench.run(observer=Twin())


def test_a_taken_over_state_folder_stops_the_older_before_it_trains(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.send_batches(0)

    class Usurper(Observer):
        def activity(self, name: str) -> None:
            if name == "waiting":
                (bench.settings.state_folder / "owner").write_text("somebody else")
                bench.send_batches(1)

        def taken(self, record: object, taken: object, state: object) -> None:
            assert record.offset == 0

    with pytest.raises(TwinError, match="newer process"):
        bench.run(observer=Usurper())


def test_a_stop_request_saves_and_publishes_and_the_session_goes_on_later(
    make_bench: MakeBench,
) -> None:
    calm = make_bench()
    fill(calm)
    expected = calm.run()
    bench = make_bench()
    fill(bench)
    stop = StopRequest()

    class StopAfterTwoSteps(Observer):
        def stepped(self, report: object, state: object) -> None:
            stop.requested = report.step >= 2

    stopped = bench.run(observer=StopAfterTwoSteps(), stop=stop)
    assert stopped.outcome == "stopped"
    assert stopped.state.step == 2
    assert list(announced(bench)) == ["s-step-00000002"]
    again = bench.run()
    assert again.outcome == "ended"
    assert fingerprint(again) == fingerprint(expected)


def test_a_session_that_has_ended_stays_ended(make_bench: MakeBench) -> None:
    bench = make_bench()
    fill(bench)
    first = bench.run()
    before = announced(bench)
    again = bench.run()
    assert again.outcome == "ended"
    assert fingerprint(again) == fingerprint(first)
    assert announced(bench) == before


def test_other_engine_settings_are_refused_with_a_remedy(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.send_batches(0)
    bench.run_until_idle()
    more = {"engine.seed": 5, "engine.symmetry": "D7"}
    other = Bench(bench.folder, bench.bus, {**bench.overrides, **more})
    with pytest.raises(CheckpointError, match="new session") as refused:
        other.run()
    for words in ("engine.seed", " was 0, is 5; ", "engine.symmetry", ' was "C1", is "D7"'):
        assert words in refused.value.problem
    assert refused.value.problem.count(" was ") == 3  # begun, and these two
    other.close()


def test_control_requests_are_obeyed_and_answered(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.send_batches(0, 1, 2, 3)
    early = bench.control("snapshot")
    bench.run_until_idle()
    asked = {name: bench.control(name) for name in ("pause", "status", "snapshot")}
    stop = StopRequest()

    class StopWhenPaused(Observer):
        def activity(self, name: str) -> None:
            stop.requested = name == "paused"

    bench.send_batches(4, 5)
    paused = bench.run(observer=StopWhenPaused(), stop=stop)
    assert paused.state.paused
    assert paused.state.balance().received == 120  # what came after the pause waits in the log
    bench.control("resume")
    ending = bench.control("end")
    finished = bench.run()
    assert finished.state.balance().trained == 180
    replies = {r.request_id: r for r in bench.read(bench.topics.control_replies)}
    assert all(isinstance(reply, ControlReply) for reply in replies.values())
    assert replies[early].outcome == "refused"
    assert replies[asked["pause"]].outcome == "done"
    assert replies[asked["status"]].status.particles_received == 120
    assert replies[asked["snapshot"]].outcome == "accepted"
    assert replies[ending].outcome == "accepted"
    assert "s-step-00000003" in announced(bench)


def test_far_future_clocks_do_not_wedge_a_session(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.producer.send(bench.topics.particles, batch_bytes(0), key=b"s", timestamp_ns=4 * 10**18)
    bench.producer.flush()
    bench.send_batches(1)
    bench.control("end")
    assert bench.run().state.balance().trained == 60


def test_the_assignments_of_the_last_snapshot_name_every_particle(make_bench: MakeBench) -> None:
    bench = make_bench()
    fill(bench)
    finished = bench.run()
    batches = [
        record
        for record in bench.read(bench.topics.assignments)
        if isinstance(record, AssignmentBatch)
        and record.snapshot_id == finished.state.last_snapshot_id
    ]
    names = [name for batch in batches for name in batch.image_names]
    assert len(names) == len(set(names)) == 298 == batches[0].total_rows


def test_every_published_file_has_the_digest_in_its_manifest(make_bench: MakeBench) -> None:
    import hashlib

    bench = make_bench()
    fill(bench)
    bench.run()
    snapshots = [r for r in bench.read(bench.topics.volumes) if isinstance(r, VolumeSnapshot)]
    parents = [snapshot.parent_snapshot_id for snapshot in snapshots]
    assert parents == [None, *(snapshot.snapshot_id for snapshot in snapshots[:-1])]
    for snapshot in snapshots:
        for entry in snapshot.classes:
            data = (bench.settings.out / entry.path).read_bytes()
            assert hashlib.sha256(data).hexdigest() == entry.sha256
        folder = (bench.settings.out / snapshot.classes[0].path).parent
        manifest = json.loads((folder / "manifest.json").read_text())
        assert manifest["snapshot_id"] == snapshot.snapshot_id


def test_a_full_disk_is_told_and_the_session_goes_on(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench()
    bench.send_batches(0, 1)
    told: list[str] = []

    class Listener(Observer):
        def checkpoint_failed(self, problem: str) -> None:
            told.append(problem)
            monkeypatch.undo()

    def full(*_: object, **__: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("streamer.checkpoint.write_arrays", full)
    bench.control("end")
    assert bench.run(observer=Listener()).outcome == "ended"
    assert len(told) == 1
    assert "No space" in told[0]


def test_events_of_the_engine_reach_the_topic(make_bench: MakeBench) -> None:
    bench = make_bench()
    fill(bench)
    bench.run()
    events = [r for r in bench.read(bench.topics.events) if isinstance(r, SessionEvent)]
    assert [e.message for e in events if e.kind == "phase"] == ["The first update."]
    assert events[-1].kind == "session_end"


def test_a_lost_particle_is_noticed() -> None:
    ledger = Ledger(received=10, duplicate=2)
    books = balance(ledger, stored=8, trained=5)
    assert books.in_flight == 3
    assert [books.left_out(limit) for limit in (None, 5, 6, 8, 100)] == [0, 3, 2, 0, 0]
    with pytest.raises(AccountingError):
        balance(ledger, stored=7, trained=5)


def test_recent_records_forget_the_oldest_first() -> None:
    recent = RecentRecords(2, ["a"])
    recent.add("b")
    recent.add("c")
    assert [name in recent for name in "abc"] == [False, True, True]
    assert RecentRecords(2, recent.as_list()).as_list() == ["b", "c"]
