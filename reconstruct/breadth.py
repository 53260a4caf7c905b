"""How wide a pose search is: whether a broad one finds more of the posterior, and what it is.

Particles that show little have hundreds of poses that fit nearly as well as the best. A coarse pass
over few shells then tells hardly anything, and a search that keeps a few cells takes these for all
there are: the map is made from poses that are too sure, and is held back by it. What is lost shows
in the evidence, so that some particles are searched in both ways, now and then.
docs/decisions/pose-search.md has the measurements.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace

import numpy as np
import numpy.typing as npt

from reconstruct.paired import better

__all__ = ["BROAD", "COLD", "USUAL", "Breadth", "Width"]

BRIGHT = 80.0  # nats per particle, from which a usual search was always better
COMPARED_ON = 64  # particles, half of either half-set
FEWEST = 8  # of them, for a comparison
COMPARED_AGAIN = 1.4  # times as many presentations later


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
    """Whether searches are broad, and what a comparison said of it."""

    is_broad: bool = False
    wanted: bool = False  # what the last comparison said, until the next references are made
    changed_at: float = 0.0  # presentations of the learner, when searches became wider or less so
    compared_at: float = 0.0  # and when both were last compared

    @property
    def width(self) -> Width:
        """How wide a warm search is."""
        return BROAD if self.is_broad else USUAL

    @property
    def other(self) -> Breadth:
        """What it is compared with."""
        return replace(self, is_broad=not self.is_broad)

    def due(self, presented: float, evidence: float) -> bool:
        """Whether it is time to compare: at growing distances, and not of bright particles.

        ``evidence`` is the mean per particle in nats.
        """
        may_change = self.is_broad or evidence < BRIGHT
        return may_change and presented >= COMPARED_AGAIN * self.compared_at

    def compare(
        self,
        as_now: npt.NDArray[np.floating],
        otherwise: npt.NDArray[np.floating],
        presented: float,
    ) -> None:
        """Take in the evidence (b,) of the same particles as searched now and in the other way."""
        if len(as_now) < FEWEST:
            return
        told = better(np.subtract(otherwise, as_now, dtype=np.float64))
        if told is not None:
            self.wanted = self.is_broad != told
        self.compared_at = presented

    def settle(self, presented: float) -> None:
        """Go on as the last comparison said, after ``presented`` particles."""
        if self.wanted != self.is_broad:
            self.is_broad, self.changed_at = self.wanted, presented

    def dump(self) -> list[float]:
        """Everything that changes."""
        return [float(value) for value in astuple(self)]

    @classmethod
    def load(cls, state: Sequence[float]) -> Breadth:
        """What ``dump`` returned."""
        return cls(bool(state[0]), bool(state[1]), *map(float, state[2:]))
