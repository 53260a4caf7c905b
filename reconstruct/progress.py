"""How far a session has come: phases of classes, whether it still learns, how sure classes are.

Everything here is measured on particles before they were learned from, or on the half-maps, and
follows from the updates alone, so that a session that was interrupted says the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from reconstruct.quality import RESOLUTION_FSC
from reconstruct.types import Phase, Snapshot

__all__ = ["Progress", "supported_shells"]

Float64 = npt.NDArray[np.float64]

PLATEAU_PRESENTED = 3000  # presentations without a new shell after which a class is final
PLATEAU_SHARE = 0.25  # of what was presented so far, if that is more
HELD_OUT = 3000  # new particles in each of the two windows that are compared
FEWEST_UPDATES = 6  # in each window: below, their scatter says nothing
STILL = 0.02  # relative gain in held-out evidence from window to window that counts as none
DEVIATIONS = 2.0  # of the gain's own error that must fit below it
OVERLAP_PARTICLES = 2000.0  # particles over which class overlap is averaged


def supported_shells(fsc: npt.NDArray[np.floating]) -> int:
    """Shells from the centre out in which the half-maps agree."""
    below = np.flatnonzero(np.asarray(fsc)[1:] < RESOLUTION_FSC)
    return int(below[0]) if len(below) else len(fsc) - 1


class Progress:
    """Fed after each update of the map that was chosen."""

    def __init__(self, max_radius: int) -> None:
        self._max_radius = max_radius
        self._best: Float64 = np.zeros((0, 2))  # (K, 2) most shells so far, presented at that time
        self._held_out: Float64 = np.zeros((0, 2))  # (updates, 2) new particles, their mean nats
        self._overlap: Float64 = np.zeros((0, 0))  # (K, K) sums of mass of j in particles of i

    def after_update(
        self,
        fsc: Sequence[npt.NDArray[np.floating]],
        class_mass: npt.NDArray[np.floating],
        *,
        presented: float,
        new_particles: int,
        evidence: float,
        annealing: bool,
    ) -> None:
        """Take note of an update.

        Parameters
        ----------
        fsc
            Half-map FSC of each class.
        class_mass
            (b, K) posterior mass of each class in each particle.
        evidence
            Mean of the particles, in nats, before they were learned from.
        annealing
            Classes are still blurred on purpose, which says nothing about how alike they are.
        """
        shells = np.array([supported_shells(one) for one in fsc], np.float64)
        if len(self._best) != len(shells):
            self._best = np.stack([shells, np.full(len(shells), presented)], axis=1)
            self._overlap = np.zeros((len(shells),) * 2)
        # A class that lost half its detail is another one now: it begins anew.
        moved = (shells > self._best[:, 0]) | (shells < 0.5 * self._best[:, 0])
        self._best[moved] = np.stack([shells, np.full(len(shells), presented)], axis=1)[moved]
        if new_particles:
            entry = [[float(new_particles), evidence]]
            self._held_out = np.concatenate([self._held_out, entry])[-_most_updates() :]
        if not annealing:
            self._note_overlap(np.asarray(class_mass, np.float64))

    def _note_overlap(self, mass: Float64) -> None:
        self._overlap *= np.exp(-len(mass) / OVERLAP_PARTICLES)
        np.add.at(self._overlap, np.argmax(mass, axis=1), mass)

    def phases(self, presented: float, *, session: Phase, n_classes: int) -> tuple[Phase, ...]:
        """Phase of each class: final once its detail has come to an end."""
        if session in ("waiting", "initial") or len(self._best) != n_classes:
            return (session,) * n_classes
        patience = max(PLATEAU_PRESENTED, PLATEAU_SHARE * presented)
        return tuple(
            "final" if shells >= self._max_radius or presented - at >= patience else "intermediate"
            for shells, at in self._best
        )

    @property
    def overlap(self) -> tuple[tuple[float, ...], ...]:
        """Mean posterior mass of class j in particles whose best class is i, (K, K); rows sum to 1.

        A class without particles has a row of zeros.
        """
        total = self._overlap.sum(axis=1, keepdims=True)
        shares = self._overlap / np.maximum(total, 1e-12)
        return tuple(tuple(float(value) for value in row) for row in shares)

    @property
    def gain(self) -> tuple[float, float] | None:
        """Relative gain in held-out evidence from one window to the next, and its error.

        None where there are no two windows yet, or nothing but noise is explained.
        """
        late, early = self._windows()
        if min(len(late), len(early)) < FEWEST_UPDATES:
            return None
        (new, new_error), (old, old_error) = _mean(late), _mean(early)
        if new <= 0:
            return None
        return (new - old) / new, float(np.hypot(new_error, old_error)) / new

    @property
    def converged(self) -> bool:
        """Whether new particles are explained no better than those 3,000 before them."""
        if self.gain is None:
            return False
        gain, error = self.gain
        return abs(gain) + DEVIATIONS * error < STILL

    def _windows(self) -> tuple[Float64, Float64]:
        """The last entries that hold ``HELD_OUT`` particles, and those before them."""
        behind = np.cumsum(self._held_out[::-1, 0])
        first = int(np.searchsorted(behind, HELD_OUT)) + 1
        second = int(np.searchsorted(behind, 2 * HELD_OUT)) + 1
        if len(behind) < second:
            return np.zeros((0, 2)), np.zeros((0, 2))
        reverse = self._held_out[::-1]
        return reverse[:first], reverse[first:second]

    def described(self, snapshot: Snapshot, phases: tuple[Phase, ...]) -> Snapshot:
        """Put what is known here into a snapshot."""
        rows = self.overlap if len(self._overlap) == len(snapshot.classes) else ()
        classes = tuple(
            replace(one, phase=phases[k], overlap=rows[k] if rows else ())
            for k, one in enumerate(snapshot.classes)
        )
        return replace(snapshot, classes=classes, held_out_gain=self.gain, converged=self.converged)

    # ---- state

    def dump(self) -> dict[str, npt.NDArray[Any]]:
        """Everything that changes."""
        return {
            "progress.best": self._best.copy(),
            "progress.held_out": self._held_out.copy(),
            "progress.overlap": self._overlap.copy(),
        }

    def restore(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take over a state that ``dump`` returned."""
        self._best = np.array(arrays["progress.best"], np.float64)
        self._held_out = np.array(arrays["progress.held_out"], np.float64)
        self._overlap = np.array(arrays["progress.overlap"], np.float64)


def _most_updates() -> int:
    """Entries that are worth keeping: two windows of minibatches of 20 and more."""
    return 2 * HELD_OUT // 20


def _mean(entries: Float64) -> tuple[float, float]:
    """Mean over particles and its error, from the scatter of the minibatches."""
    weights = entries[:, 0] / entries[:, 0].sum()
    mean = float((weights * entries[:, 1]).sum())
    scatter = float((weights * (entries[:, 1] - mean) ** 2).sum())
    return mean, float(np.sqrt(scatter / (len(entries) - 1)))
