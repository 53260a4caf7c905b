"""Side by side: RELION's initial model and this project's engine on the same simulated ribosomes.

Promise: both run as child processes on one thread and are measured the same way (user + system
seconds and peak resident memory of the child, as the kernel counts them, start-up included), and
both maps are compared with the truth by the same function, in both hands, at FSC 0.5.

Run from the repository root, with the data folder in ``ABINITIO_DATA``:

    python -m benchmarks.relion --work build/relion --method relion-30 --seeds 1 2
    python -m benchmarks.relion --work build/relion --method relion-15 --seeds 1 2
    python -m benchmarks.relion --work build/relion --method engine --seeds 1 2

The number is the angular step in degrees of RELION's search. Every run appends to
``results.jsonl`` in the work folder, and the table of all runs so far is written to ``--results``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.sets import StandardSet, load
from reconstruct.io.mrc import read_volume, write_volume
from reconstruct.io.simulated import PARTICLES_STAR, write_set
from reconstruct.io.star import read_star
from reconstruct.quality import align_to_truth
from reconstruct.simulate import simulate
from reconstruct.types import EngineSettings, Geometry
from streamer.adapt import particles_from_table, rows_by_micrograph

__all__ = ["Measured", "engine_child", "main", "measure", "relion_command", "relion_visits"]

# What 3.1.3 does with its default choices (30 degrees, oversampled to 15, 29 offsets): a visit of
# the initial stage costs about a third of a CPU-second on one thread; in the later stages it
# refines the angles by itself, to 7.5 degrees at 32 A (1 to 3 CPU-seconds) and to 3.75 degrees at
# its final 15 A (13 and more). Its default schedule of 90,000 visits is out of reach, so nearly all
# visits belong to the initial stage, and the last ones stop at 30 A. The step of the initial stage
# is 30 degrees, as in its own first pass, or 15, which its log asks for at 35 A.
INITIAL_ITERATIONS, BETWEEN_ITERATIONS, FINAL_ITERATIONS = 156, 3, 3
INITIAL_SUBSET, FINAL_SUBSET = 50, 50
RELION_SEARCH = {"relion-30": 1, "relion-15": 2}  # HEALPix order
MASK_DIAMETER_ANGSTROM = 272.0  # 0.85 of the box, for both
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


@dataclass(frozen=True)
class Measured:
    """One run."""

    method: str
    seed: int
    particles: int
    visits: int
    cpu_seconds: float
    wall_seconds: float
    peak_mib: float
    fsc05_angstrom: float
    mirrored: bool


def relion_visits() -> int:
    """Images that RELION's schedule looks at, all iterations together."""
    ramp = np.arange(1, BETWEEN_ITERATIONS + 1) / BETWEEN_ITERATIONS
    between = INITIAL_SUBSET + np.round(ramp * (FINAL_SUBSET - INITIAL_SUBSET))
    ends = INITIAL_ITERATIONS * INITIAL_SUBSET + FINAL_ITERATIONS * FINAL_SUBSET
    return int(ends + between.sum())


def relion_command(output: Path, *, healpix_order: int, seed: int) -> list[str]:
    """Command line of RELION 3.1's initial model.

    The schedule and the search are shortened (see above); everything else is what its graphical
    interface would choose.
    """
    schedule = {
        "--sgd_ini_iter": INITIAL_ITERATIONS,
        "--sgd_inbetween_iter": BETWEEN_ITERATIONS,
        "--sgd_fin_iter": FINAL_ITERATIONS,
        "--sgd_ini_subset": INITIAL_SUBSET,
        "--sgd_fin_subset": FINAL_SUBSET,
        "--sgd_ini_resol": 35,
        "--sgd_fin_resol": 30,
        "--sgd_write_iter": 50,
        "--particle_diameter": MASK_DIAMETER_ANGSTROM,
        "--oversampling": 0,
        "--healpix_order": healpix_order,
        "--offset_range": 3,  # pixels, as far as the set's shifts go; its own default is 6
        "--offset_step": 2,
        "--pool": 3,
        "--pad": 1,
        "--K": 1,
        "--sym": "C1",
        "--j": 1,
        "--random_seed": seed,
    }
    options = [str(word) for pair in schedule.items() for word in pair]
    flags = ["--sgd", "--denovo_3dref", "--ctf", "--flatten_solvent", "--zero_mask"]
    flags += ["--skip_gridding", "--dont_combine_weights_via_disc"]
    return ["relion_refine", "--i", PARTICLES_STAR, "--o", str(output / "run"), *flags, *options]


def measure(
    command: Sequence[str], *, folder: Path, log: Path, environment: Mapping[str, str]
) -> tuple[float, float, float]:
    """Run a child; CPU seconds, wall seconds and peak MiB as the kernel counts them for it.

    Raises
    ------
    RuntimeError
        The child failed; its log says why.
    """
    start = time.monotonic()
    with log.open("wb") as stream:
        child = subprocess.Popen(
            command, cwd=folder, stdout=stream, stderr=subprocess.STDOUT, env=dict(environment)
        )
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        raise RuntimeError(f"{command[0]} ended with {child.returncode}; see {log}")
    seconds = usage.ru_utime + usage.ru_stime
    return seconds, time.monotonic() - start, usage.ru_maxrss / 1024


def engine_child(star: Path, *, geometry: Geometry, seed: int, output: Path) -> None:
    """Reconstruct with this project's engine; write ``map.mrc`` and ``visits.json``.

    The particles are read from the same files that RELION reads.
    """
    # Imported here so that measuring RELION does not depend on it.
    from reconstruct.engine import Engine

    settings = EngineSettings(
        seed=seed,
        mask_diameter_angstrom=MASK_DIAMETER_ANGSTROM,
        max_resolution_angstrom=15.0,  # where RELION's default schedule would end
    )
    table = read_star(star)
    engine = Engine(settings, geometry)
    for rows in rows_by_micrograph(table, np.arange(len(table)), batch_size=100):
        engine.add(particles_from_table(table, rows))
        while engine.ready:
            engine.step()
    for _ in engine.finish():
        pass
    snapshot = engine.snapshot()
    volume = snapshot.classes[0].volume
    write_volume(output / "map.mrc", volume, pixel_size_angstrom=geometry.pixel_size_angstrom)
    visits = {"visits": snapshot.particles_presented}
    (output / "visits.json").write_text(json.dumps(visits), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs")
    parser.add_argument(
        "--method", choices=(*RELION_SEARCH, "engine", "engine-child"), required=True
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--results", type=Path, help="text file for the table")
    parser.add_argument("--particles", type=int, default=2_000)
    options = parser.parse_args(arguments)
    data = Path(os.environ.get("ABINITIO_DATA", "../shared/data"))
    standard = load("ribosome", data, n_particles=options.particles)
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    if options.method == "engine-child":
        star = work.parent / "set" / PARTICLES_STAR
        engine_child(star, geometry=standard.geometry, seed=options.seeds[0], output=work)
        return
    for seed in options.seeds:
        run = work / f"{options.method}-{seed}"
        shutil.rmtree(run, ignore_errors=True)
        run.mkdir()
        row = _run(options.method, standard, run, seed=seed, data=data)
        with (work / "results.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(asdict(row)) + "\n")
        text = _table(work / "results.jsonl")
        print(text, flush=True)
        if options.results is not None:
            options.results.write_text(f"{_machine()}\n{text}\n", encoding="utf-8")


def _run(method: str, standard: StandardSet, run: Path, *, seed: int, data: Path) -> Measured:
    environment = {**os.environ, **dict.fromkeys(ONE_THREAD, "1")}
    log = run / "log.txt"
    shared = run.parent / "set"
    if not (shared / PARTICLES_STAR).exists():
        chunks = simulate(standard.species, standard.geometry, settings=standard.settings)
        write_set(shared, chunks)
    if method in RELION_SEARCH:
        command = relion_command(run, healpix_order=RELION_SEARCH[method], seed=seed)
        cost = measure(command, folder=shared, log=log, environment=environment)
        final = sorted(run.glob("run_it*_class001.mrc"))[-1]
        visits = relion_visits()
    else:
        here = Path(__file__).resolve().parents[1]
        particles = str(standard.settings.n_particles)
        child = [sys.executable, "-m", "benchmarks.relion", "--work", str(run)]
        child += ["--method", "engine-child", "--seeds", str(seed), "--particles", particles]
        environment |= {"ABINITIO_DATA": str(data.resolve())}
        cost = measure(child, folder=here, log=log, environment=environment)
        final = run / "map.mrc"
        visits = json.loads((run / "visits.json").read_text(encoding="utf-8"))["visits"]
    pixel = standard.geometry.pixel_size_angstrom
    found = read_volume(final, pixel).data.astype(np.float32)
    truth = np.asarray(standard.species[0].volume, dtype=np.float32)
    alignment = align_to_truth(found, truth, pixel)
    return Measured(
        method=method,
        seed=seed,
        particles=standard.settings.n_particles,
        visits=visits,
        cpu_seconds=cost[0],
        wall_seconds=cost[1],
        peak_mib=cost[2],
        fsc05_angstrom=alignment.resolution_angstrom,
        mirrored=alignment.mirrored,
    )


def _machine() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, one thread, simulated 70S ribosome"


def _table(results: Path) -> str:
    head = f"{'method':9} {'seed':>4} {'particles':>9} {'visits':>7} {'CPU s':>8} {'wall s':>8}"
    lines = [f"{head} {'peak MiB':>8} {'FSC 0.5':>8} mirrored"]
    for text in results.read_text(encoding="utf-8").splitlines():
        row = Measured(**json.loads(text))
        lines.append(
            f"{row.method:9} {row.seed:4} {row.particles:9} {row.visits:7} {row.cpu_seconds:8.1f} "
            f"{row.wall_seconds:8.1f} {row.peak_mib:8.0f} {row.fsc05_angstrom:6.1f} A "
            f"{'yes' if row.mirrored else 'no'}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
