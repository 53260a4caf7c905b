"""What is left of particles when the map is taken away, and the direction in which it varies most.

A particle's residual is linear in whatever sets its structure off from the map, so the leading
principal component of residuals in three dimensions is the difference between two states (Penczek
et al., Structure 19 (2011) 1582; Punjani & Fleet, J. Struct. Biol. 213 (2021) 107702). It is found
by Lanczos iteration on particles' scores with slices and back-projections alone: poses are known.

What an error of a particle's pose or contrast does to it is linear as well, and would be found
first. These six directions are taken out of every residual, and out of what it is compared with.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from reconstruct import kernels_cpu
from reconstruct.fourier import HalfPlane
from reconstruct.search import WeightedBatch
from reconstruct.update import (
    MapGrid,
    reference_cube,
    shell_means,
    shell_table,
    symmetric_plane,
)

__all__ = ["Residuals", "leading_scores", "make_residuals", "random_scores"]

Complex64 = npt.NDArray[np.complex64]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

STEPS = 24  # of the Lanczos iteration
RIDGE = 0.3  # of a shell's mean weight, that every voxel's weight is raised by
TURN_RAD = 0.02  # step of the differences that stand for derivatives
OUTLYING = 2.5  # deviations of residual power above the median, beyond which a pose is wrong


@dataclass(frozen=True)
class Residuals:
    """Residuals of particles up to some radius, free of what wrong poses and contrast leave.

    Real and imaginary parts lie side by side: (b, 2, n).
    """

    plane: HalfPlane
    grid: MapGrid
    radius: int
    rest: Float32  # (b, 2, n) C (X - C P) / noise
    c2: Float32  # (b, 1, n) C^2 / noise
    rotation: Float32  # (b, 9)
    half: npt.NDArray[np.intp]  # (b,)
    nuisance: Float32  # (b, 6, 2 n) slices' derivatives by three angles, two shifts, contrast
    inverse: Float32  # (b, 6, 6) of their weighted products
    fit: Bools  # (b,) whose residual is no larger than noise makes it

    def slices(self, spectrum: Complex64) -> Float32:
        """Slices (b, 2, n) of a map (g, g, r + 1), windowed."""
        cube = reference_cube(spectrum, self.grid)
        return _slices(cube, self.rotation, self.plane, self.grid, self.c2.shape[2])

    def match(self, slices: Float32) -> tuple[Float64, Float64]:
        """Products (b,) of residuals with slices, and their variance if noise is white."""
        weighted = slices * self.c2
        along = self.nuisance @ weighted.reshape(len(weighted), -1, 1)
        taken = along.transpose(0, 2, 1) @ self.inverse @ along
        product = (self.rest * slices).sum(axis=(1, 2), dtype=np.float64)
        power = (weighted * slices).sum(axis=(1, 2), dtype=np.float64)
        return product, np.maximum(power - taken[:, 0, 0], 1e-12)

    def project_back(self, factor: Float64, weight: Float64, rows: npt.NDArray[np.intp]) -> Float32:
        """Statistics (g, g, reach + 1, 3) of residuals ``rows``, each times its ``factor``.

        ``weight`` is how much each adds to the denominator.
        """
        reach = self.grid.reach(self.radius)
        statistics = np.zeros((1, 2 * reach + 1, 2 * reach + 1, reach + 2, 3), np.float32)
        some = self.rest[rows] * factor[rows, None, None].astype(np.float32)
        c2 = self.c2[rows, 0] * weight[rows, None].astype(np.float32)
        b = len(rows)
        none = np.zeros((b, 1), np.int32)
        kernels_cpu.insert_particles(
            statistics, np.arange(b), self.plane.kx, self.plane.ky, *self.plane.integers,
            np.float32(self.grid.scale), float(self.plane.box),
            np.ascontiguousarray(some[:, 0]), np.ascontiguousarray(some[:, 1]), c2, c2.shape[1],
            self.rotation[rows, None], none, np.zeros((b, 1, 2), np.float32), none,
            np.ones((b, 1), np.float32), np.ones(b, np.int32),
        )  # fmt: skip
        return symmetric_plane(statistics[0], reach)


def make_residuals(
    batch: WeightedBatch,
    half: npt.NDArray[np.intp],
    *,
    rotation: Float32,
    shift: Float32,
    reference: Float32,
    plane: HalfPlane,
    grid: MapGrid,
    radius: int,
) -> Residuals:
    """Take slices of a map away from particles at known poses.

    Parameters
    ----------
    batch
        Particles up to at least ``radius`` shells.
    rotation, shift
        (b, 9) and (b, 2) in pixels.
    reference
        (g, g, g, 2) cube of the map, that reaches further than ``radius``: at its edge a cube is
        not to be relied on.
    """
    b, n = len(batch), plane.count(radius)
    kx, ky = plane.kx[:n], plane.ky[:n]
    rotation = np.ascontiguousarray(rotation, np.float32)
    phase = np.exp(-2j * np.pi / plane.box * (shift @ np.stack([kx, ky]))).astype(np.complex64)
    moved = (batch.a_re[:, :n] + 1j * batch.a_im[:, :n]) * phase
    c2 = np.ascontiguousarray(batch.c2[:, None, :n])
    own = _slices(reference, rotation, plane, grid, n)
    changes = np.empty((b, 6, 2, n), np.float32)
    for axis in range(3):
        turned = _turned(rotation, axis)
        changes[:, axis] = (_slices(reference, turned, plane, grid, n) - own) / TURN_RAD
    for place, k in ((3, kx), (4, ky)):
        changes[:, place, 0], changes[:, place, 1] = -0.1 * k * own[:, 1], 0.1 * k * own[:, 0]
    changes[:, 5] = own
    rest = np.stack([moved.real, moved.imag], axis=1).astype(np.float32) - c2 * own
    weighted = (changes * c2[:, None]).reshape(b, 6, -1)
    nuisance = changes.reshape(b, 6, -1)
    products = (weighted @ nuisance.transpose(0, 2, 1)).astype(np.float64)
    raised = products.trace(axis1=1, axis2=2)[:, None, None] * 1e-6 + 1e-9
    inverse = np.linalg.inv(products + raised * np.eye(6)).astype(np.float32)
    along = inverse @ (nuisance @ rest.reshape(b, -1, 1))
    rest -= (weighted * along).sum(axis=1).reshape(b, 2, n)
    power = (rest**2 / np.maximum(c2, 1e-3 * c2.mean())).mean(axis=(1, 2))
    middle = float(np.median(power))
    spread = 1.4826 * float(np.median(abs(power - middle)))
    fit = power <= middle + OUTLYING * spread
    return Residuals(plane, grid, radius, rest, c2, rotation, half, nuisance, inverse, fit)


def _turned(rotation: Float32, axis: int) -> Float32:
    """Rotations (b, 9) turned a little about one axis of the image's frame."""
    i, j = (axis + 1) % 3, (axis + 2) % 3
    turn = np.eye(3)
    turn[i, i] = turn[j, j] = np.cos(TURN_RAD)
    turn[i, j], turn[j, i] = -np.sin(TURN_RAD), np.sin(TURN_RAD)
    turned = turn @ rotation.reshape(-1, 3, 3)
    return np.ascontiguousarray(turned.reshape(-1, 9), np.float32)


def _slices(cube: Float32, rotation: Float32, plane: HalfPlane, grid: MapGrid, n: int) -> Float32:
    out = np.empty((len(rotation), 2, n), np.float32)
    scale = np.float32(grid.scale)
    kernels_cpu.extract_slices(cube, rotation, plane.kx[:n], plane.ky[:n], scale, out)
    return out


def leading_scores(
    residuals: Residuals, rows: npt.NDArray[np.intp], rng: np.random.Generator
) -> Float64:
    """Scores (b,) of all particles along the direction in which those of ``rows`` vary most.

    In deviations of white noise, so that of particles that are not among ``rows`` and do not vary
    the variance is that of noise, as smooth maps see it.
    """
    weight = _root_weight(residuals, rows)
    start = rng.standard_normal(len(rows))
    basis = [start / np.linalg.norm(start)]
    diagonal, beside = [], []
    for _ in range(min(STEPS, len(rows) - 1)):
        scores = _scores(residuals, basis[-1], rows, weight)[0][rows]
        diagonal.append(scores @ basis[-1])
        for _twice in range(2):  # rounding costs orthogonality
            for known in basis:
                scores = scores - known * (known @ scores)
        beside.append(float(np.linalg.norm(scores)))
        basis.append(scores / beside[-1])
    matrix = np.diag(diagonal) + np.diag(beside[:-1], 1) + np.diag(beside[:-1], -1)
    top = np.linalg.eigh(matrix)[1][:, -1]
    vector = np.stack(basis[:-1], axis=1) @ top
    product, variance = _scores(residuals, vector, rows, weight)
    return product / np.sqrt(variance)


def random_scores(
    residuals: Residuals, rows: npt.NDArray[np.intp], rng: np.random.Generator
) -> Float64:
    """Scores (b,) along a direction that ``rows`` made by chance: what no variation looks like."""
    weight = _root_weight(residuals, rows)
    product, variance = _scores(residuals, rng.standard_normal(len(rows)), rows, weight)
    return product / np.sqrt(variance)


def _root_weight(residuals: Residuals, rows: npt.NDArray[np.intp]) -> Float64:
    """Square root (g, g, reach + 1) of the inverse of what each voxel was measured with."""
    one = np.ones(len(residuals.half))
    measured = residuals.project_back(one, one, rows)[..., 2]
    means = shell_means(measured, residuals.grid.scale)
    shells, _ = shell_table(measured.shape[2] - 1, residuals.grid.scale)
    raised = RIDGE * means + 1e-6 * means.max()
    raised[0] = np.inf
    raised[residuals.radius + 1 :] = np.inf
    root: Float64 = 1.0 / np.sqrt(measured + raised[shells])
    return root


def _scores(
    residuals: Residuals, vector: Float64, rows: npt.NDArray[np.intp], weight: Float64
) -> tuple[Float64, Float64]:
    """Score of every particle along the map that the residuals ``rows`` make, times ``vector``."""
    factor = np.zeros(len(residuals.half))
    factor[rows] = vector
    crop = residuals.project_back(factor, np.zeros_like(factor), rows)
    spectrum = (crop[..., 0] + 1j * crop[..., 1]) * weight
    return residuals.match(residuals.slices((spectrum * weight).astype(np.complex64)))
