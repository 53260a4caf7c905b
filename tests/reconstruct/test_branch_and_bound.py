"""The bound holds, what it discards is never the best, and both searches agree."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from reconstruct import bound_arrays, kernels_bound, kernels_cpu, pose_search
from reconstruct.backend import Backend, cpu_backend, describe_devices, make_backend
from reconstruct.branch_and_bound import (
    Bound,
    bound_plan,
    coarse_scores,
    search_branch_and_bound,
    slack_of,
)
from reconstruct.learned import learned
from reconstruct.rotations import angle_between, random_rotations
from reconstruct.search import (
    Poses,
    WeightedBatch,
    base_grid,
    empty_poses,
    local_start,
    prepare_coarse,
    refine_level,
    search_poses,
)
from reconstruct.search_plan import SearchPlan, make_plan
from tests.reconstruct.cuda_host import HostLauncher, host_backend
from tests.reconstruct.small_sets import GEOMETRY, cube_of, plane, simulated, weighted

SNR = 0.3
TURN = random_rotations(np.random.default_rng(9), 1)[0]
BOTH = ("whole", "large_subunit")
SCORE_TOLERANCE = 0.05  # nats; float32 sums in another order
SMALL = SearchPlan(
    coarse_count=4608, coarse_radius=6, shift_cells=2, shift_step_pixels=2.0, level_radii=(8, 11)
)


@pytest.fixture(scope="module")
def workers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


@functools.cache
def particles(classes: int = 1) -> WeightedBatch:
    return weighted(simulated(120, snr=SNR, kinds=BOTH[:classes]), plane()).span(slice(0, 40))


@functools.cache
def cubes_of(classes: int = 1) -> np.ndarray:
    return np.stack([cube_of(kind, snr=SNR, kinds=BOTH[:classes]) for kind in BOTH[:classes]])


def search(
    workers: ThreadPoolExecutor,
    *,
    plan: SearchPlan = SMALL,
    classes: int = 1,
    method: Any = search_branch_and_bound,
    batch: WeightedBatch | None = None,
    **changes: Any,
) -> Poses:
    settings: dict[str, Any] = {
        "scale": 2.0,
        "log_class_weights": np.zeros(classes, np.float32),
        "turn": TURN,
        **changes,
    }
    batch = batch or particles(classes)
    return method(batch, cubes_of(classes), plane(), plan, workers=workers, **settings)


def everywhere(workers: ThreadPoolExecutor, *, classes: int = 1) -> Poses:
    """The best 576 of all cells of each level, scored at the working radius."""
    plan = replace(
        SMALL, coarse_radius=11, level_radii=(11, 11), keep=576, sharpness=(0.0,), share=1.0
    )
    return search(workers, plan=plan, classes=classes, method=search_poses)


def _bounds_and_truth(noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Bounds (b, m) of some coarse cells, and the best log-likelihood of their children.

    One level, so that the children are the leaves; half of the cells are the best ones.
    """
    backend, batch = cpu_backend(), particles()
    plan = bound_plan(replace(SMALL, level_radii=(11,)))
    cubes, prior = cubes_of(), np.zeros(1, np.float32)
    coarse = prepare_coarse(
        cubes, plane(), plan, 2.0, prior, TURN, base_grid(plan.coarse_count, "C1")
    )
    scores, half_power = coarse_scores(batch, coarse)
    scores = scores - half_power[:, None]
    flat = scores.reshape(len(batch), -1)
    order = np.argsort(-flat, axis=1)
    chosen = np.concatenate([order[:, :40], order[:, 40::60]], axis=1).astype(np.int32)
    leaves = np.empty(chosen.shape, np.float32)
    one = np.ones(len(batch), np.int32)
    for column in range(chosen.shape[1]):
        cell = coarse.poses(chosen[:, column, None], np.zeros((len(batch), 1), np.float32), one)
        best = empty_poses(len(batch), 1)
        refine_level(
            batch, cell, cubes, plane(), plan, 2.0, prior, best, backend,
            level=0, sharpness=1.0, share=1.0, radius=11,
        )  # fmt: skip
        leaves[:, column] = best.score[:, 0]
    slack = slack_of(cubes, plane(), plan, scale=2.0, coarse=coarse, backend=backend)
    c2 = slack.shell_means(batch.c2)
    amplitude = slack.amplitude(c2, leaves.max(axis=1), np)
    allowance = slack.coarse_allowance(c2, amplitude, noise, np)
    bounds = (scores + allowance[:, None]).reshape(len(batch), -1)
    return np.take_along_axis(bounds, chosen, axis=1), leaves


def test_the_bound_holds_for_every_cell_when_it_allows_for_enough_noise() -> None:
    bounds, leaves = _bounds_and_truth(noise=4.0)
    assert np.all(bounds >= leaves)


def test_the_bound_of_the_best_cell_holds_at_the_calibrated_noise() -> None:
    bounds, leaves = _bounds_and_truth(noise=Bound().noise)
    rows = np.arange(len(leaves))
    best = leaves.argmax(axis=1)
    assert np.all(bounds[rows, best] >= leaves[rows, best])
    # and it says something: most cells' bounds are below the best pose
    assert np.mean(bounds < leaves.max(axis=1)[:, None]) > 0.5


@pytest.mark.parametrize("classes", [1, 2])
def test_the_best_cell_is_never_discarded(workers: ThreadPoolExecutor, classes: int) -> None:
    wanted = everywhere(workers, classes=classes)
    bound = Bound(most_cells=256)  # the bound is tested here, not its valve
    found = search(workers, classes=classes, bound=bound)
    assert np.all(found.score[:, 0] >= wanted.score[:, 0] - SCORE_TOLERANCE)
    assert found.cells.mean() < wanted.cells.mean()


def test_without_the_allowances_it_would_be(workers: ThreadPoolExecutor) -> None:
    wanted = everywhere(workers)
    found = search(workers, bound=Bound(noise=-6.0))
    assert np.any(found.score[:, 0] < wanted.score[:, 0] - SCORE_TOLERANCE)


def test_both_searches_find_the_same_poses(workers: ThreadPoolExecutor) -> None:
    plan = make_plan(11, box=GEOMETRY.box, max_shift_pixels=2.0)
    found = search(workers, plan=plan)
    wanted = search(
        workers, plan=replace(plan, sharpness=(0.25,), share=0.999), method=search_poses
    )
    turned = angle_between(
        found.rotation[:, 0].reshape(-1, 3, 3).astype(float),
        wanted.rotation[:, 0].reshape(-1, 3, 3).astype(float),
    )
    moved = np.linalg.norm(found.shift[:, 0] - wanted.shift[:, 0], axis=1)
    assert np.mean((np.degrees(turned) < 1) & (moved < 0.01)) >= 0.9
    assert np.median(np.abs(found.evidence - wanted.evidence)) < 0.05
    assert found.levels == wanted.levels


def test_classes_are_bounded_together(workers: ThreadPoolExecutor) -> None:
    truth = simulated(120, snr=SNR, kinds=BOTH).species[:40]
    found = search(workers, classes=2)
    assert np.mean(found.class_index[:, 0] == truth) > 0.9


def test_posteriors_are_best_first_and_sum_to_one(workers: ThreadPoolExecutor) -> None:
    poses = search(workers)
    assert np.allclose(poses.weights().sum(axis=1), 1, atol=1e-5)
    for row, count in enumerate(poses.count):
        assert count >= 1
        assert np.all(np.diff(poses.score[row, :count]) <= 0)


def test_threads_do_not_change_a_bit() -> None:
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(5) as five:
        first, second = search(one), search(five)
    for field in fields(Poses):
        assert np.array_equal(getattr(first, field.name), getattr(second, field.name)), field.name


def test_the_safety_valve_bounds_what_survives(workers: ThreadPoolExecutor) -> None:
    wide, narrow = (
        search(workers, bound=Bound(noise=1e6, most_cells=most), plan=replace(SMALL, keep=8))
        for most in (64, 8)
    )
    dive = 32 * 3  # two levels from the coarse cell, one from its child
    assert np.all(narrow.cells == 4608 * 4 + 2 * 32 * 8 + dive)
    assert np.all(wide.cells == 4608 * 4 + 2 * 32 * 64 + dive)


def test_a_local_search_has_nothing_to_bound(workers: ThreadPoolExecutor) -> None:
    truth = simulated(120, snr=SNR)
    start = local_start(
        truth.rotations[:40].reshape(-1, 9).astype(np.float32),
        truth.shifts_angstrom[:40] / np.float32(GEOMETRY.pixel_size_angstrom),
        np.zeros(40, np.int32),
        SMALL.keep,
    )
    one = search(workers, start=start)
    other = search(workers, start=start, method=search_poses)
    for field in fields(Poses):
        assert np.array_equal(getattr(one, field.name), getattr(other, field.name)), field.name


def test_an_empty_map_discards_nothing_and_raises_nothing(workers: ThreadPoolExecutor) -> None:
    poses = search_branch_and_bound(
        particles().span(slice(0, 4)), np.zeros_like(cubes_of()), plane(), SMALL,
        scale=2.0, log_class_weights=np.zeros(1, np.float32), turn=TURN, workers=workers,
    )  # fmt: skip
    assert np.all(np.isfinite(poses.evidence))
    assert np.all(poses.count >= 1)


@pytest.mark.parametrize("most", [5, 60, 2000])
def test_compiled_loops_agree_with_plain_arrays(most: int) -> None:
    rng = np.random.default_rng(4)
    scores = rng.standard_normal((6, 4, 50)).astype(np.float32)
    half_power, prior = rng.random((6, 50), np.float32), rng.random(50, np.float32)
    allowance = rng.random((6, 50), np.float32)
    floor = np.array([-9, 0, 0.5, 1, 2, 99], np.float32)
    most = min(most, scores[0].size)
    found: list[Any] = []
    for module in (kernels_bound, bound_arrays):
        mine = scores.copy()
        best = np.zeros(6, np.int32), np.zeros(6, np.float32)
        module.best_cells(mine, half_power, prior, *best)
        above = np.zeros((6, most), np.int32), np.zeros((6, most), np.float32)
        count = np.zeros(6, np.int32)
        module.cells_above(mine, allowance, floor, *above, count)
        valid = np.arange(most) < count[:, None]
        found.append((mine, *best, count, *(np.where(valid, one, 0) for one in above)))
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert found[0][3][-1] == 1  # nothing reaches 99: the best stays
    assert found[0][3][0] == most


def test_plain_slices_agree_with_compiled_ones() -> None:
    layout = plane()
    rotations = random_rotations(np.random.default_rng(3), 300).reshape(-1, 9).astype(np.float32)
    slices = [np.empty((300, 2, 50), np.float32) for _ in range(2)]
    for extract, out in zip((kernels_cpu, bound_arrays), slices, strict=True):
        extract.extract_slices(
            cubes_of()[0], rotations, layout.kx[:50], layout.ky[:50], np.float32(2), out
        )
    np.testing.assert_allclose(slices[0], slices[1], atol=1e-5 * np.abs(slices[0]).max())


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Backend:
    return host_backend(HostLauncher(tmp_path_factory.mktemp("cuda_host")))


def paired(cubes: np.ndarray) -> np.ndarray:
    """Cubes as a device takes them: each value with the next along x."""
    following = np.zeros_like(cubes)
    following[:, :, :, :-1] = cubes[:, :, :, 1:]
    return np.concatenate([cubes, following], axis=-1)


def on_device(
    device: Backend, workers: ThreadPoolExecutor, batch: WeightedBatch, **changes: Any
) -> Poses:
    """Two classes searched on a device; the result is on the host."""
    layout = plane()
    found = search_branch_and_bound(
        WeightedBatch(*(device.asarray(a) for a in (batch.a_re, batch.a_im, batch.c2))),
        device.asarray(paired(cubes_of(2))),
        replace(layout, kx=device.asarray(layout.kx), ky=device.asarray(layout.ky)),
        replace(SMALL, coarse_count=1152),
        scale=2.0,
        log_class_weights=np.zeros(2, np.float32),
        turn=TURN,
        workers=workers,
        backend=device,
        **changes,
    )
    return Poses(**{n: device.asnumpy(a) for n, a in vars(found).items() if n != "levels"})


def test_a_device_finds_the_same_poses(host: Backend, workers: ThreadPoolExecutor) -> None:
    bound = Bound(noise=3.0, most_cells=75)  # several launches per level
    batch = particles(2).span(slice(0, 8))
    plan = replace(SMALL, coarse_count=1152)
    wanted = search(workers, batch=batch, classes=2, bound=bound, plan=plan)
    found = on_device(host, workers, batch, bound=bound)
    assert wanted.cells.max() > 1152 * 2 * 4 + 32 * 64
    np.testing.assert_allclose(found.evidence, wanted.evidence, atol=1e-2)
    np.testing.assert_allclose(found.score[:, 0], wanted.score[:, 0], atol=SCORE_TOLERANCE)
    np.testing.assert_array_equal(found.class_index[:, 0], wanted.class_index[:, 0])
    np.testing.assert_allclose(found.rotation[:, 0], wanted.rotation[:, 0], atol=1e-5)
    np.testing.assert_array_equal(found.count, wanted.count)
    np.testing.assert_allclose(found.cells, wanted.cells, rtol=0.01)


def test_a_particle_s_bits_on_a_device_do_not_depend_on_its_company(
    host: Backend, workers: ThreadPoolExecutor
) -> None:
    batch, bound = particles(2), Bound(most_cells=75)
    together = on_device(host, workers, batch.span(slice(0, 3)), bound=bound)
    for row in (0, 2):
        alone = on_device(host, workers, batch.span(slice(row, row + 1)), bound=bound)
        count = int(alone.count[0])
        assert together.count[row] == count
        for name in ("rotation", "shift", "class_index"):
            one, other = getattr(alone, name)[0, :count], getattr(together, name)[row, :count]
            np.testing.assert_array_equal(one, other, err_msg=name)


def test_half_sets_on_a_device_are_searched_against_their_own_maps(
    host: Backend, workers: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pose_search, "AUDITED_SHARE", 0.0)
    layout, batch = plane(), particles().span(slice(0, 4))
    on_host = WeightedBatch(*(host.asarray(a) for a in (batch.a_re, batch.a_im, batch.c2)))
    poses, (count,) = pose_search.find_poses(
        "branch_and_bound",
        on_host,
        host.asarray(paired(np.concatenate([np.zeros_like(cubes_of()), cubes_of()]))),
        1,
        replace(layout, kx=host.asarray(layout.kx), ky=host.asarray(layout.ky)),
        replace(SMALL, coarse_count=1152),
        scale=2.0,
        log_class_weights=np.zeros(1, np.float32),
        turn=TURN,
        group="C1",
        workers=workers,
        backend=host,
        audit_seed=(0, 0),
    )
    wanted = search(workers, batch=batch, plan=replace(SMALL, coarse_count=1152))
    np.testing.assert_allclose(host.asnumpy(poses.score)[0, 0], 0, atol=SCORE_TOLERANCE)
    np.testing.assert_allclose(
        host.asnumpy(poses.score)[1:, 0], wanted.score[1:, 0], atol=SCORE_TOLERANCE
    )
    assert (count.kind, count.particles) == ("branch_and_bound", 4)
    _, found = learned(poses, 1, 0.1, host)
    np.testing.assert_allclose(found.class_mass, 1, atol=1e-5)
    np.testing.assert_allclose(found.poses.rotation[1:, 0], wanted.rotation[1:, 0], atol=1e-5)


@pytest.mark.gpu
def test_a_card_repeats_its_bits_and_agrees_with_the_cpu(workers: ThreadPoolExecutor) -> None:
    if not any(one.usable and one.device != "cpu" for one in describe_devices()):
        pytest.skip("no CUDA device")
    card, batch = make_backend("cuda"), particles(2)
    first, second = (on_device(card, workers, batch) for _ in range(2))
    held = (
        np.arange(first.score.shape[1]) < first.count[:, None]
    )  # what else there is was never set
    for field in fields(Poses):
        one, other = getattr(first, field.name), getattr(second, field.name)
        if field.name not in ("count", "evidence", "cells", "levels"):
            one, other = one[held], other[held]
        assert np.array_equal(one, other), field.name
    wanted = search(workers, classes=2, plan=replace(SMALL, coarse_count=1152))
    # coarse scores are in TF32, so that a cell at the edge of the bound may go the other way
    assert np.mean(np.abs(first.score[:, 0] - wanted.score[:, 0]) < SCORE_TOLERANCE) >= 0.9
