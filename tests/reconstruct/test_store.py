"""Rows stay what they were when they came, and the half-sets follow from identities alone."""

from __future__ import annotations

import numpy as np
import pytest

from reconstruct.fourier import make_half_plane
from reconstruct.spectra_pool import SEGMENT_BITS, SpectraPool
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
    for name in IMMUTABLE:
        assert np.array_equal(store[name], np.concatenate([part[name] for part in parts]))
    spectra = np.concatenate([part["spectra"] for part in parts])
    assert np.array_equal(store.spectra(np.arange(1500)), spectra)
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
    for name in IMMUTABLE:
        assert np.array_equal(store[name], again[name])
    rows = np.arange(400)
    assert np.array_equal(store.spectra(rows), again.spectra(rows))


def test_rows_handed_out_are_copies() -> None:
    store = ParticleStore(COEFFICIENTS)
    store.append(_rows(0, 5))
    store.immutable_rows(0)["spectra"][:] = 0
    store.spectra(np.arange(5))[:] = 0
    assert np.all(store.spectra(np.arange(5)) != 0)


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
    columns = sum(store[name].nbytes for name in (*IMMUTABLE, *MUTABLE))
    assert store.nbytes >= columns + 100 * COEFFICIENTS * 8


# ---- bounded


@pytest.fixture
def none_recent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reconstruct.store.RECENT", 0)


def _bounded(limit: int, *, seed: int = 0) -> ParticleStore:
    return ParticleStore(COEFFICIENTS, limit=limit, seed=seed)


def _train(store: ParticleStore, first: int, count: int, *, cut: int) -> list[bool]:
    """Add rows in parts of ``cut`` and train each at once."""
    told = []
    for start in range(first, first + count, cut):
        part = min(cut, first + count - start)
        store.append(_rows(start, part))
        told.append(store.note_trained(start + part))
    return told


def test_beyond_the_limit_a_random_sample_of_all_is_held(none_recent: None) -> None:
    counts = np.zeros(400)
    for seed in range(60):
        store = _bounded(50, seed=seed)
        told = _train(store, 0, 400, cut=10)
        assert told.index(True) == 5  # said once: with the 51st
        assert sum(told) == 1
        held = store.replayable(400)
        assert len(set(held.tolist())) == 50
        counts[held] += 1
        assert np.array_equal(np.sort(held), np.flatnonzero(store["slot"] >= 0))
    # every particle has the same chance, 60 * 50 / 400 = 7.5, whenever it came
    for part in np.split(counts, 4):
        assert abs(part.mean() - 7.5) < 0.9  # three deviations


def test_what_is_held_is_what_came_and_what_is_not_says_so(none_recent: None) -> None:
    store = _bounded(50)
    _train(store, 0, 400, cut=10)
    for row in store.replayable(400)[:20]:
        expected = _rows(int(row) // 10 * 10, 10)["spectra"][int(row) % 10]
        assert np.array_equal(store.spectra(np.array([row]))[0], expected)
    gone = np.setdiff1d(np.arange(400), store.replayable(400))
    with pytest.raises(IndexError, match="is not held"):
        store.spectra(gone[:1])
    assert len(store["particle_ids"]) == 400  # only spectra are let go


def test_the_sample_depends_on_seed_and_order_alone(none_recent: None) -> None:
    samples = []
    for seed, cut in ((0, 10), (0, 37), (1, 10)):
        store = _bounded(50, seed=seed)
        _train(store, 0, 400, cut=cut)
        samples.append(store.replayable(400).tolist())
    assert samples[0] == samples[1]
    assert samples[0] != samples[2]


def test_a_bounded_store_stays_flat(none_recent: None) -> None:
    store = _bounded(1000)
    _train(store, 0, 3000, cut=100)
    before = store._pool.nbytes
    _train(store, 3000, 20_000, cut=100)
    assert store._pool.nbytes == before
    most = 1000 + 100 + (1 << SEGMENT_BITS)  # the limit, what is not trained yet, a segment's rest
    assert before <= most * COEFFICIENTS * 8


def test_the_last_particles_are_always_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reconstruct.store.RECENT", 30)
    store = _bounded(50)
    told = _train(store, 0, 400, cut=10)
    assert told.index(True) == 8  # at 90: the limit and the last 30 are 80
    assert store.holds(np.arange(370, 400)).all()
    assert store.holds(np.arange(370)).sum() == 50
    held = store.replayable(400)
    assert np.array_equal(np.sort(held), np.flatnonzero(store.holds(np.arange(400))))
    assert store.held(400) == len(held) == 80
    assert ParticleStore(COEFFICIENTS).held(12) == 12


@pytest.mark.parametrize("recent", [0, 30])
@pytest.mark.parametrize("at", [30, 50, 120, 400])
def test_a_bounded_store_comes_back_from_its_dump(
    monkeypatch: pytest.MonkeyPatch, at: int, recent: int
) -> None:
    monkeypatch.setattr("reconstruct.store.RECENT", recent)
    store, waiting = _bounded(50), 7
    _train(store, 0, at, cut=10)
    store.append(_rows(at, waiting))  # arrived and not trained
    rows, state = store.immutable_rows(0), store.dump()
    assert len(rows["spectra"]) == min(50, at + waiting)
    again = _bounded(50)
    again.append(rows)
    again.restore(state)
    for one in (store, again):
        one.note_trained(at + waiting)
        _train(one, at + waiting, 100, cut=10)
    held = store.replayable(at + 107)
    assert held.tolist() == again.replayable(at + 107).tolist()
    assert np.array_equal(store.spectra(held), again.spectra(held))
    for name, column in again.dump().items():
        assert np.array_equal(column, store.dump()[name]), name


def test_spectra_that_nobody_will_use_are_not_held() -> None:
    store = ParticleStore(COEFFICIENTS, wanted=30)
    for start in range(0, 100, 20):
        store.append(_rows(start, 20))
    assert np.flatnonzero(store["slot"] >= 0).tolist() == list(range(30))
    rows = store.immutable_rows(0)
    assert (len(rows["spectra"]), len(rows["ctf"])) == (30, 100)
    again = ParticleStore(COEFFICIENTS, wanted=30)
    again.append(rows)
    assert np.array_equal(again.spectra(np.arange(30)), store.spectra(np.arange(30)))


# ---- precision


def test_half_precision_halves_the_size_and_rounds_by_little() -> None:
    whole, half = (ParticleStore(700, precision=p) for p in ("float32", "float16"))
    rng = np.random.default_rng(0)
    spectra = rng.standard_normal((1024, 1400)).astype(np.float32).view(np.complex64)
    rows = {**_rows(0, 1024), "spectra": spectra}
    held = half.append(rows)
    whole.append(rows)
    assert np.array_equal(half.spectra(np.arange(1024)), held)
    numbers = spectra.view(np.float32)
    off = np.abs(held.view(np.float32) - numbers)
    assert np.all(off <= 2**-11 * np.abs(numbers) + 2**-25)
    assert whole._pool.nbytes == 2 * half._pool.nbytes


def test_half_precision_never_stores_an_infinity() -> None:
    store = ParticleStore(COEFFICIENTS, precision="float16")
    rows = _rows(0, 2)
    rows["spectra"] *= 1e9
    assert np.all(np.isfinite(store.append(rows)))


def test_a_particle_takes_6_kb_at_radius_21_and_half_of_it_in_half_precision() -> None:
    coefficients = make_half_plane(64, 21).count(21)
    for precision, limit in (("float32", 6000), ("float16", 3200)):
        store = ParticleStore(coefficients, precision=precision)  # type: ignore[arg-type]
        for start in range(0, 10_240, 512):  # 40 segments: at most one is not full
            spectra = np.zeros((512, coefficients), np.complex64)
            store.append({**_rows(start, 512), "spectra": spectra})
        assert store.nbytes / 10_240 <= limit


def test_spectra_come_back_from_slots_that_are_scattered_and_used_again() -> None:
    rng = np.random.default_rng(8)
    size = 1 << SEGMENT_BITS
    pool = SpectraPool(3)

    def spectra(count: int) -> np.ndarray:
        return rng.standard_normal((count, 6)).astype(np.float32).view(np.complex64)

    first = spectra(size + 5)
    slots = pool.put(first)
    assert pool.put(first[:0]).tolist() == []
    gone = np.array([0, 1, 7, size - 1, size, size + 2])
    pool.free(slots[gone])
    more = spectra(10)  # six in the gaps, four behind
    again = pool.put(more)
    assert again[:6].tolist() == gone.tolist()
    np.testing.assert_array_equal(pool.take(again), more)
    kept = np.setdiff1d(np.arange(size + 5), gone)
    np.testing.assert_array_equal(pool.take(slots[kept]), first[kept])
