"""From the particle store to batches ready for scoring: C X / noise and C^2 / noise.

On a device the spectra are kept there too, in segments of fixed size, so that a particle crosses
to it once; the host's copy is what checkpoints are written from. Beyond its budget a device fetches
a batch's rows from the host. The CTF is made anew for every batch: it costs less than keeping it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from reconstruct.backend import Backend
from reconstruct.ctf import electron_wavelength_angstrom
from reconstruct.fourier import HalfPlane
from reconstruct.search import WeightedBatch, weigh
from reconstruct.store import ParticleStore
from reconstruct.types import Optics

__all__ = ["SEGMENT_BITS", "Weigher"]

SEGMENT_BITS = 13  # 8,192 particles a segment

Complex64 = npt.NDArray[np.complex64]
Rows = npt.NDArray[np.intp]


class Weigher:
    """Weighs stored particles on a backend, of whose store it keeps a copy on a device."""

    def __init__(
        self,
        backend: Backend,
        plane: HalfPlane,
        *,
        box_angstrom: float,
        budget_bytes: int,
        segment_bits: int = SEGMENT_BITS,
    ) -> None:
        self._backend = backend
        self._plane = plane
        self._kx, self._ky = backend.asarray(plane.kx), backend.asarray(plane.ky)
        self._step = 1.0 / box_angstrom
        self._bits = segment_bits
        self._segments: list[Any] = []  # device arrays (2**bits, coefficients) complex64
        segment_bytes = (8 * len(plane.kx)) << segment_bits
        self._most_segments = budget_bytes // segment_bytes if backend.on_device else 0
        self.count = 0  # particles kept on the device

    def append(self, spectra: Complex64) -> None:
        """Keep the next rows of the store, as far as there is room."""
        size = 1 << self._bits
        done, room = 0, self._most_segments * size - self.count
        while done < min(len(spectra), room):
            segment, place = divmod(self.count, size)
            if segment == len(self._segments):
                shape = (size, len(self._plane.kx))
                self._segments.append(self._backend.xp.empty(shape, np.complex64))
            part = spectra[done : done + min(size - place, room - done)]
            self._segments[segment][place : place + len(part)] = self._backend.asarray(part)
            done += len(part)
            self.count += len(part)

    def weigh(
        self,
        store: ParticleStore,
        rows: Rows,
        radius: int,
        *,
        optics: Sequence[Optics],
        noise_variance: npt.NDArray[np.float64],
    ) -> WeightedBatch:
        """Coefficients up to ``radius`` of stored particles.

        ``noise_variance`` (groups, shells) is that of each component; ``optics`` of each group.
        """
        n = self._plane.count(radius)
        group = np.asarray(store["optics_group"][rows], dtype=np.intp)
        wavelength = np.array([electron_wavelength_angstrom(o.voltage_kv) for o in optics])
        spherical = np.array([o.spherical_aberration_mm * 1e7 for o in optics])
        amplitude = np.array([o.amplitude_contrast for o in optics])
        of_group = wavelength[group], spherical[group], amplitude[group]
        parameters = np.asarray(store["ctf"], dtype=np.float64)[rows]
        variance = noise_variance[:, self._plane.shell[:n]].astype(np.float32)
        if self._backend.on_device:
            table = np.concatenate([parameters, np.stack(of_group, axis=1)], axis=1)
            return self._on_device(store, rows, n, table, group, variance)
        ctf = np.empty((len(rows), n), np.float32)
        self._backend.kernels.ctf_rows(
            self._kx[:n], self._ky[:n], self._step, parameters, *of_group, ctf
        )
        spectra = np.asarray(store["spectra"], dtype=np.complex64)[rows, :n]
        return weigh(spectra, ctf, variance[group])

    def _on_device(
        self,
        store: ParticleStore,
        rows: Rows,
        n: int,
        parameters: npt.NDArray[np.float64],
        group: Rows,
        variance: npt.NDArray[np.float32],
    ) -> WeightedBatch:
        backend = self._backend
        width = len(self._plane.kx)
        segments, bits = self._segments, self._bits
        places = rows.astype(np.int64)
        away = np.flatnonzero(rows >= self.count)
        fetched: Any = None
        if len(away):  # these go over as one more segment, or several
            spectra = np.asarray(store["spectra"], dtype=np.complex64)[rows[away]]
            fetched = backend.asarray(spectra)
            size = 1 << bits
            places[away] = (len(segments) << bits) + np.arange(len(away))
            segments = [*segments, *(fetched[i : i + size] for i in range(0, len(away), size))]
        addresses = np.array([backend.address(one) for one in segments], np.uint64)
        out = tuple(backend.xp.empty((len(rows), n), np.float32) for _ in range(3))
        backend.kernels.weigh_rows(
            backend.asarray(addresses),
            bits,
            width,
            backend.asarray(places),
            backend.asarray(parameters),
            backend.asarray(group, np.int32),
            backend.asarray(variance),
            self._kx,
            self._ky,
            self._step,
            *out,
        )
        return WeightedBatch(*out)
