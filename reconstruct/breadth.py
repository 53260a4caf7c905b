"""How many cells of the pose posterior a search keeps: as many as the particles' posteriors need.

Particles that show little have hundreds of poses that fit nearly as well as the best. A search that
keeps a few of them takes these for all there are: the map is made from too sure poses, learns its
own noise, and its half-sets agree on it. docs/decisions/pose-search.md has the measurements.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "BROAD_EDGE_SHELLS",
    "COARSE_RADIUS",
    "EDGE_SHELLS",
    "FEWEST_CELLS",
    "MOST_CELLS",
    "SHARE",
    "SHARPNESS",
    "Breadth",
]

FEWEST_CELLS = 40
MOST_CELLS = 80  # 160 find the same maps
COARSE_RADIUS = 6  # shells of the coarse pass
BROAD_COARSE_RADIUS = 8  # where six tell so little that ten times as many cells would be kept
EDGE_SHELLS = 0.8  # by which a cell of the last level turns the edge at most
BROAD_EDGE_SHELLS = 1.1  # where posteriors are wider than that anyway
SHARPNESS = (0.33, 0.7, 1.0)  # inverse temperatures of the cuts between levels
BROAD_SHARPNESS = (0.5, 0.7, 1.0)  # a score is off by a part of it, and these are low
COLD_SHARPNESS = (0.25, 0.25, 0.5)  # while the map is still being found
SHARE, BROAD_SHARE, COLD_SHARE = 0.99, 0.999, 0.999  # of the tempered posterior that a cut keeps
EVEN_CELLS = 8  # times as many are kept as would hold the posterior if they shared it evenly
NARROW = 0.5  # weight of the best cell, from which fewer do
JUDGED_ON = 100.0  # particles at least, of which half have to be one or the other


@dataclass
class Breadth:
    """What searches have found since the references were made; half of it decides."""

    cells: int = FEWEST_CELLS
    seen: float = 0.0  # particles searched everywhere
    broad: float = 0.0  # of these, whose best cell says that more are needed
    narrow: float = 0.0  # or that fewer do

    @property
    def is_broad(self) -> bool:
        """Whether posteriors are broader than those of bright particles."""
        return self.cells > FEWEST_CELLS

    def search(self, *, cold: bool, on_device: bool) -> dict[str, Any]:
        """How wide to search, as ``search_plan.make_plan`` takes it; always the same while cold.

        The coarse pass of a device holds no more than the usual shells.
        """
        if cold:
            return {"sharpness": COLD_SHARPNESS, "share": COLD_SHARE}
        if not self.is_broad:
            return {}
        return {
            "keep": self.cells,
            "coarse_radius": COARSE_RADIUS if on_device else BROAD_COARSE_RADIUS,
            "edge_shells": BROAD_EDGE_SHELLS,
            "sharpness": BROAD_SHARPNESS,
            "share": BROAD_SHARE,
        }

    def note(self, best: npt.NDArray[np.floating]) -> None:
        """Take in the weights (b,) of the best cells of particles searched everywhere."""
        self.seen += len(best)
        self.broad += float(np.count_nonzero(best < EVEN_CELLS / self.cells))
        self.narrow += float(np.count_nonzero(best > NARROW))

    def settle(self) -> None:
        """Keep twice or half as many cells from now on, if most particles say so."""
        if self.seen < JUDGED_ON:
            return
        if 2 * self.broad > self.seen:
            self.cells = min(2 * self.cells, MOST_CELLS)
        elif 2 * self.narrow > self.seen:
            self.cells = max(self.cells // 2, FEWEST_CELLS)
        self.seen = self.broad = self.narrow = 0.0

    def dump(self) -> list[float]:
        """Everything that changes."""
        return [self.cells, self.seen, self.broad, self.narrow]

    @classmethod
    def load(cls, state: Sequence[float]) -> Breadth:
        """What ``dump`` returned."""
        return cls(int(state[0]), *map(float, state[1:]))
