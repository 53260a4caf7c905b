"""A failed start and preferred views are told; flat molecules and even views are left alone."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.symmetric_maps import blobs, disc
from reconstruct.rotations import random_rotations
from reconstruct.snapshot import view_histogram
from reconstruct.symmetry import asymmetric_unit, parse_group
from reconstruct.verdicts import (
    flattened_disc,
    inertia,
    preferred_orientation,
    view_concentration,
    view_directions,
)


def concentrated(rng: np.random.Generator, axis: np.ndarray, kappa: float, n: int) -> np.ndarray:
    """Von Mises-Fisher directions (n, 3) about an axis."""
    uniform = rng.uniform(size=n)
    along = 1 + np.log(uniform * (1 - np.exp(-2 * kappa)) + np.exp(-2 * kappa)) / kappa
    side = np.cross(axis, rng.standard_normal((n, 3)))
    side /= np.linalg.norm(side, axis=1, keepdims=True)
    return along[:, None] * axis + np.sqrt(1 - along**2)[:, None] * side


def poses_seeing(directions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    x = np.cross(directions, rng.standard_normal(directions.shape))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return np.stack([x, np.cross(directions, x), directions], axis=1)


def even(rng: np.random.Generator, n: int) -> np.ndarray:
    return view_directions(random_rotations(rng, n))


@pytest.mark.parametrize("views", ["along the axis", "across it"])
def test_a_disc_with_crowded_views_is_told(views: str) -> None:
    rng = np.random.default_rng(1)
    volume = disc(rng)
    axis = inertia(volume)[1][0]
    crowd = concentrated(rng, axis, 6.0, 1000)
    if views == "across it":
        crowd = np.cross(axis, crowd)
        crowd /= np.linalg.norm(crowd, axis=1, keepdims=True)
    verdict = flattened_disc(volume, crowd)
    assert verdict is not None
    assert verdict.kind == "flattened_disc"
    assert verdict.values["view_concentration_nats"] > 0.3
    assert verdict.values["thickness_over_width"] < 0.87


def test_a_flat_molecule_seen_from_everywhere_is_left_alone() -> None:
    rng = np.random.default_rng(2)
    assert flattened_disc(disc(rng), even(rng, 1000)) is None


def test_other_shapes_with_crowded_views_are_left_alone() -> None:
    rng = np.random.default_rng(3)
    for volume in (blobs("O", rng), blobs("C1", rng)):
        assert flattened_disc(volume, concentrated(rng, inertia(volume)[1][0], 6.0, 1000)) is None


def test_few_particles_and_empty_maps_say_nothing() -> None:
    rng = np.random.default_rng(4)
    volume = disc(rng)
    assert flattened_disc(volume, concentrated(rng, inertia(volume)[1][0], 6.0, 100)) is None
    assert flattened_disc(np.zeros((16, 16, 16)), even(rng, 1000)) is None
    assert view_concentration(np.zeros((0, 3)), np.array([0.0, 0.0, 1.0])) == 0


def test_the_extents_of_an_ellipsoid_are_measured() -> None:
    extents, axes = inertia(disc(np.random.default_rng(5), flatness=0.5))
    assert extents[0] / extents[1] == pytest.approx(0.55, abs=0.08)  # the blur thickens it
    assert extents[1] / extents[2] > 0.97
    assert np.allclose(axes @ axes.T, np.eye(3))


def test_concentration_is_zero_for_even_views_however_few() -> None:
    rng = np.random.default_rng(6)
    values = [view_concentration(even(rng, 200), np.array([0.0, 0.0, 1.0])) for _ in range(20)]
    assert np.mean(values) < 0.02


@pytest.mark.parametrize("n", [300, 5000])
def test_views_of_concentration_five_are_told(n: int) -> None:
    rng = np.random.default_rng(7)
    axis = random_rotations(rng, 1)[0, 2]
    poses = poses_seeing(concentrated(rng, axis, 5.0, n), rng)
    verdict = preferred_orientation(view_histogram(poses))
    assert verdict is not None
    assert "smeared" in verdict.message
    assert verdict.values["orientation_coverage"] < 0.65


def test_side_views_are_told_to_do_no_harm() -> None:
    rng = np.random.default_rng(8)
    axis = random_rotations(rng, 1)[0, 2]
    side = np.cross(axis, rng.standard_normal((3000, 3)))
    verdict = preferred_orientation(view_histogram(poses_seeing(side, rng)))
    assert verdict is not None
    assert "every direction" in verdict.message


@pytest.mark.parametrize("n", [50, 200, 5000])
def test_even_views_and_few_views_are_left_alone(n: int) -> None:
    poses = random_rotations(np.random.default_rng(9), n)
    assert preferred_orientation(view_histogram(poses)) is None


def test_imposed_symmetry_spreads_the_views() -> None:
    """Poses that were searched in one asymmetric unit only look as if they were preferred."""
    operators = parse_group("O").operators
    every = random_rotations(np.random.default_rng(10), 20_000)
    unit = every[asymmetric_unit(every, operators)]
    axis = np.array([0.0, 0.0, 1.0])
    assert preferred_orientation(view_histogram(unit)) is not None
    assert view_concentration(view_directions(unit), axis) > 0.3
    views = view_directions(unit, operators)
    assert len(views) == len(unit) * 24
    assert view_concentration(views, axis) < 0.02
