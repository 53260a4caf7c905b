"""Projections agree with sums over the density itself."""

from __future__ import annotations

import numpy as np
import pytest

from reconstruct.density import density_from_atoms
from reconstruct.euler import matrix_from_euler
from reconstruct.projection import (
    image_plane,
    images_from_transforms,
    make_projector,
    project,
)
from reconstruct.types import Geometry

TOLERANCE = 1e-2  # promised; a few 1e-3 is what the kernel gives
GEOMETRY = Geometry(box=32, pixel_size_angstrom=4.0)


def atoms(count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    return rng.uniform(-38, 38, size=(count, 3)), rng.uniform(2, 9, size=count)


def project_one(volume: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    plane = image_plane(volume.shape[0])
    return images_from_transforms(project(make_projector(volume), rotation[None], plane), plane)[0]


def relative_error(image: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(image - expected) / np.linalg.norm(expected - expected.mean()))


def density(positions: np.ndarray, weights: np.ndarray) -> np.ndarray:
    # Blurred enough that nothing is left beyond the Nyquist sphere, which projections cut off.
    return density_from_atoms(positions, weights, geometry=GEOMETRY, resolution_angstrom=20.0)


@pytest.mark.parametrize(
    ("rotation", "axis"),
    [
        (np.eye(3), 0),  # view along z
        (np.array([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]]), 2),  # image x is y, image y is z: along x
    ],
)
def test_a_view_along_an_axis_is_the_sum_along_it(rotation: np.ndarray, axis: int) -> None:
    volume = density(*atoms())
    assert relative_error(project_one(volume, rotation), volume.sum(axis=axis)) < TOLERANCE


def test_a_projection_is_that_of_the_rotated_atoms() -> None:
    positions, weights = atoms()
    rotation = matrix_from_euler([0.7, 1.1, -2.0])
    image = project_one(density(positions, weights), rotation)
    turned = density(positions @ rotation.T, weights)  # the image frame is A x
    assert relative_error(image, turned.sum(axis=0)) < TOLERANCE


def test_an_odd_box_keeps_its_centre() -> None:
    volume = np.zeros((33, 33, 33))
    volume[15:18, 15:18, 15:18] = 1.0
    image = project_one(volume, np.eye(3))
    y, x = np.mgrid[:33, :33] - 16
    assert abs((image * x).sum() / image.sum()) < 1e-2
    assert abs((image * y).sum() / image.sum()) < 1e-2


def test_a_volume_that_is_not_cubic_is_refused() -> None:
    with pytest.raises(ValueError, match="cubic"):
        make_projector(np.zeros((4, 5, 4)))
