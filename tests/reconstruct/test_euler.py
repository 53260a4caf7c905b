"""Euler angles, matrices and pose vectors agree with each other and with known numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconstruct.euler import (
    euler_from_matrix,
    matrix_from_euler,
    matrix_from_pose_vector,
    pose_vector_from_matrix,
)

KNOWN_EULER = np.radians([30.0, 50.0, 70.0])
KNOWN_MATRIX = np.array(
    [
        [-0.279454, 0.923721, -0.262003],
        [-0.694109, -0.005813, 0.719846],
        [0.663414, 0.383022, 0.642788],
    ]
)
KNOWN_POSE = np.array([0.337507, 0.927292, 1.621109])
PRINTED = 1e-6  # the vectors above are printed to six decimals


def test_matrix_of_known_euler_angles() -> None:
    np.testing.assert_allclose(matrix_from_euler(KNOWN_EULER), KNOWN_MATRIX, atol=PRINTED)


def test_pose_vector_of_known_matrix() -> None:
    pose = pose_vector_from_matrix(matrix_from_euler(KNOWN_EULER)[None])
    np.testing.assert_allclose(pose[0], KNOWN_POSE, atol=PRINTED)


def test_matrix_of_known_pose_vector() -> None:
    np.testing.assert_allclose(matrix_from_pose_vector(KNOWN_POSE)[0], KNOWN_MATRIX, atol=PRINTED)


def test_known_matrix_gives_back_the_angles() -> None:
    euler = euler_from_matrix(matrix_from_euler(KNOWN_EULER))
    np.testing.assert_allclose(euler, KNOWN_EULER, atol=1e-12)


def test_no_rotation_is_the_unit_matrix_and_the_zero_vector() -> None:
    np.testing.assert_array_equal(matrix_from_euler([0.0, 0.0, 0.0]), np.eye(3))
    np.testing.assert_array_equal(pose_vector_from_matrix(np.eye(3)), np.zeros((1, 3)))


@settings(deadline=None)
@given(
    rot=st.floats(-np.pi, np.pi),
    tilt=st.floats(0, np.pi),
    psi=st.floats(-np.pi, np.pi),
)
def test_every_matrix_survives_both_round_trips(rot: float, tilt: float, psi: float) -> None:
    matrix = matrix_from_euler([rot, tilt, psi])
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(matrix), 1.0)
    np.testing.assert_allclose(matrix_from_euler(euler_from_matrix(matrix)), matrix, atol=1e-6)
    back = matrix_from_pose_vector(pose_vector_from_matrix(matrix[None]))[0]
    np.testing.assert_allclose(back, matrix, atol=1e-9)


@pytest.mark.parametrize("tilt", [0.0, np.pi])
def test_at_the_poles_rot_is_zero_and_psi_carries_the_turn(tilt: float) -> None:
    matrix = matrix_from_euler([0.4, tilt, 0.3])
    euler = euler_from_matrix(matrix)
    assert euler[0] == 0.0
    np.testing.assert_allclose(matrix_from_euler(euler), matrix, atol=1e-12)
