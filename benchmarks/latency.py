"""How long a particle waits from its arrival on a real bus until the model has learned from it.

Promise: the service is the one that ``serve`` runs (its loop, checkpoints, snapshots, pictures and
metrics at their defaults); the microscope is another process, and its particles are simulated
before the clock starts. A delay runs from the record's timestamp in the bus to the end of the
update that trained the particle. Compilation happens in a session of its own before, told apart.

    python -m benchmarks.latency --start-broker --rate 500 --results benchmarks/results
    python -m benchmarks.latency --bus kafka://127.0.0.1:9092 --device cuda
    python -m benchmarks.latency --bus sqlite:////tmp/bus.sqlite --rate 100 --seconds 30
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console

from benchmarks.stopwatch import Stopwatch
from reconstruct.engine import Engine
from reconstruct.simulate import SimulationSettings, Species, simulate
from reconstruct.simulated import Simulated
from reconstruct.structures import demo_particle
from reconstruct.types import Geometry, Snapshot, StepReport
from schemas.topics import Topics
from streamer.checkpoint import Saved
from streamer.config import Settings, load_settings
from streamer.engines import open_device, with_spare_time
from streamer.host import engine_factory, metrics_server
from streamer.intake import Taken
from streamer.microscope import Pace, play
from streamer.microscope_sources import batches_from_simulated
from streamer.observe import Observer, Observers
from streamer.parts import StopRequest
from streamer.results import ReportKeeper
from streamer.service import Finished, ensure_topics, open_bus, run_session
from streamer.state import EngineFactory, SessionState
from streamer.transports import open_transport
from streamer.transports.base import Lag, Record, TopicPartition

__all__ = ["Arrivals", "main", "measure"]

GEOMETRY = Geometry(box=64, pixel_size_angstrom=5.0)
PERCENTILES = (50, 95, 99, 100)


class Arrivals(Observer):
    """Notes when each particle arrived and when an update that holds it was over."""

    def __init__(self, warm_up: int) -> None:
        self.warm_up = warm_up
        self._arrived_ns: list[npt.NDArray[np.int64]] = []  # of accepted particles, in order
        self._seen = 0
        self._learned: list[tuple[int, int]] = []  # particles so far, and when
        self.steps = self.checkpoints = self.most_behind = 0
        self.checkpoint_bytes = 0
        self.published_names: list[str] = []
        self.began_s = self.warm_s = self.streamed_s = time.monotonic()

    def taken(self, record: Record, taken: Taken, state: SessionState) -> None:
        """Note an arrival."""
        if not self._arrived_ns:
            self.began_s = time.monotonic()
        count = 0 if taken.particles is None else len(taken.particles)
        self._arrived_ns.append(np.full(count, record.timestamp_ns, np.int64))

    def stepped(self, report: StepReport, state: SessionState) -> None:
        """Note the end of an update."""
        self.steps += 1
        if report.particles_seen > self._seen:  # not a replay
            self._learned.append((report.particles_seen, time.time_ns()))
            self.streamed_s = time.monotonic()
            if self._seen < self.warm_up:
                self.warm_s = self.streamed_s
        self._seen = report.particles_seen

    def checkpointed(self, saved: Saved, state: SessionState) -> None:
        """Count."""
        self.checkpoints += 1
        self.checkpoint_bytes += saved.size_bytes

    def published(
        self, name: str, snapshot: Snapshot, state: SessionState, delays_s: Sequence[float]
    ) -> None:
        """Count."""
        self.published_names.append(name)

    def lag(self, where: TopicPartition, lag: Lag) -> None:
        """Keep the worst."""
        self.most_behind = max(self.most_behind, lag.records)

    def delays_s(self) -> npt.NDArray[np.float64]:
        """Give the delay of every particle that was trained, in order of arrival."""
        arrived = np.concatenate([*self._arrived_ns, np.empty(0, np.int64)])
        delays = np.full(len(arrived), np.nan)
        start = 0
        for seen, when_ns in self._learned:
            delays[start:seen] = (when_ns - arrived[start:seen]) * 1e-9
            start = seen
        return delays[:start]


@dataclass
class _StopAfter(Observer):
    """Ends the warm-up."""

    stop: StopRequest
    particles: int
    published_once: bool = field(default=False)

    def published(
        self, name: str, snapshot: Snapshot, state: SessionState, delays_s: Sequence[float]
    ) -> None:
        self.published_once = True

    def stepped(self, report: StepReport, state: SessionState) -> None:
        if report.particles_seen >= self.particles and self.published_once:
            self.stop.requested = True


def _chunks(options: argparse.Namespace, particles: int, seed: int) -> Iterator[Simulated]:
    return simulate(
        [Species(demo_particle(GEOMETRY))],
        GEOMETRY,
        settings=SimulationSettings(
            n_particles=particles,
            snr=0.1,
            particles_per_micrograph=options.per_record,
            max_shift_angstrom=3.0 * GEOMETRY.pixel_size_angstrom,
            seed=seed,
        ),
    )


def _settings(options: argparse.Namespace, bus: str, out: Path, prefix: str) -> Settings:
    given = dict(item.split("=", 1) for item in options.set)
    wanted = {
        "bus": bus,
        "topics_prefix": prefix,
        "session": "latency",
        "out": out,
        "device": options.device,
        "metrics.port": 0,
        **given,
    }
    return with_spare_time(load_settings(None, wanted))


def _produce(options: argparse.Namespace) -> None:
    """Be the microscope: simulate, say so, wait for a line, then play and say how late."""
    batches = list(
        batches_from_simulated(_chunks(options, options.particles, 1), session_id="latency")
    )
    print("ready", flush=True)
    sys.stdin.readline()
    late_s: list[float] = []
    with open_transport(options.bus) as transport:
        for sent in play(
            transport,
            batches,
            session_id="latency",
            pace=Pace(particles_per_second=options.rate),
            topics=Topics(options.produce),
            end_session=True,
        ):
            if sent.kind == "particles":
                late_s.append(sent.late_s)
    print(f"{np.percentile(late_s, 95):.4f} {max(late_s):.4f}", flush=True)


@contextmanager
def _microscope(
    options: argparse.Namespace, bus: str, prefix: str
) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "benchmarks.latency", "--bus", bus, "--produce", prefix]
    command += ["--rate", str(options.rate), "--seconds", str(options.seconds)]
    command += ["--per-record", str(options.per_record)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def _warm_up(options: argparse.Namespace, factory: EngineFactory, folder: Path) -> None:
    """Compile everything in a session that ends when the steady state is reached."""
    bus = f"memory://warm-{uuid.uuid4().hex[:8]}"
    settings = _settings(options, bus, folder / "warm", "warm")
    stop = StopRequest()
    # the race, and a little of the steady state: the last kernels are compiled there
    enough = settings.engine.race_particles + 2 * settings.engine.minibatch_final
    with open_bus(settings) as transport:
        topics = Topics("warm")
        ensure_topics(transport, topics)
        batches = batches_from_simulated(_chunks(options, enough + 300, 2), session_id="latency")
        for _ in play(transport, batches, session_id="latency", topics=topics, end_session=True):
            pass
        run_session(
            settings,
            factory=factory,
            observer=Observers([_StopAfter(stop, enough), ReportKeeper()]),
            stop=stop,
            transport=transport,
        )


def measure(options: argparse.Namespace, bus: str, folder: Path) -> list[str]:
    """Run one session; return the lines of the report."""
    backend = open_device(options.device)
    factory: EngineFactory = engine_factory(backend)
    engine: type[object] = Engine
    race = _settings(options, bus, folder, "any").engine.race_particles
    if options.stand_in:
        from benchmarks.stand_in import StandIn

        factory, engine, race = StandIn, StandIn, 0
    prefix = f"latency{uuid.uuid4().hex[:8]}"
    settings = _settings(options, bus, folder / "out", prefix)
    with _microscope(options, bus, prefix) as microscope:
        assert microscope.stdin is not None
        assert microscope.stdout is not None
        began = time.monotonic(), time.process_time()
        _warm_up(options, factory, folder)
        warm_s, warm_cpu_s = time.monotonic() - began[0], time.process_time() - began[1]
        if microscope.stdout.readline().strip() != "ready":
            raise RuntimeError("the microscope did not start")
        arrivals, keeper = Arrivals(race), ReportKeeper()
        load_before = os.getloadavg()[0]
        with ExitStack() as stack:
            stack.enter_context(open_bus(settings))  # fails here rather than in the measurement
            metrics = stack.enter_context(metrics_server(settings, Console(file=io.StringIO())))
            stopwatch = stack.enter_context(Stopwatch(engine).running())
            microscope.stdin.write("go\n")
            microscope.stdin.flush()
            cpu_s = time.process_time()
            finished = run_session(
                settings,
                factory=factory,
                observer=Observers([arrivals, keeper, *metrics, stopwatch.observer()]),
                stop=StopRequest(),
            )
            cpu_s = time.process_time() - cpu_s
        late = microscope.stdout.readline().split()
    return [
        f"{_bus_name(bus)}, {options.rate:g} particles/s for {options.seconds:g} s, "
        f"{GEOMETRY.box} px, {options.per_record} particles a record, "
        f"{'a stand-in for the engine on ' if options.stand_in else ''}{backend.name} "
        f"({backend.device}), {os.cpu_count()} cores, load {load_before:.1f} before and "
        f"{os.getloadavg()[0]:.1f} after, Python {platform.python_version()}",
        f"warm-up apart: {warm_s:.1f} s ({warm_cpu_s:.1f} CPU-s)",
        *_report(arrivals, finished),
        f"microscope behind its pace: p95 {late[0]} s, most {late[1]} s",
        f"CPU-seconds of the service, replay included: {cpu_s:.1f}",
        "",
        *stopwatch.lines(),
    ]


def _bus_name(bus: str) -> str:
    return bus if bus.startswith("kafka") else bus.partition(":")[0]


def _report(arrivals: Arrivals, finished: Finished) -> list[str]:
    delays, race = arrivals.delays_s(), arrivals.warm_up
    lines = []
    for name, some in (("after the race", delays[race:]), ("all", delays)):
        if len(some) and (race or name == "all"):
            values = "  ".join(
                f"{'max' if q == 100 else f'p{q}'} {np.percentile(some, q):.3f}"
                for q in PERCENTILES
            )
            lines.append(f"arrival to learned, s, {name:<15} {values}  ({len(some)} particles)")
    first_s = arrivals.began_s
    race_s = f"end of race {arrivals.warm_s - first_s:.1f} s, to " if race else ""
    lines.append(
        f"first arrival to {race_s}last particle {arrivals.streamed_s - first_s:.1f} s; most "
        f"records behind {arrivals.most_behind}"
    )
    lines.append(
        f"{finished.state.trained} particles trained, {arrivals.steps} updates, "
        f"{len(arrivals.published_names)} snapshots published, {arrivals.checkpoints} checkpoints "
        f"({arrivals.checkpoint_bytes / 2**20:.0f} MiB); {finished.outcome}"
    )
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--bus", help="kafka://host:port, or sqlite:///file; default: a new file")
    parser.add_argument("--start-broker", action="store_true", help="the broker of the tests")
    parser.add_argument("--rate", type=float, default=500.0, help="particles per second")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long they come")
    parser.add_argument("--per-record", type=int, default=50, help="particles in a record")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--stand-in", action="store_true", help="no engine: 3 ms an update, all else real"
    )
    parser.add_argument("--set", action="append", default=[], help="NAME=VALUE, as for serve")
    parser.add_argument("--name", default="", help="added to the name of the results file")
    parser.add_argument("--results", type=Path, help="folder that the report is written to")
    parser.add_argument("--produce", help=argparse.SUPPRESS)  # in the microscope's process
    options = parser.parse_args(arguments)
    options.particles = round(options.rate * options.seconds)
    if options.produce:
        _produce(options)
        return
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="latency-")))
        bus = options.bus or f"sqlite:///{folder}/bus.sqlite"
        if options.start_broker:
            from tests.kafka_broker import make_broker

            (folder / "broker").mkdir()
            broker = make_broker(folder / "broker")
            stack.callback(broker.stop)
            broker.start()
            bus = f"kafka://{broker.bootstrap}"
        lines = measure(options, bus, folder)
    command = " ".join(["python -m benchmarks.latency", *(arguments or sys.argv[1:])])
    text = "\n".join([*lines, "", command]) + "\n"
    print(text)
    if options.results:
        options.results.mkdir(parents=True, exist_ok=True)
        kind = bus.partition(":")[0]
        device = "stand-in" if options.stand_in else options.device.replace(":", "")
        name = f"latency-{kind}-{device}-{options.rate:g}{options.name}"
        (options.results / f"{name}.txt").write_text(text)


if __name__ == "__main__":
    main()
