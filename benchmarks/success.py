"""Success rates: one set, many seeds, what each run reached and what it cost.

Promise: every seed runs in a child process of its own, on the same simulated particles or with
``--draws`` on a draw of its own (other poses, noise and order: the harder test); CPU-seconds are
the child's own around the engine's work (set-up, compilation and simulation apart), peak
memory is the child's resident maximum (Linux), maps are compared with the truth in both hands at
FSC 0.5.

Run from the repository root, with the data folder in ``ABINITIO_DATA``:

    python -m benchmarks.success --set ribosome --seeds 10
    python -m benchmarks.success --set ribosome --seeds 10 --snr 0.05
    python -m benchmarks.success --set mixture --particles 12000 --classes 3 --seeds 3
    python -m benchmarks.success --set ribosome --snr 0.02 --seeds 16 --jobs 16
    python -m benchmarks.success --set ribosome --seeds 3 --draws --stream-replays 2
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import queue
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from benchmarks.sets import StandardSet, load
from reconstruct.backend import make_backend
from reconstruct.engine import Engine
from reconstruct.quality import align_to_truth
from reconstruct.simulate import Simulated, simulate_set
from reconstruct.symmetry_naming import name_symmetry
from reconstruct.types import (
    Assignments,
    EngineSettings,
    Optics,
    ParticleImages,
    PoseSearch,
    Snapshot,
)
from streamer.findings import find, with_all_views

__all__ = ["Mark", "adjusted_rand_index", "main", "purity", "run_seed"]

ARRIVAL = 250  # particles that reach the engine at a time


@dataclass(frozen=True)
class Mark:
    """Where a run stood at one moment."""

    label: str
    particles_seen: int
    particles_presented: int
    radius: int
    cpu_s: float
    peak_mib: float
    resolution_angstrom: tuple[float | None, ...]  # its own claim, per class
    symmetry: str  # imposed, or else named in the map of class 1
    findings: tuple[str, ...]  # verdicts told, with the number of the class
    file: str


def adjusted_rand_index(truth: npt.NDArray[Any], found: npt.NDArray[Any]) -> float:
    """Agreement of two partitions, 1 for the same and 0 for chance (Hubert & Arabie 1985)."""
    table = _contingency(truth, found).astype(np.float64)
    pairs = (table * (table - 1) / 2).sum()
    rows = table.sum(axis=1)
    columns = table.sum(axis=0)
    row_pairs, column_pairs = (rows * (rows - 1) / 2).sum(), (columns * (columns - 1) / 2).sum()
    total = table.sum() * (table.sum() - 1) / 2
    expected = row_pairs * column_pairs / total
    return float((pairs - expected) / ((row_pairs + column_pairs) / 2 - expected))


def purity(truth: npt.NDArray[Any], found: npt.NDArray[Any]) -> float:
    """Share of particles that belong to the commonest species of their class."""
    table = _contingency(truth, found)
    return float(table.max(axis=0).sum() / table.sum())


def _contingency(truth: npt.NDArray[Any], found: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    _, rows = np.unique(truth, return_inverse=True)
    _, columns = np.unique(found, return_inverse=True)
    table = np.zeros((rows.max() + 1, columns.max() + 1), np.int64)
    np.add.at(table, (rows, columns), 1)
    return table


def run_seed(
    set_file: Path, folder: Path, settings: EngineSettings, geometry: Any, *, device: str = "cpu"
) -> list[Mark]:
    """Run one seed in this process; volumes go to ``folder``."""
    with np.load(set_file) as archive:
        columns = {name: archive[name] for name in archive.files}
    optics = columns.pop("optics_values")
    columns.pop("species")

    everything = ParticleImages(**columns, optics=(Optics(*map(float, optics)),))
    _warm_up(settings, geometry, everything, device)
    engine = Engine(settings, geometry, device=device)
    marks: list[Mark] = []
    spent = 0.0
    imposed, seen = "C1", 0

    def note(label: str) -> None:
        peak = _peak_mib()
        snapshot = engine.snapshot()
        file = folder / f"{settings.seed}_{label}.npz"
        found = engine.assignments()
        named, told = _told(snapshot, found, imposed)
        np.savez(
            file,
            volumes=np.stack([c.volume for c in snapshot.classes]),
            class_index=found.class_index,
            rotations=found.rotations,
            log_likelihood=found.log_likelihood,
        )
        marks.append(
            Mark(
                label=label,
                particles_seen=snapshot.particles_seen,
                particles_presented=snapshot.particles_presented,
                radius=engine.step_radius,
                cpu_s=round(spent, 2),
                peak_mib=round(peak, 1),
                resolution_angstrom=tuple(c.resolution_angstrom for c in snapshot.classes),
                symmetry=named,
                findings=told,
                file=str(file),
            )
        )

    wanted = {"first_2000": 2000, "half_way": len(everything) // 2}  # particles that have come
    for start in range(0, len(everything), ARRIVAL):
        began = time.process_time()
        engine.add(everything.span(slice(start, start + ARRIVAL)))
        while engine.ready:
            report = engine.step()
            imposed, seen = report.symmetry, report.particles_seen
        spent += time.process_time() - began
        for label in [name for name, come in wanted.items() if start + ARRIVAL >= come]:
            del wanted[label]
            note(label)

    def streamed() -> bool:
        return engine.phase in ("intermediate", "final") and seen == len(everything)

    passes = 0
    seen_in_pass = 0
    replaying = streamed()
    if replaying:
        note("stream_end")
    began = time.process_time()
    for report in engine.finish():
        imposed, seen = report.symmetry, report.particles_seen
        if not replaying:
            replaying = streamed()
            label = "stream_end" if replaying else ""
        else:
            seen_in_pass += report.replayed_particles
            done = seen_in_pass >= report.particles_seen
            passes, seen_in_pass = (passes + 1, 0) if done else (passes, seen_in_pass)
            label = f"replay_{passes}" if done else ""
        if label:
            spent += time.process_time() - began
            note(label)
            began = time.process_time()
    return marks


def _peak_mib() -> float:
    """Most memory that this program had resident; ``ru_maxrss`` counts what its parent had too."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return float("nan")


def _told(
    snapshot: Snapshot, assignments: Assignments, imposed: str
) -> tuple[str, tuple[str, ...]]:
    """Group of class 1, imposed or named in its map, and what a session would tell of its maps."""
    whole, views = with_all_views(snapshot, assignments, group=imposed)
    found = find(whole, views, group=imposed, is_final=True)
    named = imposed
    if "symmetry_named/0" in found:
        first = snapshot.classes[0]
        assert first.resolution_angstrom is not None
        radius = int(snapshot.geometry.box_angstrom / first.resolution_angstrom)
        named = name_symmetry(first.volume, radius=radius).group
    kinds = (f"{e['kind']}/{e['class']}" for e in found.values())
    quiet = ("enough_data", "converged", "symmetry_named", "imposed_symmetry")
    return named, tuple(sorted(kind for kind in kinds if not kind.startswith(quiet)))


def _warm_up(
    settings: EngineSettings, geometry: Any, particles: ParticleImages, device: str
) -> None:
    """Compile and load every kernel once."""
    small = replace(settings, race_particles=100, race_starts=2, replay_passes=2)
    engine = Engine(small, geometry, device=device)
    engine.add(particles.span(slice(0, 200)))
    while engine.ready:
        engine.step()
    for _ in engine.finish():
        pass


def _draw(chosen: StandardSet, seed: int, folder: Path) -> Path:
    """Simulate a set in a file of its own."""
    settings = replace(chosen.settings, seed=seed)
    file = folder / f"set_{seed}.npz"
    _save_set(simulate_set(chosen.species, chosen.geometry, settings=settings), file)
    return file


def _save_set(simulated: Simulated, file: Path) -> None:
    particles = simulated.particle_images()
    optics = particles.optics[0]
    columns = {n: getattr(particles, n) for n in vars(particles) if n != "optics"}
    columns["images"] = columns["images"].astype(np.float16)
    np.savez(
        file,
        **columns,
        species=simulated.species,
        optics_values=np.array(
            [optics.voltage_kv, optics.spherical_aberration_mm, optics.amplitude_contrast]
        ),
    )


def _judge(mark: Mark, chosen: StandardSet, species: npt.NDArray[Any]) -> dict[str, Any]:
    with np.load(mark.file) as archive:
        volumes, found = archive["volumes"], archive["class_index"]
    pixel = chosen.geometry.pixel_size_angstrom
    visited = found >= 0
    result: dict[str, Any] = asdict(mark)
    truth_of = species[: len(found)][visited]
    if len(volumes) > 1:
        real = truth_of >= 0
        result["purity"] = round(purity(truth_of, found[visited]), 4)
        result["ari_true_particles"] = round(
            adjusted_rand_index(truth_of[real], found[visited][real]), 4
        )
    best: list[float] = []
    for kind in chosen.species:
        aligned = [align_to_truth(v, kind.volume, pixel) for v in volumes if np.any(v)]
        best.append(min((a.resolution_angstrom for a in aligned), default=float("inf")))
    result["truth_angstrom"] = [round(value, 2) for value in best]
    return result


def _table(results: list[dict[str, Any]]) -> str:
    lines = [
        f"{'seed':>4} {'mark':<11} {'seen':>6} {'shown':>6} {'L':>3} {'CPU s':>7} {'MiB':>6} "
        f"{'FSC 0.5 truth, A':<18} {'own claim, A':<18} {'purity':<7} {'ARI':<7} group  told"
    ]
    for r in results:
        own = " ".join("-" if x is None else f"{x:.1f}" for x in r["resolution_angstrom"])
        truth = " ".join(f"{x:.1f}" for x in r["truth_angstrom"])
        lines.append(
            f"{r['seed']:>4} {r['label']:<11} {r['particles_seen']:>6} "
            f"{r['particles_presented']:>6} {r['radius']:>3} {r['cpu_s']:>7.1f} "
            f"{r['peak_mib']:>6.0f} {truth:<18} {own:<18} "
            f"{r.get('purity', ''):<7} {r.get('ari_true_particles', ''):<7} "
            f"{r['symmetry']:<6} {' '.join(r['findings'])}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--set", default="ribosome")
    parser.add_argument("--particles", type=int, default=10_000)
    parser.add_argument("--snr", type=float, help="default: the set's, mostly 0.1")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--classes", type=int, default=1)
    parser.add_argument("--symmetry", default="C1")
    parser.add_argument("--replay", type=int, help="passes; default: the engine's")
    parser.add_argument(
        "--stream-replays", type=float, help="earlier particles for each new one; default: 0"
    )
    parser.add_argument("--pose-search", default="exhaustive", choices=get_args(PoseSearch))
    parser.add_argument("--device", default="cpu", help="cpu, or cuda: then CPU-s are the host's")
    parser.add_argument("--ends", action="store_true", help="judge the stream's end and the last")
    parser.add_argument("--draws", action="store_true", help="other particles for every seed")
    parser.add_argument("--jobs", type=int, default=1, help="seeds at once, each on its own core")
    parser.add_argument("--results", type=Path, help="folder that the table is written to")
    parser.add_argument("--keep", type=Path, help="folder that the maps of every mark are left in")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    data = Path(os.environ.get("ABINITIO_DATA", "../shared/data"))
    chosen = load(options.set, data, n_particles=options.particles)
    if options.snr is not None:
        chosen = replace(chosen, settings=replace(chosen.settings, snr=options.snr))
    if options.child:
        print(json.dumps(_child(options, chosen)))
        return
    with tempfile.TemporaryDirectory() as passing:
        folder = str(options.keep or passing)
        Path(folder).mkdir(parents=True, exist_ok=True)
        title = f"{options.set}-snr{chosen.settings.snr:g}-k{options.classes}-{options.symmetry}"
        if options.pose_search != "exhaustive":
            title += f"-{options.pose_search}"
        if options.stream_replays:
            title += f"-again{options.stream_replays:g}"
        if options.device != "cpu":
            title += f"-{options.device}"
        if options.draws:
            title += "-draws"
        head = f"{title}: {options.particles} particles, {_machine(options)}"
        print(head, _table([]), sep="\n", flush=True)
        results: list[dict[str, Any]] = []
        for judged in _run_children(options, chosen, Path(passing), folder):
            results += judged
            print(_table(judged).partition("\n")[2], flush=True)
            if options.results:  # at once: the time on a machine may be short
                options.results.mkdir(parents=True, exist_ok=True)
                target = options.results / f"success-{title}.txt"
                target.write_text(f"{head}\n{_table(results)}\n")


def _child(options: argparse.Namespace, chosen: StandardSet) -> list[dict[str, Any]]:
    """Run and judge the one seed that this process is for."""
    file, folder, seed, core = options.child.split("|")
    if core:
        os.sched_setaffinity(0, {int(core)})
    settings = EngineSettings(
        seed=int(seed),
        n_classes=options.classes,
        symmetry=options.symmetry,
        replay_passes=options.replay,
        stream_replays=options.stream_replays,
        pose_search=options.pose_search,
    )
    marks = run_seed(Path(file), Path(folder), settings, chosen.geometry, device=options.device)
    if options.ends:
        marks = [mark for mark in marks[:-1] if mark.label == "stream_end"] + marks[-1:]
    with np.load(file) as archive:
        species = archive["species"]
    return [{"seed": int(seed), **_judge(mark, chosen, species)} for mark in marks]


def _run_children(
    options: argparse.Namespace, chosen: StandardSet, passing: Path, folder: str
) -> Iterator[list[dict[str, Any]]]:
    """Run the seeds, ``jobs`` at a time, each on a core of its own if there are several."""
    cores: queue.SimpleQueue[str] = queue.SimpleQueue()
    usable = sorted(os.sched_getaffinity(0)) if options.jobs > 1 else [""]
    for core in usable[: options.jobs]:
        cores.put(str(core))
    common = _draw(chosen, chosen.settings.seed, passing) if not options.draws else Path()

    def run(seed: int) -> list[dict[str, Any]]:
        core = cores.get()
        file = common
        child = [sys.executable, "-m", "benchmarks.success", *_flags(options)]
        try:
            if options.draws:
                file = _draw(chosen, seed, passing)
            child += ["--child", f"{file}|{folder}|{seed}|{core}"]
            answer = subprocess.run(child, check=True, stdout=subprocess.PIPE, text=True)
        finally:
            cores.put(core)
            if options.draws:
                file.unlink(missing_ok=True)
        found: list[dict[str, Any]] = json.loads(answer.stdout)
        return found

    seeds = range(options.first_seed, options.first_seed + options.seeds)
    with ThreadPoolExecutor(cores.qsize()) as workers:
        yield from workers.map(run, seeds)


def _machine(options: argparse.Namespace) -> str:
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        cpu = (names or [cpu])[0]
    at_once = min(options.jobs, len(os.sched_getaffinity(0)))
    jobs = f", {at_once} seeds at a time" if at_once > 1 else ""
    device = "" if options.device == "cpu" else f", {make_backend(options.device).name}"
    return f"{cpu}, {os.cpu_count()} cores{device}{jobs}"


def _flags(options: argparse.Namespace) -> list[str]:
    names = {
        *("set", "particles", "snr", "classes", "symmetry", "replay", "stream_replays"),
        *("pose_search", "device"),
    }
    given = {n: getattr(options, n) for n in sorted(names) if getattr(options, n) is not None}
    flags = [part for name, value in given.items() for part in (_flag(name), str(value))]
    return [*flags, "--ends"] if options.ends else flags


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


if __name__ == "__main__":
    main()
