"""`demo`: a simulated microscope, the real service, and maps growing while you watch.

Everything is in this process and one folder: particles of a molecule built in code go over a bus in
memory to the same loop that serves a facility.
"""

from __future__ import annotations

import itertools
import os
import socket
import threading
from dataclasses import dataclass

from rich.console import Console

from reconstruct.types import Geometry
from schemas.topics import Topics
from streamer.config import MetricsSettings, Settings
from streamer.engines import check_engine_settings, check_geometry, open_device
from streamer.host import LINES_EVERY_S, host_session, note_to
from streamer.leftovers import begin_anew, check_folder
from streamer.parts import StopRequest
from streamer.results import Usage
from streamer.service import Finished, ensure_topics, open_bus, writable_folder
from streamer.state import EngineFactory

__all__ = ["DemoSet", "run_demo"]

_JOIN_S = 10.0
_numbers = itertools.count()


@dataclass(frozen=True)
class DemoSet:
    """What the simulated microscope records; the defaults suit two CPU cores."""

    particles: int = 3_000
    box: int = 64
    pixel_size_angstrom: float = 5.0
    snr: float = 0.1
    particles_per_second: float = 150.0
    seed: int = 7


def run_demo(
    settings: Settings,
    demo: DemoSet,
    *,
    console: Console,
    keep_serving: bool = False,
    factory: EngineFactory | None = None,
) -> Finished:
    """Play a session from the first particle to the last maps.

    Parameters
    ----------
    keep_serving
        Keep the metrics up when everything is done, until interrupted.

    Raises
    ------
    ServiceError
        The output folder or the metrics port cannot be used.
    """
    usage = Usage()
    check_engine_settings(settings.engine)  # before an earlier run's results are removed
    check_folder(settings)
    open_device(settings.device)
    check_geometry(settings.engine, Geometry(demo.box, demo.pixel_size_angstrom))
    settings = settings.model_copy(
        update={
            "bus": f"memory://demo-{os.getpid()}-{next(_numbers)}",
            "metrics": _free_port(settings.metrics),
        }
    )
    stop = StopRequest()

    def linger(finished: Finished) -> None:
        if keep_serving and finished.outcome == "ended":
            console.print("metrics stay up; Ctrl-C ends")
            while not stop.requested:
                threading.Event().wait(0.2)

    with open_bus(settings) as transport:
        ensure_topics(transport, Topics(settings.topics_prefix))
        microscope = threading.Thread(
            target=_record, args=(settings, demo, stop), name="microscope", daemon=True
        )

        def begin() -> None:  # all around the session is up
            writable_folder(settings.out)
            if words := begin_anew(settings):
                note_to(console, words)
            microscope.start()

        finished = host_session(
            settings,
            console=console,
            usage=usage,
            factory=factory,
            transport=transport,
            results_if_stopped=True,
            stop=stop,
            beside=begin,
            linger=linger,
            lines_every_s=LINES_EVERY_S,
            expected=demo.particles,
        )
        stop.requested = True
        microscope.join(_JOIN_S)
    return finished


def _record(settings: Settings, demo: DemoSet, stop: StopRequest) -> None:
    """Be the microscope: simulate micrograph by micrograph and send each."""
    from reconstruct.simulate import SimulationSettings, Species, simulate
    from reconstruct.structures import demo_particle
    from streamer.microscope import Pace, play
    from streamer.microscope_sources import batches_from_simulated

    geometry = Geometry(demo.box, demo.pixel_size_angstrom)
    chunks = simulate(
        [Species(demo_particle(geometry))],
        geometry,
        settings=SimulationSettings(n_particles=demo.particles, snr=demo.snr, seed=demo.seed),
    )
    with open_bus(settings) as transport:
        for _ in play(
            transport,
            batches_from_simulated(chunks, session_id=settings.session),
            session_id=settings.session,
            pace=Pace(particles_per_second=demo.particles_per_second),
            topics=Topics(settings.topics_prefix),
            end_session=True,
        ):
            if stop.requested:
                return


def _free_port(metrics: MetricsSettings) -> MetricsSettings:
    """Take any free port when the usual one is in use: a demo should not fail over that."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((metrics.host, metrics.port))
        except OSError:
            return metrics.model_copy(update={"port": 0})
    return metrics
