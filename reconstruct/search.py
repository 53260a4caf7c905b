"""Pose search: class, rotation and shift of each particle as a soft posterior (the E-step).

Coarse cells are scored exhaustively as two matrix products shared by the batch; the cells that
hold the tempered posterior are then split, 8 rotations x 4 shifts at a time, at rising radius.
Coarse and intermediate scores are divided by a temperature before the cut, because being off the
grid is not in the likelihood; the last level is the posterior itself.
"""

from __future__ import annotations


from concurrent.futures import Executor
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from reconstruct import kernels_cpu
from reconstruct.fourier import HalfPlane
from reconstruct.rotations import child_offsets, grid_step, rotation_grid

__all__ = [
    "Poses",
    "SearchPlan",
    "WeightedBatch",
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
CHUNK = 24  # particles a worker takes at a time: their coarse scores stay in its cache


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

    def weights(self) -> Float32:
        """Posterior weights (b, keep): non-zero for valid cells, rows sum to 1."""
        valid = np.arange(self.score.shape[1])[None, :] < self.count[:, None]
        shifted = np.where(valid, self.score - self.score[:, :1], -np.inf)
        weights = np.exp(shifted)
        return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def merge_poses(parts: list[Poses], members: list[npt.NDArray[np.intp]]) -> Poses:
    """Put the poses of disjoint parts of a batch back into the batch's order."""
    merged = _empty(sum(len(rows) for rows in members), parts[0].score.shape[1])
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
    """
    b, keep = len(batch), plan.keep
    poses = _empty(b, keep)
    coarse = None
    if start is None:
        coarse = _prepare_coarse(cubes, plane, plan, scale, log_class_weights, turn, base)
    chunks = [slice(i, min(i + CHUNK, b)) for i in range(0, b, CHUNK)]

    def work(rows: slice) -> None:
        part = WeightedBatch(batch.a_re[rows], batch.a_im[rows], batch.c2[rows])
        if coarse is not None:
            cells = _coarse_cells(part, coarse, plan, len(cubes))
        else:
            assert start is not None
            cells = _rows(start, rows)
        _refine(part, cells, cubes, plane, plan, scale, log_class_weights, _rows(poses, rows))

    for _ in workers.map(work, chunks):
        pass
    log_cells = np.float32(plan.log_cells)
    return Poses(
        **{
            name: getattr(poses, name)
            for name in (
                "rotation",
                "rotation_id",
                "shift",
                "shift_id",
                "class_index",
                "score",
                "count",
            )
        },
        evidence=poses.evidence - log_cells,
        levels=len(plan.level_radii),
    )


def _empty(b: int, keep: int) -> Poses:
    return Poses(
        rotation=np.zeros((b, keep, 9), np.float32),
        rotation_id=np.zeros((b, keep), np.int32),
        shift=np.zeros((b, keep, 2), np.float32),
        shift_id=np.zeros((b, keep), np.int32),
        class_index=np.zeros((b, keep), np.int32),
        score=np.zeros((b, keep), np.float32),
        count=np.zeros(b, np.int32),
        evidence=np.zeros(b, np.float32),
    )


def _rows(poses: Poses, rows: slice) -> Poses:
    return Poses(
        rotation=poses.rotation[rows],
        rotation_id=poses.rotation_id[rows],
        shift=poses.shift[rows],
        shift_id=poses.shift_id[rows],
        class_index=poses.class_index[rows],
        score=poses.score[rows],
        count=poses.count[rows],
        evidence=poses.evidence[rows],
    )


def _prepare_coarse(
    cubes: Float32,
    plane: HalfPlane,
    plan: SearchPlan,
    scale: float,
    log_class_weights: Float32,
    turn: npt.NDArray[np.float64],
    base: npt.NDArray[np.float64] | None,
) -> _Coarse:
    if base is None:
        base = rotation_grid(plan.coarse_count)
    rotations = np.ascontiguousarray((base @ turn).reshape(-1, 9), dtype=np.float32)
    n = plane.count(plan.coarse_radius)
    r, k = len(rotations), len(cubes)
    slices = np.empty((k * r, 2, n), np.float32)
    for c in range(k):
        kernels_cpu.extract_slices(
            cubes[c],
            rotations,
            plane.kx[:n],
            plane.ky[:n],
            np.float32(scale),
            slices[c * r : (c + 1) * r],
        )
    half_power = 0.5 * (slices[:, 0] ** 2 + slices[:, 1] ** 2)
    m = plan.shift_cells
    axis = (np.arange(m) - (m - 1) / 2) * plan.shift_step_pixels
    shifts = np.stack(np.meshgrid(axis, axis, indexing="xy"), axis=-1).reshape(-1, 2)
    angle = -2 * np.pi / plane.box * (shifts @ np.stack([plane.kx[:n], plane.ky[:n]]))
    return _Coarse(
        rotations=rotations,
        slices=np.ascontiguousarray(slices.reshape(k * r, 2 * n).T),
        half_power=np.ascontiguousarray(half_power.T),
        log_prior=np.repeat(log_class_weights.astype(np.float32), r),
        shifts=shifts.astype(np.float32),
        phase_re=np.cos(angle).astype(np.float32),
        phase_im=np.sin(angle).astype(np.float32),
        n=n,
    )


def _coarse_cells(part: WeightedBatch, coarse: _Coarse, plan: SearchPlan, classes: int) -> Poses:
    b, n = len(part), coarse.n
    re, im = part.a_re[:, None, :n], part.a_im[:, None, :n]
    shifted = np.empty((b, len(coarse.shifts), 2 * n), np.float32)
    shifted[:, :, :n] = re * coarse.phase_re - im * coarse.phase_im
    shifted[:, :, n:] = re * coarse.phase_im + im * coarse.phase_re
    t, r = len(coarse.shifts), coarse.slices.shape[1]
    scores = (shifted.reshape(b * t, 2 * n) @ coarse.slices).reshape(b, t, r)
    half_power = part.c2[:, :n] @ coarse.half_power
    index = np.zeros((b, plan.keep), np.int32)
    value = np.zeros((b, plan.keep), np.float32)
    count = np.zeros(b, np.int32)
    kernels_cpu.select_cells(
        scores,
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
        evidence=np.zeros(b, np.float32),
    )


def _refine(
    part: WeightedBatch,
    cells: Poses,
    cubes: Float32,
    plane: HalfPlane,
    plan: SearchPlan,
    scale: float,
    log_class_weights: Float32,
    out: Poses,
) -> None:
    """Run all subdivision levels of one chunk; the last one lands in ``out``."""
    ikx, iky = plane.kx.astype(np.int32), plane.ky.astype(np.int32)
    step = grid_step(plan.coarse_count)
    shift_step = plan.shift_step_pixels
    last = len(plan.level_radii) - 1
    for level, radius in enumerate(plan.level_radii):
        target = out if level == last else _empty(len(part), plan.keep)
        n = plane.count(radius)
        kernels_cpu.refine_poses(
            cubes, plane.kx, plane.ky, ikx, iky, np.float32(scale), float(plane.box),
            part.a_re, part.a_im, part.c2, n,
            child_offsets(step).reshape(8, 9).astype(np.float32),
            shift_step, log_class_weights.astype(np.float32),
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
    rotation: Float32, shift: Float32, class_index: npt.NDArray[np.int32], keep: int
) -> Poses:
    """One starting cell per particle at a known pose: rotation (b, 9), shift (b, 2) pixels."""
    b = len(rotation)
    start = _empty(b, keep)
    start.rotation[:, 0] = rotation
    start.shift[:, 0] = shift
    start.class_index[:, 0] = class_index
    start.count[:] = 1
    return start
