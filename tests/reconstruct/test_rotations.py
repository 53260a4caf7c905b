"""Grids cover the rotations evenly, cells split into their children, and angles are angles."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconstruct.rotations import (
    angle_between,
    child_offsets,
    grid_step,
    matrices_from_quaternions,
    matrix_from_vector,
    random_rotations,
    rotation_grid,
)

COMPONENT = st.floats(-1.8, 1.8)


def _nearest(queries: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Angle from each query to the nearest rotation of the grid."""
    traces = queries.reshape(-1, 9) @ grid.reshape(-1, 9).T
    return np.arccos(np.clip((traces.max(axis=1) - 1) / 2, -1, 1))


def _proper(rotations: np.ndarray) -> bool:
    products = rotations @ np.swapaxes(rotations, -1, -2)
    return bool(np.allclose(products, np.eye(3)) and np.allclose(np.linalg.det(rotations), 1))


@pytest.mark.parametrize("count", [576, 4608])
def test_a_grid_leaves_no_holes_and_makes_no_heaps(count: int) -> None:
    grid = rotation_grid(count)
    step = grid_step(count)
    assert _proper(grid)
    queries = random_rotations(np.random.default_rng(0), 2000)
    distance = _nearest(queries, grid)
    # In a cubic lattice of this cell the mean distance is 0.48 steps and the largest 0.87.
    assert distance.mean() < 0.55 * step
    assert distance.max() < 1.2 * step
    traces = grid.reshape(-1, 9) @ grid.reshape(-1, 9).T
    np.fill_diagonal(traces, -1)
    assert np.arccos(np.clip((traces.max() - 1) / 2, -1, 1)) > 0.5 * step


def test_the_cells_of_a_grid_fill_the_volume_of_the_rotations() -> None:
    assert 4608 * grid_step(4608) ** 3 == pytest.approx(8 * np.pi**2)
    assert grid_step(8 * 4608) == pytest.approx(grid_step(4608) / 2)


def test_children_sit_at_the_centres_of_the_eighths_of_a_cell() -> None:
    step = 0.2
    offsets = child_offsets(step)
    assert _proper(offsets)
    assert np.allclose(angle_between(offsets, np.eye(3)), np.sqrt(3) * step / 4)
    # neighbours are half a step apart, to the curvature of the rotations
    between = angle_between(offsets[:, None], offsets[None])
    assert between[between > 1e-6].min() == pytest.approx(step / 2, rel=0.01)


def test_children_cover_a_finer_grid_as_evenly_as_one() -> None:
    count = 576
    step = grid_step(count)
    children = (child_offsets(step)[:, None] @ rotation_grid(count)[None]).reshape(-1, 3, 3)
    queries = random_rotations(np.random.default_rng(1), 2000)
    distance = _nearest(queries, children)
    assert distance.mean() < 0.65 * step / 2
    assert distance.max() < 1.8 * step / 2


@given(COMPONENT, COMPONENT, COMPONENT)
def test_a_vector_turns_by_its_length_about_itself(x: float, y: float, z: float) -> None:
    vector = np.array([x, y, z])
    turn = matrix_from_vector(vector[None])[0]
    assert _proper(turn)
    assert np.allclose(turn @ vector, vector)
    angle = float(np.linalg.norm(vector))
    # near 0 and pi the arc cosine loses half the digits
    assert angle_between(turn, np.eye(3)) == pytest.approx(min(angle, 2 * np.pi - angle), abs=1e-6)


def test_a_quarter_turn_about_z_takes_x_to_y() -> None:
    turn = matrix_from_vector(np.array([[0.0, 0.0, np.pi / 2]]))[0]
    assert np.allclose(turn @ [1, 0, 0], [0, 1, 0])
    w = np.cos(np.pi / 4)
    assert np.allclose(matrices_from_quaternions(np.array([w, 0, 0, np.sin(np.pi / 4)])), turn)


def test_the_angle_between_rotations_does_not_depend_on_the_frame() -> None:
    a, b, frame = random_rotations(np.random.default_rng(2), 3)
    angle = angle_between(a, b)
    assert angle == pytest.approx(angle_between(b, a))
    assert angle == pytest.approx(angle_between(frame @ a, frame @ b))
    assert angle == pytest.approx(angle_between(a @ frame, b @ frame))


def test_random_rotations_are_uniform_and_follow_the_generator() -> None:
    drawn = random_rotations(np.random.default_rng(5), 4000)
    assert _proper(drawn)
    assert np.abs(drawn.mean(axis=0)).max() < 0.05
    # uniform rotations turn by a with density (1 - cos a) / pi: mean pi / 2 + 2 / pi
    assert angle_between(drawn, np.eye(3)).mean() == pytest.approx(np.pi / 2 + 2 / np.pi, abs=0.04)
    assert np.array_equal(drawn, random_rotations(np.random.default_rng(5), 4000))
