"""How good a map is: FSC, resolution, and alignment of one map to another in both hands.

An FSC curve's index is the radius in shells, so shell ``s`` is ``box * pixel_size / s`` Angstrom.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.optimize

from reconstruct.fourier import centred_rfftn, fourier_cube, full_from_half, shell_index
from reconstruct.kernels_maps import sample_cube
from reconstruct.rotations import matrix_from_vector, rotation_grid

__all__ = [
    "RESOLUTION_FSC",
    "RESOLUTION_KIND",
    "Alignment",
    "align_to_truth",
    "crossing_radius",
    "fourier_shell_correlation",
    "mirror",
    "resolution_at",
]

RESOLUTION_FSC = 0.143  # half-map FSC at which a resolution is quoted
RESOLUTION_KIND = f"half_map_fsc_{RESOLUTION_FSC}"  # what records and metrics call it

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Complex128 = npt.NDArray[np.complex128]


@dataclass(frozen=True)
class Alignment:
    """A map laid on another: what was done to it and how well they agree."""

    rotation: Float64  # (3, 3); the truth at R @ x is the map at x
    shift_pixels: Float64  # (3,) x, y, z, applied after the rotation
    mirrored: bool
    fsc: Float64  # (shells,)
    resolution_angstrom: float  # FSC 0.5
    correlation: float  # over the shells that were searched


def _weights(half_shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    weights = np.full(half_shape, 2.0)
    weights[:, :, 0] = 1.0
    return weights


def fourier_shell_correlation(a: Float32, b: Float32) -> Float64:
    """FSC of two real-space maps (n, n, n); shape (n // 2,), [0] is 1.

    Source: Harauz & van Heel, Optik 73 (1986) 146.
    """
    n = a.shape[0]
    radius = n // 2 - 1
    centre = n // 2
    crop = (slice(centre - radius, centre + radius + 1),) * 2 + (slice(0, radius + 1),)
    return shell_correlation(centred_rfftn(a)[crop], centred_rfftn(b)[crop])


def shell_correlation(
    a: npt.NDArray[np.complexfloating], b: npt.NDArray[np.complexfloating]
) -> Float64:
    """FSC of two centred half cubes (2r+1, 2r+1, r+1); shape (r + 1,)."""
    radius = a.shape[2] - 1
    shells = np.minimum(shell_index(radius), radius + 1).ravel()
    weights = _weights(a.shape).ravel()
    x, y = a.ravel(), b.ravel()
    cross = np.bincount(shells, weights * (x * np.conj(y)).real, radius + 2)
    power_a = np.bincount(shells, weights * np.abs(x) ** 2, radius + 2)
    power_b = np.bincount(shells, weights * np.abs(y) ** 2, radius + 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        fsc = np.where(power_a * power_b > 0, cross / np.sqrt(power_a * power_b), 0.0)
    fsc[0] = 1.0
    return fsc[: radius + 1]


def crossing_radius(fsc: npt.NDArray[np.floating], threshold: float) -> float:
    """Radius in shells, interpolated, at which the curve first falls below ``threshold``.

    The last shell if it never does.
    """
    below = np.flatnonzero(fsc[1:] < threshold)
    if not len(below):
        return float(len(fsc) - 1)
    s = int(below[0]) + 1
    high, low = float(fsc[s - 1]), float(fsc[s])
    return s - 1 + (high - threshold) / (high - low)


def resolution_at(
    fsc: npt.NDArray[np.floating], box_angstrom: float, threshold: float = 0.5
) -> float:
    """Resolution in Angstrom of the first crossing; the box edge if it crosses within a shell."""
    return box_angstrom / max(crossing_radius(fsc, threshold), 1.0)


def mirror(volume: Float32) -> Float32:
    """The map in its other hand: z reversed about the centre voxel."""
    return np.ascontiguousarray(np.roll(volume[::-1], 1 - volume.shape[0] % 2, axis=0))


def align_to_truth(
    volume: Float32,
    truth: Float32,
    pixel_size_angstrom: float,
    *,
    search_radius: int = 7,
    refine_radius: int = 13,
    grid: int = 4608,
    shift_reach: float = 0.08,
    both_hands: bool = True,
) -> Alignment:
    """Rotate and shift ``volume`` onto ``truth`` (same box, same pixel size) and compare them.

    Low frequencies are searched over a near-uniform grid of rotations and +-``shift_reach`` of the
    box in shifts; the best few are refined on all six parameters, in both hands.
    """
    best: Alignment | None = None
    for mirrored in (False, True) if both_hands else (False,):
        candidate = mirror(volume) if mirrored else volume
        found = _align_one_hand(
            candidate, truth, pixel_size_angstrom, search_radius, refine_radius, grid, shift_reach,
            mirrored,
        )  # fmt: skip
        if best is None or found.correlation > best.correlation:
            best = found
    assert best is not None
    return best


def _samples(radius: int) -> Float32:
    axis = np.arange(-radius, radius + 1)
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    keep = (x > 0) | ((x == 0) & ((y > 0) | ((y == 0) & (z > 0))))
    keep &= x * x + y * y + z * z <= (radius + 0.5) ** 2
    return np.stack([x[keep], y[keep], z[keep]], axis=-1).astype(np.float32)


def _sample(cube: npt.NDArray[np.complexfloating], points: npt.NDArray[np.floating]) -> Complex128:
    """Values of a full cube (g, g, g) at ``points`` (m, 3) x, y, z in grid units."""
    values = np.empty(len(points), np.complex128)
    sample_cube(cube, points, values)
    return values


def _align_one_hand(
    volume: Float32,
    truth: Float32,
    pixel_size_angstrom: float,
    search_radius: int,
    refine_radius: int,
    grid: int,
    shift_reach: float,
    mirrored: bool,
) -> Alignment:
    n = volume.shape[0]
    oversampling = 2.0
    full_radius = n // 2 - 2  # the interpolation reaches one further
    map_cube = fourier_cube(volume, full_radius, oversampling=oversampling)
    crop = slice(n // 2 - full_radius, n // 2 + full_radius + 1)
    truth_cube = full_from_half(centred_rfftn(truth)[crop, crop, : full_radius + 1])
    centre = (truth_cube.shape[0] - 1) // 2

    def truth_at(points: Float32) -> Complex128:
        i = points.astype(np.intp) + centre
        values: Complex128 = truth_cube[i[:, 2], i[:, 1], i[:, 0]].astype(np.complex128)
        return values

    def correlation(samples: Float32, target: Complex128) -> Callable[[Float64, Float64], float]:
        norm_t = np.sqrt(np.sum(np.abs(target) ** 2))

        def value(rotation: Float64, shift: Float64) -> float:
            v = _sample(map_cube, samples @ rotation * oversampling)
            v = v * np.exp(-2j * np.pi / n * (samples @ shift))
            norm_v = np.sqrt(np.sum(np.abs(v) ** 2))
            return float(np.sum((v * np.conj(target)).real) / max(norm_v * norm_t, 1e-30))

        return value

    samples = _samples(search_radius)
    target = truth_at(samples)
    rotations = rotation_grid(grid)
    reach = max(2, round(shift_reach * n))
    axis = np.arange(-reach, reach + 1, 2, dtype=np.float64)
    shifts = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    phases = np.exp(2j * np.pi / n * (samples @ shifts.T)) * target[:, None]  # (m, shifts)
    phase_planes = np.concatenate([phases.real, phases.imag]).astype(np.float32)
    candidates: list[tuple[float, int, int]] = []
    for start in range(0, grid, 256):
        chunk = rotations[start : start + 256]
        points = (samples @ chunk).reshape(-1, 3) * oversampling
        v = _sample(map_cube, points).reshape(len(chunk), -1)
        norm = np.sqrt(np.sum(np.abs(v) ** 2, axis=1)) + 1e-30
        scores = np.concatenate([v.real, v.imag], axis=1).astype(np.float32) @ phase_planes
        scores /= norm[:, None]
        j = np.argmax(scores, axis=1)
        candidates += [(float(scores[r, j[r]]), start + r, int(j[r])) for r in range(len(chunk))]
    candidates.sort(reverse=True)

    def refine(
        radius: int, rotation: Float64, shift: Float64, step: float
    ) -> tuple[float, Float64, Float64]:
        points = _samples(radius)
        value = correlation(points, truth_at(points))

        def loss(p: Float64) -> float:
            return -value(matrix_from_vector(p[None, :3] * step)[0] @ rotation, shift + p[3:])

        simplex = np.vstack([np.zeros(6), np.eye(6)])
        found = scipy.optimize.minimize(
            loss,
            np.zeros(6),
            method="Nelder-Mead",
            options={"initial_simplex": simplex, "xatol": 1e-2, "fatol": 1e-6, "maxfev": 500},
        )
        turned = matrix_from_vector(found.x[None, :3] * step)[0] @ rotation
        return -float(found.fun), turned, shift + found.x[3:]

    refined = [refine(search_radius, rotations[r], shifts[s], 0.15) for _, r, s in candidates[:6]]
    refined.sort(key=lambda item: -item[0])
    _, rotation, shift = refined[0]
    _, rotation, shift = refine(min(refine_radius, full_radius), rotation, shift, 0.05)
    score, rotation, shift = refine(min(refine_radius, full_radius), rotation, shift, 0.02)
    every = _samples(full_radius)
    v = _sample(map_cube, every @ rotation * oversampling)
    v *= np.exp(-2j * np.pi / n * (every @ shift))
    t = truth_at(every)
    shells = np.floor(np.linalg.norm(every, axis=1) + 0.5).astype(np.intp)
    cross = np.bincount(shells, (v * np.conj(t)).real, full_radius + 2)
    power = np.bincount(shells, np.abs(v) ** 2, full_radius + 2) * np.bincount(
        shells, np.abs(t) ** 2, full_radius + 2
    )
    fsc = np.divide(cross, np.sqrt(power), out=np.zeros_like(cross), where=power > 0)
    fsc[0] = 1.0
    fsc = fsc[: full_radius + 1]
    return Alignment(
        rotation=rotation,
        shift_pixels=shift,
        mirrored=mirrored,
        fsc=fsc,
        resolution_angstrom=resolution_at(fsc, n * pixel_size_angstrom),
        correlation=score,
    )
