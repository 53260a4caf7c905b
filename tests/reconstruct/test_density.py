"""Maps keep what they hold when their grid changes; atoms become density where they are."""

from __future__ import annotations

import numpy as np
import pytest

from reconstruct.density import density_from_atoms, fit_volume, low_pass
from reconstruct.types import Geometry


def blob(geometry: Geometry, width_angstrom: float = 20.0) -> np.ndarray:
    axis = (np.arange(geometry.box) - geometry.box // 2) * geometry.pixel_size_angstrom
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    offset = (x - 12.0) ** 2 + (y + 7.0) ** 2 + (z - 3.0) ** 2
    return np.exp(-offset / (2 * width_angstrom**2)).astype(np.float32)


@pytest.mark.parametrize(
    ("box", "pixel"), [(48, 4.0), (32, 6.0), (40, 5.0), (64, 4.3), (33, 5.5), (30, 4.0)]
)
def test_a_map_on_another_grid_has_the_same_values_in_space(box: int, pixel: float) -> None:
    source = Geometry(box=65, pixel_size_angstrom=4.0)
    wanted = Geometry(box=box, pixel_size_angstrom=pixel)
    fitted = fit_volume(blob(source), pixel_size_angstrom=4.0, geometry=wanted)
    np.testing.assert_allclose(fitted, blob(wanted), atol=2e-3)


def test_what_lies_outside_the_source_is_empty() -> None:
    source = Geometry(box=20, pixel_size_angstrom=4.0)
    wide = Geometry(box=40, pixel_size_angstrom=4.0)
    fitted = fit_volume(blob(source), pixel_size_angstrom=4.0, geometry=wide)
    assert np.all(fitted[:9] == 0)
    assert fitted.sum() == pytest.approx(blob(source).sum(), rel=1e-4)


def test_an_atom_is_a_gaussian_of_its_weight_at_its_place() -> None:
    geometry = Geometry(box=40, pixel_size_angstrom=3.0)
    resolution = 18.0
    centre = np.array([10.0, -17.5, 4.2])
    volume = density_from_atoms(
        centre[None], np.array([7.0]), geometry=geometry, resolution_angstrom=resolution
    )
    axis = (np.arange(40) - 20) * 3.0
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    distance2 = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2
    # exp(-k^2 d^2) in frequency is a Gaussian of variance d^2 / (2 pi^2) in space.
    variance = resolution**2 / (2 * np.pi**2)
    expected = 7.0 * np.exp(-distance2 / (2 * variance)) * (3.0**2 / (2 * np.pi * variance)) ** 1.5
    np.testing.assert_allclose(volume, expected, atol=0.01 * expected.max())
    assert volume.sum() == pytest.approx(7.0, rel=1e-3)


def test_atoms_outside_the_box_are_left_out() -> None:
    geometry = Geometry(box=16, pixel_size_angstrom=4.0)
    volume = density_from_atoms(
        np.array([[500.0, 0.0, 0.0]]), np.ones(1), geometry=geometry, resolution_angstrom=10.0
    )
    assert np.abs(volume).max() == 0


def test_low_pass_keeps_the_mean_and_damps_detail() -> None:
    geometry = Geometry(box=32, pixel_size_angstrom=4.0)
    rough = np.random.default_rng(0).standard_normal((32, 32, 32)).astype(np.float32) + 3
    smooth = low_pass(rough, geometry=geometry, resolution_angstrom=20.0)
    assert smooth.mean() == pytest.approx(rough.mean(), rel=1e-5)
    assert smooth.std() < 0.3 * rough.std()
