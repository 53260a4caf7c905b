"""Power of particles by shell: for the forecast of what is still to be learned, and for newcomers.

Of each particle three sums over the coefficients of every shell: C^2 over the noise, its square,
and the weighted image's power. Those of the latest particles are kept, as newcomers are compared
with them again and again.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from reconstruct.backend import Backend
from reconstruct.fourier import HalfPlane
from reconstruct.search import WeightedBatch

__all__ = ["LOW_RADIUS", "ShellSums", "mean_transfer"]

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Rows = npt.NDArray[np.intp]

LOW_RADIUS = 8  # shells of which the latest particles' sums are kept
KEPT = 8192  # of them: more than any comparison looks at


class ShellSums:
    """Makes the sums, and keeps the latest as long as the noise that weighed them is the same.

    What is kept follows from the particles, so a session that is taken up makes it anew.
    """

    def __init__(self, plane: HalfPlane, backend: Backend) -> None:
        self._plane, self._backend = plane, backend
        edges = [plane.count(radius) for radius in range(plane.max_radius + 1)]
        self._starts = backend.asarray(np.array(edges, np.int32))
        self.radius = min(LOW_RADIUS, plane.max_radius)
        self._row = np.full(KEPT, -1, np.int64)  # which row of the store a place holds
        self._sums = np.zeros((KEPT, 3, self.radius), np.float32)
        self._noise: Float64 | None = None

    def of_batch(self, batch: WeightedBatch) -> Float32:
        """Sums (b, 3, shells) of a batch, shells 1 and up as far as it reaches, on the host."""
        shells = int(self._plane.shell[batch.c2.shape[1] - 1])
        out = self._backend.xp.empty((len(batch), 3, shells), np.float32)
        self._backend.kernels.shell_sums(batch.a_re, batch.a_im, batch.c2, self._starts, out)
        return np.asarray(self._backend.asnumpy(out), np.float32)

    def keep(self, rows: Rows, sums: Float32, noise: Float64) -> None:
        """Keep the sums (b, 3, shells) of rows of the store, weighed by ``noise``.

        Sums of fewer shells than ``radius`` are of no use and not kept.
        """
        if sums.shape[2] < self.radius:
            return
        if self._noise is None or not np.array_equal(noise, self._noise):
            self._noise = noise.copy()
            self._row[:] = -1
        places = rows % KEPT
        self._row[places], self._sums[places] = rows, sums[:, :, : self.radius]

    def of(
        self, rows: Rows, *, noise: Float64, weigh: Callable[[Rows, int], WeightedBatch]
    ) -> Float64:
        """Sums (b, 3, radius) of latest rows of the store; what is not kept is made.

        Raises
        ------
        ValueError
            The rows span more than is kept.
        """
        if len(rows) and np.ptp(rows) >= KEPT:
            raise ValueError(f"rows {rows.min()} to {rows.max()} span more than {KEPT}")
        known = self._noise is not None and np.array_equal(noise, self._noise)
        missing = rows[self._row[rows % KEPT] != rows] if known else rows
        if len(missing):
            self.keep(missing, self.of_batch(weigh(missing, self.radius)), noise)
        return self._sums[rows % KEPT].astype(np.float64)


def mean_transfer(sums: Float32, plane: HalfPlane) -> Float64:
    """Mean C^2 over noise of particles in each shell (max_radius + 1,), 0 where none was used."""
    counts = np.bincount(plane.shell, minlength=plane.max_radius + 1)
    mean = np.zeros(plane.max_radius + 1)
    reach = sums.shape[2]
    mean[1 : reach + 1] = sums[:, 0].mean(axis=0, dtype=np.float64) / counts[1 : reach + 1]
    return mean
