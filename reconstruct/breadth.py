"""How wide a pose search is: whether the particles' posteriors are broad, and what that changes.

Particles that show little have hundreds of poses that fit nearly as well as the best. A coarse pass
over few shells then tells hardly anything, and a search that keeps a few cells takes these for all
there are: the map is made from too sure poses, learns its own noise, and its half-sets agree on it.
docs/decisions/pose-search.md has the measurements.
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
    "KEEP",
    "SHARE",
    "SHARPNESS",
    "Breadth",
]

COARSE_RADIUS = 6  # shells of the coarse pass
KEEP = 40  # cells that are kept at most
EDGE_SHELLS = 0.8  # by which a cell of the last level turns the edge at most
SHARPNESS = (0.33, 0.7, 1.0)  # inverse temperatures of the cuts between levels
SHARE = 0.99  # of the tempered posterior that a cut keeps

COLD_SHARPNESS = (0.25, 0.25, 0.5)  # while the map is still being found
COLD_SHARE = 0.999

BROAD_COARSE_RADIUS = 8
BROAD_KEEP = 80  # 160 find the same maps
BROAD_EDGE_SHELLS = 1.1
BROAD_SHARPNESS = (0.5, 0.7, 1.0)  # a score is off by a part of it, and these are low
BROAD_SHARE = 0.999

BROAD, NARROW = 0.2, 0.5  # weights of the best cell, below and above which a posterior is the one
# or the other
JUDGED_ON = 100.0  # particles at least, of which half decide


@dataclass
class Breadth:
    """What searches have found since the references were made, and what it comes to."""

    is_broad: bool = False
    seen: float = 0.0  # particles searched everywhere
    broad: float = 0.0  # of these, so many have a broad posterior
    narrow: float = 0.0  # or a narrow one

    def search(self, *, cold: bool, on_device: bool) -> dict[str, Any]:
        """How wide to search, as ``search_plan.make_plan`` takes it; always the same while cold.

        The coarse pass of a device holds no more than the usual shells.
        """
        if cold:
            return {"sharpness": COLD_SHARPNESS, "share": COLD_SHARE}
        if not self.is_broad:
            return {}
        return {
            "keep": BROAD_KEEP,
            "coarse_radius": COARSE_RADIUS if on_device else BROAD_COARSE_RADIUS,
            "edge_shells": BROAD_EDGE_SHELLS,
            "sharpness": BROAD_SHARPNESS,
            "share": BROAD_SHARE,
        }

    def note(self, best: npt.NDArray[np.floating]) -> None:
        """Take in the weights (b,) of the best cells of particles searched everywhere."""
        self.seen += len(best)
        self.broad += float(np.count_nonzero(best < BROAD))
        self.narrow += float(np.count_nonzero(best > NARROW))

    def settle(self) -> None:
        """Search otherwise from now on, if most particles say so."""
        if self.seen < JUDGED_ON:
            return
        self.is_broad = 2 * (self.seen - self.narrow if self.is_broad else self.broad) > self.seen
        self.seen = self.broad = self.narrow = 0.0

    def dump(self) -> list[float]:
        """Everything that changes."""
        return [self.is_broad, self.seen, self.broad, self.narrow]

    @classmethod
    def load(cls, state: Sequence[float]) -> Breadth:
        """What ``dump`` returned."""
        return cls(bool(state[0]), *map(float, state[1:]))
