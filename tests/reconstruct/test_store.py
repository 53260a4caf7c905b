"""Rows stay what they were when they came, and the half-sets follow from identities alone."""

from __future__ import annotations

import numpy as np

from reconstruct.store import IMMUTABLE, MUTABLE, ParticleStore
from tests.reconstruct.small_sets import simulated

COEFFICIENTS = 6


def _rows(first: int, count: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(first)
    ids = np.arange(first, first + count, dtype=np.uint64)
    return {
        "spectra": rng.standard_normal((count, COEFFICIENTS)).astype(np.complex64) + 1j,
        "particle_ids": ids * np.uint64(1_000_003),
        "optics_group": np.zeros(count, np.int32),
        "ctf": rng.random((count, 4)),
    }


def test_rows_survive_growth_unchanged() -> None:
    store = ParticleStore(COEFFICIENTS)
    parts = [_rows(start, 150) for start in range(0, 1500, 150)]
    for part in parts:
        store.append(part)
        store["visits"][:] += 1
    assert store.count == 1500
    for name in ("spectra", *IMMUTABLE):
        assert np.array_equal(store[name], np.concatenate([part[name] for part in parts]))
    assert np.array_equal(store["visits"], np.repeat(np.arange(10, 0, -1), 150))


def test_a_particle_never_visited_has_no_class() -> None:
    store = ParticleStore(COEFFICIENTS)
    store.append(_rows(0, 3))
    assert store["class_index"].tolist() == [-1, -1, -1]
    assert store["visits"].tolist() == [0, 0, 0]
    assert all(len(store[name]) == 3 for name in MUTABLE)


def test_rows_taken_from_a_start_make_the_same_store() -> None:
    store = ParticleStore(COEFFICIENTS)
    store.append(_rows(0, 400))
    again = ParticleStore(COEFFICIENTS)
    for start in (0, 100):
        part = store.immutable_rows(start)
        again.append({name: column[: 100 if not start else 300] for name, column in part.items()})
    for name in ("spectra", *IMMUTABLE):
        assert np.array_equal(store[name], again[name])


def test_rows_handed_out_are_copies() -> None:
    store = ParticleStore(COEFFICIENTS)
    store.append(_rows(0, 5))
    store.immutable_rows(0)["spectra"][:] = 0
    assert np.all(store["spectra"] != 0)


def test_half_sets_are_even_and_follow_from_the_identity() -> None:
    ids = np.concatenate([simulated(600).particle_ids, np.arange(2000, dtype=np.uint64)])
    store = ParticleStore(COEFFICIENTS)
    rows = _rows(0, len(ids)) | {"particle_ids": ids}
    store.append(rows)
    assert set(store.half.tolist()) == {0, 1}
    assert abs(store.half[:600].mean() - 0.5) < 0.08  # four deviations
    assert abs(store.half[600:].mean() - 0.5) < 0.05
    backwards = ParticleStore(COEFFICIENTS)
    backwards.append({name: column[::-1] for name, column in rows.items()})
    assert np.array_equal(backwards.half[::-1], store.half)


def test_assignments_are_in_angstrom_with_halves_1_and_2() -> None:
    store = ParticleStore(COEFFICIENTS)
    store.append(_rows(0, 4))
    store["shift"][:] = [[1, -2], [0, 0], [3, 0], [0, 1]]
    store["rotation"][:] = np.eye(3).ravel()
    store["class_index"][:2] = 1
    found = store.assignments(2.5)
    assert found.shifts_angstrom[0].tolist() == [2.5, -5.0]
    assert found.class_index.tolist() == [1, 1, -1, -1]
    assert np.array_equal(found.half, store.half + 1)
    assert found.rotations.shape == (4, 3, 3)
    found.class_index[:] = 7
    assert store["class_index"].tolist() == [1, 1, -1, -1]


def test_the_size_in_memory_is_told() -> None:
    store = ParticleStore(COEFFICIENTS)
    store.append(_rows(0, 100))
    assert store.nbytes >= sum(store[name].nbytes for name in ("spectra", *IMMUTABLE, *MUTABLE))
