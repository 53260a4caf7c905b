"""The search finds known poses and classes, and its evidence is that of looking everywhere."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from reconstruct.rotations import (
    angle_between,
    child_offsets,
    grid_step,
    random_rotations,
    rotation_grid,
)
from reconstruct.search import Poses, WeightedBatch, join_poses, local_start, search_poses, weigh
from reconstruct.search_plan import SearchPlan, make_plan
from tests.reconstruct.small_sets import (
    GEOMETRY,
    cube_of,
    plane,
    shift_phases,
    simulated,
    slices_of,
    weighted,
)

SNR = 0.3
TURN = random_rotations(np.random.default_rng(9), 1)[0]
BOTH = ("whole", "large_subunit")


@pytest.fixture(scope="module")
def workers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def plan(radius: int = 11, **changes: Any) -> SearchPlan:
    return make_plan(radius, box=GEOMETRY.box, max_shift_pixels=2.0, **changes)


def search(
    batch: WeightedBatch, workers: ThreadPoolExecutor, *, cubes: np.ndarray, **changes: Any
) -> Poses:
    settings: dict[str, Any] = {
        "scale": 2.0,
        "log_class_weights": np.zeros(len(cubes), np.float32),
        "turn": TURN,
        **changes,
    }
    chosen = settings.pop("plan", plan())
    return search_poses(batch, cubes, plane(), chosen, workers=workers, **settings)


@functools.cache
def _found() -> Poses:
    with ThreadPoolExecutor(2) as pool:
        return search(weighted(simulated(120, snr=SNR), plane()), pool, cubes=_one_cube())


def _one_cube() -> np.ndarray:
    return cube_of("whole", snr=SNR)[None]


def _errors(poses: Poses, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Errors of the best cells in degrees and in pixels."""
    particles = simulated(120, snr=SNR)
    turned = angle_between(
        poses.rotation[:, 0].reshape(-1, 3, 3).astype(np.float64), particles.rotations[:count]
    )
    shifts = particles.shifts_angstrom[:count] / GEOMETRY.pixel_size_angstrom
    return np.degrees(turned), np.linalg.norm(poses.shift[:, 0] - shifts, axis=1)


@pytest.mark.parametrize("radius", [3, 5, 8, 13, 30])
def test_a_plan_splits_until_a_cell_turns_the_edge_by_less_than_a_shell(radius: int) -> None:
    made = make_plan(radius, box=80, max_shift_pixels=5.0)
    step = grid_step(made.coarse_count) / 2 ** len(made.level_radii)
    assert step * radius < 0.8
    assert made.level_radii[-1] == radius
    assert list(made.level_radii) == sorted(made.level_radii)
    assert made.coarse_radius <= radius
    assert made.shift_cells * made.shift_step_pixels >= 2 * 5.0


def test_known_poses_are_found() -> None:
    turned, moved = _errors(_found(), 120)
    assert np.median(turned) < 5.0  # the last cells are 3 degrees across
    assert np.median(moved) < 0.35
    assert np.mean(turned < 20) > 0.95


def test_posteriors_are_best_first_and_sum_to_one() -> None:
    poses = _found()
    weights = poses.weights()
    assert np.allclose(weights.sum(axis=1), 1, atol=1e-5)
    assert poses.count.min() >= 1
    for row, count in enumerate(poses.count):
        assert np.all(np.diff(poses.score[row, :count]) <= 0)
        assert not np.any(weights[row, count:])


def test_translating_by_the_found_shift_centres_the_particle(workers: ThreadPoolExecutor) -> None:
    clean = simulated(24, snr=np.inf, max_shift_angstrom=0.0)
    moved = np.roll(clean.images, (-1, 2), axis=(1, 2))  # 2 pixels along +x, 1 along -y
    batch = weighted(replace(clean, images=moved), plane())
    poses = search(batch, workers, cubes=cube_of("whole", snr=1.0)[None], plan=plan(8))
    assert np.allclose(np.median(poses.shift[:, 0], axis=0), [-2, 1], atol=0.2)


def _exhaustive(batch: WeightedBatch, cubes: np.ndarray, made: SearchPlan) -> np.ndarray:
    """Log mean of exp(score) over every cell of the last level, in plain NumPy."""
    layout = plane()
    n = layout.count(made.level_radii[-1])
    step, shift_step = grid_step(made.coarse_count), made.shift_step_pixels
    rotations = TURN @ rotation_grid(made.coarse_count // 2)
    rotations = np.concatenate([rotations, np.diag([-1, -1, 1]) @ rotations])
    axis = (np.arange(made.shift_cells) - (made.shift_cells - 1) / 2) * shift_step
    for _ in made.level_radii:
        rotations = (child_offsets(step)[:, None] @ rotations[None]).reshape(-1, 3, 3)
        axis = (axis[:, None] + np.array([-0.25, 0.25]) * shift_step).ravel()
        step, shift_step = step / 2, shift_step / 2
    shifts = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    a = (batch.a_re + 1j * batch.a_im)[:, None, :n] * shift_phases(shifts, layout)[:, :n]
    evidence = []
    for cube in cubes:
        slices = slices_of(cube, rotations, layout)[:, :n]
        cross = np.einsum("btn,rn->btr", a, slices.conj(), optimize=True).real
        power = 0.5 * np.abs(slices) ** 2 @ batch.c2[:, :n].T  # (r, b)
        scores = (cross - power.T[:, None]).reshape(len(batch), -1)
        top = scores.max(axis=1)
        evidence.append(top + np.log(np.exp(scores - top[:, None]).mean(axis=1)))
    return np.logaddexp.reduce(evidence, axis=0)


@pytest.mark.parametrize("classes", [1, 2])
def test_the_evidence_is_that_of_looking_everywhere(
    workers: ThreadPoolExecutor, classes: int
) -> None:
    cubes = np.stack([cube_of(kind, snr=SNR, kinds=BOTH) for kind in BOTH[:classes]])
    batch = weighted(simulated(120, snr=SNR, kinds=BOTH), plane()).span(slice(0, 40))
    every = SearchPlan(
        coarse_count=576, coarse_radius=6, shift_cells=2, shift_step_pixels=2.0, level_radii=(8,),
        keep=576 * 4 * classes, sharpness=(0.0,), share=1.0,
    )  # fmt: skip
    wanted = _exhaustive(batch, cubes, every)
    assert np.abs(search(batch, workers, cubes=cubes, plan=every).evidence - wanted).max() < 0.02
    wide = search(batch, workers, cubes=cubes, plan=replace(every, keep=300, share=0.999)).evidence
    cut = replace(every, keep=40, sharpness=(0.25,), share=0.99)
    narrow = search(batch, workers, cubes=cubes, plan=cut).evidence
    assert np.all(wide < wanted + 0.02)  # what was cut can only be missing
    assert np.all(narrow < wide + 0.02)
    assert np.median(wanted - wide) < 0.1
    assert np.median(wanted - narrow) < 0.5


def test_evidence_tells_particles_from_noise(workers: ThreadPoolExecutor) -> None:
    noise = np.random.default_rng(0).standard_normal((120, 32, 32)).astype(np.float32)
    nothing = weighted(replace(simulated(120, snr=SNR), images=noise), plane())
    empty = search(nothing.span(slice(0, 40)), workers, cubes=_one_cube())
    assert np.median(empty.evidence) < 0 < np.median(_found().evidence)


def test_each_species_gets_its_class(workers: ThreadPoolExecutor) -> None:
    particles = simulated(120, snr=SNR, kinds=BOTH)
    cubes = np.stack([cube_of(kind, snr=SNR, kinds=BOTH) for kind in BOTH])
    poses = search(weighted(particles, plane()), workers, cubes=cubes)
    assert np.mean(poses.class_index[:, 0] == particles.species) > 0.95
    assert set(np.unique(poses.class_index[:, 0])) == {0, 1}


def test_a_class_without_weight_gets_nothing(workers: ThreadPoolExecutor) -> None:
    batch = weighted(simulated(120, snr=SNR, kinds=BOTH), plane()).span(slice(0, 30))
    cubes = np.stack([cube_of(kind, snr=SNR, kinds=BOTH) for kind in BOTH])
    prior = np.log(np.array([1.0, 1e-30], np.float32))
    poses = search(batch, workers, cubes=cubes, log_class_weights=prior)
    valid = np.arange(poses.score.shape[1]) < poses.count[:, None]
    assert not np.any(poses.class_index[valid])


def test_a_local_search_stays_with_its_start(workers: ThreadPoolExecutor) -> None:
    particles = simulated(120, snr=SNR)
    made = plan()
    start = local_start(
        particles.rotations.reshape(-1, 9).astype(np.float32),
        particles.shifts_angstrom / np.float32(GEOMETRY.pixel_size_angstrom),
        np.zeros(120, np.int32),
        made.keep,
    )
    poses = search(weighted(particles, plane()), workers, cubes=_one_cube(), start=start)
    turned, moved = _errors(poses, 120)
    assert np.median(turned) < 5.0
    assert turned.max() < np.degrees(grid_step(made.coarse_count))
    assert moved.max() < made.shift_step_pixels


def test_threads_do_not_change_a_bit() -> None:
    batch = weighted(simulated(120, snr=SNR), plane())
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(5) as five:
        first, second = (search(batch, pool, cubes=_one_cube()) for pool in (one, five))
    for field in fields(Poses):
        assert np.array_equal(getattr(first, field.name), getattr(second, field.name)), field.name


def test_parts_of_a_batch_make_the_whole() -> None:
    whole = _found()
    columns = [field.name for field in fields(Poses) if field.name != "levels"]
    parts = [
        replace(whole, **{name: getattr(whole, name)[rows] for name in columns})
        for rows in (slice(0, 50), slice(50, 120))
    ]
    joined = join_poses(parts)
    for name in columns:
        assert np.array_equal(getattr(joined, name), getattr(whole, name))
    assert joined.levels == whole.levels == len(plan().level_radii)


def test_particles_are_weighted_by_their_noise() -> None:
    spectra = np.array([[2 + 4j, 6 - 2j]], np.complex64)
    ctf = np.array([[0.5, -1.0]], np.float32)
    batch = weigh(spectra, ctf, np.array([[0.5, 2.0]], np.float32))
    assert np.allclose(batch.a_re + 1j * batch.a_im, [[2 + 4j, -3 + 1j]])
    assert np.allclose(batch.c2, [[0.5, 0.5]])
