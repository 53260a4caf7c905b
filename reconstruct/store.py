"""The particle store: compact spectra that replay draws from, and what is known of each particle.

Spectra, CTF parameters and identities are immutable once stored (rows only ever get appended);
poses, classes and evidence change with every visit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from reconstruct.types import Assignments, ParticleImages

__all__ = ["IMMUTABLE", "MUTABLE", "ParticleStore", "ctf_parameters"]

IMMUTABLE: Mapping[str, tuple[type, tuple[int, ...]]] = {
    "particle_ids": (np.uint64, ()),
    "optics_group": (np.int32, ()),
    "ctf": (np.float64, (4,)),  # defocus u, v (Angstrom), angle, phase shift (rad)
}
MUTABLE: Mapping[str, tuple[type, tuple[int, ...]]] = {
    "rotation": (np.float32, (9,)),
    "shift": (np.float32, (2,)),  # pixels
    "class_index": (np.int32, ()),  # -1: never visited
    "max_probability": (np.float32, ()),
    "evidence": (np.float32, ()),
    "visits": (np.int32, ()),
}


class ParticleStore:
    """Growable columns, one row per particle in order of arrival."""

    def __init__(self, coefficients: int) -> None:
        self._coefficients = coefficients
        self.count = 0
        self._columns: dict[str, npt.NDArray[Any]] = {
            "spectra": np.empty((0, coefficients), np.complex64)
        }
        for name, (dtype, shape) in {**IMMUTABLE, **MUTABLE}.items():
            self._columns[name] = np.empty((0, *shape), dtype)

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        """Column ``name``, valid rows only, as a view."""
        return self._columns[name][: self.count]

    @property
    def nbytes(self) -> int:
        """Bytes held, spare capacity included."""
        return sum(column.nbytes for column in self._columns.values())

    @property
    def half(self) -> npt.NDArray[np.intp]:
        """Half-set of each particle, 0 or 1, from its identity."""
        return self.half_of(slice(None))

    def half_of(self, rows: npt.NDArray[np.intp] | slice) -> npt.NDArray[np.intp]:
        """Half-sets of the particles ``rows`` alone; an update needs no others."""
        ids = np.asarray(self["particle_ids"][rows], dtype=np.uint64)
        mixed = ids * np.uint64(0x9E3779B97F4A7C15)
        return (mixed >> np.uint64(63)).astype(np.intp)

    def append(self, rows: Mapping[str, npt.NDArray[Any]]) -> None:
        """Add particles: ``spectra`` and every column of ``IMMUTABLE``."""
        added = len(rows["spectra"])
        self._reserve(self.count + added)
        new = slice(self.count, self.count + added)
        for name in ("spectra", *IMMUTABLE):
            self._columns[name][new] = rows[name]
        for name in MUTABLE:
            self._columns[name][new] = -1 if name == "class_index" else 0
        self.count += added

    def _reserve(self, needed: int) -> None:
        capacity = len(self._columns["spectra"])
        if needed <= capacity:
            return
        capacity = max(needed, capacity + capacity // 4 + 256)
        for name, old in self._columns.items():
            grown = np.empty((capacity, *old.shape[1:]), old.dtype)
            grown[: self.count] = old[: self.count]
            self._columns[name] = grown

    def immutable_rows(self, start: int) -> dict[str, npt.NDArray[Any]]:
        """Copies of the immutable columns from row ``start`` on."""
        return {n: self[n][start:].copy() for n in ("spectra", *IMMUTABLE)}

    def assignments(self, pixel_size_angstrom: float) -> Assignments:
        """What is known of each particle now."""
        class_index = np.asarray(self["class_index"], dtype=np.int32).copy()
        return Assignments(
            particle_ids=np.asarray(self["particle_ids"], dtype=np.uint64).copy(),
            class_index=class_index,
            rotations=np.asarray(self["rotation"], dtype=np.float32).reshape(-1, 3, 3).copy(),
            shifts_angstrom=np.asarray(self["shift"], dtype=np.float32) * pixel_size_angstrom,
            max_probability=np.asarray(self["max_probability"], dtype=np.float32).copy(),
            log_likelihood=np.asarray(self["evidence"], dtype=np.float32).copy(),
            half=self.half.astype(np.int32) + 1,
        )


def ctf_parameters(particles: ParticleImages) -> npt.NDArray[np.float64]:
    """Column ``ctf`` (n, 4) of particles."""
    columns = (
        particles.defocus_u_angstrom,
        particles.defocus_v_angstrom,
        particles.defocus_angle_rad,
        particles.phase_shift_rad,
    )
    return np.stack([np.asarray(column, np.float64) for column in columns], axis=1)
