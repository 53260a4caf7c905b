"""How far a session has come: the phase of each class, and whether it still learns.

Everything here is measured on particles before they were learned from, or on the half-maps, and
follows from the updates alone, so that a session that was interrupted says the same.

Held-out evidence differs from micrograph to micrograph, because a defocus passes more or less of
the particle's signal: by 16 % from one minibatch of 300 ribosomes to the next. What the defocus
explains, the transfer function's square weighed by the map's own spectrum, is therefore fitted
together with the gain, or the gain would drown in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from reconstruct.fourier import centred_rfftn, shell_index
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
MOST_UPDATES = 2 * HELD_OUT // 20  # that are kept: two windows of minibatches of 20 and more


def supported_shells(fsc: npt.NDArray[np.floating]) -> int:
    """Shells from the centre out in which the half-maps agree."""
    below = np.flatnonzero(np.asarray(fsc)[1:] < RESOLUTION_FSC)
    return int(below[0]) if len(below) else len(fsc) - 1


class Progress:
    """Fed after each update of the map that was chosen."""

    def __init__(self, max_radius: int) -> None:
        self._max_radius = max_radius
        self._best: Float64 = np.zeros((0, 2))  # (K, 2) most shells so far, presented at that time
        # (updates, 2 + shells) new particles, their mean nats, mean C^2 over noise per shell
        self._held_out: Float64 = np.zeros((0, 3 + max_radius))

    def after_update(
        self,
        fsc: Sequence[npt.NDArray[np.floating]],
        *,
        presented: float,
        new_particles: int,
        evidence: float,
        transfer: npt.NDArray[np.floating],
    ) -> None:
        """Take note of an update.

        Parameters
        ----------
        fsc
            Half-map FSC of each class.
        evidence
            Mean of the particles, in nats, before they were learned from.
        transfer
            (max_radius + 1,) their mean C^2 over noise in each shell; 0 where none was used.
        """
        shells = np.array([supported_shells(one) for one in fsc], np.float64)
        if len(self._best) != len(shells):
            self._best = np.stack([shells, np.full(len(shells), presented)], axis=1)
        # A class that lost half its detail is another one now: it begins anew.
        moved = (shells > self._best[:, 0]) | (shells < 0.5 * self._best[:, 0])
        self._best[moved] = np.stack([shells, np.full(len(shells), presented)], axis=1)[moved]
        if new_particles:
            entry = np.concatenate([[float(new_particles), evidence], transfer])
            self._held_out = np.concatenate([self._held_out, entry[None]])[-MOST_UPDATES:]

    def phases(self, presented: float, *, session: Phase, n_classes: int) -> tuple[Phase, ...]:
        """Phase of each class: final once its detail has come to an end."""
        if session in ("waiting", "initial") or len(self._best) != n_classes:
            return (session,) * n_classes
        patience = max(PLATEAU_PRESENTED, PLATEAU_SHARE * presented)
        return tuple(
            "final" if shells >= self._max_radius or presented - at >= patience else "intermediate"
            for shells, at in self._best
        )

    def gain(self, spectrum: npt.NDArray[np.floating]) -> tuple[float, float] | None:
        """Relative gain in held-out evidence from one window to the next, and its error.

        None where there are no two windows yet, or nothing but noise is explained.

        Parameters
        ----------
        spectrum
            (max_radius + 1,) power of the map in each shell, in any unit.
        """
        entries = self._held_out[::-1]
        behind = np.cumsum(entries[:, 0])
        late, end = (int(np.searchsorted(behind, times * HELD_OUT)) + 1 for times in (1, 2))
        if len(entries) < end or min(late, end - late) < FEWEST_UPDATES:
            return None
        particles, nats, transfer = entries[:end, 0], entries[:end, 1], entries[:end, 2:]
        level = float(np.average(nats[:late], weights=particles[:late]))
        if level <= 0:
            return None
        always = (transfer > 0).all(axis=0)
        passed = transfer[:, always] @ np.asarray(spectrum, np.float64)[always]
        columns = [np.ones(end), np.arange(end) < late]
        if np.ptp(passed) > 1e-6 * abs(passed.mean()):
            columns.append(passed / passed.mean() - 1)
        value, error = _fitted(np.stack(columns, axis=1), nats, particles)
        return value / level, error / level

    @staticmethod
    def still(gain: tuple[float, float] | None) -> bool:
        """Whether a gain and its error say that new particles teach nothing more."""
        return gain is not None and abs(gain[0]) + DEVIATIONS * gain[1] < STILL

    def described(
        self, snapshot: Snapshot, phases: tuple[Phase, ...], overlap: Float64
    ) -> Snapshot:
        """Put what is known here into a snapshot, and how far its classes overlap (K, K)."""
        classes = tuple(
            replace(one, phase=phase, overlap=tuple(float(share) for share in row))
            for one, phase, row in zip(snapshot.classes, phases, overlap, strict=True)
        )
        gain = self.gain(_power(snapshot, self._max_radius))
        converged = self.still(gain)
        return replace(snapshot, classes=classes, held_out_gain=gain, converged=converged)

    # ---- state

    def dump(self) -> dict[str, npt.NDArray[Any]]:
        """Everything that changes."""
        return {
            "progress.best": self._best.copy(),
            "progress.held_out": self._held_out.copy(),
        }

    def restore(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take over a state that ``dump`` returned."""
        self._best = np.array(arrays["progress.best"], np.float64)
        self._held_out = np.array(arrays["progress.held_out"], np.float64)


def _fitted(design: Float64, values: Float64, weights: Float64) -> tuple[float, float]:
    """Second coefficient of a weighted least-squares fit, and its error from the scatter."""
    root = np.sqrt(weights / weights.mean())[:, None]
    scaled, wanted = design * root, values * root[:, 0]
    inverse = np.linalg.inv(scaled.T @ scaled)
    found = inverse @ scaled.T @ wanted
    freedom = max(len(values) - design.shape[1], 1)
    scatter = float(((wanted - scaled @ found) ** 2).sum()) / freedom
    return float(found[1]), float(np.sqrt(scatter * inverse[1, 1]))


def _power(snapshot: Snapshot, max_radius: int) -> Float64:
    """Power per shell of the slices of a snapshot's maps, by the maps' shares."""
    total = np.zeros(max_radius + 1)
    for one in snapshot.classes:
        centre = one.volume.shape[0] // 2
        radius = centre - 1
        span = slice(centre - radius, centre + radius + 1)
        half = centred_rfftn(one.volume)[span, span, : radius + 1]
        shells = shell_index(radius).ravel()
        mean = np.bincount(shells, (np.abs(half) ** 2).ravel()) / np.bincount(shells)
        reach = min(max_radius, radius)
        total[: reach + 1] += one.occupancy * mean[: reach + 1] * np.arange(reach + 1)
    return total
