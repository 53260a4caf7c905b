"""One session in one process, with all around it: engine, terminal, metrics, signals, results.

`serve`, `run` and `demo` differ in where particles come from; what happens to them is here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from rich.console import Console

from reconstruct.backend import Backend
from reconstruct.io.table import ParticleTable
from streamer.caption import stopped_words
from streamer.config import Settings
from streamer.engines import DeviceEngines, check_engine_settings, open_device
from streamer.observe import Observer, Observers
from streamer.parts import StopRequest
from streamer.progress import progress_for
from streamer.quarantine import REASONS
from streamer.results import ReportKeeper, Usage, write_results
from streamer.service import Finished, run_session
from streamer.signals import stop_on_signals
from streamer.state import EngineFactory
from streamer.transports.base import Transport

__all__ = ["LINES_EVERY_S", "engine_factory", "host_session", "metrics_server", "note_to"]

LINES_EVERY_S = 5.0  # where a person waits for the end


def note_to(console: Console, words: str) -> None:
    """Say what a user may want to know of, in one line as it is."""
    console.print(f"note: {words}", markup=False, highlight=False, soft_wrap=True)


def engine_factory(backend: Backend) -> EngineFactory:
    """Give what makes the session's engines."""
    return DeviceEngines(backend)


@contextmanager
def metrics_server(settings: Settings, console: Console) -> Iterator[Sequence[Observer]]:
    """Serve metrics and health while the session runs, if wanted.

    Raises
    ------
    ConfigurationError
        The address cannot be listened on.
    """
    if not settings.metrics.enabled:
        yield ()
        return
    from schemas.codec import REASONS as RECORD_REASONS
    from streamer.metrics import Metrics
    from streamer.status import StatusServer
    from streamer.telemetry import MetricsObserver

    metrics = Metrics(quarantine_reasons=tuple(REASONS), dead_letter_reasons=RECORD_REASONS)
    observer = MetricsObserver(metrics)
    with StatusServer(
        metrics, observer.health, host=settings.metrics.host, port=settings.metrics.port
    ) as server:
        console.print(f"metrics at {server.url}/metrics", markup=False, highlight=False)
        yield (observer,)


def host_session(
    settings: Settings,
    *,
    console: Console,
    usage: Usage,
    factory: EngineFactory | None = None,
    transport: Transport | None = None,
    table: ParticleTable | None = None,
    results_if_stopped: bool = False,
    stop: StopRequest | None = None,
    beside: Callable[[], None] = lambda: None,
    linger: Callable[[Finished], None] = lambda _: None,
    lines_every_s: float = 0.0,
    expected: int | None = None,
) -> Finished:
    """Run a session with all that belongs to it; write its results when it has ended.

    Parameters
    ----------
    table
        The particles as they came, when they came from one file.
    results_if_stopped
        Write them for a session that was cut short too.
    stop
        Set from outside to stop early.
    beside
        Called when everything is up, just before the session begins.
    linger
        Called after the results are written, while metrics are still served.
    lines_every_s
        Without a terminal: least time between two lines of steps in which nothing happened.
    expected
        Particles that will come, where that is known; those beyond ``particles_to_use`` do not
        count.

    Raises
    ------
    ServiceError, TransportError
        The settings, the device, a folder or the bus cannot be used; or the session cannot go on.
    """
    check_engine_settings(settings.engine)
    backend = open_device(settings.device)
    asked, settings = settings.device, settings.model_copy(update={"device": backend.device})
    stop = stop or StopRequest()
    keeper = ReportKeeper()
    with ExitStack() as stack:
        stack.enter_context(stop_on_signals(stop, budget_s=settings.limits.stop_budget_s))
        observers = stack.enter_context(metrics_server(settings, console))
        factory = factory or engine_factory(backend)
        limit = settings.engine.particles_to_use
        wanted = expected if expected is None or limit is None else min(expected, limit)
        progress = progress_for(console, every_s=lines_every_s, expected=wanted)
        stack.callback(progress.close)
        beside()
        finished = run_session(
            settings,
            factory=factory,
            observer=Observers([keeper, progress, *observers]),
            stop=stop,
            transport=transport,
        )
        progress.close()
        if finished.outcome != "ended":
            stopped = _stopped(finished, expected=expected, limit=limit, waited=results_if_stopped)
            finished = replace(finished, stopped=stopped)
        if finished.outcome == "ended" or results_if_stopped:
            write_results(
                settings,
                finished.state,
                usage=usage,
                reports=keeper.reports,
                stopped=finished.stopped,
                table=table,
                n_input=None if table is None else len(table),
                device={"asked": asked, "used": backend.device, "name": backend.name},
            )
        linger(finished)
    return finished


def _stopped(finished: Finished, *, expected: int | None, limit: int | None, waited: bool) -> str:
    """Say how far a session had come; one that goes on later (not ``waited``) misses nothing."""
    state, books = finished.state, finished.state.balance()
    if not waited:
        return f"stopped: {books.trained:,} particles learned from so far"
    arrived = books.received if expected is None else expected
    coming = arrived - books.quarantined - books.duplicate
    return stopped_words(
        books.trained, coming if limit is None else min(coming, limit), state.phase
    )
