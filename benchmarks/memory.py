"""Memory per particle and per million particles: how the whole process grows while they come.

Promise: every session is a child process of its own; simulated ribosomes come again and again under
new identities; resident memory is read where half, and where all of them were learned from, so that
what a session has anyway, and its growing radius, drop out. A bounded store shows what stays.

    python -m benchmarks.memory --results benchmarks/results
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.sets import load
from reconstruct.engine import Engine
from reconstruct.types import EngineSettings, ParticleImages

__all__ = ["main"]

ARRIVAL = 500  # particles that reach the engine at a time
SESSIONS: tuple[dict[str, Any], ...] = (
    {},
    {"store_precision": "float16"},
    {"store_particles": 2000},
    {"n_classes": 4},
)


def _resident_bytes() -> int:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed is not resident any more
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _again(particles: ParticleImages, start: int) -> ParticleImages:
    """The particles, as others."""
    ids = np.arange(start, start + len(particles), dtype=np.uint64)
    return replace(particles, particle_ids=ids)


def _session(settings: dict[str, Any], particles: int, angstrom: float) -> dict[str, float]:
    """Learn from so many particles once: bytes of the process in the end, and by which it grew."""
    data = Path(os.environ.get("ABINITIO_DATA", "../shared/data"))
    made = load("ribosome", data, n_particles=ARRIVAL)
    images = made.particles().particle_images()
    engine = Engine(
        EngineSettings(max_resolution_angstrom=angstrom, **settings), made.geometry, device="cpu"
    )
    first, resident = particles // 2, 0
    for start in range(0, particles, ARRIVAL):
        engine.add(_again(images, start))
        while engine.ready:
            engine.step()
        if start + ARRIVAL == first:
            resident = _resident_bytes()
    last = _resident_bytes()
    return {"resident": last, "per_particle": (last - resident) / (particles - first)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--particles", type=int, default=40_000, help="a multiple of 1,000")
    parser.add_argument("--max-resolution", type=float, default=15.0, help="15: radius 21")
    parser.add_argument("--results", type=Path, help="folder that the table is written to")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.particles <= 0 or options.particles % (2 * ARRIVAL):
        parser.error(f"--particles must be a multiple of {2 * ARRIVAL}")
    if options.child:
        found = _session(json.loads(options.child), options.particles, options.max_resolution)
        print(json.dumps(found))
        return
    lines = [
        f"python -m benchmarks.memory --particles {options.particles} "
        f"--max-resolution {options.max_resolution:g}",
        f"{'session':<30} {'resident, MB':>12} {'bytes a particle':>17} {'GB a million':>13}",
    ]
    print(*lines, sep="\n", flush=True)
    for settings in SESSIONS:
        child = [sys.executable, "-m", "benchmarks.memory", "--child", json.dumps(settings)]
        child += ["--particles", str(options.particles)]
        child += ["--max-resolution", str(options.max_resolution)]
        answer = subprocess.run(child, check=True, stdout=subprocess.PIPE, text=True)
        found = json.loads(answer.stdout)
        name = " ".join(f"{key}={value}" for key, value in settings.items()) or "default"
        lines.append(
            f"{name:<30} {found['resident'] / 1e6:>12,.0f} {found['per_particle']:>17,.0f} "
            f"{found['per_particle'] / 1e3:>13.2f}"
        )
        print(lines[-1], flush=True)
    if options.results:
        (options.results / "memory.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
