"""Searching several classes by scouts gives what a full search gives; classes at rest are noise."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from reconstruct.class_search import search_classes
from reconstruct.search import Poses, local_start, search_poses
from reconstruct.search_plan import make_plan
from tests.reconstruct.small_sets import GEOMETRY, cube_of, plane, simulated, weighted

RADIUS = 9
KINDS = ("whole", "large_subunit")
PRIOR = np.log(np.array([0.5, 0.5], np.float32))


def cubes() -> np.ndarray:
    return np.stack([cube_of(kind, snr=0.3, kinds=KINDS) for kind in KINDS])


def search(resting: list[bool] | None, *, known: bool = False) -> Poses:
    """Search 40 particles of two species; None: fully."""
    layout = plane()
    particles = simulated(40, kinds=KINDS)
    plan = make_plan(RADIUS, box=GEOMETRY.box, max_shift_pixels=2.0)
    start = None
    if known:
        turns = particles.rotations.reshape(-1, 9).astype(np.float32)
        shifts = (particles.shifts_angstrom / GEOMETRY.pixel_size_angstrom).astype(np.float32)
        start = local_start(turns, shifts, particles.species.astype(np.int32), keep=plan.keep)
    with ThreadPoolExecutor(2) as workers:
        asked = {
            "scale": 2.0,
            "log_class_weights": PRIOR,
            "turn": np.eye(3),
            "workers": workers,
            "start": start,
        }
        batch = weighted(particles, layout)
        if resting is None:
            return search_poses(batch, cubes(), layout, plan, **asked)
        return search_classes(batch, cubes(), layout, plan, resting=np.array(resting), **asked)


def test_scouts_lose_next_to_nothing() -> None:
    full, quick = search(None), search([False, False])
    assert np.mean(full.class_index[:, 0] == quick.class_index[:, 0]) >= 0.95
    assert np.median(np.abs(full.evidence - quick.evidence)) < 0.1
    assert quick.evidence.mean() > full.evidence.mean() - 1.0


def test_weights_are_a_posterior() -> None:
    weights = search([False, False]).weights()
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-5)


def test_no_particle_goes_to_a_class_at_rest_that_a_map_explains() -> None:
    found = search([False, True])
    species = simulated(40, kinds=KINDS).species
    assert np.all(found.class_index[species == 0, 0] == 0)
    assert np.isfinite(found.evidence).all()


def test_with_all_classes_at_rest_everything_is_noise() -> None:
    found = search([True, True])
    assert np.all(found.count == 1)
    assert np.all(found.class_index[:, 0] == 0)
    np.testing.assert_allclose(found.evidence, 0.0, atol=1e-3)
    np.testing.assert_allclose(found.weights()[:, 0], 1.0)


def test_a_particle_that_starts_at_rest_stays_there() -> None:
    found = search([False, True], known=True)
    species = simulated(40, kinds=KINDS).species
    assert np.all(found.class_index[species == 1, 0] == 1)
    assert np.all(found.count[species == 1] == 1)
    assert np.all(found.class_index[species == 0, 0] == 0)
