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
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from threadpoolctl import threadpool_limits

from benchmarks.gpu_sessions import (
    MASTER_SEED,
    RADIUS,
    REHEARSAL,
    Sizes,
    agreement,
    many,
    profile,
    rates,
    time_to_map,
)
from reconstruct.backend import Backend, describe_devices, make_backend, usable_cores
from reconstruct.fourier import make_half_plane
from reconstruct.kernels_cuda import MOST_STEPS, STEP, fragment_shape, maxima_shape
from reconstruct.search import empty_poses
from reconstruct.search_plan import make_plan

__all__ = ["main"]

TESTS = (
    "test_ctf.py",
    "test_kernels_twins.py",
    "test_device_maps.py",
    "test_device_path.py",
    "test_branch_and_bound.py",
    "test_pose_search.py",
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

    cubes, base = normal(2, 33, 33, 33, 4), normal(r // 2, 9) / 3
    rotations, slices = xp.empty((r, 9), np.float32), xp.empty((2, r, n, 2), np.float32)
    fragments = xp.empty(fragment_shape(2, r), np.uint32)
    axes = backend.asarray(np.eye(3).ravel(), np.float32)
    kx, ky = backend.asarray(plane.kx), backend.asarray(plane.ky)
    kernels.coarse_slices(cubes, base, axes, kx, ky, 2.0, rotations, slices, fragments)
    particles = normal(b, n), normal(b, n), abs(normal(b, n))
    phases, turns, shifts = normal(t, n, 2), normal(n, t, 2), normal(t, 2)
    prior = xp.zeros(1, np.float32)
    maxima = xp.empty(maxima_shape(b, t, 1, r), np.float32)
    spent = _seconds(
        backend,
        lambda: kernels.coarse_maxima(*particles, phases, fragments, b // 2, maxima),
    )
    flops = 2.0 * b * t * r * 3 * n  # of one product: a complex one's real part, and C^2 |P|^2
    done = 2.0 * b * t * (r // 2) * STEP * MOST_STEPS  # half of it, as conjugates share; padded
    moved = 4.0 * (3 * b * n + maxima.size)
    yield (
        f"coarse scores, {b} particles x {t} shifts x {r} rotations x {n} coefficients: "
        f"{b / spent:,.0f} particles/s; as one product {flops / spent / 1e12:.0f} Tflop/s, "
        f"{100 * flops / ceiling / spent:.0f} % of the GEMM ceiling; the tensor cores' share "
        f"{done / spent / 1e12:.0f} Tflop/s, {100 * done / ceiling / spent:.0f} %; "
        f"{moved / spent / 1e9:.0f} GB/s, {100 * moved / copied / spent:.0f} % of the copy ceiling"
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


def _tests() -> Iterator[str]:
    paths = [f"tests/reconstruct/{name}" for name in TESTS]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *paths]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    yield from (line for line in run.stdout.splitlines() if re.match(r"(FAILED|ERROR|\d+ )", line))


def _header(backend: Backend, *, rehearsal: bool) -> Iterator[str]:
    if rehearsal:
        yield "REHEARSAL at small sizes: these figures say that the script runs, no more."
    if not backend.on_device:
        yield "CPU backend: nothing here was measured on a GPU."
    yield f"{backend.device}: {backend.name}, {usable_cores()} cores, load {os.getloadavg()[0]:.1f}"
    for one in describe_devices():
        yield f"  {one.device}: {one.name}: {one.detail}"
    yield (
        f"  Python {platform.python_version()}, NumPy {np.__version__}, SciPy {scipy.__version__}, "
        f"{platform.platform()}"
    )


def main() -> None:
    """Print each line as it is known and save it when asked."""
    parser = argparse.ArgumentParser(description="What one card does.")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:n")
    parser.add_argument("--rehearse", action="store_true", help="small sizes")
    parser.add_argument("--skip-tests", action="store_true")
    parser.add_argument("--save", type=Path, help="folder for the results file")
    arguments = parser.parse_args()
    backend = make_backend(arguments.device)
    sizes = REHEARSAL if arguments.rehearse else Sizes()
    path = _results_file(backend, arguments.save, rehearsal=arguments.rehearse)
    with threadpool_limits(limits=1 if not backend.on_device else None, user_api="blas"):
        parts: list[tuple[str, Iterator[str]]] = [
            ("device", _header(backend, rehearsal=arguments.rehearse)),
            ("tests", iter(["skipped"]) if arguments.skip_tests else _tests()),
            ("ceilings", _ceilings(backend, sizes)),
            ("the same bits, and the CPU's maps", agreement(backend, sizes)),
            ("many particles", many(backend, sizes)),
            (f"whole updates at radius {RADIUS}, global search", rates(backend, sizes)),
            ("kernels of one update", profile(backend, sizes)),
            ("time to a map", time_to_map(backend, sizes)),
        ]
        for title, part in parts:
            for line in (f"== {title}", *part):
                print(line, flush=True)
                if path is not None:  # at once: a card may be lent for minutes only
                    with path.open("a", encoding="utf-8") as file:
                        file.write(line + "\n")
    if path is not None:
        print(f"saved {path.replace(path.with_suffix('.txt'))}")


def _results_file(backend: Backend, folder: Path | None, *, rehearsal: bool) -> Path | None:
    """An empty file named after the device, which gets its last name once all is measured."""
    if folder is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    slug = re.sub(r"[^a-z0-9]+", "-", backend.name.lower()).strip("-")
    path = folder / f"{'gpu-rehearsal' if rehearsal else 'gpu'}-{slug}.partial"
    path.write_text("", encoding="utf-8")
    return path


if __name__ == "__main__":
    main()
