"""One reconstruction that learns: K class volumes, their half-set statistics and their schedule.

A learner is fed minibatches of weighted particles. Each update scores them against the current
volumes (so the evidence is held out for particles never seen before), adds them to the decayed
statistics and makes the next volumes. Everything random is keyed by (seed, learner, step), so a
learner is fully described by what ``dump`` returns.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from reconstruct.backend import Backend, cpu_backend
from reconstruct.classes import blur_classes, class_mass, similarity_at
from reconstruct.extent import particle_radius_pixels
from reconstruct.fourier import HalfPlane
from reconstruct.rotations import random_rotations, rotation_grid
from reconstruct.schedule import Schedule, ShellGrowth, grow_radius, search_cuts
from reconstruct.search import (
    Poses,
    SearchPlan,
    WeightedBatch,
    local_start,
    make_plan,
    merge_poses,
    search_poses,
)
from reconstruct.symmetry import asymmetric_unit, parse_group, symmetrise_statistics
from reconstruct.update import (
    MapGrid,
    box_volume,
    half_map_fsc,
    join_low_frequencies,
    quotient,
    reference_cube,
    symmetric_plane,
)

__all__ = ["LearnResult", "Learner", "Start"]

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]

FSC_FRACTION = 0.9  # signal share assumed while the half maps are compared with each other
MASK_EVERY = 5  # updates between fits of the masks
NARROWEST_MASK = 0.15  # of the box, as a radius
FSC_EVERY = 3  # updates between half-map comparisons while the radius cannot grow anyway


@dataclass(frozen=True)
class Start:
    """Poses that a local search starts from."""

    rotation: Float32  # (b, 9)
    shift: Float32  # (b, 2) pixels
    class_index: npt.NDArray[np.int32]  # (b,)


@dataclass(frozen=True)
class LearnResult:
    """What one update found out about its particles, in NumPy arrays."""

    poses: Poses  # a device hands back only the best cell of each particle
    weights: Float32  # (b, keep) posterior weights
    class_mass: Float32  # (b, K)
    stage_seconds: dict[str, float]


@dataclass
class Learner:
    """State of one reconstruction; ``learn`` advances it."""

    plane: HalfPlane
    grid: MapGrid
    n_classes: int
    seed: tuple[int, int]  # session seed, number of this start
    max_shift_pixels: float
    max_radius: int
    schedule: Schedule
    class_similarity: float = 0.0
    growth: ShellGrowth = field(default_factory=lambda: ShellGrowth(5, 0))
    presented: float = 0.0
    updates: int = 0
    fsc: list[Float64] = field(default_factory=list)  # per class, (max_radius + 1,)
    class_share: Float64 = field(default_factory=lambda: np.zeros(0))  # (K,) sums to 1
    mass: Float64 = field(default_factory=lambda: np.zeros(0))  # (K,) particles remembered
    mask_radius: Float64 = field(default_factory=lambda: np.zeros(0))  # (K,) pixels
    evidence: float = 0.0  # running mean per particle, nats
    statistics: Float32 = field(default_factory=lambda: np.zeros((2, 0, 1, 1, 1, 3), np.float32))
    cubes: tuple[Float32, Float32] | None = None  # what each half-set is scored against
    group: str = "C1"  # symmetry that maps are averaged over
    split: bool = False  # whether the half-sets have references of their own
    backend: Backend = field(default_factory=cpu_backend)  # where statistics and cubes are
    clock: Callable[[], float] = time.perf_counter  # seconds; a profile's waits for the device

    def __post_init__(self) -> None:
        """Fill what depends on the number of classes and on the backend."""
        self._plane = replace(
            self.plane,
            kx=self.backend.asarray(self.plane.kx),
            ky=self.backend.asarray(self.plane.ky),
        )
        if not len(self.class_share):
            self.class_share = np.full(self.n_classes, 1.0 / self.n_classes)
            self.mass = np.zeros(self.n_classes)
            self.mask_radius = np.full(self.n_classes, self.grid.mask_radius_pixels)
            self.fsc = [np.ones(self.max_radius + 1) for _ in range(self.n_classes)]
            self.growth = ShellGrowth(min(self.schedule.start_radius, self.max_radius), 0)
            self._reserve(self.insert_radius)

    @property
    def radius(self) -> int:
        """Working radius in shells."""
        return self.growth.radius

    @property
    def insert_radius(self) -> int:
        """Radius in shells up to which particles enter the statistics."""
        return min(self.radius + self.schedule.insert_beyond, self.max_radius)

    def _rng(self) -> np.random.Generator:
        return np.random.default_rng([*self.seed, self.updates])

    def _reserve(self, radius: int) -> None:
        """Make the statistics reach ``radius`` shells, keeping what they hold."""
        reach = self.grid.reach(radius)
        old = self.statistics
        held = (old.shape[2] - 1) // 2
        if held >= reach and old.shape[1] == self.n_classes:
            return
        g = 2 * reach + 1
        grown = self.backend.xp.zeros((2, self.n_classes, g, g, reach + 2, 3), np.float32)
        if old.shape[1] == self.n_classes:
            a, b = reach - held, reach + held + 1
            grown[:, :, a:b, a:b, : held + 2] = old
        self.statistics = grown

    def split_halves(self, radius: int) -> None:
        """Give the half-sets references of their own, from ``radius`` shells on.

        What both halves learned beyond ``radius`` from one shared reference is forgotten, so that
        they find it again independently.
        """
        self.split = True
        self.growth = ShellGrowth(min(radius, self.max_radius), self.presented)
        reach = self.grid.reach(self.insert_radius)
        held = (self.statistics.shape[2] - 1) // 2
        if held > reach:
            span = slice(held - reach, held + reach + 1)
            self.statistics = self.statistics[:, :, span, span, : reach + 2].copy()
            self.statistics[..., reach + 1, :] = 0
        self._reserve(self.insert_radius)
        self.fsc = [self.compare_halves(k) for k in range(self.n_classes)]
        self._make_cubes()

    def _fit_masks(self) -> None:
        """Close each class's mask in on its particle, never wider than the session's."""
        for k in range(self.n_classes):
            spectrum = self.map_spectrum(k, self.fsc[k], radius=self.radius)
            volume = box_volume(self.backend.asnumpy(spectrum), self.grid, windowed=True)
            self.mask_radius[k] = np.clip(
                particle_radius_pixels(volume),
                NARROWEST_MASK * self.grid.box,
                self.grid.mask_radius_pixels,
            )

    def class_grid(self, k: int) -> MapGrid:
        """Sampling of class ``k`` with its own mask."""
        return replace(self.grid, mask_radius_pixels=float(self.mask_radius[k]))

    def plan(self, *, cold: bool) -> SearchPlan:
        """Search plan at the working radius."""
        sharpness, share = search_cuts(cold=cold)
        return make_plan(
            self.radius,
            box=self.plane.box,
            max_shift_pixels=self.max_shift_pixels,
            sharpness=sharpness,
            share=share,
        )

    def learn(
        self,
        batch: WeightedBatch,
        half: npt.NDArray[np.intp],
        *,
        window: float,
        cold: bool,
        workers: Executor,
        start: Start | None = None,
    ) -> LearnResult:
        """One update: score the batch, learn from it, make the next volumes.

        Parameters
        ----------
        batch
            Particles up to at least ``plane.count(insert_radius)`` coefficients, on the backend.
        half
            (b,) half-set of each particle, 0 or 1.
        window
            Particles that the statistics remember; ``inf`` forgets nothing.
        cold
            Search widely, because the map is still being found.
        start
            Known poses for a local search; None searches everywhere.
        """
        began = self.clock()
        rng = self._rng()
        poses = self._search(batch, half, rng, cold=cold, workers=workers, start=start)
        weights = self._blurred(poses, poses.weights(self.backend.xp))
        mass = self.backend.asnumpy(class_mass(poses, weights, self.n_classes, self.backend.xp))
        searched = self.clock()
        self._accumulate(batch, half, poses, weights, mass, window, workers)
        inserted = self.clock()
        self.presented += len(batch)
        self.updates += 1
        if self.cubes is not None:
            keep = np.exp(-len(batch) / 500.0)
            mean = float(poses.evidence.mean())
            self.evidence = keep * self.evidence + (1 - keep) * mean
        self._renew()
        done = self.clock()
        stages = {
            "search": searched - began,
            "insert": inserted - searched,
            "reconstruct": done - inserted,
        }
        if self.backend.on_device:
            poses = poses.moved(self.backend.asnumpy, keep=1)
            weights = self.backend.asnumpy(weights[:, :1])
        return LearnResult(poses=poses, weights=weights, class_mass=mass, stage_seconds=stages)

    def adopt(
        self,
        batch: WeightedBatch,
        half: npt.NDArray[np.intp],
        poses: Poses,
        *,
        workers: Executor,
    ) -> None:
        """Learn from poses on the backend that are known, without a search."""
        weights = poses.weights(self.backend.xp)
        mass = self.backend.asnumpy(class_mass(poses, weights, self.n_classes, self.backend.xp))
        self._accumulate(batch, half, poses, weights, mass, np.inf, workers)
        self.presented += len(batch)
        self._renew()

    def _blurred(self, poses: Poses, weights: Float32) -> Float32:
        similarity = similarity_at(
            self.presented, self.class_similarity, cold_presented=self.schedule.cold_presented
        )
        return blur_classes(poses, weights, self.n_classes, similarity, self.backend.xp)

    def _search(
        self,
        batch: WeightedBatch,
        half: npt.NDArray[np.intp],
        rng: np.random.Generator,
        *,
        cold: bool,
        workers: Executor,
        start: Start | None,
    ) -> Poses:
        b = len(batch)
        if self.cubes is None:  # nothing known: random poses and classes make the first volume
            known = local_start(
                random_rotations(rng, b).reshape(-1, 9).astype(np.float32),
                np.zeros((b, 2), np.float32),
                rng.integers(0, self.n_classes, b).astype(np.int32),
                keep=1,
                xp=self.backend.xp,
            )
            return known
        plan = self.plan(cold=cold)
        smoothed = (self.class_share + 0.02 / self.n_classes) / 1.02
        turn = random_rotations(rng, 1)[0]

        def search(part: WeightedBatch, cubes: Float32, rows: slice | Indices) -> Poses:
            cells = None
            if start is not None:
                known = (start.rotation[rows], start.shift[rows], start.class_index[rows])
                cells = local_start(*known, keep=plan.keep, xp=self.backend.xp)
            return search_poses(
                part,
                cubes,
                self._plane,
                plan,
                scale=self.grid.scale,
                log_class_weights=np.log(smoothed).astype(np.float32),
                turn=turn,
                base=_base_grid(plan.coarse_count, self.group),
                workers=workers,
                start=cells,
                backend=self.backend,
            )

        if not self.split:
            return search(batch, self.cubes[0], slice(None))
        members = [np.flatnonzero(half == h) for h in (0, 1)]
        found = [
            search(batch.rows(self.backend.asarray(rows)), self.cubes[h], rows)
            for h, rows in enumerate(members)
        ]
        return merge_poses(found, [self.backend.asarray(rows) for rows in members], self.backend.xp)

    def _accumulate(
        self,
        batch: WeightedBatch,
        half: npt.NDArray[np.intp],
        poses: Poses,
        weights: Float32,
        mass: Float32,
        window: float,
        workers: Executor,
    ) -> None:
        received = mass.sum(axis=0, dtype=np.float64)  # (K,)
        # A class forgets by what it receives, so a rare one keeps its particles for longer.
        decay = np.exp(-received * self.n_classes / window).astype(np.float32)
        for k in range(self.n_classes):
            if decay[k] < 1:
                self.statistics[:, k] *= float(decay[k])
        self.mass = self.mass * decay + received
        keep = np.exp(-len(batch) / min(window, 3000.0))
        self.class_share = keep * self.class_share + (1 - keep) * received / len(batch)
        n = self.plane.count(self.insert_radius)
        kx, ky = self._plane.kx, self._plane.ky
        ikx, iky = kx.astype(np.int32), ky.astype(np.int32)

        def insert(h: int) -> None:
            self.backend.kernels.insert_particles(
                self.statistics[h], self.backend.asarray(np.flatnonzero(half == h)),
                kx, ky, ikx, iky,
                np.float32(self.grid.scale), float(self.plane.box),
                batch.a_re, batch.a_im, batch.c2, n,
                poses.rotation, poses.rotation_id, poses.shift, poses.class_index,
                weights, poses.count,
            )  # fmt: skip

        run = map if self.backend.on_device else workers.map
        for _ in run(insert, (0, 1)):
            pass

    def _renew(self) -> None:
        """Compare the half maps if it is time, grow the radius, make the next volumes."""
        presented = self.presented
        due = presented - self.growth.presented_at_growth >= self.schedule.grow_every
        growing = due and self.radius < self.max_radius
        if growing or self.updates % FSC_EVERY == 0:
            self.fsc = [self.compare_halves(k) for k in range(self.n_classes)]
        if growing:
            best = np.max(self.fsc, axis=0)
            self.growth = grow_radius(
                self.growth, best, presented, schedule=self.schedule, max_radius=self.max_radius
            )
            self._reserve(self.insert_radius)
        if self.presented >= self.schedule.mask_from and self.updates % MASK_EVERY == 0:
            self._fit_masks()
        self._make_cubes()

    def _make_cubes(self) -> None:
        def references(halves: tuple[int, ...]) -> Float32:
            return self.backend.xp.stack(  # type: ignore[no-any-return]
                [
                    reference_cube(self._reference(k, halves), self.class_grid(k), self.backend)
                    for k in range(self.n_classes)
                ]
            )

        if self.split:
            self.cubes = (references((0,)), references((1,)))
        else:
            both = references((0, 1))
            self.cubes = (both, both)

    def _reference(self, k: int, halves: tuple[int, ...]) -> npt.NDArray[np.complex64]:
        """Map that particles are scored against: of one half-set, joined at low resolution."""
        own = self._spectrum(k, self.fsc[k], self.radius, halves)
        if len(halves) == 2:
            return own
        both = self._spectrum(k, self.fsc[k], self.radius, (0, 1))
        return join_low_frequencies(own, both, self.grid, self.schedule.join_radius, self.backend)

    def compare_halves(self, k: int) -> Float64:
        """Half-map FSC of class ``k``, (max_radius + 1,), 0 beyond what particles entered."""
        radius = self.insert_radius
        reach = self.grid.reach(radius)
        fraction = np.full(radius + 1, FSC_FRACTION)
        first, second = (
            quotient(
                self._averaged(symmetric_plane(self.statistics[h, k], reach, self.backend)),
                self.grid,
                radius,
                fraction,
                self.backend,
            )
            for h in (0, 1)
        )
        fsc = np.zeros(self.max_radius + 1)
        fsc[: radius + 1] = half_map_fsc(first, second, self.class_grid(k), radius, self.backend)
        return fsc

    def _averaged(self, crop: Float32) -> Float32:
        """Statistics averaged over the symmetry group."""
        if self.group == "C1":
            return crop
        operators = parse_group(self.group).operators
        averaged = symmetrise_statistics(self.backend.asnumpy(crop), operators)
        return self.backend.asarray(averaged)  # type: ignore[no-any-return]

    def map_spectrum(
        self, k: int, fsc: Float64, *, radius: int, halves: tuple[int, ...] = (0, 1)
    ) -> npt.NDArray[np.complex64]:
        """Wiener-filtered map of class ``k``, a centred half cube in NumPy, of one half or both."""
        return self.backend.asnumpy(self._spectrum(k, fsc, radius, halves))

    def _spectrum(
        self, k: int, fsc: Float64, radius: int, halves: tuple[int, ...]
    ) -> npt.NDArray[np.complex64]:
        """``map_spectrum`` on the backend."""
        crop = self._averaged(
            symmetric_plane(
                sum((self.statistics[h, k] for h in halves[1:]), self.statistics[halves[0], k]),
                self.grid.reach(radius),
                self.backend,
            )
        )
        clipped = np.clip(fsc, 0.02, 0.999)
        fraction = 2 * clipped / (1 + clipped) if len(halves) == 2 else clipped
        return quotient(crop, self.grid, radius, fraction, self.backend)

    def dump(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[np.generic]]]:
        """Everything that changes: a JSON-able dict and arrays."""
        meta = {
            "seed": list(self.seed),
            "radius": self.radius,
            "presented_at_growth": self.growth.presented_at_growth,
            "presented": self.presented,
            "updates": self.updates,
            "evidence": self.evidence,
            "started": self.cubes is not None,
            "split": self.split,
            "group": self.group,
        }
        arrays: dict[str, npt.NDArray[np.generic]] = {
            "statistics": self.backend.asnumpy(self.statistics).copy(),  # learning adds in place
            "class_share": self.class_share,
            "mass": self.mass,
            "mask_radius": self.mask_radius.copy(),
            "fsc": np.stack(self.fsc),
        }
        return meta, arrays

    def restore(self, meta: dict[str, Any], arrays: dict[str, npt.NDArray[Any]]) -> None:
        """Take over a state that ``dump`` returned."""
        self.growth = ShellGrowth(int(meta["radius"]), float(meta["presented_at_growth"]))
        self.presented = float(meta["presented"])
        self.updates = int(meta["updates"])
        self.evidence = float(meta["evidence"])
        self.statistics = self.backend.asarray(np.array(arrays["statistics"], np.float32))
        self.class_share = np.asarray(arrays["class_share"], dtype=np.float64).copy()
        self.mass = np.asarray(arrays["mass"], dtype=np.float64).copy()
        self.mask_radius = np.asarray(arrays["mask_radius"], dtype=np.float64).copy()
        self.fsc = [np.array(row, dtype=np.float64) for row in arrays["fsc"]]
        self.split = bool(meta["split"])
        self.group = str(meta["group"])
        self.cubes = None
        if meta["started"]:
            self._make_cubes()


@lru_cache(maxsize=4)
def _base_grid(count: int, group: str) -> Float64:
    """Coarse rotations to search: of the whole of SO(3), or of the group's asymmetric unit."""
    grid = rotation_grid(count)
    return grid if group == "C1" else grid[asymmetric_unit(grid, parse_group(group).operators)]
