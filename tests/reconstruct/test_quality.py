"""Curves cross where they should, and a map is found again in any pose and either hand."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage

from benchmarks.success import adjusted_rand_index, purity
from reconstruct.quality import (
    align_to_truth,
    crossing_radius,
    fourier_shell_correlation,
    mirror,
    resolution_at,
)
from reconstruct.rotations import angle_between, matrix_from_vector
from tests.reconstruct.small_sets import GEOMETRY, demo_map

PIXEL = GEOMETRY.pixel_size_angstrom


def _noise(seed: int, n: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, n, n)).astype(np.float32)


def test_a_map_agrees_with_itself_at_any_scale_and_offset() -> None:
    fsc = fourier_shell_correlation(demo_map(), 3 * demo_map() + 1)
    assert fsc.shape == (16,)
    assert np.allclose(fsc, 1, atol=1e-4)
    assert np.allclose(fourier_shell_correlation(demo_map(), -demo_map())[1:], -1, atol=1e-4)


def test_independent_noise_does_not_agree() -> None:
    fsc = fourier_shell_correlation(_noise(0), _noise(1))
    assert np.abs(fsc[4:]).max() < 0.25
    assert abs(fsc[4:].mean()) < 0.05


def test_equal_signal_and_noise_agree_by_half() -> None:
    signal = _noise(2)
    fsc = fourier_shell_correlation(signal + _noise(3), signal + _noise(4))
    assert fsc[6:].mean() == pytest.approx(0.5, abs=0.05)


def test_an_empty_map_agrees_with_nothing() -> None:
    fsc = fourier_shell_correlation(np.zeros((8, 8, 8), np.float32), _noise(0, 8))
    assert fsc.tolist() == [1, 0, 0, 0]


def test_crossings_are_interpolated_between_shells() -> None:
    curve = np.array([1.0, 0.9, 0.6, 0.2, 0.8, 0.1])
    assert crossing_radius(curve, 0.5) == pytest.approx(2.25)
    assert crossing_radius(np.ones(9), 0.5) == 8
    assert resolution_at(curve, 320.0) == pytest.approx(320 / 2.25)
    assert resolution_at(np.array([1.0, 0.0, 0.0]), 320.0) == 320


@pytest.mark.parametrize("n", [8, 9])
def test_the_other_hand_keeps_the_centre_voxel(n: int) -> None:
    volume = np.zeros((n, n, n), np.float32)
    volume[n // 2 + 2, n // 2 + 1, n // 2 - 1] = 1
    other = mirror(volume)
    assert other[n // 2 - 2, n // 2 + 1, n // 2 - 1] == 1
    assert np.array_equal(mirror(other), volume)


def _moved(volume: np.ndarray, turn: np.ndarray, shift_xyz: np.ndarray) -> np.ndarray:
    """The map whose value at x is that of ``volume`` at turn @ x + shift, by splines."""
    n = volume.shape[0]
    axis = np.arange(n) - n // 2
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    points = np.stack([x, y, z], axis=-1) @ turn.T + shift_xyz
    coordinates = np.moveaxis(points[..., ::-1], -1, 0) + n // 2
    return scipy.ndimage.map_coordinates(volume, coordinates, order=4).astype(np.float32)


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_map_is_found_again_in_its_pose_and_hand(mirrored: bool) -> None:
    truth = demo_map()
    turn = matrix_from_vector(np.array([[0.9, -1.4, 0.5]]))[0]
    shift = np.array([1.3, -0.8, 0.4])
    moved = _moved(truth, turn, shift)
    found = align_to_truth(
        mirror(moved) if mirrored else moved,
        truth,
        PIXEL,
        search_radius=5,
        refine_radius=9,
        grid=1152,
    )
    assert found.mirrored is mirrored
    assert np.degrees(angle_between(found.rotation, turn)) < 1.0
    assert np.allclose(found.shift_pixels, shift, atol=0.1)
    assert found.correlation > 0.99
    assert found.fsc[0] == 1
    assert found.fsc[1:13].min() > 0.9
    assert found.resolution_angstrom < 26  # of 20 that the pixels carry


def test_one_hand_alone_is_not_enough_for_the_other() -> None:
    truth = demo_map()
    found = align_to_truth(
        mirror(truth), truth, PIXEL, search_radius=5, refine_radius=9, grid=1152, both_hands=False
    )
    assert not found.mirrored
    assert found.fsc[8:12].mean() < 0.8


def test_partitions_agree_whatever_their_labels() -> None:
    truth = np.array([0, 0, 0, 1, 1, 1, 2, 2])
    assert adjusted_rand_index(truth, (truth + 1) % 3) == 1
    assert purity(truth, (truth + 1) % 3) == 1
    # worked by hand from Hubert & Arabie: table [[2, 1], [0, 3], [2, 0]]
    found = np.array([0, 0, 1, 1, 1, 1, 0, 0])
    pairs, rows, columns, total = 1 + 3 + 1, 3 + 3 + 1, 6 + 6, 28
    expected = rows * columns / total
    index = (pairs - expected) / ((rows + columns) / 2 - expected)
    assert adjusted_rand_index(truth, found) == pytest.approx(index)
    assert purity(truth, found) == pytest.approx((2 + 3) / 8)


def test_chance_agrees_by_zero() -> None:
    rng = np.random.default_rng(0)
    truth, found = rng.integers(0, 3, (2, 5000))
    assert abs(adjusted_rand_index(truth, found)) < 0.01
    assert purity(truth, found) < 0.4
