"""Far more classes than species, presented for long: nothing may collapse, nothing may be NaN.

Three species that need no data folder, ten classes, a small box; every update's state is looked at.

    python -m benchmarks.many_classes --presentations 100000
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.success import adjusted_rand_index
from reconstruct.engine import Engine
from reconstruct.simulate import SimulationSettings, Species, simulate_set
from reconstruct.structures import demo_particle
from reconstruct.types import EngineSettings, Geometry, StepReport

__all__ = ["main"]

GEOMETRY = Geometry(box=32, pixel_size_angstrom=10.0)


def species() -> tuple[Species, ...]:
    """The demo's particle, its larger subunit, and a hollow ball, equally bright."""
    axis = np.arange(GEOMETRY.box) - GEOMETRY.box // 2
    squares = axis.astype(np.float32) ** 2
    radius = np.sqrt(squares[:, None, None] + squares[None, :, None] + squares[None, None, :])
    ball = np.exp(-((radius - 6.0) ** 2) / 2.0)
    maps = (demo_particle(GEOMETRY), demo_particle(GEOMETRY, kind="large_subunit"), ball)
    return tuple(Species((one / one.std()).astype(np.float32)) for one in maps)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--presentations", type=int, default=100_000)
    parser.add_argument("--particles", type=int, default=3000)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, help="folder that the outcome is written to")
    options = parser.parse_args(arguments)
    settings = SimulationSettings(n_particles=options.particles, snr=0.3, junk_fraction=0.1)
    simulated = simulate_set(species(), GEOMETRY, settings=settings)
    passes = math.ceil(options.presentations / options.particles)
    engine = Engine(
        EngineSettings(
            n_classes=options.classes,
            max_resolution_angstrom=32.0,
            race_particles=500,
            replay_passes=passes,
            seed=options.seed,
        ),
        GEOMETRY,
    )
    began = time.process_time()
    events: list[str] = []
    presented = updates = 0
    engine.add(simulated.particle_images())
    for report in _steps(engine):
        _check(report)
        updates += 1
        presented = report.particles_presented
        events += [event.kind for event in report.events]
    _, arrays = engine.dump()
    broken = [n for n, a in arrays.items() if a.dtype.kind == "f" and not np.isfinite(a).all()]
    found, real = engine.assignments().class_index, simulated.species >= 0
    index = adjusted_rand_index(simulated.species[real], found[real])
    told = ", ".join(f"{kind} {events.count(kind)}" for kind in sorted(set(events)))
    text = (
        f"{options.classes} classes, 3 species, {options.particles} particles, {presented} "
        f"presentations in {updates} updates: {time.process_time() - began:.0f} CPU-seconds on "
        f"{platform.machine()}, {os.cpu_count()} cores\n"
        f"numbers that are none: {broken or 'none'}; events: {told}\n"
        f"particles per class {np.bincount(found, minlength=options.classes).tolist()}, adjusted "
        f"Rand index over true particles {index:.3f}\n"
    )
    print(text)
    if broken:
        raise SystemExit(1)
    if options.results:
        (options.results / "many-classes.txt").write_text(text)


def _steps(engine: Engine) -> Iterator[StepReport]:
    while engine.ready:
        yield engine.step()
    yield from engine.finish()


def _check(report: StepReport) -> None:
    """Stop at the first number that is none.

    Raises
    ------
    FloatingPointError
        A report has one.
    """
    if not np.isfinite([report.evidence_per_particle, *report.occupancy]).all():
        raise FloatingPointError(f"update {report.step}: {report}")


if __name__ == "__main__":
    main()
