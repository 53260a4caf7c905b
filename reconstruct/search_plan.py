"""How fine and how far a pose search goes: the plan that every search is given."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reconstruct.breadth import USUAL, Width
from reconstruct.rotations import grid_step

__all__ = ["SearchPlan", "make_plan"]


@dataclass(frozen=True)
class SearchPlan:
    """How fine and how far the search goes at one radius."""

    coarse_count: int  # rotations of the coarse pass, of all of SO(3)
    coarse_radius: int
    shift_cells: int  # per axis
    shift_step_pixels: float
    level_radii: tuple[int, ...]  # one per subdivision; the last is the working radius
    keep: int = USUAL.keep
    sharpness: tuple[float, ...] = USUAL.sharpness  # inverse temperatures of the cuts: coarse,
    # then level by level; the last repeats; the last level itself is cut at 1
    share: float = USUAL.share  # of the tempered posterior that a cut keeps
    temperature: float = 1.0  # at which the last level is cut

    def sharpness_at(self, level: int) -> float:
        """Inverse temperature of the cut after subdivision ``level``."""
        if level == len(self.level_radii) - 1:
            return 1.0 / self.temperature
        return self.sharpness[min(level + 1, len(self.sharpness) - 1)]

    @property
    def log_cells(self) -> float:
        """Log of the number of cells at the last level: the flat prior over poses."""
        levels = len(self.level_radii)
        return float(
            np.log(self.coarse_count) + 2 * np.log(self.shift_cells) + levels * np.log(32.0)
        )


def make_plan(
    radius: int,
    *,
    box: int,
    max_shift_pixels: float,
    coarse_count: int = 4608,
    width: Width = USUAL,
) -> SearchPlan:
    """Plan a search at ``radius`` shells; cells are split until they are small enough."""
    step, first = grid_step(coarse_count), width.coarse_radius
    levels = max(1, int(np.ceil(np.log2(step * radius / width.edge_shells))))
    radii = [min(radius, round(first * 1.7 ** (level + 1))) for level in range(levels)]
    radii[-1] = radius
    spacing = box / 32.0
    cells = max(1, int(np.ceil(2 * max_shift_pixels / spacing - 1e-6)))
    return SearchPlan(
        coarse_count=coarse_count,
        coarse_radius=min(radius, first),
        shift_cells=cells,
        shift_step_pixels=spacing,
        level_radii=tuple(radii),
        keep=width.keep,
        sharpness=width.sharpness,
        share=width.share,
    )
