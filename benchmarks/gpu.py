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
from reconstruct.learner import Learner
from reconstruct.quality import align_to_truth
from reconstruct.schedule import Schedule, ShellGrowth
from reconstruct.search import local_start, make_plan
from reconstruct.simulate import Simulated, SimulationSettings, Species, simulate_set
from reconstruct.structures import demo_particle
from reconstruct.types import EngineSettings, Geometry, ParticleImages

__all__ = ["Sizes", "main"]

TESTS = ("test_kernels_twins.py", "test_kernels_compile.py", "test_device_path.py")
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
    square = xp.ones((edge, edge), np.float32)
    flops = 2.0 * edge**3
    full = flops / _seconds(backend, lambda: square @ square)
    yield f"GEMM float32 {edge}^3: {full / 1e12:.2f} Tflop/s"
    product = backend.kernels.coarse_product if backend.on_device else np.matmul
    low = flops / _seconds(backend, lambda: product(square, square))
    if backend.on_device:
        yield f"GEMM TF32 {edge}^3: {low / 1e12:.2f} Tflop/s"
    source = xp.zeros(sizes.copy_bytes // 4, np.float32)
    target = xp.empty_like(source)

    def copy() -> None:
        target[:] = source

    copied = 2.0 * source.nbytes / _seconds(backend, copy)
    yield f"copy: {copied / 1e9:.0f} GB/s read and written"
    yield from _coarse(backend, sizes, product=product, ceiling=low, copied=copied)


def _coarse(
    backend: Backend,
    sizes: Sizes,
    *,
    product: Callable[[Any, Any], Any],
    ceiling: float,
    copied: float,
) -> Iterator[str]:
    xp = backend.xp
    plan = make_plan(RADIUS, box=64, max_shift_pixels=4.0)
    n, t, r = 66, plan.shift_cells**2, plan.coarse_count
    b = min(sizes.batches[-1], 1000)
    left, right = xp.ones((b * t, 2 * n), np.float32), xp.ones((r, 2 * n), np.float32).T
    spent = _seconds(backend, lambda: product(left, right))
    flops, moved = 2.0 * b * t * r * 2 * n, 4.0 * (b * t * (r + 2 * n) + r * 2 * n)
    bound = max(flops / ceiling, moved / copied)
    yield (
        f"coarse product, {b} particles x {t} shifts x {r} rotations x {n} coefficients: "
        f"{flops / spent / 1e12:.2f} Tflop/s, {100 * flops / ceiling / spent:.0f} % of the GEMM "
        f"ceiling; {moved / spent / 1e9:.0f} GB/s, {100 * moved / copied / spent:.0f} % of the "
        f"copy ceiling; {100 * bound / spent:.0f} % of whichever binds"
    )
    scores = xp.asarray(
        np.random.default_rng(MASTER_SEED).standard_normal((b, t, r), dtype=np.float32)
    )
    half, prior = xp.zeros((b, r), np.float32), xp.zeros(r, np.float32)
    out = xp.zeros((b, 40), np.int32), xp.zeros((b, 40), np.float32), xp.zeros(b, np.int32)
    spent = _seconds(
        backend,
        lambda: backend.kernels.select_cells(scores, half, prior, 40, 0.33, 0.99, *out),
    )
    moved = 8.0 * b * t * r  # the scores, twice
    yield (
        f"choice of coarse cells: {b / spent:,.0f} particles/s, {moved / spent / 1e9:.0f} GB/s, "
        f"{100 * moved / copied / spent:.0f} % of the copy ceiling"
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
        schedule=Schedule(start_radius=RADIUS, grow_every=1 << 40, mask_from=1 << 40),
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
    learner.adopt(batch, everything % 2, poses, workers=workers)
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
    half = np.arange(len(truth)) % 2

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
                rows = rng.choice(len(truth), size, replace=False)
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
