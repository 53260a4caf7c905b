"""How a session goes, for the person at the terminal: one live panel, or plain lines.

On a terminal the panel is redrawn in place; otherwise there are lines. A service has one of
``name=value`` fields to each step, so that a log file can be searched and cut; a run that a person
waits for has sentences: for the first step of each phase, for those with events, and one every few
seconds.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from reconstruct.types import EngineEvent, Snapshot, StepReport
from schemas.control import SessionState as Activity
from streamer.caption import phase_told
from streamer.checkpoint import Saved
from streamer.intake import Refused, Taken
from streamer.observe import Observer
from streamer.state import SessionState
from streamer.transports.base import Lag, Record, TopicPartition

__all__ = ["LiveProgress", "PlainProgress", "WordsProgress", "progress_for"]

_SHOWN_EVENTS = 5
_LONG_S = 3.0  # that an update, or waiting, may take before it is told how long it has
_WAITING_EVERY_S = 60.0
_RECENT_S = 15.0  # that speed is told of: since the start, it would hide the race and every pause


def progress_for(
    console: Console, *, every_s: float = 0.0, expected: int | None = None
) -> Observer:
    """Give the observer that suits where the output goes.

    Parameters
    ----------
    every_s
        Least time between two lines of steps in which nothing happened, for a person who waits; 0
        gives a line of fields to each.
    expected
        Particles that will come, where that is known.
    """
    if console.is_terminal:
        return LiveProgress(console, expected=expected)
    plain = WordsProgress if every_s > 0 else PlainProgress
    return plain(console, every_s=every_s, expected=expected)


class _Speed:
    """Particles presented, and seen for the first time, per second of late."""

    def __init__(self) -> None:
        self._marks: deque[tuple[float, int, int]] = deque()

    def note(self, now_s: float, presented: int, seen: int) -> None:
        self._marks.append((now_s, presented, seen))
        while len(self._marks) > 2 and now_s - self._marks[1][0] >= _RECENT_S:
            self._marks.popleft()

    def _rate(self, column: int) -> float | None:
        if not self._marks:
            return None
        first, last = self._marks[0], self._marks[-1]
        elapsed_s = last[0] - first[0]
        return (last[column] - first[column]) / elapsed_s if elapsed_s > 0 else None

    @property
    def presented(self) -> float | None:
        """Per second; None before it is known."""
        return self._rate(1)

    @property
    def seen(self) -> float | None:
        """Per second; None before it is known."""
        return self._rate(2)


def resolution_words(values: Sequence[float | None]) -> str:
    """Give resolutions per class, a dash where none can be said yet."""
    return "/".join("-" if value is None else f"{value:.1f}" for value in values)


def _comparing(report: StepReport) -> bool:
    """Whether the first map's particles are shown again to its random starts."""
    return report.phase == "initial" and not report.new_particles


class PlainProgress(Observer):
    """Lines of fields for steps, and one per thing worth telling."""

    def __init__(
        self,
        console: Console,
        *,
        every_s: float = 0.0,
        expected: int | None = None,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console
        self._every_s = every_s
        self._expected = expected
        self._clock_s = clock_s
        self._speed = _Speed()
        self._told_s = float("-inf")
        self._stage: tuple[str, bool] = ("", False)
        self._lag = 0
        self._waits_since_s: float | None = None
        self._told_waiting_s = float("-inf")

    def _say(self, event: str, **fields: object) -> None:
        words = " ".join(f"{name}={_field(value)}" for name, value in fields.items())
        self._console.print(
            f"{event} {words}".rstrip(), markup=False, highlight=False, soft_wrap=True
        )

    def started(self, state: SessionState, notes: Sequence[str]) -> None:
        """Say where the session stands."""
        for note in notes:
            self._say("warning", message=note)
        if state.step:
            self._say("resumed", step=state.step, particles=state.trained)
        else:
            self._speed.note(self._clock_s(), 0, 0)

    def activity(self, name: Activity) -> None:
        """Keep since when it waits."""
        self._waits_since_s = self._clock_s() if name == "waiting" else None

    def _came(self) -> None:
        if self._waits_since_s is not None:  # and waits on, until there are enough for a step
            self._waits_since_s = self._clock_s()

    def _say_waiting(self) -> None:
        now_s = self._clock_s()
        if self._waits_since_s is None or now_s - self._waits_since_s < _LONG_S:
            return
        if now_s - self._told_waiting_s >= _WAITING_EVERY_S:
            self._told_waiting_s = now_s
            self._say("waiting", message="waiting for particles")

    def refused(self, record: Record, refused: Refused) -> None:
        """Say what was refused."""
        self._came()
        self._say("dead_letter", offset=record.offset, reason=refused.reason, detail=refused.detail)

    def taken(self, record: Record, taken: Taken, state: SessionState) -> None:
        """Say what was quarantined."""
        self._came()
        if taken.problems:
            self._say(
                "quarantined",
                offset=record.offset,
                particles=len(taken.problems),
                first=f"{taken.problems[0].reason}: {taken.problems[0].detail}",
            )

    def stepped(self, report: StepReport, state: SessionState) -> None:
        """Say what a step did, if it is time to or something happened."""
        now_s = self._clock_s()
        self._speed.note(now_s, report.particles_presented, report.particles_seen)
        stage = (phase_told(report.phase, report.class_phases), _comparing(report))
        quiet = stage == self._stage and not report.events
        if quiet and now_s - self._told_s < self._every_s:
            return
        self._told_s, self._stage = now_s, stage
        self._say_step(report, self._speed.presented)
        for event in report.events:
            self.found(event)

    def _say_step(self, report: StepReport, rate: float | None) -> None:
        expected = {} if self._expected is None else {"of": self._expected}
        self._say(
            "step",
            step=report.step,
            phase=report.phase,
            particles=report.particles_seen,
            **expected,
            presented=report.particles_presented,
            per_second="-" if rate is None else f"{rate:.0f}",
            resolution_angstrom=resolution_words(report.resolution_angstrom),
            occupancy="/".join(f"{value:.2f}" for value in report.occupancy),
            lag_records=self._lag,
        )

    def published(
        self, name: str, snapshot: Snapshot, state: SessionState, delays_s: Sequence[float]
    ) -> None:
        """Say that maps are out."""
        resolutions = [item.resolution_angstrom for item in snapshot.classes]
        self._say(
            "snapshot",
            id=name,
            particles=snapshot.particles_seen,
            resolution_angstrom=resolution_words(resolutions),
        )

    def found(self, event: EngineEvent) -> None:
        """Say what was found out."""
        self._say("event", kind=event.kind, message=event.message)

    def checkpoint_failed(self, problem: str) -> None:
        """Say that the state could not be written."""
        self._say("warning", message=f"checkpoint failed: {problem}")

    def lag(self, where: TopicPartition, lag: Lag) -> None:
        """Keep for the next line; it is told about every second, so say here that nothing comes."""
        self._lag = lag.records
        self._say_waiting()


class WordsProgress(PlainProgress):
    """The same as sentences, each after the time since the beginning."""

    _SENTENCES: Mapping[str, str] = {
        "warning": "warning: {message}",
        "event": "event: {message}",
        "waiting": "{message}",
        "resumed": "goes on after {particles:,} particles",
        "dead_letter": "a record was refused: {detail}",
        "quarantined": "{particles:,} particles quarantined, the first for {first}",
    }

    def __init__(self, console: Console, **more: Any) -> None:
        super().__init__(console, **more)
        self._began_s = self._clock_s()

    def _say(self, event: str, **fields: object) -> None:
        self._write(self._SENTENCES[event].format(**fields))

    def published(
        self, name: str, snapshot: Snapshot, state: SessionState, delays_s: Sequence[float]
    ) -> None:
        """Say that maps are out, and how good they are."""
        known = [item.resolution_angstrom for item in snapshot.classes]
        told = f"resolution {resolution_words(known)} Å" if any(known) else "no resolution yet"
        self._write(f"maps of {snapshot.particles_seen:,} particles written into series, {told}")

    def _write(self, words: str) -> None:
        elapsed = f"{self._clock_s() - self._began_s:.0f} s"
        self._console.print(f"{elapsed}  {words}", markup=False, highlight=False, soft_wrap=True)

    def _say_step(self, report: StepReport, rate: float | None) -> None:
        total = "" if self._expected is None else f" of {self._expected:,}"
        parts = [
            f"{report.particles_seen:,}{total} particles",
            f"{phase_told(report.phase, report.class_phases)} phase",
            "finding the first map, which can take minutes" if _comparing(report) else "",
            "" if rate is None else f"{rate:,.0f} particles/s",
            _classes_words(report),
        ]
        self._write(", ".join(filter(None, parts)))


def _classes_words(report: StepReport) -> str:
    """Resolutions of all classes, with their occupancies where there are several."""
    known = report.resolution_angstrom
    if len(known) == 1:
        return "no resolution yet" if known[0] is None else f"resolution {known[0]:.1f} Å"
    return ", ".join(
        f"class {number} {'-' if value is None else f'{value:.1f} Å'} ({100 * share:.0f} %)"
        for number, (value, share) in enumerate(zip(known, report.occupancy, strict=True), 1)
    )


class LiveProgress(Observer):
    """A panel that is redrawn in place."""

    def __init__(
        self,
        console: Console,
        *,
        expected: int | None = None,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock_s = clock_s
        self._expected = expected
        self._speed = _Speed()
        self._activity = "waiting"
        self._lag = Lag(0, 0.0)
        self._report: StepReport | None = None
        self._state: SessionState | None = None
        self._stepped_s = clock_s()
        self._snapshot = "none yet"
        self._events: list[str] = []
        self._live = Live(console=console, get_renderable=self._panel, refresh_per_second=4)
        self._live.start()

    def _tell(self, words: str) -> None:
        self._events = [*self._events, words][-_SHOWN_EVENTS:]

    def started(self, state: SessionState, notes: Sequence[str]) -> None:
        """Show where the session stands."""
        self._state = state
        if not state.step:
            self._speed.note(self._clock_s(), 0, 0)
        for note in notes:
            self._tell(note)

    def activity(self, name: Activity) -> None:
        """Show what the loop is doing."""
        self._activity = name

    def taken(self, record: Record, taken: Taken, state: SessionState) -> None:
        """Show what was quarantined."""
        if taken.problems:
            first = taken.problems[0]
            self._tell(f"{len(taken.problems)} particles quarantined: {first.detail}")

    def refused(self, record: Record, refused: Refused) -> None:
        """Show what was refused."""
        self._tell(f"record {record.offset} refused: {refused.detail}")

    def stepped(self, report: StepReport, state: SessionState) -> None:
        """Show what a step did."""
        self._report, self._stepped_s = report, self._clock_s()
        self._speed.note(self._clock_s(), report.particles_presented, report.particles_seen)
        for event in report.events:
            self._tell(event.message)

    def published(
        self, name: str, snapshot: Snapshot, state: SessionState, delays_s: Sequence[float]
    ) -> None:
        """Show which maps are out."""
        self._snapshot = name

    def checkpointed(self, saved: Saved, state: SessionState) -> None:
        """Nothing to show."""

    def found(self, event: EngineEvent) -> None:
        """Show what was found out."""
        self._tell(event.message)

    def checkpoint_failed(self, problem: str) -> None:
        """Show that the state could not be written."""
        self._tell(f"checkpoint failed: {problem}")

    def lag(self, where: TopicPartition, lag: Lag) -> None:
        """Show the lag."""
        self._lag = lag

    def close(self) -> None:
        """Leave the last panel on the screen."""
        self._live.stop()

    def _progress(self, report: StepReport, expected: int) -> str:
        """How many of the expected particles were seen, and how long the others will take."""
        seen = report.particles_seen
        words = f"{100 * seen / max(expected, 1):.0f} % of {expected:,} seen"
        if seen >= expected:
            return f"{words}; they are shown again"
        if _comparing(report):
            return f"{words}, the others once there is a first map"
        rate = self._speed.seen
        return f"{words}, the others in about {(expected - seen) / rate:.0f} s" if rate else words

    def _under_way(self) -> str:
        """How long the next update takes, where it is long: fresh starts may try its maps."""
        waited_s = self._clock_s() - self._stepped_s
        busy = self._activity in ("running", "finishing") and waited_s >= _LONG_S
        return f", the next for {waited_s:.0f} s so far" if busy else ""

    def _panel(self) -> Table:
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim", justify="right")
        table.add_column()
        report, state = self._report, self._state
        table.add_row("session", Text(self._activity, style="bold green"))
        if report is not None and state is not None:
            books = state.ledger
            refused = books.quarantined.total()
            table.add_row(
                "particles",
                f"{report.particles_seen:,} trained of {books.received:,} received"
                + (f", {refused:,} quarantined" if refused else "")
                + (f", {books.duplicate:,} duplicate" if books.duplicate else ""),
            )
            if self._expected is not None:
                table.add_row("progress", self._progress(report, self._expected))
            rate = self._speed.presented
            known = "-" if rate is None else f"{rate:,.0f}"
            table.add_row("rate", f"{known} particles/s, {self._lag.records} records waiting")
            phase = phase_told(report.phase, report.class_phases)
            comparing = ", finding the first map" if _comparing(report) else ""
            table.add_row("step", f"{report.step} ({phase} phase{comparing}){self._under_way()}")
            for index, value in enumerate(report.resolution_angstrom):
                known = "not measurable yet" if value is None else f"{value:.1f} Å"
                table.add_row(
                    f"class {index + 1}",
                    f"{known}, occupancy {100 * report.occupancy[index]:.0f} %",
                )
        else:
            table.add_row("particles", "waiting for the first ones")
        table.add_row("maps", self._snapshot)
        for words in self._events:
            table.add_row("·", Text(words, style="dim"))
        return table


def _field(value: object) -> str:
    text = str(value)
    return f'"{text}"' if " " in text else text
