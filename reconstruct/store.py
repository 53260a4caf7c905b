"""The particle store: compact spectra that replay draws from, and what is known of each particle.

Spectra, CTF parameters and identities are immutable once stored (rows only ever get appended);
poses, classes and evidence change with every visit. Spectra may be let go, nothing else is.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor
from typing import Any

import numpy as np
import numpy.typing as npt

from reconstruct.spectra_pool import SpectraPool
from reconstruct.types import Assignments, ParticleImages, StorePrecision

__all__ = ["IMMUTABLE", "MUTABLE", "ParticleStore", "ctf_parameters"]

Complex64 = npt.NDArray[np.complex64]

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
RECENT = 1000  # particles trained last: what is new is looked for among them
_SLOT: Mapping[str, tuple[type, tuple[int, ...]]] = {"slot": (np.int32, ())}  # -1: not held


class ParticleStore:
    """Growable columns, one row per particle in order of arrival; a bounded number of spectra.

    Spectra are held of every particle that has not been trained yet, of the last ``RECENT`` that
    have, and of at most ``limit`` older ones: up to it all of them, beyond it a random sample of
    all (algorithm R of Vitter, ACM TOMS 11 (1985) 37), each particle with the same chance, keyed
    by ``seed`` and the row alone. Everything else that is known of a particle stays.

    Parameters
    ----------
    limit
        Trained particles whose spectra are held; None for all.
    wanted
        Particles from the head of the stream that will ever be used; of others no spectra are held.
    """

    def __init__(
        self,
        coefficients: int,
        *,
        precision: StorePrecision = "float32",
        limit: int | None = None,
        wanted: int | None = None,
        seed: int = 0,
    ) -> None:
        self._pool = SpectraPool(coefficients, precision)
        self._coefficients = coefficients
        self._limit = limit
        self._wanted = wanted
        self._seed = seed
        self._sample: list[int] = []  # older rows whose spectra are held, once there is a limit
        self._aged = 0  # rows that are no longer among the last ones trained
        self.count = 0
        self._columns: dict[str, npt.NDArray[Any]] = {}
        for name, (dtype, shape) in {**IMMUTABLE, **MUTABLE, **_SLOT}.items():
            self._columns[name] = np.empty((0, *shape), dtype)

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        """Column ``name``, valid rows only, as a view."""
        return self._columns[name][: self.count]

    @property
    def nbytes(self) -> int:
        """Bytes held, spare capacity included."""
        return self._pool.nbytes + sum(column.nbytes for column in self._columns.values())

    def spectra(self, rows: npt.NDArray[np.integer], n: int | None = None) -> Complex64:
        """Copy the first ``n`` coefficients of the particles ``rows``, which must be held."""
        slots = self["slot"][rows]
        if len(slots) and slots.min() < 0:
            raise IndexError(f"the spectrum of particle {rows[int(slots.argmin())]} is not held")
        return self._pool.take(slots, n)

    def replayable(self, trained: int) -> npt.NDArray[np.intp]:
        """Rows of trained particles whose spectra are held."""
        if self._limit is None:
            return np.arange(trained)
        recent = np.arange(min(self._aged, trained), trained)
        return np.concatenate([np.array(self._sample, np.intp), recent])

    def held(self, trained: int) -> int:
        """How many rows ``replayable`` gives."""
        if self._limit is None:
            return trained
        return len(self._sample) + trained - min(self._aged, trained)

    def holds(self, rows: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_]:
        """Whether the spectra of the particles ``rows`` are held."""
        return np.asarray(self["slot"][rows] >= 0)

    @property
    def half(self) -> npt.NDArray[np.intp]:
        """Half-set of each particle, 0 or 1, from its identity."""
        return self.half_of(slice(None))

    def half_of(self, rows: npt.NDArray[np.intp] | slice) -> npt.NDArray[np.intp]:
        """Half-sets of the particles ``rows`` alone; an update needs no others."""
        ids = np.asarray(self["particle_ids"][rows], dtype=np.uint64)
        mixed = ids * np.uint64(0x9E3779B97F4A7C15)
        return (mixed >> np.uint64(63)).astype(np.intp)

    def by_half(
        self, rows: npt.NDArray[np.intp], *, crossed: bool = False
    ) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        """Put ``rows`` in the order that updates and searches want: by half-set, else as they are.

        Returns them and their half-sets; ``crossed`` gives each particle the half-set that it is
        not in.
        """
        half = self.half_of(rows) ^ int(crossed)
        order = np.argsort(half, kind="stable")
        return rows[order], half[order]

    def append(
        self, rows: Mapping[str, npt.NDArray[Any]], workers: Executor | None = None
    ) -> Complex64:
        """Add particles: ``spectra`` and every column of ``IMMUTABLE``; give the spectra as held.

        Of rows from a dump the spectra may end before the others. ``workers`` share the copying.
        """
        added = len(rows["particle_ids"])
        self._reserve(self.count + added)
        new = slice(self.count, self.count + added)
        for name in IMMUTABLE:
            self._columns[name][new] = rows[name]
        for name in (*MUTABLE, *_SLOT):
            self._columns[name][new] = -1 if name in ("class_index", "slot") else 0
        room = added if self._wanted is None else max(0, self._wanted - self.count)
        held = rows["spectra"][:room]
        self._columns["slot"][self.count : self.count + len(held)] = self._pool.put(held, workers)
        self.count += added
        return self._pool.rounded(held)

    def poses(self, rows: npt.NDArray[np.integer]) -> dict[str, npt.NDArray[Any]]:
        """Rotation (b, 9), shift (b, 2) in pixels and class (b,) that were found last."""
        return {name: self[name][rows] for name in ("rotation", "shift", "class_index")}

    def remember(self, rows: npt.NDArray[np.integer], **found: npt.NDArray[Any]) -> None:
        """Take down what a visit found out about the particles ``rows``."""
        for name, values in found.items():
            self[name][rows] = values
        self["visits"][rows] += 1

    def note_trained(self, trained: int) -> bool:
        """Let go of spectra that there is no room for, now that so many rows are trained.

        Returns
        -------
        Whether this was the first time that one had to go.
        """
        if self._limit is None:
            return False
        let_go = []
        for row in range(self._aged, trained - RECENT):
            self._aged = row + 1
            if len(self._sample) < self._limit:
                self._sample.append(row)
                continue
            place = _draw(self._seed, row)
            gone = row
            if place < self._limit:
                gone, self._sample[place] = self._sample[place], row
            let_go.append(gone)
        if let_go:
            self._pool.free(self["slot"][let_go])
            self["slot"][let_go] = -1
        return bool(let_go) and self._aged - len(let_go) == self._limit

    def _reserve(self, needed: int) -> None:
        capacity = len(self._columns["slot"])
        if needed <= capacity:
            return
        capacity = max(needed, capacity + capacity // 8 + 256)
        for name, old in self._columns.items():
            grown = np.empty((capacity, *old.shape[1:]), old.dtype)
            grown[: self.count] = old[: self.count]
            self._columns[name] = grown

    # ---- state

    @property
    def _head(self) -> int:
        """Rows from the first whose spectra belong to the immutable rows."""
        ends = [self.count, *(e for e in (self._limit, self._wanted) if e is not None)]
        return min(ends)

    def immutable_rows(self, start: int) -> dict[str, npt.NDArray[Any]]:
        """Copies of the immutable columns from row ``start`` on.

        Spectra are those of the first ``limit`` particles, zeros where one has been let go; what is
        held of later ones is in ``dump``, which changes.
        """
        head = np.arange(start, max(start, self._head))
        spectra = np.zeros((len(head), self._coefficients), np.complex64)
        held = np.flatnonzero(self["slot"][head] >= 0)
        spectra[held] = self.spectra(head[held])
        return {"spectra": spectra, **{n: self[n][start:].copy() for n in IMMUTABLE}}

    def dump(self) -> dict[str, npt.NDArray[Any]]:
        """Everything that changes."""
        state = {name: self[name].copy() for name in MUTABLE}
        if self._limit is not None:
            later = self._head + np.flatnonzero(self["slot"][self._head :] >= 0)
            state |= {
                "sample": np.array(self._sample, np.int64),
                "aged": np.array([self._aged], np.int64),
                "later": later,
                "later_spectra": self.spectra(later),
            }
        return state

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take over a state that ``dump`` returned, of rows that are here."""
        for name in MUTABLE:
            self[name][:] = state[name]
        if self._limit is None:
            return
        self._sample = [int(row) for row in state["sample"]]
        self._aged = int(state["aged"][0])
        gone = np.setdiff1d(np.arange(min(self._aged, self._head)), self._sample)
        self._pool.free(self["slot"][gone])
        self["slot"][gone] = -1
        self["slot"][state["later"]] = self._pool.put(state["later_spectra"])

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


def _draw(seed: int, row: int) -> int:
    """Even random number below ``row + 1`` from (seed, row) alone (splitmix64)."""
    mask = (1 << 64) - 1
    mixed = (seed * 0xD1B54A32D192ED03 + (row + 1) * 0x9E3779B97F4A7C15) & mask
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & mask
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & mask
    mixed ^= mixed >> 31
    return mixed * (row + 1) >> 64
