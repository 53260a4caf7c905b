"""How much memory a session will take, said before it starts: sizes follow from its settings.

Sizes are bytes on the backend that does the work. The particle store is not part of what must
fit: a device keeps as many particles as there is room for, and fetches the others from the host.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from reconstruct.backend import Backend, DeviceError
from reconstruct.branch_and_bound import bound_bytes, bound_plan
from reconstruct.fourier import make_half_plane
from reconstruct.kernels_cuda import fragment_shape, maxima_shape
from reconstruct.schedule import Schedule
from reconstruct.search_plan import make_plan
from reconstruct.types import EngineSettings, Geometry
from reconstruct.update import MapGrid, transform_size

__all__ = ["MemoryNeed", "MemoryPlan", "memory_need", "plan_memory"]

COMPLEX_BYTES, FLOAT_BYTES, SUM_BYTES = 8, 4, 8
RESERVE = 0.1  # of the free memory stays free: transform plans, fragmentation, the driver
STORE_SHARE = 0.75  # of what the session leaves goes to stored particles, the rest to score chunks
SMALLEST_CHUNK = 32  # particles whose coarse scores must fit together


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes that a session takes at its final radius."""

    statistics: int  # sums of both half-sets, every start of the race included
    references: int  # Fourier cubes that particles are scored against
    update: int  # back-projection sums and transforms while maps are made
    search: int  # one minibatch and the scores of the smallest chunk
    particle: int  # one stored particle

    @property
    def total(self) -> int:
        """What must fit, stored particles aside."""
        return self.statistics + self.references + self.update + self.search


@dataclass(frozen=True)
class MemoryPlan:
    """What a session takes and what it leaves for stored particles."""

    need: MemoryNeed
    free: int
    store: int  # bytes for particles on the backend

    @property
    def line(self) -> str:
        """One line for people."""
        held = self.store // max(self.need.particle, 1)
        return (
            f"needs {_gib(self.need.total)} of {_gib(self.free)} free: statistics "
            f"{_gib(self.need.statistics)}, references {_gib(self.need.references)}, update "
            f"{_gib(self.need.update)}, search {_gib(self.need.search)}; room for {held:,} "
            f"particles of {self.need.particle:,} bytes"
        )


def memory_need(
    settings: EngineSettings, grid: MapGrid, *, max_radius: int, max_shift_pixels: float
) -> MemoryNeed:
    """Bytes for ``settings`` when the working radius has reached ``max_radius``."""
    schedule = Schedule(grow_every=settings.presentations_per_shell)
    classes = settings.n_classes
    plane = make_half_plane(grid.box, max_radius)
    race_presented = settings.race_particles * settings.race_epochs
    race_radius = min(
        max_radius,
        schedule.start_radius + race_presented // schedule.grow_every + schedule.insert_beyond,
    )
    final, racing = _half_cube(grid, max_radius), _half_cube(grid, race_radius)
    starts = settings.starts if settings.starts > 1 else 0
    edge, race_edge = (2 * grid.reach(radius) + 1 for radius in (max_radius, race_radius))
    plan = make_plan(max_radius, box=grid.box, max_shift_pixels=max_shift_pixels)
    maxima = maxima_shape(1, plan.shift_cells**2, classes, plan.coarse_count)
    coarse = FLOAT_BYTES * math.prod(maxima)
    slices = 2 * classes * plan.coarse_count * plane.count(plan.coarse_radius) * COMPLEX_BYTES
    fragments = FLOAT_BYTES * math.prod(fragment_shape(2 * classes, plan.coarse_count))
    if settings.pose_search == "branch_and_bound":
        bounded = bound_plan(plan)
        n = plane.count(bounded.coarse_radius)
        coarse, shared = bound_bytes(bounded, classes=classes, near=n, far=len(plane.kx))
        slices += shared
    rows = settings.minibatch_final * 3 * len(plane.kx) * FLOAT_BYTES
    transform = transform_size(grid.reach(max_radius)) ** 3
    sums = 2 * classes * 3 * FLOAT_BYTES
    # gradient descent has a minibatch's own sums beside them, and its last step
    more = {"em": 0, "sgd": sums * final + (2 * sums // 3 * final if settings.momentum else 0)}
    return MemoryNeed(
        statistics=sums * max(final, starts * racing) + more[settings.optimizer],
        # neighbours are paired; the old references live until the new ones are made
        references=2 * classes * 2 * COMPLEX_BYTES * max(2 * edge**3, starts * race_edge**3),
        # sums of the back-projection; crops, then spectra, maps and spectra again; one whole map
        update=2 * classes * (3 * (SUM_BYTES + FLOAT_BYTES) * final + 3 * FLOAT_BYTES * transform)
        + 3 * FLOAT_BYTES * grid.padded**3,
        search=rows + slices + fragments + SMALLEST_CHUNK * coarse,
        particle=len(plane.kx) * COMPLEX_BYTES,
    )


def plan_memory(
    backend: Backend,
    settings: EngineSettings,
    geometry: Geometry,
    *,
    grid: MapGrid,
    max_radius: int,
    max_shift_pixels: float,
) -> MemoryPlan:
    """Divide the backend's free memory, or refuse.

    Raises
    ------
    DeviceError
        The session does not fit; the message names settings with which it would.
    """
    free = int(backend.memory()[0] * (1 - RESERVE))

    def need(candidate: EngineSettings, radius: int) -> MemoryNeed:
        return memory_need(candidate, grid, max_radius=radius, max_shift_pixels=max_shift_pixels)

    wanted = need(settings, max_radius)
    if wanted.total <= free:
        return MemoryPlan(wanted, free, int((free - wanted.total) * STORE_SHARE))
    remedies = []
    for classes in range(settings.n_classes - 1, 0, -1):
        if need(replace(settings, n_classes=classes), max_radius).total <= free:
            remedies.append(f"n_classes {classes}")
            break
    for radius in range(max_radius - 1, 5, -1):
        if need(settings, radius).total <= free:
            # rounded up, so that the session's radius is not above this one
            resolution = geometry.box_angstrom / radius
            remedies.append(f"max_resolution_angstrom {resolution + 0.05:.1f}")
            break
    remedy = " or ".join(remedies) or "smaller particles (bin them)"
    raise DeviceError(
        f"{backend.device} has {_gib(free)} to give and the session needs {_gib(wanted.total)}: "
        f"use {remedy}, or a device with more memory"
    )


def _half_cube(grid: MapGrid, radius: int) -> int:
    """Voxels of the statistics of one class and half-set."""
    reach = grid.reach(radius)
    return (2 * reach + 1) ** 2 * (reach + 2)


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.2f} GiB"
