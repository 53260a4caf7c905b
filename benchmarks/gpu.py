"""One command for a card: tests, ceilings, particles per second, stages, time to a 20 A map.

Promise: every figure is of the whole step (weighing, search, back-projection, maps) unless it says
otherwise; stages are timed with a clock that waits for the device, totals without it. Run from the
repository root:

    python -m benchmarks.gpu --device cuda --save benchmarks/results
    python -m benchmarks.gpu --device cpu --rehearse --save benchmarks/results

A rehearsal runs every part at small sizes and says so in its name and first line. With the data
folder in ``ABINITIO_DATA`` the particles are the ribosome's, otherwise the demo's.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from threadpoolctl import threadpool_limits

from benchmarks.sets import demo, ribosome
from reconstruct.backend import Backend, describe_devices, make_backend
from reconstruct.engine import Engine
from reconstruct.fourier import make_half_plane
from reconstruct.kernels_cuda import MOST_STEPS, UNIT_SHIFTS, fragment_shape
from reconstruct.learner import Learner
from reconstruct.quality import align_to_truth
from reconstruct.schedule import Schedule, ShellGrowth
from reconstruct.search import empty_poses, local_start, make_plan
from reconstruct.simulate import Simulated, SimulationSettings, Species, simulate_set
from reconstruct.structures import demo_particle
from reconstruct.types import EngineSettings, Geometry, ParticleImages

__all__ = ["Sizes", "main"]

TESTS = ("test_kernels_twins.py", "test_device_maps.py", "test_device_path.py")
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
    particles: int = 6000
    batches: tuple[int, ...] = (300, 1000, 3000)
    repeats: int = 5
    map_particles: int = 10_000


REHEARSAL = Sizes(
    gemm_edge=1024,
    copy_bytes=64 << 20,
    boxes=(64,),
    classes=(1, 4),
    particles=200,
    batches=(100,),
    repeats=1,
    map_particles=1000,
)


def _seconds(backend: Backend, work: Callable[[], object], repeats: int = 5) -> float:
    """Best wall-clock seconds of some work, the device's share included."""
    work()
    best = float("inf")
    for _ in range(repeats):
        backend.wait()
        start = time.perf_counter()
        work()
        backend.wait()
        best = min(best, time.perf_counter() - start)
    return best


def _ceilings(backend: Backend, sizes: Sizes) -> Iterator[str]:
    """Measured limits of the card, and what the coarse pass reaches of them."""
    xp, edge = backend.xp, sizes.gemm_edge
    flops = 2.0 * edge**3
    rng = np.random.default_rng(MASTER_SEED)
    numbers = backend.asarray(rng.standard_normal((edge, edge), dtype=np.float32))
    full = flops / _seconds(backend, lambda: numbers @ numbers)
    yield f"GEMM float32 {edge}^3: {full / 1e12:.2f} Tflop/s"
    ceiling = full
    if backend.on_device:
        half = numbers.astype(np.float16)
        ceiling = flops / _seconds(backend, lambda: half @ half)
        yield f"GEMM 16 bit, float32 sums, {edge}^3: {ceiling / 1e12:.2f} Tflop/s"
    source = xp.zeros(sizes.copy_bytes // 4, np.float32)
    target = xp.empty_like(source)

    def copy() -> None:
        target[:] = source

    copied = 2.0 * source.nbytes / _seconds(backend, copy)
    yield f"copy: {copied / 1e9:.0f} GB/s read and written"
    if backend.on_device:
        yield from _coarse(backend, sizes, ceiling=ceiling, copied=copied)


def _coarse(backend: Backend, sizes: Sizes, *, ceiling: float, copied: float) -> Iterator[str]:
    """The two kernels of the coarse pass on random numbers: K = 1, two half-sets."""
    xp, kernels = backend.xp, backend.kernels
    plan = make_plan(RADIUS, box=64, max_shift_pixels=4.0)
    plane = make_half_plane(64, RADIUS)
    n, t, r = plane.count(plan.coarse_radius), plan.shift_cells**2, plan.coarse_count
    b = sizes.batches[-1]
    rng = np.random.default_rng(MASTER_SEED)

    def normal(*shape: int) -> Any:
        return backend.asarray(rng.standard_normal(shape, dtype=np.float32))

    cubes, base = normal(2, 33, 33, 33, 2), normal(r, 9) / 3
    rotations, slices = xp.empty((r, 9), np.float32), xp.empty((2, r, n, 2), np.float32)
    fragments = xp.empty(fragment_shape(2, r), np.uint32)
    axes = backend.asarray(np.eye(3).ravel(), np.float32)
    kx, ky = backend.asarray(plane.kx), backend.asarray(plane.ky)
    kernels.coarse_slices(cubes, base, axes, kx, ky, 2.0, rotations, slices, fragments)
    particles = normal(b, n), normal(b, n), abs(normal(b, n))
    phases, turns, shifts = normal(t, n, 2), normal(n, t, 2), normal(t, 2)
    prior = xp.zeros(1, np.float32)
    maxima = xp.empty((b, -(-t // UNIT_SHIFTS), 1, r), np.float32)
    spent = _seconds(
        backend,
        lambda: kernels.coarse_maxima(*particles, phases, fragments, b // 2, maxima),
    )
    flops = 2.0 * b * t * r * 3 * n
    done = 2.0 * b * t * r * 16 * MOST_STEPS  # padding included
    moved = 4.0 * (3 * b * n + maxima.size)
    yield (
        f"coarse scores, {b} particles x {t} shifts x {r} rotations x {n} coefficients: "
        f"{b / spent:,.0f} particles/s, {flops / spent / 1e12:.0f} Tflop/s "
        f"({done / spent / 1e12:.0f} with padding), {100 * done / ceiling / spent:.0f} % of the "
        f"GEMM ceiling; {moved / spent / 1e9:.0f} GB/s, {100 * moved / copied / spent:.0f} % of "
        "the copy ceiling"
    )
    cells = empty_poses(b, plan.keep, xp)
    spent = _seconds(
        backend,
        lambda: kernels.choose_cells(
            maxima, prior, slices, rotations, turns, shifts, *particles, b // 2, plan.keep, 0.33,
            0.99, cells.rotation, cells.rotation_id, cells.shift, cells.shift_id,
            cells.class_index, cells.score, cells.count,
        ),
    )  # fmt: skip
    moved = 8.0 * maxima.size  # the maxima, twice
    flops = 8.0 * b * plan.keep * t * n
    yield (
        f"choice of coarse cells: {b / spent:,.0f} particles/s, {moved / spent / 1e9:.0f} GB/s, "
        f"{100 * moved / copied / spent:.0f} % of the copy ceiling; {flops / spent / 1e12:.1f} "
        "Tflop/s float32"
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


def _rates(backend: Backend, sizes: Sizes) -> Iterator[str]:
    """Particles per second of whole updates, global search, at the working radius."""
    for box in sizes.boxes:
        geometry = Geometry(box, 320.0 / box)
        volume = demo_particle(geometry)
        settings = SimulationSettings(sizes.particles, snr=0.1, seed=MASTER_SEED)
        truth = simulate_set([Species(volume)], geometry, settings=settings)
        for classes in sizes.classes:
            yield from _rate(backend, sizes, truth, classes)


def _rate(backend: Backend, sizes: Sizes, truth: Simulated, classes: int) -> Iterator[str]:
    engine = Engine(
        EngineSettings(n_classes=classes, max_resolution_angstrom=17.5, race_starts=1),
        truth.geometry,
        device=backend,
    )
    engine.add(truth.particle_images())
    engine.step()  # counts the noise of its particles
    half = np.arange(len(truth)) * 2 // len(truth)

    def waiting() -> float:
        backend.wait()
        return time.perf_counter()

    with ThreadPoolExecutor(_cores()) as workers:
        for size in sizes.batches:
            if size > len(truth):
                continue
            learner = _converged(engine, truth, waiting, workers)
            rng = np.random.default_rng(MASTER_SEED)
            stages: dict[str, float] = {}
            total = float("inf")
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
                    total = min(total, spent)
            whole = sum(stages.values())
            shares = ", ".join(f"{n} {100 * v / whole:.0f} %" for n, v in stages.items())
            target = TARGETS.get((truth.geometry.box, classes))
            note = f" (target on one H200: {target:,})" if target else ""
            yield (
                f"box {truth.geometry.box}, K {classes}, batches of {size}: "
                f"{size / total:,.0f} particles/s{note}; {shares}"
            )


def _time_to_map(backend: Backend, sizes: Sizes) -> Iterator[str]:
    """Seconds from the first particle to a map at 20 A against the truth, and to the end."""
    folder = Path(os.environ.get("ABINITIO_DATA", ""))
    known = "ABINITIO_DATA" in os.environ and folder.is_dir()
    made = (ribosome if known else demo)(folder, n_particles=sizes.map_particles)
    truth = made.particles()
    everything = truth.particle_images()
    engine = Engine(EngineSettings(), made.geometry, device=backend)
    spent, reached, steps = 0.0, None, 0

    def resolution() -> float:
        volume = engine.snapshot().classes[0].volume
        reference = np.asarray(made.species[0].volume, np.float32)
        found = align_to_truth(volume, reference, made.geometry.pixel_size_angstrom)
        return float(found.resolution_angstrom)

    for start in range(0, len(truth), 500):
        begun = time.perf_counter()
        engine.add(_rows(everything, slice(start, start + 500)))
        while engine.ready:
            engine.step()
            steps += 1
        backend.wait()
        spent += time.perf_counter() - begun
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
    if reached is None:
        yield f"{made.name}: {TARGET_ANGSTROM:.0f} A was not reached while particles arrived"


def _rows(particles: ParticleImages, span: slice) -> ParticleImages:
    values = {n: getattr(particles, n)[span] for n in vars(particles) if n != "optics"}
    return ParticleImages(**values, optics=particles.optics)


def _tests() -> Iterator[str]:
    paths = [f"tests/reconstruct/{name}" for name in TESTS]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *paths]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    yield from (line for line in run.stdout.splitlines() if re.match(r"(FAILED|ERROR|\d+ )", line))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


def _header(backend: Backend, *, rehearsal: bool) -> Iterator[str]:
    if rehearsal:
        yield "REHEARSAL at small sizes: these figures say that the script runs, no more."
    if not backend.on_device:
        yield "CPU backend: nothing here was measured on a GPU."
    yield f"{backend.device}: {backend.name}, {_cores()} cores, load {os.getloadavg()[0]:.1f}"
    for one in describe_devices():
        yield f"  {one.device}: {one.name}: {one.detail}"
    yield (
        f"  Python {platform.python_version()}, NumPy {np.__version__}, SciPy {scipy.__version__}, "
        f"{platform.platform()}"
    )


def main() -> None:
    """Print each line as it is known and save them all when asked."""
    parser = argparse.ArgumentParser(description="What one card does.")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:n")
    parser.add_argument("--rehearse", action="store_true", help="small sizes")
    parser.add_argument("--skip-tests", action="store_true")
    parser.add_argument("--save", type=Path, help="folder for the results file")
    arguments = parser.parse_args()
    backend = make_backend(arguments.device)
    sizes = REHEARSAL if arguments.rehearse else Sizes()
    lines: list[str] = []
    with threadpool_limits(limits=1 if not backend.on_device else None, user_api="blas"):
        parts: list[tuple[str, Iterator[str]]] = [
            ("device", _header(backend, rehearsal=arguments.rehearse)),
            ("tests", iter(["skipped"]) if arguments.skip_tests else _tests()),
            ("ceilings", _ceilings(backend, sizes)),
            (f"whole updates at radius {RADIUS}, global search", _rates(backend, sizes)),
            ("time to a map", _time_to_map(backend, sizes)),
        ]
        for title, part in parts:
            for line in (f"== {title}", *part):
                lines.append(line)
                print(line, flush=True)
    if arguments.save is not None:
        arguments.save.mkdir(parents=True, exist_ok=True)
        slug = re.sub(r"[^a-z0-9]+", "-", backend.name.lower()).strip("-")
        kind = "gpu-rehearsal" if arguments.rehearse else "gpu"
        path = arguments.save / f"{kind}-{slug}.txt"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"saved {path}")


if __name__ == "__main__":
    main()
