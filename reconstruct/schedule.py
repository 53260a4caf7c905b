"""What the measurements say about how to go on: radius, memory window, phase.

Pure functions of what has been presented and measured, never of wall time or of how much data
there was at the start. docs/decisions/cold-start.md and memory.md have the measurements behind the
numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = [
    "Schedule",
    "ShellGrowth",
    "grow_radius",
    "growth_due",
    "mask_fits",
    "memory_window",
    "particles_to_renewal",
]

REMEMBERED_AT = (3000.0, 8000.0, 12_000.0, 24_000.0)  # particles seen, at which so many times as
REMEMBERED_SHARE = (0.12, 0.5, 1.0, 2.0)  # many are remembered
LOOKS_APART = 1.5  # each look for growth is so many times as far from the last growth


@dataclass(frozen=True)
class Schedule:
    """Numbers of the schedule that users do not set."""

    start_radius: int = 5
    grow_every: int = 300  # particles presented per shell
    fsc_to_grow: float = 0.143
    cold_window: float = 100.0  # particles remembered while nothing is known
    cold_presented: int = 1500  # presentations with the shortest memory
    warm_window: float = 150.0
    mask_from: int = 500  # particles presented before masks close in
    mask_every: int = 250  # particles presented between fits of the masks, at first
    mask_growth: float = 0.2  # later they are fitted after this share of what was presented
    renew_share: float = 0.03  # of what a class remembers: so much more, and its map is made anew
    join_radius: int = 8  # shells up to which split half-sets share a reference (40 A)
    insert_beyond: int = 2  # shells beyond the scored radius that enter the statistics


@dataclass(frozen=True)
class ShellGrowth:
    """Working radius and when it last grew."""

    radius: int
    presented_at_growth: float


def grow_radius(
    growth: ShellGrowth,
    fsc: npt.NDArray[np.floating],
    presented: float,
    *,
    schedule: Schedule,
    max_radius: int,
) -> ShellGrowth:
    """Add one shell per ``grow_every`` presentations while the half maps agree at the edge."""
    due = presented - growth.presented_at_growth >= schedule.grow_every
    if not due or growth.radius >= max_radius:
        return growth
    if float(fsc[min(growth.radius, len(fsc) - 1)]) <= schedule.fsc_to_grow:
        return growth
    return ShellGrowth(growth.radius + 1, presented)


def growth_due(growth: ShellGrowth, presented: float, added: int, schedule: Schedule) -> bool:
    """Whether to see now if the radius can grow, ``added`` presentations having come.

    As soon as it may, and where the half maps did not agree at the edge at ever longer distances;
    they are compared every few updates anyway.
    """
    waited = presented - growth.presented_at_growth

    def looks(presentations: float) -> int:
        if presentations < schedule.grow_every:
            return 0
        return 1 + int(np.log(presentations / schedule.grow_every) / np.log(LOOKS_APART))

    return looks(waited) > looks(waited - added)


def mask_fits(presented: float, schedule: Schedule) -> int:
    """Fits of the masks that are due by ``presented``: at even, later at growing distances."""
    if presented < schedule.mask_from:
        return 0
    even = schedule.mask_every / schedule.mask_growth  # where both distances are the same
    if presented < even:
        return int(presented // schedule.mask_every)
    late = np.log(presented / even) / np.log1p(schedule.mask_growth)
    return int(even // schedule.mask_every + late)


def particles_to_renewal(
    share: npt.NDArray[np.floating], mass: npt.NDArray[np.floating], schedule: Schedule
) -> float:
    """Particles beyond which some class's map has changed by enough to be made anew.

    ``share`` (K,) of them goes to a class, ``mass`` (K,) is the particles that it remembers.
    """
    fed = share > 0
    return float(np.min(schedule.renew_share * mass[fed] / share[fed], initial=np.inf))


def memory_window(
    seen: int, presented: float, *, cold: bool, schedule: Schedule, replays: float = 0.0
) -> float:
    """Particles that the statistics remember.

    Short while the map is being found; then a share of the particles seen that grows from 12 %
    at 3,000 to half at 8,000 and twice as many at 24,000. With share s the i-th of n particles
    counts (i / n)^(1 / s): as many as 0.56 n alike would count for s = 1/2, 0.89 n for 2.
    Where ``replays`` earlier particles are shown again for each new one, that many more pass by.
    """
    if cold:
        return schedule.cold_window if presented < schedule.cold_presented else schedule.warm_window
    share = float(np.interp(seen, REMEMBERED_AT, REMEMBERED_SHARE))
    return max(schedule.warm_window, share * seen * (1.0 + replays))
