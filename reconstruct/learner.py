"""One reconstruction that learns: K class volumes, their half-set statistics and their schedule.

A learner is fed minibatches of weighted particles. Each update scores them against the current
volumes (so the evidence is held out for particles never seen before), adds them to the decayed
statistics and makes the next volumes. Everything random is keyed by (seed, learner, step), so a
learner is fully described by what ``dump`` returns.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from reconstruct import device_maps, host_maps
from reconstruct.accumulate import accumulate
from reconstruct.annealing import annealed, temperature_for
from reconstruct.backend import Backend, cpu_backend
from reconstruct.breadth import COLD, Breadth
from reconstruct.centring import gathered
from reconstruct.classes import similarity_at
from reconstruct.comparing import compare_cut, compare_widths
from reconstruct.extent import particle_radius_pixels
from reconstruct.fourier import HalfPlane
from reconstruct.learned import LearnResult, Searched, Span, Start, first_half, learned
from reconstruct.optimizer import Optimizer
from reconstruct.pose_search import find_poses
from reconstruct.positivity import Positivity
from reconstruct.rotations import random_rotations
from reconstruct.schedule import (
    Schedule,
    ShellGrowth,
    grow_radius,
    growth_due,
    mask_fits,
    particles_to_renewal,
)
from reconstruct.search import Poses, WeightedBatch, local_start
from reconstruct.search_plan import SearchPlan, make_plan
from reconstruct.search_wide import make_wide_plan
from reconstruct.siblings import Siblings, class_crop
from reconstruct.symmetry import parse_group, symmetrise_statistics
from reconstruct.types import Centring, PoseSearch, SearchCount
from reconstruct.update import MapGrid, at_reach, box_volume, quotient

__all__ = ["EVIDENCE_MEMORY", "Learner"]

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

FSC_FRACTION = 0.9  # signal share assumed while the half maps are compared with each other
NARROWEST_MASK = 0.15  # of the box, as a radius
EVIDENCE_MEMORY = 500.0  # particles, of the running mean
FSC_EVERY = 3  # updates between half-map comparisons but those that the radius waits for


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
    initial_ess_fraction: float = 0.0  # of the candidate poses that carry weight at the start
    pose_search: PoseSearch = "exhaustive"
    growth: ShellGrowth = field(default_factory=lambda: ShellGrowth(5, 0))
    presented: float = 0.0
    updates: int = 0
    fsc: list[Float64] = field(default_factory=list)  # per class, (max_radius + 1,)
    class_share: Float64 = field(default_factory=lambda: np.zeros(0))  # (K,) sums to 1
    mass: Float64 = field(default_factory=lambda: np.zeros(0))  # (K,) particles remembered
    mask_radius: Float64 = field(default_factory=lambda: np.zeros(0))  # (K,) pixels
    shift_sums: Float64 = field(default_factory=lambda: np.zeros(0))  # (K, 4, 4) see ``centring``
    resting: Bools = field(default_factory=lambda: np.zeros(0, np.bool_))  # (K,) without a map
    evidence: float = 0.0  # running mean per particle, nats
    statistics: Float32 = field(default_factory=lambda: np.zeros((2, 0, 1, 1, 2, 3), np.float32))
    cubes: Float32 | None = None  # references (K or 2 K, g, g, g, ..), of all or of each half-set
    stale: int = 0  # particles presented since the references were made
    drawn: int = 0  # updates when they were made
    prior: Float64 = field(default_factory=lambda: np.zeros(0))  # (K,) class shares at that time
    group: str = "C1"  # symmetry that maps are averaged over
    split: bool = False  # whether the half-sets have references of their own
    split_at: float = -1.0  # presented when they got them
    coarse_radius: int = 0  # shells of a wide coarse pass; 0: the usual one
    aside: bool = False  # whether it waits while starts with a group are raced
    positivity: Positivity = field(default_factory=Positivity)
    centring: Centring = "on"
    optimizer: Optimizer = field(default_factory=Optimizer)
    temperature: float = 1.0  # of the pose posterior in the last update
    breadth: Breadth = field(default_factory=Breadth)  # of pose posteriors
    siblings: Siblings | None = None  # classes of one complex, only on the host
    velocity: Float32 | None = None  # last step of gradient descent with momentum
    backend: Backend = field(default_factory=cpu_backend)  # where statistics and cubes are
    clock: Callable[[], float] = time.perf_counter  # seconds; a profile's waits for the device

    def __post_init__(self) -> None:
        """Fill what depends on the number of classes and on the backend."""
        self.placed: HalfPlane = replace(  # its coefficients on the backend
            self.plane,
            kx=self.backend.asarray(self.plane.kx),
            ky=self.backend.asarray(self.plane.ky),
        )
        if not len(self.class_share):
            self.class_share = np.full(self.n_classes, 1.0 / self.n_classes)
            self.prior = self.class_share.copy()
            self.mass = np.zeros(self.n_classes)
            self.shift_sums = np.zeros((self.n_classes, 4, 4))
            self.mask_radius = np.full(self.n_classes, self.grid.mask_radius_pixels)
            self.resting = np.zeros(self.n_classes, np.bool_)
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
        """Of a search: the same until the references are made anew."""
        return np.random.default_rng([*self.seed, self.drawn])

    def _reserve(self, radius: int) -> None:
        """Make the statistics reach ``radius`` shells, keeping what they hold."""
        reach = self.grid.reach(radius)
        if self.statistics.shape[1] != self.n_classes:
            empty = (2, self.n_classes, 1, 1, 2, 3)
            self.statistics = self.backend.xp.zeros(empty, np.float32)
        if reach > (self.statistics.shape[2] - 1) // 2:
            self.statistics = at_reach(self.statistics, reach, self.backend)

    def hold_radius(self, radius: int) -> None:
        """Work at ``radius`` shells now, whatever the half maps say."""
        changed, self.growth = radius != self.radius, ShellGrowth(radius, self.presented)
        self._reserve(self.insert_radius)
        if changed and self.cubes is not None:
            self.make_references()

    def split_halves(self, radius: int) -> None:
        """Give the half-sets references of their own, from ``radius`` shells on.

        What both halves learned beyond ``radius`` from one shared reference is forgotten, so that
        they find it again independently.
        """
        self.split_at = self.split_at if self.split else self.presented
        self.split = True
        self.growth = ShellGrowth(min(radius, self.max_radius), self.presented)
        reach = self.grid.reach(self.insert_radius)
        if reach != (self.statistics.shape[2] - 1) // 2:
            self.statistics = at_reach(self.statistics, reach, self.backend)
        self.fsc = self.compare_halves()
        self.make_references()

    def _fit_masks(self, workers: Executor) -> None:
        """Close each class's mask in on its particle, never wider than the session's."""
        volumes = self._box_volumes(workers)
        for k, radius in enumerate(workers.map(particle_radius_pixels, volumes)):
            if self.resting[k]:
                continue
            self.mask_radius[k] = np.clip(
                radius, NARROWEST_MASK * self.grid.box, self.grid.mask_radius_pixels
            )

    def _box_volumes(self, workers: Executor) -> Iterable[Float32]:
        """Maps of all classes within the session's mask, at the working radius."""
        if not self.backend.on_device:

            def volume(k: int) -> Float32:
                spectrum = self.map_spectrum(k, self.fsc[k], radius=self.radius)
                return box_volume(spectrum, self.grid, windowed=True)

            return workers.map(volume, range(self.n_classes))
        cropped = self._device_crops(self.radius)
        return device_maps.box_volumes(
            cropped, self.grid, radius=self.radius, fsc=self.fsc, backend=self.backend
        )

    def class_grid(self, k: int) -> MapGrid:
        """Sampling of class ``k`` with its own mask."""
        return replace(self.grid, mask_radius_pixels=float(self.mask_radius[k]))

    def plan(self, *, cold: bool, local: bool = False) -> SearchPlan:
        """Search plan at the working radius, from everywhere or from known poses (``local``)."""
        if self.coarse_radius and not local:
            plan = make_wide_plan(self.radius, self.coarse_radius, self.max_shift_pixels)
        else:
            box, shift, width = self.plane.box, self.max_shift_pixels, self.breadth.width
            plan = make_plan(
                self.radius, box=box, max_shift_pixels=shift, width=COLD if cold else width
            )
        return replace(plan, temperature=self.temperature)

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
            (b,) half-set of each particle, 0 or 1, in this order.
        window
            Particles that the statistics remember; ``inf`` forgets nothing.
        cold
            Search widely, because the map is still being found.
        start
            Known poses for a local search; None searches everywhere.
        """
        began = self.clock()
        first = first_half(half)
        searched = self.look(batch, first, cold=cold, workers=workers, start=start)
        if self.positivity.due(self.updates, cold=cold):
            compare_cut(self, batch, first, searched.found, self._rng(), workers)
        return self.take_in(searched, window=window, workers=workers, began=began)

    def look(
        self,
        batch: WeightedBatch,
        first: int,
        *,
        cold: bool,
        workers: Executor,
        start: Start | None = None,
    ) -> Searched:
        """Posterior of a batch, whose first ``first`` particles are of half-set 0."""
        poses, searches = self.search(
            batch, first, self._rng(), cold=cold, workers=workers, start=start
        )
        share = self.initial_ess_fraction if cold else 0.0
        share = annealed(share, self.presented, cold_presented=self.schedule.cold_presented)
        temperature = temperature_for(poses, share, self.backend)
        weights, found = learned(
            poses, self.n_classes, self.similarity, self.backend, temperature=temperature
        )
        spans, usual = (Span(batch, first, poses, weights),), not (cold or self.coarse_radius)
        found = replace(found, searches=searches)
        return Searched(spans, found, temperature, tells_breadth=usual and start is None)

    def take_in(
        self, searched: Searched, *, window: float, workers: Executor, began: float | None = None
    ) -> LearnResult:
        """Learn from a minibatch that was searched, ``began`` by the clock; see ``learn``."""
        found, count = searched.found, len(searched)
        self.temperature = searched.temperature
        if searched.tells_breadth and self.breadth.due(self.presented, self.evidence):
            compare_widths(self, searched, self._rng(), workers)
        looked = self.clock()
        accumulate(self, searched, window, workers)
        self.shift_sums = gathered(self.shift_sums, found)
        inserted = self.clock()
        self.presented += count
        self.stale += count
        self.updates += 1
        if self.cubes is not None:
            keep = np.exp(-count / EVIDENCE_MEMORY)
            mean = float(found.poses.evidence.mean())
            self.evidence = keep * self.evidence + (1 - keep) * mean
        self._renew(workers, count)
        stages = {
            "search": looked - (looked if began is None else began),
            "insert": inserted - looked,
            "reconstruct": self.clock() - inserted,
        }
        return replace(found, stage_seconds=stages)

    def adopt(
        self,
        batch: WeightedBatch,
        half: npt.NDArray[np.intp],
        poses: Poses,
        *,
        workers: Executor,
    ) -> None:
        """Learn from poses on the backend that are known, without a search."""
        weights, found = learned(poses, self.n_classes, 0.0, self.backend)
        span = Span(batch, first_half(half), poses, weights)
        accumulate(self, Searched((span,), found), np.inf, workers)
        self.presented += len(batch)
        self.stale += len(batch)
        self._renew(workers, len(batch))

    @property
    def similarity(self) -> float:
        """Class similarity in force now."""
        return similarity_at(
            self.presented, self.class_similarity, cold_presented=self.schedule.cold_presented
        )

    def search(
        self,
        batch: WeightedBatch,
        first: int,
        rng: np.random.Generator,
        *,
        cold: bool,
        workers: Executor,
        start: Start | None,
        only: int | None = None,
    ) -> tuple[Poses, tuple[SearchCount, ...]]:
        """Poses of a batch, whose first ``first`` particles are of half-set 0."""
        b, xp = len(batch), self.backend.xp
        if self.cubes is None:  # nothing known: random poses and classes make the first volume
            rotation = random_rotations(rng, b).reshape(-1, 9).astype(np.float32)
            classes = rng.integers(0, self.n_classes, b).astype(np.int32)
            known = local_start(rotation, np.zeros((b, 2), np.float32), classes, keep=1, xp=xp)
            return known, ()
        plan = self.plan(cold=cold, local=start is not None)
        smoothed = (self.prior + 0.02 / self.n_classes) / 1.02
        log_class_weights = np.log(smoothed).astype(np.float32)
        cubes, resting = self.cubes, self.resting
        if only is not None:
            cubes = xp.ascontiguousarray(cubes[only :: self.n_classes])
            log_class_weights, resting = np.zeros(1, np.float32), np.zeros(1, np.bool_)
        cells = None
        if start is not None:
            pose = start.rotation, start.shift, start.class_index
            cells = local_start(*pose, keep=plan.keep, xp=xp)
        return find_poses(
            "exhaustive" if self.coarse_radius else self.pose_search,
            batch,
            cubes,
            first if self.split else b,
            self.placed,
            plan,
            scale=self.grid.scale,
            log_class_weights=log_class_weights,
            resting=resting,
            turn=random_rotations(rng, 1)[0],
            group=self.group,
            workers=workers,
            backend=self.backend,
            start=cells,
            audit_seed=(*self.seed, self.updates),
        )

    def score_class(
        self,
        batch: WeightedBatch,
        half: npt.NDArray[np.intp],
        k: int,
        *,
        rng: np.random.Generator,
        workers: Executor,
    ) -> LearnResult:
        """Search particles in class ``k`` alone; nothing is learned."""
        first = first_half(half)
        found, _ = self.search(batch, first, rng, cold=False, workers=workers, start=None, only=k)
        return learned(found, 1, 0.0, self.backend)[1]

    def _renew(self, workers: Executor, added: int) -> None:
        """Compare the half maps if it is time, grow the radius, make the next volumes.

        What changes the statistics by little waits until it is more.
        """
        presented, stale, schedule = self.presented, self.stale, self.schedule
        due = growth_due(self.growth, presented, stale, schedule)
        grows = self.radius < self.max_radius and due
        fits = mask_fits(presented, schedule) > mask_fits(presented - stale, schedule)
        outdated = self.cubes is None or stale > self.particles_to_renewal
        if not (outdated or grows or fits or self.optimizer.name != "em"):
            return
        every = self.updates % FSC_EVERY == 0 or stale > added
        if every or grows:
            # The class whose half maps agree best decides on growth; the others can wait.
            sharpest = int(np.argmax([curve[self.radius] for curve in self.fsc]))
            self.fsc = self.compare_halves(None if every or self.backend.on_device else sharpest)
            self.growth = grow_radius(
                self.growth, np.max(self.fsc, axis=0), presented,
                schedule=schedule, max_radius=self.max_radius,
            )  # fmt: skip
            self._reserve(self.insert_radius)
        if fits:
            self._fit_masks(workers)
        self.breadth.settle(presented)
        self.make_references(workers)

    @property
    def particles_to_renewal(self) -> float:
        """Particles that references may lack; see ``schedule.particles_to_renewal``."""
        awake = ~self.resting
        return particles_to_renewal(self.class_share[awake], self.mass[awake], self.schedule)

    def catch_up(self, workers: Executor) -> None:
        """Compare the half maps and make references, if those that there are lack particles."""
        if self.stale:
            self.fsc = self.compare_halves()
            self.make_references(workers)

    def make_references(self, workers: Executor | None = None) -> None:
        """Make what particles are scored against next."""
        self.stale, self.drawn, self.prior = 0, self.updates, self.class_share.copy()
        sets, radius = 2 if self.split else 1, self.radius
        if self.backend.on_device:
            self.cubes = device_maps.reference_cubes(
                self._device_crops(radius), self.grid, sets=sets, radius=radius,
                join=self.schedule.join_radius, fsc=self.fsc, radii=self.mask_radius,
                cut=self.positivity.flags(self.n_classes), backend=self.backend,
            )  # fmt: skip
        else:
            self.cubes = host_maps.reference_cubes(
                lambda k, halves, r: self.map_spectrum(k, self.fsc[k], radius=r, halves=halves),
                [self.class_grid(k) for k in range(self.n_classes)],
                sets=sets,
                radius=radius,
                join=self.schedule.join_radius,
                cut=self.positivity.flags(self.n_classes),
                resting=self.resting,
                workers=workers,
            )

    def compare_halves(self, only: int | None = None) -> list[Float64]:
        """Half-map FSC of each class, (max_radius + 1,), 0 beyond what particles entered.

        With ``only``, that of the other classes is what it was.
        """
        radius = self.insert_radius
        curves = np.zeros((self.n_classes, self.max_radius + 1))
        if self.backend.on_device:
            curves[:, : radius + 1] = device_maps.compare_halves(
                self._device_crops(radius), self.grid, radius=radius, fraction=FSC_FRACTION,
                radii=self.mask_radius, backend=self.backend,
            )  # fmt: skip
        for k in range(self.n_classes) if not self.backend.on_device else ():
            if self.resting[k]:
                continue
            if only not in (None, k):
                curves[k] = self.fsc[k]
                continue
            curves[k, : radius + 1] = host_maps.compare_halves(
                [self._crop(k, (h,), radius) for h in (0, 1)],
                self.class_grid(k),
                radius=radius,
                fraction=FSC_FRACTION,
            )
        curves[self.resting] = np.eye(1, self.max_radius + 1)
        return list(curves)

    def _device_crops(self, radius: int) -> Any:
        """Statistics of every class and half-set up to ``radius``, on the device."""
        return device_maps.crops(self.statistics, self.grid.reach(radius), self.group, self.backend)

    def _crop(self, k: int, halves: tuple[int, ...], radius: int) -> Float32:
        """Statistics of class ``k`` up to ``radius``, averaged over the group, on the host."""
        crop = class_crop(
            self.statistics, halves, k, reach=self.grid.reach(radius), siblings=self.siblings,
            backend=self.backend,
        )  # fmt: skip
        if self.group == "C1":
            return crop
        return symmetrise_statistics(crop, parse_group(self.group).operators)

    def map_spectrum(
        self, k: int, fsc: Float64, *, radius: int, halves: tuple[int, ...] = (0, 1)
    ) -> npt.NDArray[np.complex64]:
        """Wiener-filtered map of class ``k``, a centred half cube in NumPy, of one half or both."""
        clipped = np.clip(fsc, 0.02, 0.999)
        fraction = 2 * clipped / (1 + clipped) if len(halves) == 2 else clipped
        return quotient(self._crop(k, halves, radius), self.grid, radius, fraction)
