"""Rotations: near-uniform grids on SO(3), their subdivision, random rotations, angles between.

A cell of a grid is a rotation and an edge ``step`` in radians, read as a cube in the tangent
space of that rotation; its eight children sit at +-step/4 along the three axes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = [
    "angle_between",
    "child_offsets",
    "grid_step",
    "matrices_from_quaternions",
    "matrix_from_vector",
    "random_rotations",
    "rotation_grid",
]

Float = npt.NDArray[np.float64]

SO3_VOLUME = 8 * np.pi**2  # of SO(3) in rotation-vector measure, rad^3


def grid_step(count: int) -> float:
    """Edge in radians of each of ``count`` equal cells of SO(3)."""
    return float((SO3_VOLUME / count) ** (1 / 3))


def matrices_from_quaternions(quaternions: Float) -> Float:
    """Rotation matrices (n, 3, 3) of unit quaternions (n, 4) in order w, x, y, z."""
    w, x, y, z = np.moveaxis(quaternions, -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def rotation_grid(count: int) -> Float:
    """Near-uniform rotations (count, 3, 3): the super-Fibonacci spirals of Alexa (CVPR 2022)."""
    phi, psi = np.sqrt(2.0), 1.533751168755204288118041
    s = np.arange(count) + 0.5
    t = s / count
    d = 2 * np.pi * s
    r, rest = np.sqrt(t), np.sqrt(1 - t)
    alpha, beta = d / phi, d / psi
    quaternions = np.stack(
        [r * np.sin(alpha), r * np.cos(alpha), rest * np.sin(beta), rest * np.cos(beta)], axis=-1
    )
    return matrices_from_quaternions(quaternions)


def random_rotations(rng: np.random.Generator, count: int) -> Float:
    """Rotations (count, 3, 3) drawn uniformly from SO(3)."""
    quaternions = rng.standard_normal((count, 4))
    quaternions /= np.linalg.norm(quaternions, axis=-1, keepdims=True)
    return matrices_from_quaternions(quaternions)


def matrix_from_vector(vectors: Float) -> Float:
    """Rotation matrices (n, 3, 3) of rotation vectors (n, 3): Rodrigues' formula."""
    angle = np.linalg.norm(vectors, axis=-1, keepdims=True)
    half = 0.5 * angle
    # sin(x)/x stays exact at 0 through numpy's sinc
    axis_part = vectors * 0.5 * np.sinc(half / np.pi)
    return matrices_from_quaternions(np.concatenate([np.cos(half), axis_part], axis=-1))


def child_offsets(step: float) -> Float:
    """Offsets (8, 3, 3) that, multiplied from the left, take a cell's centre to its children's."""
    signs = np.array([[a, b, c] for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)], dtype=float)
    return matrix_from_vector(signs * (step / 4))


def angle_between(a: npt.NDArray[np.floating], b: npt.NDArray[np.floating]) -> Float:
    """Angle in radians of the rotation from ``a`` to ``b``; both (..., 3, 3)."""
    trace = np.einsum("...ij,...ij->...", a, b)
    angle: Float = np.arccos(np.clip((trace - 1) / 2, -1.0, 1.0))
    return angle
