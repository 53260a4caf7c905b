"""Branch and bound beside the exhaustive search: accuracy, violations, cells and time.

Promise: both searches get the same particles, the same map and the same randomly turned tree; the
particles that are searched took no part in the map. A violation is a particle for which a search
ends at a worse cell than the reference, which scores every cell of one level down (8 times the
base grid's rotations, 4 times its shifts) at the working radius and follows the best 200 to the
leaves of the same tree. Times are CPU-seconds of this process, one thread, compilation apart.

Run from the repository root, with the data folder in ``ABINITIO_DATA``:

    python -m benchmarks.pose_search --save benchmarks/results
    python -m benchmarks.pose_search --calibrate --save benchmarks/results
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from benchmarks.sets import ribosome
from reconstruct.backend import cpu_backend
from reconstruct.branch_and_bound import Bound, search_branch_and_bound
from reconstruct.engine import Engine
from reconstruct.learner import Learner
from reconstruct.pose_search import WIDE
from reconstruct.rotations import (
    angle_between,
    child_offsets,
    grid_step,
    matrix_from_vector,
    random_rotations,
)
from reconstruct.schedule import Schedule, ShellGrowth
from reconstruct.search import (
    Poses,
    WeightedBatch,
    base_grid,
    coarse_cells,
    empty_poses,
    local_start,
    prepare_coarse,
    refine_levels,
    search_poses,
)
from reconstruct.search_plan import SearchPlan
from reconstruct.simulate import Simulated
from reconstruct.types import EngineSettings

__all__ = ["Scene", "main"]

MAPS = {"converged": (2000, 0.0), "poor": (300, 15.0)}  # particles, degrees that poses are off
TOLERANCE_NATS = 0.05
REFERENCE_CHUNK = 8  # particles whose 19 million coarse scores are held at once
MASTER_SEED = 0


@dataclass(frozen=True)
class Scene:
    """Particles, a map and a tree at one radius."""

    truth: npt.NDArray[np.float64]  # (b, 3, 3)
    batch: WeightedBatch
    learner: Learner
    turn: npt.NDArray[np.float64]
    workers: Executor

    def search(self, method: Callable[..., Poses], plan: SearchPlan, **changes: Any) -> Poses:
        """Search all particles."""
        settings = {"turn": self.turn, "batch": self.batch, **changes}
        assert self.learner.cubes is not None
        return method(
            settings.pop("batch"), self.learner.cubes, self.learner.plane, plan,
            scale=self.learner.grid.scale, log_class_weights=np.zeros(1, np.float32),
            workers=self.workers, **settings,
        )  # fmt: skip

    def best_scores(self) -> npt.NDArray[np.float32]:
        """Log-likelihood of the reference's best leaf, (b,)."""
        plan = self.learner.plan(cold=False)
        radius, step = plan.level_radii[-1], grid_step(plan.coarse_count)
        base = self.turn @ base_grid(plan.coarse_count, "C1")
        base = (child_offsets(step)[:, None] @ base[None]).reshape(-1, 3, 3)
        fine = replace(
            plan,
            coarse_count=8 * plan.coarse_count,
            coarse_radius=radius,
            shift_cells=2 * plan.shift_cells,
            shift_step_pixels=plan.shift_step_pixels / 2,
            level_radii=(radius,) * (len(plan.level_radii) - 1),
            keep=200,
            sharpness=(0.0,),
            share=1.0,
        )
        learner, prior = self.learner, np.zeros(1, np.float32)
        assert learner.cubes is not None
        coarse = prepare_coarse(
            learner.cubes, learner.plane, fine, learner.grid.scale, prior, np.eye(3), base
        )
        best = np.empty(len(self.batch), np.float32)
        for begin in range(0, len(best), REFERENCE_CHUNK):
            part = self.batch.span(slice(begin, begin + REFERENCE_CHUNK))
            found = empty_poses(len(part), fine.keep)
            refine_levels(
                part, coarse_cells(part, coarse, fine), learner.cubes, learner.plane, fine,
                learner.grid.scale, prior, found, cpu_backend(),
            )  # fmt: skip
            best[begin : begin + REFERENCE_CHUNK] = found.score[:, 0]
        return best


def _scene(
    engine: Engine, truth: Simulated, kind: str, radius: int, count: int, workers: Executor
) -> Scene:
    """A map from all particles but the first ``count``, which are searched."""
    used, off_degrees = MAPS[kind]
    rows = np.arange(count, count + used)
    rng = np.random.default_rng(MASTER_SEED)
    error = rng.standard_normal((used, 3)) * np.radians(off_degrees) / np.sqrt(3)
    learner = Learner(
        plane=engine.plane,
        grid=engine.grid,
        n_classes=1,
        seed=(MASTER_SEED, 0),
        max_shift_pixels=engine.geometry.box / 16,
        max_radius=engine.max_radius,
        schedule=Schedule(start_radius=radius, grow_every=1 << 40, mask_from=1 << 40),
        growth=ShellGrowth(radius, 0),
    )
    poses = local_start(
        (matrix_from_vector(error) @ truth.rotations[rows]).reshape(-1, 9).astype(np.float32),
        (truth.shifts_angstrom[rows] / engine.geometry.pixel_size_angstrom).astype(np.float32),
        np.zeros(used, np.int32),
        keep=1,
    )
    batch = engine._weighted(rows, learner.insert_radius)
    learner.adopt(batch, np.arange(used) * 2 // used, poses, workers=workers)
    learner.fsc = learner.compare_halves()
    learner.make_references()
    return Scene(
        truth=truth.rotations[:count],
        batch=engine._weighted(np.arange(count), learner.insert_radius),
        learner=learner,
        turn=random_rotations(rng, 1)[0],
        workers=workers,
    )


def _row(name: str, scene: Scene, best: npt.NDArray[np.float32], find: Callable[..., Poses]) -> str:
    find(batch=scene.batch.span(slice(0, 4)))
    began = time.process_time()
    poses = find()
    spent = (time.process_time() - began) / len(best)
    turned = poses.rotation[:, 0].reshape(-1, 3, 3).astype(np.float64)
    error = np.degrees(angle_between(turned, scene.truth))
    lost = best - poses.score[:, 0]
    return (
        f"{name:32s} {1000 * spent:7.2f} ms  {poses.cells.mean():9,.0f} cells  "
        f"{np.median(error):5.2f} deg  {100 * np.mean(error < 10):5.1f} % < 10 deg  violated "
        f"{100 * np.mean(lost > TOLERANCE_NATS):5.1f} % ({100 * np.mean(lost > 2):4.1f} % by > 2 "
        f"nats)  evidence {poses.evidence.mean():7.2f}"
    )


def _methods(scene: Scene, *, calibrate: bool) -> Iterator[tuple[str, Callable[..., Poses]]]:
    warm, cold = scene.learner.plan(cold=False), scene.learner.plan(cold=True)
    by_rank = replace(
        warm, coarse_radius=min(8, warm.level_radii[-1]), keep=64, sharpness=(0.0,), share=1.0
    )

    def exhaustive(plan: SearchPlan) -> Callable[..., Poses]:
        return lambda **changes: scene.search(search_poses, plan, **changes)

    def bounded(bound: Bound) -> Callable[..., Poses]:
        return lambda **changes: scene.search(search_branch_and_bound, warm, bound=bound, **changes)

    if not calibrate:
        yield "exhaustive", exhaustive(warm)
        yield "exhaustive, cuts of a cold start", exhaustive(cold)
        yield "exhaustive, best 64 of a level", exhaustive(by_rank)
        yield "branch and bound", bounded(Bound())
        yield "audit", bounded(WIDE)
        return
    for noise in (-1.0, 0.0, 0.5, 1.0, 2.0):
        yield f"s = {noise:g}", bounded(Bound(noise=noise))
    yield "s = 1, published caps", bounded(Bound(most_cells=1 << 30))
    yield "s = 1, radius doubled", bounded(Bound(growth=2.0))
    yield "s = 1, at most 512 cells", bounded(Bound(most_cells=512))


def main() -> None:
    """Print each line as it is known and save them all when asked."""
    parser = argparse.ArgumentParser(description="Two pose searches, side by side.")
    parser.add_argument("--particles", type=int, default=200, help="particles to search")
    parser.add_argument("--radii", type=int, nargs="+", default=[8, 10, 12, 16])
    parser.add_argument("--maps", nargs="+", choices=list(MAPS), default=list(MAPS))
    parser.add_argument("--calibrate", action="store_true", help="the bound's own parameters")
    parser.add_argument("--save", type=Path, help="folder for the results file")
    arguments = parser.parse_args()
    data = Path(os.environ.get("ABINITIO_DATA", "../shared/data"))
    most = max(used for used, _ in MAPS.values())
    made = ribosome(data, n_particles=arguments.particles + most)
    truth = made.particles()
    engine = Engine(EngineSettings(race_starts=1), made.geometry)
    engine.add(truth.particle_images())
    engine.step()  # counts the noise of its particles
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        print(line, flush=True)

    options = " --calibrate" if arguments.calibrate else ""
    radii = " ".join(map(str, arguments.radii))
    say(
        f"python -m benchmarks.pose_search --particles {arguments.particles} --radii {radii}"
        f" --maps {' '.join(arguments.maps)}{options}"
    )
    say(f"{_machine()}; one thread; Python {platform.python_version()}, NumPy {np.__version__}")
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(1) as workers:
        for radius in arguments.radii:
            for kind in arguments.maps:
                scene = _scene(engine, truth, kind, radius, arguments.particles, workers)
                edge = float(scene.learner.fsc[0][radius])
                say(f"== radius {radius}, {kind} map (half-map FSC {edge:.2f} at the radius)")
                best = scene.best_scores()
                for name, find in _methods(scene, calibrate=arguments.calibrate):
                    say(_row(name, scene, best, find))
    if arguments.save is not None:
        arguments.save.mkdir(parents=True, exist_ok=True)
        kind = "calibration" if arguments.calibrate else "ribosome"
        path = arguments.save / f"pose-search-{kind}.txt"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"saved {path}")


def _machine() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    found = re.search(r"model name\s*: (.*)", text)
    return found.group(1) if found else platform.processor()


if __name__ == "__main__":
    main()
