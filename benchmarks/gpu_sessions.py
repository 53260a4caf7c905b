"""Whole updates and whole sessions on one card: rates, kernels, time to a map, a million particles.

Promise: figures are of the whole step (weighing, search, back-projection, masks, maps) unless a
line says otherwise. ``benchmarks.gpu`` runs these and says how.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

from benchmarks.sets import StandardSet, demo, ribosome
from reconstruct.backend import Backend, usable_cores
from reconstruct.engine import Engine
from reconstruct.kernels_cuda import CudaKernels, CupyLauncher
from reconstruct.learner import Learner
from reconstruct.quality import align_to_truth, fourier_shell_correlation
from reconstruct.schedule import Schedule, ShellGrowth
from reconstruct.search import local_start
from reconstruct.simulate import Simulated, SimulationSettings, Species, simulate_set
from reconstruct.structures import demo_particle
from reconstruct.types import EngineSettings, Geometry, ParticleImages

__all__ = [
    "MASTER_SEED",
    "RADIUS",
    "REHEARSAL",
    "Sizes",
    "agreement",
    "many",
    "profile",
    "rates",
    "time_to_map",
]

TARGETS = {(64, 1): 50_000, (64, 4): 15_000, (64, 10): 6_000}  # particles/s on one H200
RADIUS = 16
TARGET_ANGSTROM = 20.0
MASTER_SEED = 0


@dataclass(frozen=True)
class Sizes:
    """How much work each part does."""

    gemm_edge: int = 8192
    copy_bytes: int = 4 << 30
    boxes: tuple[int, ...] = (64, 128)
    classes: tuple[int, ...] = (1, 4, 10)
    particles: int = 4000
    batches: tuple[int, ...] = (300, 3000)
    repeats: int = 5
    map_particles: int = 10_000
    agreement_particles: int = 2500
    many_particles: int = 1_000_000
    many_classes: tuple[int, ...] = (1, 4)


REHEARSAL = Sizes(
    gemm_edge=1024,
    copy_bytes=64 << 20,
    boxes=(64,),
    classes=(1, 4),
    particles=200,
    batches=(100,),
    repeats=1,
    map_particles=500,
    agreement_particles=300,
    many_particles=600,
    many_classes=(1,),
)


def _converged(
    engine: Engine, truth: Simulated, clock: Callable[[], float], workers: ThreadPoolExecutor
) -> Learner:
    """A learner whose maps come from the true poses, at the working radius."""
    classes = engine.settings.n_classes
    learner = Learner(
        plane=engine.plane,
        grid=engine.grid,
        n_classes=classes,
        seed=(MASTER_SEED, 0),
        max_shift_pixels=engine.geometry.box / 16,
        max_radius=engine.max_radius,
        schedule=Schedule(start_radius=RADIUS, grow_every=1 << 40),
        split=True,
        growth=ShellGrowth(RADIUS, 0),
        backend=engine.backend,
        clock=clock,
    )
    poses = local_start(
        truth.rotations.reshape(-1, 9).astype(np.float32),
        (truth.shifts_angstrom / engine.geometry.pixel_size_angstrom).astype(np.float32),
        (np.arange(len(truth)) % classes).astype(np.int32),
        keep=1,
        xp=engine.backend.xp,
    )
    everything = np.arange(len(truth))
    batch = engine._weighted(everything, learner.insert_radius)
    learner.adopt(batch, everything * 2 // len(truth), poses, workers=workers)
    return learner


def rates(backend: Backend, sizes: Sizes) -> Iterator[str]:
    """Particles per second of whole updates, global search, at the working radius."""
    for box in sizes.boxes:
        truth = _demo_set(sizes.particles, box)
        for classes in sizes.classes:
            yield from _rate(backend, sizes, truth, classes)


def _rate(backend: Backend, sizes: Sizes, truth: Simulated, classes: int) -> Iterator[str]:
    engine, half = _filled(backend, truth, classes)

    def waiting() -> float:
        backend.wait()
        return time.perf_counter()

    with ThreadPoolExecutor(usable_cores()) as workers:
        for size in sizes.batches:
            if size > len(truth):
                continue
            learner = _converged(engine, truth, waiting, workers)
            rng = np.random.default_rng(MASTER_SEED)
            stages: dict[str, float] = {}
            spent_all = 0.0
            for repeat in range(2 * sizes.repeats + 1):
                rows = np.sort(rng.choice(len(truth), size, replace=False))
                learner.clock = waiting if repeat <= sizes.repeats else time.perf_counter
                start = waiting()
                batch = engine._weighted(rows, learner.insert_radius)
                weighed = learner.clock()
                result = learner.learn(
                    batch, half[rows], window=5000.0, cold=False, workers=workers
                )
                spent = waiting() - start
                if 0 < repeat <= sizes.repeats:  # the first one warms up
                    for name, value in {"weigh": weighed - start, **result.stage_seconds}.items():
                        stages[name] = stages.get(name, 0.0) + value
                elif repeat:
                    spent_all += spent
            total = spent_all / sizes.repeats
            whole = sum(stages.values())
            shares = ", ".join(f"{n} {100 * v / whole:.0f} %" for n, v in stages.items())
            target = TARGETS.get((truth.geometry.box, classes))
            note = f" (target on one H200: {target:,})" if target else ""
            yield (
                f"box {truth.geometry.box}, K {classes}, batches of {size}: "
                f"{size / total:,.0f} particles/s{note}; {shares}"
            )


def time_to_map(backend: Backend, sizes: Sizes) -> Iterator[str]:
    """Seconds from the first particle to a map at 20 A against the truth, and to the end."""
    made = _map_set(sizes.map_particles)
    truth = _map_particles(sizes.map_particles)
    everything = truth.particle_images()
    engine = Engine(EngineSettings(), made.geometry, device=backend)
    _run_through(Engine(EngineSettings(), made.geometry, device=backend), everything, 3000)  # warm
    spent, reached, steps, marks = 0.0, None, 0, {}

    def resolution() -> float:
        volume = engine.snapshot().classes[0].volume
        reference = np.asarray(made.species[0].volume, np.float32)
        found = align_to_truth(volume, reference, made.geometry.pixel_size_angstrom)
        return float(found.resolution_angstrom)

    for start in range(0, len(truth), 500):
        begun = time.perf_counter()
        engine.add(everything.span(slice(start, start + 500)))
        while engine.ready:
            engine.step()
            steps += 1
        backend.wait()
        spent += time.perf_counter() - begun
        marks[start + 500] = spent
        if reached is None and start >= 500 and resolution() <= TARGET_ANGSTROM:
            reached = spent
            seen = start + 500
            yield f"{made.name}: {TARGET_ANGSTROM:.0f} A after {spent:.2f} s, {seen:,} particles"
    begun = time.perf_counter()
    steps += sum(1 for _ in engine.finish())
    backend.wait()
    spent += time.perf_counter() - begun
    yield (
        f"{made.name}: {len(truth):,} particles with replay in {spent:.2f} s, {steps} updates, "
        f"{resolution():.1f} A against the truth (looks at the map not counted)"
    )
    first = engine._course.race_particles
    yield (
        f"{made.name}: first map (race over) after {marks.get(first, spent):.2f} s, stream over "
        f"after {marks[max(marks)]:.2f} s"
    )
    if reached is None:
        yield f"{made.name}: {TARGET_ANGSTROM:.0f} A was not reached while particles arrived"


def _run_through(
    engine: Engine, particles: ParticleImages, most: int, *, arrival: int = 500
) -> Engine:
    """A whole session on the first ``most`` particles."""
    for start in range(0, most, arrival):
        engine.add(particles.span(slice(start, min(start + arrival, most))))
        while engine.ready:
            engine.step()
    for _ in engine.finish():
        pass
    engine.backend.wait()
    return engine


class _TimedLauncher:
    """Measures each launch with events; the host goes on meanwhile."""

    def __init__(self, launcher: Any, cupy: Any) -> None:
        self._launcher, self._cupy = launcher, cupy
        self.spans: list[tuple[str, Any, Any]] = []

    def launch(self, name: str, *call: Any, shared_bytes: int = 0) -> None:
        before, after = self._cupy.cuda.Event(), self._cupy.cuda.Event()
        before.record()
        self._launcher.launch(name, *call, shared_bytes=shared_bytes)
        after.record()
        self.spans.append((name, before, after))

    def totals(self) -> dict[str, tuple[int, float]]:
        """Launches and milliseconds of each kernel."""
        found: dict[str, tuple[int, float]] = {}
        for name, before, after in self.spans:
            count, spent = found.get(name, (0, 0.0))
            elapsed = self._cupy.cuda.get_elapsed_time(before, after)
            found[name] = count + 1, spent + elapsed
        return dict(sorted(found.items(), key=lambda item: -item[1][1]))


def profile(backend: Backend, sizes: Sizes) -> Iterator[str]:
    """Microseconds of our kernels in one update; transforms and copies are not among them."""
    if not backend.on_device:
        yield "only a device has kernels to time"
        return
    truth = _demo_set(sizes.particles, sizes.boxes[0])
    updates = 5
    for classes in (sizes.classes[0], sizes.classes[-1]):
        for size in sizes.batches:
            launcher = _TimedLauncher(CupyLauncher(), backend.xp)
            timed = replace(backend, kernels=CudaKernels(launcher, backend.xp))
            engine, half = _filled(timed, truth, classes)
            with ThreadPoolExecutor(usable_cores()) as workers:
                learner = _converged(engine, truth, time.perf_counter, workers)
                rng = np.random.default_rng(MASTER_SEED)
                for update in range(updates + 1):
                    if update == 1:
                        timed.wait()
                        launcher.spans.clear()
                        begun = time.perf_counter()
                    rows = np.sort(rng.choice(len(truth), min(size, len(truth)), replace=False))
                    batch = engine._weighted(rows, learner.insert_radius)
                    learner.learn(batch, half[rows], window=5e3, cold=False, workers=workers)
                timed.wait()
            spent_ms = 1e3 * (time.perf_counter() - begun) / updates
            totals = launcher.totals()
            device_ms = sum(spent for _, spent in totals.values()) / updates
            parts = ", ".join(
                f"{name} {1e3 * spent / updates:.0f}"
                for name, (_, spent) in totals.items()
                if spent > 0.01 * updates * device_ms
            )
            yield (
                f"K {classes}, batches of {size}: {spent_ms:.2f} ms an update under events, "
                f"{device_ms:.2f} ms in kernels; us: {parts}"
            )


def agreement(backend: Backend, sizes: Sizes) -> Iterator[str]:
    """Two sessions on the backend give the same bits; the CPU's map is the same to an FSC."""
    most = sizes.agreement_particles
    made, particles = _map_set(most), _map_particles(most).particle_images()
    engines = [
        _run_through(Engine(EngineSettings(), made.geometry, device=device), particles, most)
        for device in (backend, backend, "cpu")
    ]
    first, second, cpu = (engine.snapshot().classes[0] for engine in engines)
    same = np.array_equal(first.volume, second.volume)
    poses = np.array_equal(engines[0].assignments().rotations, engines[1].assignments().rotations)
    yield (
        f"{made.name}, {most} particles with replay, twice: maps {'the same' if same else 'DIFFER'}"
        f" bit by bit, poses {'the same' if poses else 'DIFFER'}"
    )
    radius = engines[0].max_radius
    pixel = made.geometry.pixel_size_angstrom
    straight = fourier_shell_correlation(first.volume, cpu.volume)[1 : radius + 1]
    aligned = align_to_truth(first.volume, cpu.volume, pixel).fsc[1 : radius + 1]
    yield (
        f"against the CPU to {made.geometry.box_angstrom / radius:.1f} A: FSC at least "
        f"{straight.min():.4f} as they are, {aligned.min():.4f} after alignment, hands "
        f"included; half-map resolutions {first.resolution_angstrom} and {cpu.resolution_angstrom}"
    )


def many(backend: Backend, sizes: Sizes) -> Iterator[str]:
    """Streams of many particles: seconds of their parts after start-up, memory on the way."""
    for classes in sizes.many_classes:
        yield from _many(backend, sizes, classes)


def _many(backend: Backend, sizes: Sizes, classes: int) -> Iterator[str]:
    kinds = min(10_000, sizes.many_particles)
    made, particles = _map_set(kinds), _map_particles(kinds).particle_images()
    settings = EngineSettings(n_classes=classes)
    _run_through(Engine(settings, made.geometry, device=backend), particles, 3000)  # compiles
    engine = Engine(settings, made.geometry, device=backend)
    arrived = learned = 0.0
    count, total, block = 0, sizes.many_particles, 5000
    marks = {10_000, total // 10, total}
    process = psutil.Process()
    while count < total:
        start = count % len(particles)
        stop = min(start + block, len(particles), start + total - count)
        part = particles.span(slice(start, stop))
        ids = np.arange(count, count + len(part), dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        begun = time.perf_counter()
        engine.add(replace(part, particle_ids=ids))
        backend.wait()
        arrived += time.perf_counter() - begun
        begun = time.perf_counter()
        while engine.ready:
            engine.step()
        backend.wait()
        learned += time.perf_counter() - begun
        count += len(part)
        if count in marks:
            free, size = backend.memory()
            used = (size - free) / 2**30
            store = engine.memory.need.particle * count / 2**30
            yield (
                f"K {settings.n_classes}, {count:,} particles: preprocessing {arrived:.2f} s, "
                f"learning {learned:.2f} s; {backend.device} memory used {used:.2f} GiB, of which "
                f"stored particles {store:.2f}; host {process.memory_info().rss / 2**30:.2f} GiB"
            )
    spent = arrived + learned
    yield f"K {classes}, one pass: {spent:.1f} s, {count / spent:,.0f} particles/s"
    begun = time.perf_counter()
    replayed = 0
    for report in engine.finish():
        replayed += report.replayed_particles
        if replayed >= total // 2:
            break
    backend.wait()
    spent = time.perf_counter() - begun
    yield (
        f"K {classes}, replay, updates of {report.replayed_particles}: "
        f"{replayed / spent:,.0f} particles/s"
    )


@lru_cache(maxsize=2)
def _map_particles(particles: int) -> Simulated:
    return _map_set(particles).particles()


def _map_set(particles: int) -> StandardSet:
    folder = Path(os.environ.get("ABINITIO_DATA", ""))
    known = "ABINITIO_DATA" in os.environ and folder.is_dir()
    return (ribosome if known else demo)(folder, n_particles=particles)


@lru_cache(maxsize=2)
def _demo_set(particles: int, box: int) -> Simulated:
    geometry = Geometry(box, 320.0 / box)
    settings = SimulationSettings(particles, snr=0.1, seed=MASTER_SEED)
    return simulate_set([Species(demo_particle(geometry))], geometry, settings=settings)


def _filled(
    backend: Backend, truth: Simulated, classes: int
) -> tuple[Engine, npt.NDArray[np.intp]]:
    """An engine that holds the particles, and half-sets in their order."""
    engine = Engine(
        EngineSettings(n_classes=classes, max_resolution_angstrom=17.5, race_starts=1),
        truth.geometry,
        device=backend,
    )
    engine.add(truth.particle_images())
    engine.step()  # counts the noise of its particles
    return engine, np.arange(len(truth)) * 2 // len(truth)
