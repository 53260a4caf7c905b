"""Two runs from scratch on the two halves of real particles: how far do they agree?

Promise: the halves share no particle (a hash of the identity splits them, another one than that of
the engine's half-sets) and nothing else: each engine starts from random poses and no map is given.
The two maps are laid on each other in both hands. With a symmetry both lie in its standard frame
already; without one the second is turned and shifted onto the first. A curve's first crossing is
reported beside its mean over a band, because a molecule may have hardly any power in between.

Run from the repository root, with the data folder in ``ABINITIO_DATA``:

    python -m benchmarks.two_halves --symmetry O --seeds 0 1 2
    python -m benchmarks.two_halves --file particles.star --symmetry C1 --band 30 10
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.pictures import row_of_slices, save_rows
from reconstruct.engine import Engine
from reconstruct.io.mrc import write_volume
from reconstruct.io.star import read_star
from reconstruct.io.table import ParticleTable
from reconstruct.quality import align_to_truth, fourier_shell_correlation, mirror, resolution_at
from reconstruct.symmetry_naming import name_symmetry
from reconstruct.types import EngineSettings, Geometry
from streamer.adapt import particles_from_table

__all__ = ["Agreement", "Half", "compare", "halves_of", "main", "run_half"]

ARRIVAL = 250  # particles that reach the engine at a time
MIXER = np.uint64(0xD6E8FEB86659FD93)
SEARCH_RADIUS = 12  # shells: a ball's low ones do not tell how it is turned


@dataclass(frozen=True)
class Half:
    """One run: its map and what it took."""

    volume: npt.NDArray[np.float32]
    particles: int
    cpu_s: float
    claim_angstrom: float | None
    events: tuple[str, ...]


@dataclass(frozen=True)
class Agreement:
    """How two maps agree."""

    fsc: npt.NDArray[np.float64]
    mirrored: bool
    crossing_angstrom: float  # first fall under 0.5
    band_mean: float


def halves_of(
    particle_ids: npt.NDArray[np.uint64],
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Rows of the two halves, by a hash of the identity."""
    mixed = (particle_ids.astype(np.uint64) * MIXER) >> np.uint64(63)
    return np.flatnonzero(mixed == 0), np.flatnonzero(mixed == 1)


def run_half(table: ParticleTable, rows: npt.NDArray[np.intp], settings: EngineSettings) -> Half:
    """Reconstruct the particles ``rows`` from scratch."""
    assert table.box is not None
    engine = Engine(settings, Geometry(table.box, table.pixel_size_angstrom))
    spent, events = 0.0, []
    for start in range(0, len(rows), ARRIVAL):
        particles = particles_from_table(table, rows[start : start + ARRIVAL])
        began = time.process_time()
        engine.add(particles)
        while engine.ready:
            events += [event.message for event in engine.step().events]
        spent += time.process_time() - began
    began = time.process_time()
    for report in engine.finish():
        events += [event.message for event in report.events]
    spent += time.process_time() - began
    found = engine.snapshot().classes[0]
    volume = np.asarray(found.volume, np.float32)
    return Half(volume, len(rows), spent, found.resolution_angstrom, tuple(events))


def compare(
    first: npt.NDArray[np.float32],
    second: npt.NDArray[np.float32],
    pixel_size_angstrom: float,
    *,
    band_angstrom: tuple[float, float],
    same_frame: bool,
) -> Agreement:
    """Lay one map on the other, in the better of both hands."""
    box_angstrom = first.shape[0] * pixel_size_angstrom
    low, high = (round(box_angstrom / edge) for edge in band_angstrom)
    if same_frame:
        curves = [fourier_shell_correlation(first, one) for one in (second, mirror(second))]
        flipped = int(np.argmax([curve[low : high + 1].mean() for curve in curves]))
        fsc, mirrored = curves[flipped], bool(flipped)
    else:
        found = align_to_truth(second, first, pixel_size_angstrom, search_radius=SEARCH_RADIUS)
        fsc, mirrored = found.fsc, found.mirrored
    used = fsc[: high + 1]  # the maps end at the engine's highest radius
    return Agreement(
        fsc=fsc,
        mirrored=mirrored,
        crossing_angstrom=resolution_at(used, box_angstrom),
        band_mean=float(fsc[low : high + 1].mean()),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run every seed and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--file", type=Path, help="STAR file; real apoferritin when left out")
    parser.add_argument("--symmetry", default="O")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--band", type=float, nargs=2, default=(25.0, 12.0), metavar="ANGSTROM")
    parser.add_argument("--mask-diameter", type=float, help="in Angstrom")
    parser.add_argument("--keep", type=Path, help="folder for the maps")
    parser.add_argument("--picture", type=Path, help="slices of the maps; needs a symmetry")
    options = parser.parse_args(argv)
    apoferritin = Path(os.environ.get("ABINITIO_DATA", "../shared/data")) / "real_apoferritin"
    table = read_star(options.file or apoferritin / "Particles_64px.star")
    rows = np.arange(len(table))
    ids = particles_from_table(table, rows).particle_ids
    pixel, agreeing = table.pixel_size_angstrom, 0
    band = (options.band[0], options.band[1])
    rows_of_picture = []
    for seed in options.seeds:
        settings = EngineSettings(
            seed=seed,
            symmetry=options.symmetry,
            mask_diameter_angstrom=options.mask_diameter,
        )
        with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
            runs = list(pool.map(run_half, repeat(table), halves_of(ids), repeat(settings)))
        found = compare(
            runs[0].volume,
            runs[1].volume,
            pixel,
            band_angstrom=band,
            same_frame=options.symmetry != "C1",
        )
        agreeing += found.crossing_angstrom <= band[1] + 1e-6
        print(f"seed {seed}")
        for number, run in enumerate(runs, 1):
            verdict = name_symmetry(run.volume, radius=16)
            claim = "none" if run.claim_angstrom is None else f"{run.claim_angstrom:.1f} A"
            print(f"  half {number}: {run.particles} particles, {run.cpu_s:.0f} CPU-s, own {claim}")
            print(f"    {verdict.message}")
            for words in run.events:
                print(f"    {words}")
            if options.keep:
                file = options.keep / f"seed{seed}_half{number}.mrc"
                write_volume(file, run.volume, pixel_size_angstrom=pixel)
        if options.picture and options.symmetry != "C1":
            other = mirror(runs[1].volume) if found.mirrored else runs[1].volume
            title = f"seed {seed}: half 1 | half 2, mean FSC {found.band_mean:.2f}"
            rows_of_picture.append(row_of_slices(title, runs[0].volume, other))
        curve = " ".join(f"{value:.2f}" for value in found.fsc[1:])
        print(f"  fsc from shell 1: {curve}")
        print(
            f"  {'mirrored' if found.mirrored else 'same hand'}: first under 0.5 at "
            f"{found.crossing_angstrom:.1f} A, mean {band[0]:.0f}-{band[1]:.0f} A "
            f"{found.band_mean:.3f}",
            flush=True,
        )
    if rows_of_picture:
        save_rows(rows_of_picture, options.picture)
    print(f"{agreeing} of {len(options.seeds)} seeds agree at 0.5 or more to {band[1]:.0f} A")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
