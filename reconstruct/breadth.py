"""How wide a pose search is: whether the particles' posteriors are broad, and what that changes.

Particles that show little have hundreds of poses that fit nearly as well as the best. A coarse pass
over few shells then tells hardly anything, and a search that keeps a few cells takes these for all
there are: the map is made from poses that are too sure, and is held back by it.
docs/decisions/pose-search.md has the measurements.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["BROAD", "COLD", "USUAL", "Breadth", "Width"]

BROAD_BELOW = 0.2  # weight of its best cell, under which a posterior is broad
NARROW_ABOVE = 0.5
JUDGED_ON = 100.0  # particles at least, of which half decide


@dataclass(frozen=True)
class Width:
    """How many cells a search looks at and keeps."""

    coarse_radius: int = 6  # shells of the coarse pass
    keep: int = 40  # cells at most
    edge_shells: float = 0.8  # by which a cell of the last level may turn the edge
    sharpness: tuple[float, ...] = (0.33, 0.7, 1.0)  # inverse temperatures of cuts between levels
    share: float = 0.99  # of the tempered posterior that a cut keeps


USUAL = Width()
COLD = Width(sharpness=(0.25, 0.25, 0.5), share=0.999)  # while the map is still being found
# A device's coarse pass holds six shells, so it has the host search such particles everywhere.
BROAD = Width(coarse_radius=8, keep=80, edge_shells=1.1, sharpness=(0.5, 0.7, 1.0), share=0.999)


@dataclass
class Breadth:
    """What searches have found since it was last judged, and the judgement."""

    is_broad: bool = False
    changed_at: float = 0.0  # presentations of the learner, when the judgement became another
    seen: float = 0.0  # particles searched everywhere
    broad: float = 0.0  # of these, so many have a broad posterior
    narrow: float = 0.0  # or a narrow one

    @property
    def width(self) -> Width:
        """How wide a warm search is."""
        return BROAD if self.is_broad else USUAL

    def note(self, best: npt.NDArray[np.floating]) -> None:
        """Take in the weights (b,) of the best cells of particles searched everywhere."""
        self.seen += len(best)
        self.broad += float(np.count_nonzero(best < BROAD_BELOW))
        self.narrow += float(np.count_nonzero(best > NARROW_ABOVE))

    def settle(self, presented: float) -> None:
        """Judge by what most particles say, if there are enough: after ``presented`` of them."""
        if self.seen < JUDGED_ON:
            return
        before, say_so = self.is_broad, self.seen - self.narrow if self.is_broad else self.broad
        self.is_broad = 2 * say_so > self.seen
        self.changed_at = self.changed_at if self.is_broad == before else presented
        self.seen = self.broad = self.narrow = 0.0

    def dump(self) -> list[float]:
        """Everything that changes."""
        return [float(self.is_broad), self.changed_at, self.seen, self.broad, self.narrow]

    @classmethod
    def load(cls, state: Sequence[float]) -> Breadth:
        """What ``dump`` returned."""
        return cls(bool(state[0]), *map(float, state[1:]))
