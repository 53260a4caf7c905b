"""From the particle store to batches ready for scoring: C X / noise and C^2 / noise.

On a device the spectra are kept there too, in segments of fixed size, so that a particle crosses
to it once; the host's copy is what checkpoints are written from. Beyond its budget a device fetches
a batch's rows from the host. CTF parameters are kept there for every particle; the CTF is made anew
for every batch: it costs less than keeping it.
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
        most: int | None = None,
        segment_bits: int = SEGMENT_BITS,
    ) -> None:
        self._backend = backend
        self._plane = plane
        self._kx, self._ky = backend.asarray(plane.kx), backend.asarray(plane.ky)
        self._step = 1.0 / box_angstrom
        self._bits = segment_bits
        self._segments: list[Any] = []  # device arrays (2**bits, coefficients) complex64
        segment_bytes = (8 * len(plane.kx)) << segment_bits
        self._room = (budget_bytes // segment_bytes) << segment_bits if backend.on_device else 0
        if most is not None:  # of a bounded store the first rows, which mostly stay
            self._room = min(self._room, most)
        self.count = 0  # particles whose spectra are kept on the device
        self._addresses: Any = None  # of the segments, on the device
        self._known = 0  # particles in the next two
        self._parameters: Any = None  # (capacity, 7) float64 on the device
        self._group: Any = None  # (capacity,) int32 on the device
        self._variance: tuple[npt.NDArray[np.float32], Any] | None = None  # last one, there too

    def append(self, spectra: Complex64) -> None:
        """Keep the next rows of the store, from host or device, as far as there is room."""
        size = 1 << self._bits
        done, room = 0, self._room - self.count
        while done < min(len(spectra), room):
            segment, place = divmod(self.count, size)
            if segment == len(self._segments):
                shape = (size, len(self._plane.kx))
                self._segments.append(self._backend.xp.empty(shape, np.complex64))
                self._addresses = None
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
        variance = noise_variance[:, self._plane.shell[:n]].astype(np.float32)
        if self._backend.on_device:
            return self._on_device(store, rows, n, optics, variance)
        parameters, group = _parameters(store, rows, optics)
        ctf = np.empty((len(rows), n), np.float32)
        own, columns = np.ascontiguousarray(parameters[:, :4]), np.ascontiguousarray(parameters.T)
        self._backend.kernels.ctf_rows(
            self._kx[:n], self._ky[:n], self._step, own, *columns[4:], ctf
        )
        spectra = store.spectra(rows, n)
        return weigh(spectra, ctf, variance[group])

    def _on_device(
        self,
        store: ParticleStore,
        rows: Rows,
        n: int,
        optics: Sequence[Optics],
        variance: npt.NDArray[np.float32],
    ) -> WeightedBatch:
        backend = self._backend
        self._keep_parameters(store, optics)
        if self._variance is None or not np.array_equal(self._variance[0], variance):
            self._variance = variance, backend.asarray(variance)
        places = np.stack([rows, rows]).astype(np.int64)
        addresses, fetched = self._addresses, None
        away = np.flatnonzero(rows >= self.count)
        if len(away):  # these go over as one more segment, or several
            spectra = store.spectra(rows[away])
            fetched = backend.asarray(spectra)
            size = 1 << self._bits
            places[0, away] = (len(self._segments) << self._bits) + np.arange(len(away))
            parts = [fetched[i : i + size] for i in range(0, len(away), size)]
            addresses = self._upload_addresses([*self._segments, *parts])
        elif addresses is None:
            addresses = self._addresses = self._upload_addresses(self._segments)
        out = tuple(backend.xp.empty((len(rows), n), np.float32) for _ in range(3))
        backend.kernels.weigh_rows(
            addresses,
            self._bits,
            len(self._plane.kx),
            backend.asarray(places),
            self._parameters,
            self._group,
            self._variance[1],
            self._kx,
            self._ky,
            self._step,
            *out,
        )
        return WeightedBatch(*out)

    def _upload_addresses(self, segments: Sequence[Any]) -> Any:
        addresses = [self._backend.address(one) for one in segments]
        return self._backend.asarray(np.array(addresses, np.uint64))

    def _keep_parameters(self, store: ParticleStore, optics: Sequence[Optics]) -> None:
        """Have the CTF parameters of every stored particle on the device."""
        if store.count == self._known:
            return
        xp = self._backend.xp
        parameters, group = _parameters(store, slice(self._known, store.count), optics)
        capacity = 0 if self._parameters is None else len(self._parameters)
        if store.count > capacity:
            capacity = max(store.count, 2 * capacity)
            grown = xp.zeros((capacity, 7), np.float64), xp.zeros(capacity, np.int32)
            if self._known:
                grown[0][: self._known] = self._parameters[: self._known]
                grown[1][: self._known] = self._group[: self._known]
            self._parameters, self._group = grown
        self._parameters[self._known : store.count] = self._backend.asarray(parameters)
        self._group[self._known : store.count] = self._backend.asarray(group, np.int32)
        self._known = store.count


def _parameters(
    store: ParticleStore, rows: Rows | slice, optics: Sequence[Optics]
) -> tuple[npt.NDArray[np.float64], Rows]:
    """CTF parameters (b, 7) as the kernels take them, and the optics groups."""
    group = np.asarray(store["optics_group"][rows], dtype=np.intp)
    table = np.array(
        [
            [
                electron_wavelength_angstrom(one.voltage_kv),
                one.spherical_aberration_mm * 1e7,
                one.amplitude_contrast,
            ]
            for one in optics
        ]
    )
    ctf = np.asarray(store["ctf"][rows], dtype=np.float64)
    return np.concatenate([ctf, table[group]], axis=1), group
