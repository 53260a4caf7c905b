"""A learner's state is all there is: restored, it goes on with the same bits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from reconstruct.accumulate import fade
from reconstruct.learned import LearnResult, Start
from reconstruct.learner import Learner
from reconstruct.learner_state import dump_learner, restore_learner
from reconstruct.positivity import JUDGE_EVERY, Positivity
from reconstruct.schedule import Schedule
from reconstruct.search import WeightedBatch
from reconstruct.update import MapGrid
from tests.reconstruct.small_sets import GEOMETRY, cube_of, plane, simulated, weighted

BATCH = 40
SNR = 0.3
HALF = np.arange(BATCH) // (BATCH // 2)


@pytest.fixture(scope="module")
def workers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.fixture(scope="module")
def batches() -> list[WeightedBatch]:
    everything = weighted(simulated(400, snr=SNR), plane())
    return [everything.span(slice(i, i + BATCH)) for i in range(0, 400, BATCH)]


def make_learner(*, n_classes: int = 1, seed: tuple[int, int] = (0, 0), **schedule: Any) -> Learner:
    return Learner(
        plane=plane(),
        grid=MapGrid(GEOMETRY.box, 2.0, 13.0),
        n_classes=n_classes,
        seed=seed,
        max_shift_pixels=2.0,
        max_radius=11,
        schedule=Schedule(grow_every=80, **schedule),
    )


def advance(
    learner: Learner, batch: WeightedBatch, workers: ThreadPoolExecutor, **changes: Any
) -> LearnResult:
    settings: dict[str, Any] = {"window": 150.0, "cold": True, **changes}
    return learner.learn(batch, HALF[: len(batch)], workers=workers, **settings)


def fingerprint(learner: Learner) -> dict[str, Any]:
    meta, arrays = dump_learner(learner)
    assert learner.cubes is not None
    return {
        **arrays,
        "cubes": learner.cubes,
        "meta": meta,
    }


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def copy_of(learner: Learner) -> Learner:
    """A learner restored from what could have been written to a file."""
    meta, arrays = dump_learner(learner)
    frozen = {name: array.copy() for name, array in arrays.items()}
    for array in frozen.values():
        array.flags.writeable = False  # as read from a file that is mapped
    again = make_learner(n_classes=learner.n_classes)
    again.schedule = learner.schedule
    restore_learner(again, json.loads(json.dumps(meta)), frozen)
    return again


@pytest.mark.parametrize("n_classes", [1, 2])
def test_a_restored_learner_goes_on_with_the_same_bits(
    workers: ThreadPoolExecutor, batches: list[WeightedBatch], n_classes: int
) -> None:
    learner = make_learner(n_classes=n_classes)
    for batch in batches[:3]:
        advance(learner, batch, workers)
    again = copy_of(learner)
    assert same(fingerprint(learner), fingerprint(again))
    for batch in batches[3:6]:
        one, other = (advance(x, batch, workers) for x in (learner, again))
        assert np.array_equal(one.poses.rotation, other.poses.rotation)
        assert same(fingerprint(learner), fingerprint(again))
    assert learner.radius > 5  # growth was among what was restored


def test_maps_wait_until_the_statistics_have_changed(
    workers: ThreadPoolExecutor, batches: list[WeightedBatch]
) -> None:
    learner = make_learner()
    learner.schedule = Schedule(renew_share=0.6, mask_from=10**9, grow_every=10**9)
    waiting = []
    for batch in batches[:8]:
        before = learner.cubes
        advance(learner, batch, workers, window=np.inf, cold=False)
        waiting.append(learner.stale)
        assert (learner.cubes is before) == (learner.stale > 0)
    # 40 more of 80 remembered are too few, 80 of 120 are not, nor 200 of 320.
    assert waiting == [0, 40, 0, 40, 80, 120, 160, 0]


@pytest.mark.parametrize("n_classes", [1, 2])
def test_references_that_wait_are_restored_as_they_are(
    workers: ThreadPoolExecutor, batches: list[WeightedBatch], n_classes: int
) -> None:
    learner = make_learner(n_classes=n_classes, renew_share=0.6, join_radius=3)
    for batch in batches[:4]:
        advance(learner, batch, workers, window=np.inf, cold=False)
    learner.split_halves(6)
    advance(learner, batches[4], workers, window=np.inf, cold=False)
    assert learner.stale == BATCH
    again = copy_of(learner)
    assert same(fingerprint(learner), fingerprint(again))
    for one in (learner, again):
        advance(one, batches[5], workers, window=np.inf, cold=False)
    assert same(fingerprint(learner), fingerprint(again))


def test_a_judgement_leaves_the_references_that_it_decided_on(
    workers: ThreadPoolExecutor, batches: list[WeightedBatch]
) -> None:
    learner = make_learner()
    learner.schedule = Schedule(renew_share=10.0, mask_from=10**9, grow_every=10**9)
    advance(learner, batches[0], workers, window=np.inf, cold=False)
    learner.positivity = Positivity("auto")
    learner.updates = JUDGE_EVERY  # due
    advance(learner, batches[1], workers, window=np.inf, cold=False)
    assert learner.stale == BATCH  # the half maps are still to be compared
    judged = learner.cubes
    assert judged is not None
    without_last = make_learner()
    advance(without_last, batches[0], workers, window=np.inf, cold=False)
    without_last.positivity = learner.positivity
    without_last.make_references()
    assert np.array_equal(judged, without_last.cubes)


@pytest.mark.parametrize("resting", [False, True])
def test_classes_at_rest_do_not_ask_for_new_maps(
    workers: ThreadPoolExecutor, batches: list[WeightedBatch], *, resting: bool
) -> None:
    learner = make_learner(n_classes=2)
    advance(learner, batches[0], workers, window=np.inf, cold=False)
    learner.mass, learner.class_share = np.array([100.0, 0.0]), np.array([0.9, 0.1])
    learner.resting[1] = resting
    assert learner.particles_to_renewal == (pytest.approx(0.03 * 100 / 0.9) if resting else 0.0)


def test_a_restored_learner_may_not_have_started(
    workers: ThreadPoolExecutor, batches: list[WeightedBatch]
) -> None:
    learner = make_learner()
    again = copy_of(learner)
    for one in (learner, again):
        advance(one, batches[0], workers)
    assert same(fingerprint(learner), fingerprint(again))


def test_separate_halves_are_restored_at_once(
    workers: ThreadPoolExecutor, batches: list[WeightedBatch]
) -> None:
    learner = make_learner(join_radius=3)
    for batch in batches[:4]:
        advance(learner, batch, workers)
    learner.split_halves(6)
    assert same(fingerprint(learner), fingerprint(copy_of(learner)))
    again = copy_of(learner)
    for one in (learner, again):
        for batch in batches[4:7]:
            advance(one, batch, workers, cold=False)
    assert same(fingerprint(learner), fingerprint(again))
    assert learner.cubes is not None
    assert not np.array_equal(*learner.cubes)


def test_what_was_dumped_does_not_change_later(
    workers: ThreadPoolExecutor, batches: list[WeightedBatch]
) -> None:
    learner = make_learner()
    advance(learner, batches[0], workers)
    _, arrays = dump_learner(learner)
    before = {name: array.copy() for name, array in arrays.items()}
    advance(learner, batches[1], workers)
    assert all(np.array_equal(arrays[name], before[name]) for name in arrays)


def test_the_seed_decides(workers: ThreadPoolExecutor, batches: list[WeightedBatch]) -> None:
    prints = []
    for seed in ((0, 0), (0, 0), (0, 1), (1, 0)):
        learner = make_learner(seed=seed)
        for batch in batches[:2]:
            advance(learner, batch, workers)
        prints.append(fingerprint(learner)["statistics"])
    assert np.array_equal(prints[0], prints[1])
    assert not np.array_equal(prints[0], prints[2])
    assert not np.array_equal(prints[0], prints[3])


def test_classes_share_every_particle(
    workers: ThreadPoolExecutor, batches: list[WeightedBatch]
) -> None:
    learner = make_learner(n_classes=2)
    for batch in batches[:4]:
        result = advance(learner, batch, workers)
        assert np.allclose(result.class_mass.sum(axis=1), 1, atol=1e-5)
        assert learner.class_share.sum() == pytest.approx(1, abs=1e-5)
    assert learner.mass.sum() <= 4 * BATCH


def test_a_class_that_receives_nothing_stays_finite(
    workers: ThreadPoolExecutor, batches: list[WeightedBatch]
) -> None:
    learner = make_learner(n_classes=2)
    for batch in batches[:2]:
        advance(learner, batch, workers)
    learner.statistics[:, 1] = 0
    learner.mass[1] = 0
    learner.class_share[:] = [1, 0]
    learner.make_references()
    for batch in batches[2:5]:
        result = advance(learner, batch, workers)
        assert np.all(np.isfinite(result.poses.evidence))
    assert np.all(np.isfinite(learner.statistics))
    assert learner.cubes is not None
    assert np.all(np.isfinite(learner.cubes))
    assert np.all(np.isfinite(learner.compare_halves()[1]))


def test_one_particle_is_a_batch(workers: ThreadPoolExecutor, batches: list[WeightedBatch]) -> None:
    learner = make_learner()
    advance(learner, batches[0], workers)
    learner.split_halves(6)
    result = advance(learner, batches[1].span(slice(0, 1)), workers, cold=False)
    assert np.isfinite(result.poses.evidence).all()
    assert learner.presented == BATCH + 1


def test_forgetting_nothing_adds_up(
    workers: ThreadPoolExecutor, batches: list[WeightedBatch]
) -> None:
    learner = make_learner()
    for batch in batches[:3]:
        advance(learner, batch, workers, window=np.inf)
    assert learner.mass[0] == pytest.approx(3 * BATCH)
    short = make_learner()
    for batch in batches[:3]:
        advance(short, batch, workers, window=40.0)
    kept = BATCH * (1 + np.exp(-1) + np.exp(-2))
    assert short.mass[0] == pytest.approx(kept, rel=1e-3)


def test_what_fades_counts_for_less_and_looks_the_same(
    workers: ThreadPoolExecutor, batches: list[WeightedBatch]
) -> None:
    learner = make_learner()
    advance(learner, batches[0], workers, window=np.inf)
    before, mass = learner.map_spectrum(0, learner.fsc[0], radius=5), learner.mass.copy()
    fade(learner, 0.25)
    assert np.array_equal(learner.mass, 0.25 * mass)
    assert np.allclose(learner.map_spectrum(0, learner.fsc[0], radius=5), before, rtol=1e-4)
    faded = learner.statistics.copy()
    fade(learner, 1.0)
    assert np.array_equal(learner.statistics, faded)


def test_growing_keeps_what_was_learned(
    workers: ThreadPoolExecutor, batches: list[WeightedBatch]
) -> None:
    learner = make_learner()
    advance(learner, batches[0], workers)
    before = learner.map_spectrum(0, learner.fsc[0], radius=5)
    learner._reserve(11)
    assert np.array_equal(learner.map_spectrum(0, learner.fsc[0], radius=5), before)


def test_known_poses_make_the_map_at_once(
    workers: ThreadPoolExecutor, batches: list[WeightedBatch]
) -> None:
    """With the truth as reference, one update's half maps agree and the evidence is positive."""
    learner = make_learner(start_radius=9)
    cube = cube_of("whole", snr=SNR)
    learner.cubes = cube[None]
    particles = simulated(400, snr=SNR)
    start = Start(
        rotation=particles.rotations[:BATCH].reshape(-1, 9).astype(np.float32),
        shift=(particles.shifts_angstrom[:BATCH] / np.float32(GEOMETRY.pixel_size_angstrom)),
        class_index=np.zeros(BATCH, np.int32),
    )
    result = advance(learner, batches[0], workers, start=start, cold=False)
    assert np.median(result.poses.evidence) > 0
    assert learner.compare_halves()[0][1:5].min() > 0.5


@pytest.mark.parametrize("coarse_radius", [0, 8])
def test_every_plan_is_cut_at_the_learners_temperature(coarse_radius: int) -> None:
    learner = make_learner(start_radius=9)
    learner.coarse_radius, learner.temperature = coarse_radius, 2.5
    assert learner.plan(cold=True).temperature == 2.5
