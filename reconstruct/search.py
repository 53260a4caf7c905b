"""Pose search: class, rotation and shift of each particle as a soft posterior (the E-step).

Coarse cells are scored exhaustively as two matrix products shared by the batch; the cells that
hold the tempered posterior are then split, 8 rotations x 4 shifts at a time, at rising radius.
Coarse and intermediate scores are divided by a temperature before the cut, because being off the
grid is not in the likelihood; the last level is the posterior itself.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from reconstruct.backend import Backend, cpu_backend
from reconstruct.fourier import HalfPlane
from reconstruct.rotations import child_offsets, grid_step, rotation_grid

__all__ = [
    "Poses",
    "SearchPlan",
    "WeightedBatch",
    "coarse_bytes_per_particle",
    "local_start",
    "make_plan",
    "merge_poses",
    "search_poses",
    "weigh",
]

Float32 = npt.NDArray[np.float32]
Complex64 = npt.NDArray[np.complex64]

_COLUMNS = (
    "rotation",
    "rotation_id",
    "shift",
    "shift_id",
    "class_index",
    "score",
    "count",
    "evidence",
)


@dataclass(frozen=True)
class WeightedBatch:
    """Particles ready to be scored: C X / noise and C^2 / noise as float32 planes."""

    a_re: Float32  # (b, n)
    a_im: Float32  # (b, n)
    c2: Float32  # (b, n)

    def __len__(self) -> int:
        return len(self.c2)

    def rows(self, rows: npt.NDArray[np.intp]) -> WeightedBatch:
        """The particles ``rows``."""
        return WeightedBatch(self.a_re[rows], self.a_im[rows], self.c2[rows])


@dataclass(frozen=True)
class SearchPlan:
    """How fine and how far the search goes at one radius."""

    coarse_count: int  # rotations of the base grid
    coarse_radius: int
    shift_cells: int  # per axis
    shift_step_pixels: float
    level_radii: tuple[int, ...]  # one per subdivision; the last is the working radius
    keep: int = 40
    sharpness: tuple[float, ...] = (0.33, 0.7, 1.0)  # inverse temperatures of the cuts: coarse,
    # then level by level; the last repeats; the last level itself is cut at 1
    share: float = 0.99  # of the tempered posterior that a cut keeps

    @property
    def log_cells(self) -> float:
        """Log of the number of cells at the last level: the flat prior over poses."""
        levels = len(self.level_radii)
        return float(
            np.log(self.coarse_count) + 2 * np.log(self.shift_cells) + levels * np.log(32.0)
        )


@dataclass(frozen=True)
class Poses:
    """Soft poses of a batch, best first; ``count`` (b,) cells of each row are valid."""

    rotation: Float32  # (b, keep, 9)
    rotation_id: npt.NDArray[np.int32]  # (b, keep) equal ids share a rotation and class
    shift: Float32  # (b, keep, 2) pixels
    shift_id: npt.NDArray[np.int32]
    class_index: npt.NDArray[np.int32]  # (b, keep)
    score: Float32  # (b, keep) log-likelihood against noise only, nats
    count: npt.NDArray[np.int32]  # (b,)
    evidence: Float32  # (b,) log mean exp over poses and classes
    levels: int = 0  # subdivisions behind the cells

    def weights(self, xp: Any = np) -> Float32:
        """Posterior weights (b, keep): non-zero for valid cells, rows sum to 1."""
        valid = xp.arange(self.score.shape[1])[None, :] < self.count[:, None]
        shifted = xp.where(valid, self.score - self.score[:, :1], -np.inf)
        weights = xp.exp(shifted)
        return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)  # type: ignore[no-any-return]

    def moved(self, convert: Callable[[Any], Any], *, keep: int | None = None) -> Poses:
        """The first ``keep`` cells of each row, every array through ``convert``."""
        columns = {name: getattr(self, name) for name in _COLUMNS}
        if keep is not None:
            columns = {n: a[:, :keep] if a.ndim > 1 else a for n, a in columns.items()}
        return Poses(**{n: convert(a) for n, a in columns.items()}, levels=self.levels)


def merge_poses(parts: list[Poses], members: list[npt.NDArray[np.intp]], xp: Any = np) -> Poses:
    """Put the poses of disjoint parts of a batch back into the batch's order."""
    merged = _empty(sum(len(rows) for rows in members), parts[0].score.shape[1], xp)
    for part, rows in zip(parts, members, strict=True):
        for name in _COLUMNS:
            getattr(merged, name)[rows] = getattr(part, name)
    return replace(merged, levels=parts[0].levels)


def make_plan(
    radius: int,
    *,
    box: int,
    max_shift_pixels: float,
    coarse_count: int = 4608,
    coarse_radius: int = 6,
    keep: int = 40,
    sharpness: tuple[float, ...] = (0.33, 0.7, 1.0),
    share: float = 0.99,
) -> SearchPlan:
    """Plan a search at ``radius`` shells: subdivide until a cell turns the edge by < 0.8 shells."""
    step = grid_step(coarse_count)
    levels = max(1, int(np.ceil(np.log2(step * radius / 0.8))))
    radii = [min(radius, round(coarse_radius * 1.7 ** (level + 1))) for level in range(levels)]
    radii[-1] = radius
    spacing = box / 32.0
    cells = max(1, int(np.ceil(2 * max_shift_pixels / spacing - 1e-6)))
    return SearchPlan(
        coarse_count=coarse_count,
        coarse_radius=min(radius, coarse_radius),
        shift_cells=cells,
        shift_step_pixels=spacing,
        level_radii=tuple(radii),
        keep=keep,
        sharpness=sharpness,
        share=share,
    )


def weigh(spectra: Complex64, ctf: Float32, noise_variance: Float32) -> WeightedBatch:
    """Divide by the noise: spectra (b, n), CTF (b, n), component noise variance (b or 1, n)."""
    weighted = ctf / noise_variance
    return WeightedBatch(
        a_re=np.ascontiguousarray(spectra.real * weighted, dtype=np.float32),
        a_im=np.ascontiguousarray(spectra.imag * weighted, dtype=np.float32),
        c2=np.ascontiguousarray(ctf * weighted, dtype=np.float32),
    )


@dataclass(frozen=True)
class _Coarse:
    """What the coarse pass shares between all particles of a batch."""

    rotations: Float32  # (r, 9)
    slices: Float32  # (2n, K * r) real parts over imaginary parts
    half_power: Float32  # (n, K * r) 1/2 |P|^2
    log_prior: Float32  # (K * r,)
    shifts: Float32  # (t, 2) pixels
    phase_re: Float32  # (t, n)
    phase_im: Float32  # (t, n)
    n: int


def search_poses(
    batch: WeightedBatch,
    cubes: Float32,
    plane: HalfPlane,
    plan: SearchPlan,
    *,
    scale: float,
    log_class_weights: Float32,
    turn: npt.NDArray[np.float64],
    workers: Executor,
    start: Poses | None = None,
    base: npt.NDArray[np.float64] | None = None,
    backend: Backend | None = None,
) -> Poses:
    """Posterior over classes, rotations and shifts of every particle.

    Parameters
    ----------
    cubes
        (K, g, g, g, 2) Fourier cubes of the class volumes, ``scale`` grid steps per shell.
    log_class_weights
        (K,) log prior of the classes.
    turn
        (3, 3) random rotation that the base grid is multiplied with, so that no batch sees the
        same grid.
    start
        Cells to start from instead of the coarse pass (a local search).
    base
        Coarse rotations to use instead of the full grid (an asymmetric unit).
    backend
        Where ``batch``, ``cubes``, ``plane.kx``, ``plane.ky`` and ``start`` are, and the result
        will be; the CPU when omitted.
    """
    backend = backend or cpu_backend()
    b, keep = len(batch), plan.keep
    poses = _empty(b, keep, backend.xp)
    coarse, bytes_per_row = None, 1
    log_prior = backend.asarray(log_class_weights, np.float32)
    if start is None:
        coarse = _prepare_coarse(cubes, plane, plan, scale, log_prior, turn, base, backend)
        bytes_per_row = coarse_bytes_per_particle(plan, classes=len(cubes), coefficients=coarse.n)

    def work(rows: slice) -> None:
        part = WeightedBatch(batch.a_re[rows], batch.a_im[rows], batch.c2[rows])
        if coarse is not None:
            cells = _coarse_cells(part, coarse, plan, len(cubes), backend)
        else:
            assert start is not None
            cells = _rows(start, rows)
        _refine(part, cells, cubes, plane, plan, scale, log_prior, _rows(poses, rows), backend)

    backend.run_chunks(work, b, bytes_per_row=bytes_per_row, workers=workers)
    unit = 1.0 if base is None else len(base) / plan.coarse_count
    log_cells = np.float32(plan.log_cells + np.log(unit))
    return replace(poses, evidence=poses.evidence - log_cells, levels=len(plan.level_radii))


def coarse_bytes_per_particle(plan: SearchPlan, *, classes: int, coefficients: int) -> int:
    """Memory that the coarse pass takes for each particle of a chunk."""
    shifts, rotations = plan.shift_cells**2, plan.coarse_count * classes
    return 4 * (shifts * rotations + rotations + shifts * 2 * coefficients)


@lru_cache(maxsize=4)
def _grid(count: int) -> npt.NDArray[np.float64]:
    return rotation_grid(count)


def _empty(b: int, keep: int, xp: Any = np) -> Poses:
    return Poses(
        rotation=xp.zeros((b, keep, 9), np.float32),
        rotation_id=xp.zeros((b, keep), np.int32),
        shift=xp.zeros((b, keep, 2), np.float32),
        shift_id=xp.zeros((b, keep), np.int32),
        class_index=xp.zeros((b, keep), np.int32),
        score=xp.zeros((b, keep), np.float32),
        count=xp.zeros(b, np.int32),
        evidence=xp.zeros(b, np.float32),
    )


def _rows(poses: Poses, rows: slice) -> Poses:
    return Poses(**{name: getattr(poses, name)[rows] for name in _COLUMNS})


def _prepare_coarse(
    cubes: Float32,
    plane: HalfPlane,
    plan: SearchPlan,
    scale: float,
    log_prior: Float32,
    turn: npt.NDArray[np.float64],
    base: npt.NDArray[np.float64] | None,
    backend: Backend,
) -> _Coarse:
    xp = backend.xp
    if base is None:
        base = _grid(plan.coarse_count)
    rotations = backend.asarray((turn @ base).reshape(-1, 9), np.float32)
    n = plane.count(plan.coarse_radius)
    r, k = len(rotations), len(cubes)
    kx, ky = plane.kx[:n], plane.ky[:n]
    slices = xp.empty((k * r, 2, n), np.float32)
    for c in range(k):
        backend.kernels.extract_slices(
            cubes[c], rotations, kx, ky, np.float32(scale), slices[c * r : (c + 1) * r]
        )
    half_power = 0.5 * (slices[:, 0] ** 2 + slices[:, 1] ** 2)
    m = plan.shift_cells
    axis = (np.arange(m) - (m - 1) / 2) * plan.shift_step_pixels
    shifts = np.stack(np.meshgrid(axis, axis, indexing="xy"), axis=-1).reshape(-1, 2)
    angle = -2 * np.pi / plane.box * (backend.asarray(shifts) @ xp.stack([kx, ky]))
    # The CPU's matrix product is faster with contiguous factors; a device's takes either order.
    arrange = xp.asarray if backend.on_device else np.ascontiguousarray
    return _Coarse(
        rotations=rotations,
        slices=arrange(slices.reshape(k * r, 2 * n).T),
        half_power=arrange(half_power.T),
        log_prior=xp.repeat(log_prior, r),
        shifts=backend.asarray(shifts, np.float32),
        phase_re=xp.cos(angle).astype(np.float32),
        phase_im=xp.sin(angle).astype(np.float32),
        n=n,
    )


def _coarse_cells(
    part: WeightedBatch, coarse: _Coarse, plan: SearchPlan, classes: int, backend: Backend
) -> Poses:
    b, n, xp = len(part), coarse.n, backend.xp
    t, r = len(coarse.shifts), coarse.slices.shape[1]
    shifted = xp.empty((b, t, 2 * n), np.float32)
    if backend.on_device:
        kernels = backend.kernels
        kernels.shift_rows(part.a_re, part.a_im, coarse.phase_re, coarse.phase_im, shifted)
        scores = kernels.coarse_product(shifted.reshape(b * t, 2 * n), coarse.slices)
    else:
        re, im = part.a_re[:, None, :n], part.a_im[:, None, :n]
        shifted[:, :, :n] = re * coarse.phase_re - im * coarse.phase_im
        shifted[:, :, n:] = re * coarse.phase_im + im * coarse.phase_re
        scores = shifted.reshape(b * t, 2 * n) @ coarse.slices
    half_power = part.c2[:, :n] @ coarse.half_power
    index = xp.zeros((b, plan.keep), np.int32)
    value = xp.zeros((b, plan.keep), np.float32)
    count = xp.zeros(b, np.int32)
    backend.kernels.select_cells(
        scores.reshape(b, t, r),
        half_power,
        coarse.log_prior,
        plan.keep,
        plan.sharpness[0],
        plan.share,
        index,
        value,
        count,
    )
    turn_id = index % r
    move_id = index // r
    per_class = r // classes
    return Poses(
        rotation=coarse.rotations[turn_id % per_class],
        rotation_id=turn_id.astype(np.int32),
        shift=coarse.shifts[move_id],
        shift_id=move_id.astype(np.int32),
        class_index=(turn_id // per_class).astype(np.int32),
        score=value,
        count=count,
        evidence=xp.zeros(b, np.float32),
    )


def _refine(
    part: WeightedBatch,
    cells: Poses,
    cubes: Float32,
    plane: HalfPlane,
    plan: SearchPlan,
    scale: float,
    log_prior: Float32,
    out: Poses,
    backend: Backend,
) -> None:
    """Run all subdivision levels of one chunk; the last one lands in ``out``."""
    ikx, iky = plane.kx.astype(np.int32), plane.ky.astype(np.int32)
    step = grid_step(plan.coarse_count)
    shift_step = plan.shift_step_pixels
    last = len(plan.level_radii) - 1
    for level, radius in enumerate(plan.level_radii):
        target = out if level == last else _empty(len(part), plan.keep, backend.xp)
        n = plane.count(radius)
        backend.kernels.refine_poses(
            cubes, plane.kx, plane.ky, ikx, iky, np.float32(scale), float(plane.box),
            part.a_re, part.a_im, part.c2, n,
            backend.asarray(child_offsets(step).reshape(8, 9), np.float32),
            shift_step, log_prior,
            cells.rotation, cells.rotation_id, cells.shift, cells.shift_id,
            cells.class_index, cells.count,
            plan.keep,
            1.0 if level == last else plan.sharpness[min(level + 1, len(plan.sharpness) - 1)],
            plan.share,
            target.rotation, target.rotation_id, target.shift, target.shift_id,
            target.class_index, target.score, target.count, target.evidence,
        )  # fmt: skip
        cells = target
        step /= 2
        shift_step /= 2


def local_start(
    rotation: Float32,
    shift: Float32,
    class_index: npt.NDArray[np.int32],
    keep: int,
    *,
    xp: Any = np,
) -> Poses:
    """One starting cell per particle at a known pose: rotation (b, 9), shift (b, 2) pixels."""
    start = _empty(len(rotation), keep, xp)
    start.rotation[:, 0] = xp.asarray(rotation)
    start.shift[:, 0] = xp.asarray(shift)
    start.class_index[:, 0] = xp.asarray(class_index)
    start.count[:] = 1
    return start
