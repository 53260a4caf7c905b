"""Pose search: class, rotation and shift of each particle as a soft posterior (the E-step).

Coarse cells are scored exhaustively as three matrix products shared by the batch; the cells that
hold the tempered posterior are then split, 8 rotations x 4 shifts at a time, at rising radius.
Coarse and intermediate scores are divided by a temperature before the cut, because being off the
grid is not in the likelihood; the last level is the posterior itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from reconstruct import kernels_cpu
from reconstruct.backend import Backend, cpu_backend
from reconstruct.fourier import HalfPlane
from reconstruct.rotations import child_offsets, grid_step, rotation_grid
from reconstruct.search_plan import SearchPlan
from reconstruct.symmetry import asymmetric_unit, parse_group

__all__ = [
    "HALF_TURN",
    "CoarseCells",
    "Poses",
    "WeightedBatch",
    "base_grid",
    "coarse_cells",
    "coarse_products",
    "empty_poses",
    "join_poses",
    "local_start",
    "log_cells_of",
    "pose_rows",
    "prepare_coarse",
    "refine_level",
    "refine_levels",
    "search_poses",
    "shift_grid",
    "weigh",
    "with_prior",
]

Float32 = npt.NDArray[np.float32]
Complex64 = npt.NDArray[np.complex64]

HALF_TURN = np.diag([-1.0, -1.0, 1.0])  # in the image
_COLUMNS = (
    "rotation",
    "rotation_id",
    "shift",
    "shift_id",
    "class_index",
    "score",
    "count",
    "evidence",
    "cells",
)


@dataclass(frozen=True)
class WeightedBatch:
    """Particles ready to be scored: C X / noise and C^2 / noise as float32 planes."""

    a_re: Float32  # (b, n)
    a_im: Float32  # (b, n)
    c2: Float32  # (b, n)

    def __len__(self) -> int:
        return len(self.c2)

    def span(self, rows: slice) -> WeightedBatch:
        """The particles ``rows``, as views."""
        return WeightedBatch(self.a_re[rows], self.a_im[rows], self.c2[rows])


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
    cells: npt.NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    # (b,) cells that were scored, all levels together; empty where a device did not count

    def weights(self) -> Float32:
        """Posterior weights (b, keep): non-zero for valid cells, rows sum to 1."""
        valid = np.arange(self.score.shape[1])[None, :] < self.count[:, None]
        weights = np.exp(np.where(valid, self.score - self.score[:, :1], -np.inf))
        shares: Float32 = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
        return shares

    @classmethod
    def from_report(cls, report: Float32, *, levels: int) -> Poses:
        """Best cells alone, from what a device reports (b, 13 + K): see ``posterior``."""
        b = len(report)
        none = np.zeros((b, 1), np.int32)
        return cls(
            rotation=report[:, None, :9],
            rotation_id=none,
            shift=report[:, None, 9:11],
            shift_id=none,
            class_index=np.argmax(report[:, 13:], axis=1)[:, None].astype(np.int32),
            score=np.zeros((b, 1), np.float32),
            count=np.ones(b, np.int32),
            evidence=report[:, 12],
            levels=levels,
        )


def join_poses(parts: list[Poses], xp: Any = np) -> Poses:
    """Put the poses of consecutive parts of a batch one after another."""
    columns = {n: xp.concatenate([getattr(part, n) for part in parts]) for n in _COLUMNS}
    return Poses(**columns, levels=parts[0].levels)


def weigh(spectra: Complex64, ctf: Float32, noise_variance: Float32) -> WeightedBatch:
    """Divide by the noise: spectra (b, n), CTF (b, n), component noise variance (b or 1, n)."""
    weighted = ctf / noise_variance
    return WeightedBatch(
        a_re=np.ascontiguousarray(spectra.real * weighted, dtype=np.float32),
        a_im=np.ascontiguousarray(spectra.imag * weighted, dtype=np.float32),
        c2=np.ascontiguousarray(ctf * weighted, dtype=np.float32),
    )


@dataclass(frozen=True)
class CoarseCells:
    """What the coarse pass shares between all particles of a batch."""

    rotations: Float32  # (r, 9), the second half being the first turned in the image
    slices: Float32  # (2n, K * r / 2) real parts over imaginary parts, of the first half
    half_power: Float32  # (n, K * r / 2) 1/2 |P|^2
    log_prior: Float32  # (K,)
    shifts: Float32  # (t, 2) pixels
    phase_re: Float32  # (t, n)
    phase_im: Float32  # (t, n)
    n: int

    @property
    def pairs(self) -> int:
        """Rotations of the first half."""
        return len(self.rotations) // 2

    def poses(
        self,
        index: npt.NDArray[np.int32],
        score: Float32,
        count: npt.NDArray[np.int32],
        xp: Any = np,
    ) -> Poses:
        """The cells ``index`` (b, keep), numbered ``t * K * r + r``, as poses."""
        per_class, b = len(self.rotations), len(count)
        rotations = len(self.log_prior) * per_class
        turn_id, move_id = index % rotations, index // rotations
        return Poses(
            rotation=self.rotations[turn_id % per_class],
            rotation_id=turn_id.astype(np.int32),
            shift=self.shifts[move_id],
            shift_id=move_id.astype(np.int32),
            class_index=(turn_id // per_class).astype(np.int32),
            score=score,
            count=count,
            evidence=xp.zeros(b, np.float32),
            cells=xp.full(b, rotations * len(self.shifts), np.int32),
        )


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
    group: str = "C1",
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
    group
        Symmetry whose asymmetric unit is searched.
    """
    backend = cpu_backend()
    poses = empty_poses(len(batch), plan.keep)
    base = base_grid(plan.coarse_count, group)
    coarse = None
    if start is None:
        coarse = prepare_coarse(cubes, plane, plan, scale, log_class_weights, turn, base)

    def work(rows: slice) -> None:
        part = batch.span(rows)
        if coarse is not None:
            cells = coarse_cells(part, coarse, plan)
        else:
            assert start is not None
            cells = pose_rows(start, rows)
        target = pose_rows(poses, rows)
        refine_levels(part, cells, cubes, plane, plan, scale, log_class_weights, target, backend)

    backend.run_chunks(work, len(batch), bytes_per_row=1, workers=workers)
    return with_prior(poses, plan, len(base))


def log_cells_of(plan: SearchPlan, pairs: int) -> np.float64:
    """Log number of the last level's cells below the ``pairs`` of coarse rotations searched."""
    return np.float64(plan.log_cells + np.log(2 * pairs / plan.coarse_count))


def with_prior(poses: Poses, plan: SearchPlan, pairs: int) -> Poses:
    """Take the flat prior over the last level's cells in."""
    evidence = poses.evidence - np.float32(log_cells_of(plan, pairs))
    return replace(poses, evidence=evidence, levels=len(plan.level_radii))


@lru_cache(maxsize=8)
def base_grid(count: int, group: str) -> npt.NDArray[np.float64]:
    """Half of the coarse rotations to search, of SO(3) or of the group's asymmetric unit.

    The other half is ``HALF_TURN @ A`` of each, once they are turned: its slices are the complex
    conjugates, so one product gives the scores of both. That is 3 % coarser than ``count`` that
    are spread evenly (7.65 degrees to the nearest in the mean, not 7.43).
    """
    grid = rotation_grid(count // 2)
    return grid if group == "C1" else grid[asymmetric_unit(grid, parse_group(group).operators)]


def shift_grid(cells: int, step_pixels: float) -> npt.NDArray[np.float64]:
    """Centres (cells^2, 2) in x, y of a square of shifts around 0."""
    axis = (np.arange(cells) - (cells - 1) / 2) * step_pixels
    return np.stack(np.meshgrid(axis, axis, indexing="xy"), axis=-1).reshape(-1, 2)


def empty_poses(b: int, keep: int, xp: Any = np) -> Poses:
    """Room for the poses of ``b`` particles, set to 0 on the CPU only: kernels set what counts."""
    make = np.zeros if xp is np else xp.empty
    return Poses(
        rotation=make((b, keep, 9), np.float32),
        rotation_id=make((b, keep), np.int32),
        shift=make((b, keep, 2), np.float32),
        shift_id=make((b, keep), np.int32),
        class_index=make((b, keep), np.int32),
        score=make((b, keep), np.float32),
        count=make(b, np.int32),
        evidence=make(b, np.float32),
        cells=make(b if xp is np else 0, np.int32),
    )


def pose_rows(poses: Poses, rows: slice | npt.NDArray[np.intp]) -> Poses:
    """The particles ``rows``, as views of a slice."""
    columns = {name: getattr(poses, name) for name in _COLUMNS}
    some = {name: column[rows] if len(column) else column for name, column in columns.items()}
    return Poses(**some, levels=poses.levels)


def prepare_coarse(
    cubes: Float32,
    plane: HalfPlane,
    plan: SearchPlan,
    scale: float,
    log_prior: Float32,
    turn: npt.NDArray[np.float64],
    base: npt.NDArray[np.float64],
    *,
    xp: Any = np,
    extract: Callable[..., None] = kernels_cpu.extract_slices,
) -> CoarseCells:
    """Slices and phases of the coarse pass, once per batch; see ``search_poses``.

    ``extract`` is called as ``kernels_cpu.extract_slices``, with arrays of the library ``xp``.
    """
    first = turn @ base
    rotations = xp.asarray(np.concatenate([first, HALF_TURN @ first]).reshape(-1, 9), np.float32)
    n = plane.count(plan.coarse_radius)
    r, k = len(base), len(cubes)
    kx, ky = plane.kx[:n], plane.ky[:n]
    slices = xp.empty((k * r, 2, n), np.float32)
    for c in range(k):
        extract(cubes[c], rotations[:r], kx, ky, np.float32(scale), slices[c * r : (c + 1) * r])
    half_power = 0.5 * (slices[:, 0] ** 2 + slices[:, 1] ** 2)
    shifts = xp.asarray(shift_grid(plan.shift_cells, plan.shift_step_pixels))
    angle = -2 * np.pi / plane.box * (shifts @ xp.stack([kx, ky]))
    return CoarseCells(
        rotations=rotations,
        slices=xp.ascontiguousarray(slices.reshape(k * r, 2 * n).T),
        half_power=xp.ascontiguousarray(half_power.T),
        log_prior=log_prior,
        shifts=shifts.astype(np.float32),
        phase_re=xp.cos(angle).astype(np.float32),
        phase_im=xp.sin(angle).astype(np.float32),
        n=n,
    )


def coarse_products(part: WeightedBatch, coarse: CoarseCells) -> tuple[Float32, Float32, Float32]:
    """What real and imaginary parts add to Re<A, P> (b, t, K r / 2), 1/2 <C^2, |P|^2> (b, K r / 2).

    Of the first half of the rotations; the second has the difference where the first has the sum.
    """
    b, n = len(part), coarse.n
    t, columns = len(coarse.shifts), coarse.slices.shape[1]
    re, im = part.a_re[:, None, :n], part.a_im[:, None, :n]
    real = (re * coarse.phase_re - im * coarse.phase_im).reshape(b * t, n)
    imaginary = (re * coarse.phase_im + im * coarse.phase_re).reshape(b * t, n)
    even, odd = real @ coarse.slices[:n], imaginary @ coarse.slices[n:]
    half_power = part.c2[:, :n] @ coarse.half_power
    return even.reshape(b, t, columns), odd.reshape(b, t, columns), half_power


def coarse_cells(part: WeightedBatch, coarse: CoarseCells, plan: SearchPlan) -> Poses:
    """The coarse cells that hold the tempered posterior of each particle."""
    b, pairs = len(part), coarse.pairs
    even, odd, half_power = coarse_products(part, coarse)
    index = np.zeros((b, plan.keep), np.int32)
    value = np.zeros((b, plan.keep), np.float32)
    count = np.zeros(b, np.int32)
    less = half_power - np.repeat(coarse.log_prior, pairs)
    kernels_cpu.select_cells(
        even, odd, less, pairs, plan.keep, plan.sharpness[0], plan.share, index, value, count
    )
    return coarse.poses(index, value, count)


def refine_levels(
    part: WeightedBatch,
    cells: Poses,
    cubes: Float32,
    plane: HalfPlane,
    plan: SearchPlan,
    scale: float,
    log_prior: Float32,
    out: Poses,
    backend: Backend,
    extra: Mapping[str, int] | None = None,
) -> None:
    """Run all subdivision levels of one chunk; the last one lands in ``out``.

    ``extra`` goes to the backend's kernel.
    """
    last = len(plan.level_radii) - 1
    for level in range(last + 1):
        target = out if level == last else empty_poses(len(part), plan.keep, backend.xp)
        refine_level(
            part, cells, cubes, plane, plan, scale, log_prior, target, backend, extra,
            level=level, sharpness=plan.sharpness_at(level), share=plan.share,
        )  # fmt: skip
        if not backend.on_device:  # which would pay with launches
            target.cells[:] = cells.cells + 32 * cells.count
        cells = target


def refine_level(
    part: WeightedBatch,
    cells: Poses,
    cubes: Float32,
    plane: HalfPlane,
    plan: SearchPlan,
    scale: float,
    log_prior: Float32,
    out: Poses,
    backend: Backend,
    extra: Mapping[str, int] | None = None,
    *,
    level: int,
    sharpness: float,
    share: float,
    radius: int | None = None,
) -> None:
    """Split ``cells``, made by ``level`` subdivisions, and keep the best children in ``out``.

    As many as it has room for at most; ``radius`` is the plan's unless given.
    """
    step, shift_step = grid_step(plan.coarse_count) / 2**level, plan.shift_step_pixels / 2**level
    backend.kernels.refine_poses(
        cubes, plane.kx, plane.ky, *plane.integers, np.float32(scale), float(plane.box),
        part.a_re, part.a_im, part.c2, plane.count(radius or plan.level_radii[level]),
        _offsets(step, backend),
        shift_step, log_prior,
        cells.rotation, cells.rotation_id, cells.shift, cells.shift_id,
        cells.class_index, cells.count,
        out.score.shape[1], sharpness, share,
        out.rotation, out.rotation_id, out.shift, out.shift_id,
        out.class_index, out.score, out.count, out.evidence,
        **(extra or {}),
    )  # fmt: skip


@lru_cache(maxsize=32)
def _offsets(step: float, backend: Backend) -> Any:
    """Offsets (8, 9) of a cell's children, on the backend."""
    return backend.asarray(child_offsets(step).reshape(8, 9), np.float32)


def local_start(
    rotation: Float32,
    shift: Float32,
    class_index: npt.NDArray[np.int32],
    keep: int,
    *,
    xp: Any = np,
) -> Poses:
    """One starting cell per particle at a known pose: rotation (b, 9), shift (b, 2) pixels."""
    start = empty_poses(len(rotation), keep, xp)
    start.rotation[:, 0] = xp.asarray(rotation)
    start.shift[:, 0] = xp.asarray(shift)
    start.class_index[:, 0] = xp.asarray(class_index)
    for column in (start.rotation_id, start.shift_id, start.score):
        column[:, 0] = 0
    start.count[:] = 1
    start.evidence[:] = 0
    return start
