"""Maps whose symmetry is known, made in code: blobs of every group, discs, rods and balls.

Convention: a map is (box, box, box), bright, its symmetry's standard frame at the centre voxel
until ``moved`` turns and shifts it: ``x_moved = rotation.T @ x - displacement``.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import scipy.fft

from reconstruct.density import density_from_atoms
from reconstruct.fourier import soft_mask
from reconstruct.rotations import matrix_from_vector
from reconstruct.symmetry import parse_group
from reconstruct.types import Geometry

__all__ = ["ball", "blobs", "degraded", "disc", "rod", "shell"]

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

GEOMETRY = Geometry(box=48, pixel_size_angstrom=4.0)


def blobs(
    name: str,
    rng: np.random.Generator,
    *,
    geometry: Geometry = GEOMETRY,
    rotation: Float64 | None = None,
    displacement_pixels: Float64 | None = None,
    per_unit: int | None = None,
) -> Float32:
    """Gaussian blobs in a ball, copied by the operators of a group."""
    operators = parse_group(name).operators
    extent = 0.33 * geometry.box_angstrom
    count = per_unit or max(6, round(240 / len(operators)))
    inside = _directions(rng, count) * extent * rng.uniform(0.15, 1.0, (count, 1)) ** (1 / 3)
    return _copied(inside, rng, operators, geometry, rotation, displacement_pixels)


def shell(
    name: str,
    rng: np.random.Generator,
    *,
    geometry: Geometry = GEOMETRY,
    rotation: Float64 | None = None,
    displacement_pixels: Float64 | None = None,
) -> Float32:
    """A hollow shell of blobs, nearly a ball at low resolution, copied by a group's operators."""
    operators = parse_group(name).operators
    extent = 0.33 * geometry.box_angstrom
    count = max(8, round(600 / len(operators)))
    points = _directions(rng, count) * extent * rng.uniform(0.78, 1.0, (count, 1))
    return _copied(points, rng, operators, geometry, rotation, displacement_pixels)


def disc(
    rng: np.random.Generator,
    *,
    geometry: Geometry = GEOMETRY,
    flatness: float = 0.5,
    roughness: float = 0.15,
) -> Float32:
    """A flattened blob: an ellipsoid with one short axis, in a random frame, and a little noise."""
    return _ellipsoid(rng, geometry, np.array([1.0, 1.0, flatness]), roughness)


def rod(rng: np.random.Generator, *, geometry: Geometry = GEOMETRY) -> Float32:
    """An ellipsoid with one long axis, in a random frame, and a little noise."""
    return _ellipsoid(rng, geometry, np.array([0.5, 0.5, 1.0]), 0.15)


def ball(rng: np.random.Generator, *, geometry: Geometry = GEOMETRY) -> Float32:
    """A ball with a little noise: no direction is better than another."""
    return _ellipsoid(rng, geometry, np.ones(3), 0.15)


def degraded(volume: Float32, rng: np.random.Generator, *, radius: float) -> Float32:
    """Add noise as a reconstruction has it: FSC with the truth 0.5 at ``radius`` shells, filtered.

    The correlation falls as 1 / (1 + (s / radius)^4); a Wiener filter and a soft window follow.
    """
    n = volume.shape[0]
    axis = np.fft.fftfreq(n, 1 / n)
    half = np.arange(n // 2 + 1)
    distance = np.sqrt(axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + half**2)
    shells = np.floor(distance + 0.5).astype(np.intp)
    signal = scipy.fft.rfftn(volume)
    noise = scipy.fft.rfftn(rng.standard_normal(volume.shape))
    power, own = (np.bincount(shells.ravel(), (np.abs(a) ** 2).ravel()) for a in (signal, noise))
    agreement = 1 / (1 + (distance / radius) ** 4)
    gain = np.sqrt(power / np.maximum(own, 1e-30))[shells] * np.sqrt(1 / agreement**2 - 1)
    mixed = scipy.fft.irfftn((signal + gain * noise) * agreement**2, s=volume.shape)
    window = soft_mask(n, 0.42 * n, 4.0)
    return (mixed * window).astype(np.float32)


def _directions(rng: np.random.Generator, count: int) -> Float64:
    vectors = rng.standard_normal((count, 3))
    unit: Float64 = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def _copied(
    points: Float64,
    rng: np.random.Generator,
    operators: Float64,
    geometry: Geometry,
    rotation: Float64 | None,
    displacement_pixels: Float64 | None,
) -> Float32:
    weights = rng.uniform(0.5, 1.5, len(points))
    standard = np.einsum("sij,pj->spi", operators, points).reshape(-1, 3)
    if rotation is not None:
        standard = standard @ rotation  # rotation.T @ x
    if displacement_pixels is not None:
        standard = standard - displacement_pixels * geometry.pixel_size_angstrom
    return density_from_atoms(
        standard,
        np.tile(weights, len(operators)),
        geometry=geometry,
        resolution_angstrom=2.5 * geometry.pixel_size_angstrom,
    )


def _ellipsoid(
    rng: np.random.Generator, geometry: Geometry, lengths: Float64, roughness: float
) -> Float32:
    extent = 0.33 * geometry.box_angstrom
    points = _directions(rng, 4000) * rng.uniform(0, 1, (4000, 1)) ** (1 / 3) * lengths * extent
    turn = matrix_from_vector(rng.uniform(-1.5, 1.5, (1, 3)))[0]
    volume = density_from_atoms(
        points @ turn.T,
        np.ones(len(points)),
        geometry=geometry,
        resolution_angstrom=3.0 * geometry.pixel_size_angstrom,
    )
    rough = rng.standard_normal(volume.shape).astype(np.float32) * volume
    return volume + np.float32(roughness) * rough
