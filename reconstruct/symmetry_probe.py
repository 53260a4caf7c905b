"""The low shells of a map, centred and without spherical means, ready to be correlated with itself.

Positions are steps of the twofold oversampled Fourier grid; shells are those of the unpadded box.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import scipy.optimize

from reconstruct import kernels_symmetry

__all__ = ["FIRST_SHELL", "LAST_SHELL", "OVERSAMPLING", "Probe", "make_probe", "recentring"]

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

FIRST_SHELL, LAST_SHELL = 3, 9  # below: a ball; above: not yet there when the question comes
OVERSAMPLING = 2.0


@dataclass(frozen=True)
class Probe:
    """The map's low shells, centred and without their spherical means, ready to be rotated."""

    flat: Float32  # (g * g * g * 2,)
    edge: int
    points: Float32  # (n, 3) grid steps
    shell: npt.NDArray[np.int32]  # (n,) 0-based
    values: Float32  # (n, 2)
    power: Float32  # (shells,)

    def correlations(self, matrices: Float64) -> Float64:
        """Mean over shells of the correlation with the map at M @ k, per matrix (m, 3, 3)."""
        out = np.empty(len(matrices), np.float32)
        kernels_symmetry.rotated_correlations(
            self.flat, self.edge, np.ascontiguousarray(matrices.reshape(-1, 9), dtype=np.float32),
            self.points, self.shell, self.values, self.power, out,
        )  # fmt: skip
        return out.astype(np.float64)


@lru_cache(maxsize=2)
def _lattice() -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int32]]:
    """Frequencies (n, 3) x, y, z of the shells in use, each Friedel pair once, and their shell."""
    axis = np.arange(-LAST_SHELL, LAST_SHELL + 1)
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    shell = np.floor(np.sqrt(x * x + y * y + z * z) + 0.5).astype(np.int32)
    keep = (x > 0) | ((x == 0) & ((y > 0) | ((y == 0) & (z > 0))))
    keep &= (shell >= FIRST_SHELL) & (shell <= LAST_SHELL)
    return np.stack([x[keep], y[keep], z[keep]], axis=-1), shell[keep] - FIRST_SHELL


def make_probe(raw: npt.NDArray[np.complex64], displacement: Float64, edge: int) -> Probe:
    """Move the cube of a map of ``edge`` pixels and take its spherical means away."""
    g = raw.shape[0]
    centre = (g - 1) // 2
    padded = 2 * round(edge * OVERSAMPLING / 2)
    axis = np.arange(-centre, centre + 1)
    ramps = [np.exp(-2j * np.pi / padded * axis * step) for step in displacement]
    moved = raw * (ramps[2][:, None, None] * ramps[1][None, :, None] * ramps[0][None, None, :])
    distance = np.sqrt(
        axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis[None, None, :] ** 2
    )
    below = np.floor(distance).astype(np.intp)
    fraction = distance - below
    # the spherical mean is a line between grid steps: a mean per bin would leave its staircase
    bins = below.max() + 2
    mean = np.zeros(bins, np.complex128)
    weight = np.full(bins, 1e-12)
    for index, share in ((below, 1 - fraction), (below + 1, fraction)):
        flat, w = index.ravel(), share.ravel()
        weight += np.bincount(flat, w, bins)
        mean += np.bincount(flat, w * moved.real.ravel(), bins)
        mean += 1j * np.bincount(flat, w * moved.imag.ravel(), bins)
    mean /= weight
    moved = moved - ((1 - fraction) * mean[below] + fraction * mean[below + 1])
    cube = np.ascontiguousarray(moved.astype(np.complex64))
    points, shell = _lattice()
    steps = np.round(points * padded / edge).astype(np.intp)
    values = cube[steps[:, 2] + centre, steps[:, 1] + centre, steps[:, 0] + centre]
    pairs = np.stack([values.real, values.imag], axis=-1).astype(np.float32)
    power = np.bincount(shell, (pairs.astype(np.float64) ** 2).sum(axis=1))
    return Probe(
        flat=cube.view(np.float32).reshape(-1),
        edge=g,
        points=steps.astype(np.float32),
        shell=shell,
        values=pairs,
        power=power.astype(np.float32),
    )


def recentring(probe: Probe, matrices: Float64, edge: int) -> Float64:
    """Displacement in pixels (3,) that brings the axes of ``matrices`` (m, 3, 3) to the origin."""
    cube = probe.flat.view(np.complex64).reshape((probe.edge,) * 3)
    centre = (probe.edge - 1) // 2
    own = probe.values[:, 0] + 1j * probe.values[:, 1]
    weight = 1.0 / np.maximum(probe.power[probe.shell], 1e-30)
    product, lever = [], []
    for matrix in matrices:
        turned = probe.points @ matrix.T
        index = np.round(turned).astype(np.intp) + centre
        product.append(weight * own * np.conj(cube[index[:, 2], index[:, 1], index[:, 0]]))
        lever.append(probe.points - turned)
    products, levers = np.concatenate(product), np.concatenate(lever)
    padded = 2 * round(edge * OVERSAMPLING / 2)
    scale = np.abs(products).sum()

    def loss(step: Float64) -> float:
        phase = np.exp(-2j * np.pi / padded * (levers @ step))
        # the small term holds the centre where nothing else does: along the axis of a Cn
        return float(-(products * phase).real.sum() / scale + 1e-4 * step @ step)

    start = np.vstack([np.zeros(3), 0.5 * np.eye(3)])
    moved = scipy.optimize.minimize(
        loss,
        np.zeros(3),
        method="Nelder-Mead",
        options={"initial_simplex": start, "xatol": 0.02, "fatol": 1e-5, "maxfev": 80},
    )
    return np.asarray(moved.x, dtype=np.float64)
