"""Whether negative density is cut from the maps that particles are scored against.

Solvent lies at 0 after background normalisation, so a molecule's density should be positive; but a
map that lacks its lowest frequencies has a mean of 0, and cutting it destroys signal. Which of the
two a map is, held-out evidence tells: with ``auto`` the same particles are scored with and without
the cut, now and then, and each class goes on with what explains its particles better.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from reconstruct.paired import better
from reconstruct.types import Nonnegativity

__all__ = ["Positivity"]

Flags = npt.NDArray[np.bool_]

JUDGE_EVERY = 10  # updates between two comparisons
FEWEST_PARTICLES = 20  # of a class, for a comparison


class Positivity:
    """Remembers for each class whether its reference is cut at 0."""

    def __init__(self, mode: Nonnegativity = "off") -> None:
        self._mode = mode
        self._cut: Flags = np.zeros(0, np.bool_)

    def flags(self, n_classes: int) -> Flags:
        """Whether each class is cut."""
        if len(self._cut) != n_classes:
            self._cut = np.full(n_classes, self._mode == "on")
        return self._cut

    def grow(self, n_classes: int) -> None:
        """Make room for one more class beside ``n_classes`` that keep their flags."""
        self._cut = np.append(self.flags(n_classes), self._mode == "on")

    def take(self, other: Positivity, classes: Sequence[int], n_classes: int) -> None:
        """Take over the flags of some ``classes`` of another's ``n_classes``."""
        self._cut = other.flags(n_classes)[list(classes)]

    @property
    def judges(self) -> bool:
        """Whether it compares at all."""
        return self._mode == "auto"

    def due(self, updates: int, *, cold: bool) -> bool:
        """Whether it is time to compare: never while the map is being found."""
        return self.judges and not cold and updates % JUDGE_EVERY == 0

    def judge(
        self,
        evidence: Callable[[], npt.NDArray[np.floating]],
        class_index: npt.NDArray[np.integer],
        n_classes: int,
    ) -> None:
        """Take over what explains each class's particles better.

        Parameters
        ----------
        evidence
            Scores the same particles with the flags as they are then: (b,) nats.
        class_index
            (b,) their best classes.
        """
        after = self.flags(n_classes).copy()
        found = []
        for cut in (False, True):
            self._cut = np.full(n_classes, cut)
            found.append(np.asarray(evidence(), np.float64))
        for k in range(n_classes):
            gain = (found[1] - found[0])[class_index == k]
            if len(gain) < FEWEST_PARTICLES:
                continue
            told = better(gain)
            after[k] = after[k] if told is None else told
        self._cut = after

    def dump(self) -> list[bool]:
        """Everything that changes."""
        return [bool(flag) for flag in self._cut]

    def restore(self, meta: Mapping[str, Any]) -> None:
        """Take over a state that ``dump`` returned, if there is one."""
        self._cut = np.array(meta.get("cut", ()), np.bool_)
