"""The lease, the crash notes, the requests from outside, and what a person sees."""

from __future__ import annotations

import io
import itertools
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from reconstruct.types import EngineEvent, StepReport
from schemas.control import ControlReply
from streamer.control import ask
from streamer.crashes import CrashNotes
from streamer.errors import ConfigurationError, TwinError
from streamer.lease import Lease
from streamer.progress import LiveProgress, PlainProgress, WordsProgress, progress_for
from streamer.state import SessionState
from streamer.transports.base import Lag, TopicPartition
from tests.streamer.bench import Bench
from tests.streamer.test_pictures import a_snapshot

_numbers = itertools.count()
WHERE = TopicPartition("t", 0)
STEP = StepReport(
    step=1,
    phase="initial",
    new_particles=100,
    replayed_particles=0,
    particles_seen=100,
    particles_presented=100,
    temperature=1.0,
    radius_shells=(5, 5),
    resolution_angstrom=(None, None),
    occupancy=(0.75, 0.25),
    evidence_per_particle=1.0,
    stage_seconds={},
)


def test_the_newer_lease_waits_for_the_older_to_leave(tmp_path: Path) -> None:
    older = Lease(tmp_path, wait_s=0)
    turns = 0

    def older_notices(seconds: float) -> None:
        nonlocal turns
        turns += 1
        with pytest.raises(TwinError):
            older.check()
        older.close()

    with Lease(tmp_path, wait_s=60, pause=older_notices) as newer:
        newer.check()
    assert turns == 1


def test_a_lease_that_is_never_given_up_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    with Lease(tmp_path, wait_s=0), pytest.raises(TwinError, match="its own --out"):
        Lease(tmp_path, wait_s=0)


def test_crashes_are_counted_per_record_and_forgotten_once_passed(tmp_path: Path) -> None:
    path = tmp_path / "crashes.json"
    for _ in range(2):
        notes = CrashNotes(path)
        notes.begin(WHERE, 7)  # and the process dies
    notes = CrashNotes(path)
    assert notes.crashes(WHERE, 7) == 2
    assert notes.crashes(WHERE, 8) == 0
    notes.begin(WHERE, 8)
    notes.done()
    notes.forget({WHERE: 8})
    again = CrashNotes(path)
    assert again.crashes(WHERE, 7) == 0
    assert again.crashes(WHERE, 8) == 0


def test_torn_crash_notes_do_not_stop_a_session(tmp_path: Path) -> None:
    path = tmp_path / "crashes.json"
    path.write_text('{"counts": {"t/0')
    assert CrashNotes(path).crashes(WHERE, 0) == 0


def test_asking_a_session_that_is_not_there_gives_up(tmp_path: Path) -> None:
    bench = Bench(tmp_path, f"memory://around-{next(_numbers)}")
    assert (
        ask(bench.transport, bench.topics, session_id="s", action="status", timeout_s=0.05) is None
    )
    with pytest.raises(ConfigurationError, match="no control action"):
        ask(bench.transport, bench.topics, session_id="s", action="explode", timeout_s=0.05)
    bench.control("end")
    bench.run()
    replies = [r for r in bench.read(bench.topics.control_replies) if isinstance(r, ControlReply)]
    assert [reply.action for reply in replies] == ["status", "end"]
    bench.close()


def test_lines_of_steps_are_as_far_apart_as_asked_unless_something_happens() -> None:
    log = io.StringIO()
    now_s = 0.0
    console = Console(file=log, width=200)
    progress = PlainProgress(console, every_s=5.0, clock_s=lambda: now_s)
    happened = EngineEvent("race", "words")
    for number, (at_s, phase, events) in enumerate(
        [
            (0.5, "initial", ()),  # the first
            (1.0, "initial", ()),
            (5.4, "initial", ()),
            (5.6, "initial", ()),  # five seconds later
            (6.0, "initial", (happened,)),
            (6.1, "final", ()),
            (6.2, "final", ()),
            (11.2, "final", ()),
        ],
        start=1,
    ):
        now_s = at_s
        report = replace(STEP, step=number, phase=phase, events=events)  # type: ignore[arg-type]
        progress.stepped(report, SessionState())
    lines = log.getvalue().splitlines()
    assert [line.split()[1] for line in lines if line.startswith("step ")] == [
        f"step={number}" for number in (1, 4, 5, 6, 8)
    ]
    assert lines[3] == "event kind=race message=words"
    assert "occupancy=0.75/0.25" in lines[0]


def test_lines_for_a_person_are_sentences() -> None:
    log, now_s = io.StringIO(), 100.0
    assert isinstance(progress_for(Console(file=log), every_s=5.0), WordsProgress)
    words = WordsProgress(
        Console(file=log, width=200), every_s=5.0, expected=10_000, clock_s=lambda: now_s
    )
    words.started(SessionState(), ())
    seen = {"particles_seen": 3400, "particles_presented": 4300}
    one = {"resolution_angstrom": (18.21,), "occupancy": (1.0,), **seen}
    again = replace(STEP, new_particles=0, replayed_particles=50)
    for at_s, report in (
        (110.0, replace(STEP, phase="intermediate", **one)),  # type: ignore[arg-type]
        (112.0, again),
        (114.0, again),  # nothing new
        (115.0, replace(STEP, events=(EngineEvent("race", "Kept the best."),))),
    ):
        now_s = at_s
        words.stepped(report, SessionState())
    assert log.getvalue().splitlines() == [
        "10 s  3,400 of 10,000 particles, intermediate phase, 430 particles/s, resolution 18.2 Å",
        "12 s  100 of 10,000 particles, initial phase, finding the first map, which can take "
        "minutes, 8 particles/s, class 1 - (75 %), class 2 - (25 %)",
        "15 s  100 of 10,000 particles, initial phase, 7 particles/s, class 1 - (75 %), "
        "class 2 - (25 %)",
        "15 s  event: Kept the best.",
    ]


def test_speed_is_that_of_late_and_the_end_is_in_sight() -> None:
    """A slow start and a pause are forgotten; a session that goes on has no speed at first."""
    log, screen, now_s = io.StringIO(), io.StringIO(), 0.0
    plain = PlainProgress(Console(file=log, width=200), expected=4000, clock_s=lambda: now_s)
    live = LiveProgress(
        Console(file=screen, force_terminal=True, width=100), expected=4000, clock_s=lambda: now_s
    )
    state = SessionState()
    for observer in (plain, live):
        observer.started(state, ())
    for at_s, seen in ((100.0, 1000), (110.0, 1100), (120.0, 2000)):
        now_s = at_s
        report = replace(STEP, particles_seen=seen, particles_presented=2 * seen)
        for observer in (plain, live):
            observer.stepped(report, state)
    live._live.refresh()
    assert "50 % of 4,000 seen, the others in about 40 s" in screen.getvalue()
    assert "so far" not in screen.getvalue()
    live.stepped(replace(STEP, new_particles=0, replayed_particles=50, particles_seen=2000), state)
    live.activity("running")
    now_s += 7.0
    live.close()
    assert "finding the first map), the next for 7 s so far" in screen.getvalue()
    lines = log.getvalue().splitlines()
    assert "particles=1000 of=4000 presented=2000 per_second=20" in lines[0]
    assert "per_second=100 " in lines[2]  # 2000 presented since 100 s
    assert "50 % of 4,000 seen, the others once there is a first map" in screen.getvalue()

    resumed = PlainProgress(Console(file=log, width=200), clock_s=lambda: now_s)
    resumed.started(SessionState(step=7), ())
    resumed.stepped(STEP, state)
    last = log.getvalue().splitlines()[-1]
    assert "per_second=- " in last
    assert " of=" not in last


@pytest.mark.parametrize("kind", [PlainProgress, WordsProgress])
def test_a_session_that_waits_says_so_and_not_too_often(kind: type[PlainProgress]) -> None:
    log, now_s = io.StringIO(), 0.0
    progress = kind(Console(file=log, width=200), clock_s=lambda: now_s)
    told: list[tuple[float, str]] = []

    def look(*times_s: float) -> None:
        nonlocal now_s
        for now_s in times_s:
            progress.lag(WHERE, Lag(0, 0.0))
            if new := log.getvalue():
                told.append((now_s, new))
                log.seek(0)
                log.truncate()

    look(0.0, 5.0)  # it has not begun to wait
    progress.activity("waiting")
    look(*range(6, 130))
    progress.activity("running")
    look(*range(130, 200))
    progress.activity("waiting")
    look(200.0, 201.0)  # shorter than a breath
    progress.activity("running")
    assert [at_s for at_s, _ in told] == [8.0, 68.0, 128.0]
    assert all("waiting for particles" in words for _, words in told)


def test_a_person_is_told_how_good_the_maps_are_that_were_written() -> None:
    log = io.StringIO()
    words = WordsProgress(Console(file=log, width=200))
    none = replace(a_snapshot(1).classes[0], resolution_angstrom=None)
    for snapshot in (a_snapshot(1), a_snapshot(3), replace(a_snapshot(1), classes=(none,))):
        words.published("step-00000040", snapshot, SessionState(), ())
    told = [line.partition("series, ")[2] for line in log.getvalue().splitlines()]
    assert told == ["resolution 18.0 Å", "resolution 18.0/-/18.0 Å", "no resolution yet"]


def test_a_log_file_gets_plain_lines_and_a_terminal_a_panel(tmp_path: Path) -> None:
    assert isinstance(progress_for(Console(file=io.StringIO())), PlainProgress)
    screen = io.StringIO()
    live = progress_for(Console(file=screen, force_terminal=True, width=100))
    assert isinstance(live, LiveProgress)
    bench = Bench(tmp_path, f"memory://around-{next(_numbers)}", {"engine.n_classes": 2})
    bench.send_batches(0, 1, 2)
    bench.send(b"rubbish")
    bench.control("end")
    bench.run(observer=live)
    live.close()
    bench.close()
    assert "90 trained of 90 received" in screen.getvalue()
    assert "class 2" in screen.getvalue()
    assert "not measurable yet" in screen.getvalue()
    assert "refused" in screen.getvalue()
