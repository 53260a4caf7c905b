"""Pose search by branch and bound: discard what cannot hold the best pose, with its children.

The method of Punjani et al. (Nature Methods 14, 290, 2017) on the subdivision tree of ``search``. A
cell's log-likelihood is known up to a radius L. Above it a slice that matches adds at most its own
half power, P = 1/2 sum C^2 |slice|^2, in expectation, with noise of variance 2 P around that. What
the cell's centre loses against a pose elsewhere in it has the same form below L, with
D = 1/2 sum C^2 |slice - displaced slice|^2 for the cell's corner. For a map that is weaker than the
particles by a factor a, as a filtered one is, the two are (2 a - 1) P and a D. So

    log-likelihood in the cell <= score below L + (2 a - 1) P + a D + s sqrt(2 (P + D)).

Everything is in nats over the half plane, whitened; s is calibrated by the measured rate of
violations (docs/decisions/pose-search.md). Cells whose bound is below a true log-likelihood,
reached by following the best cell down, are discarded. What is left at the working radius is the
posterior, as in ``search_poses``, whose arguments and result these are.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from reconstruct import kernels_bound, kernels_cpu
from reconstruct.backend import Backend, cpu_backend
from reconstruct.bound_arrays import (
    best_cells,
    cells_above,
    cut_cells,
    extract_slices,
    join_cells,
    pose_columns,
)
from reconstruct.fourier import HalfPlane
from reconstruct.rotations import grid_step, matrix_from_vector
from reconstruct.search import (
    CoarseCells,
    Poses,
    WeightedBatch,
    base_grid,
    coarse_products,
    empty_poses,
    pose_rows,
    prepare_coarse,
    refine_level,
    search_poses,
    with_prior,
)
from reconstruct.search_plan import SearchPlan

__all__ = [
    "Bound",
    "Slack",
    "bound_bytes",
    "bound_plan",
    "coarse_scores",
    "search_branch_and_bound",
    "slack_of",
]

Float32 = npt.NDArray[np.float32]
Int32 = npt.NDArray[np.int32]

SAMPLED = 288  # rotations of the base grid whose means stand for all in D and the later P
STRONGEST = 4.0  # particle over map, at most
DEVICE_PARENTS = 64  # cells that one launch of a device's kernel splits: shared memory
CELL_BYTES = 4 * (9 + 1 + 2 + 1 + 1 + 1)  # of one cell of ``Poses``


@dataclass(frozen=True)
class Bound:
    """How the bound is drawn; docs/decisions/pose-search.md has the measurements."""

    noise: float = 1.0  # s: standard deviations of the noise that a bound allows for
    start_radius: int = 8  # shells; below it the bound discards next to nothing
    growth: float = 2**0.5  # of the radius from level to level; published: 2, slower as measured
    most_share: float = 0.125 * 0.25  # of the base grid's cells survive a level at most: the
    # published caps of rotations and of shifts taken together, a safety valve
    most_cells: int = 128  # times the classes survive a level at most; a tighter valve, as measured


def bound_plan(plan: SearchPlan, bound: Bound | None = None) -> SearchPlan:
    """The same tree as ``plan``, with the radii of the bound."""
    bound = bound or Bound()
    radius = plan.level_radii[-1]
    start = min(bound.start_radius, radius)
    levels = range(1, len(plan.level_radii) + 1)
    radii = [min(radius, int(start * bound.growth**level)) for level in levels]
    radii[-1] = radius
    return replace(plan, coarse_radius=start, level_radii=tuple(radii))


def bound_bytes(
    plan: SearchPlan, *, classes: int, near: int, far: int, bound: Bound | None = None
) -> tuple[int, int]:
    """Memory for each particle of a chunk, and for what a batch shares.

    ``near`` and ``far`` are the coefficients up to the coarse and to the working radius.
    """
    shifts, rotations = plan.shift_cells**2, plan.coarse_count * classes
    # all scores thrice, while those of pairs of rotations are put together
    particle = 4 * (3 * shifts * rotations + 4 * rotations + shifts * 2 * near)
    # parents, children and the two halves of what a device joins
    particle += 3 * CELL_BYTES * (_most(plan, bound or Bound(), classes) + 32 * DEVICE_PARENTS)
    # coarse slices and their powers; at the full radius, those of one class at a time
    shared = 4 * (2 * rotations * near + 4 * plan.coarse_count * far)
    return particle, shared


def _most(plan: SearchPlan, bound: Bound, classes: int) -> int:
    """Cells that may survive a level, of all classes together."""
    share = int(plan.coarse_count * plan.shift_cells**2 * bound.most_share)
    return max(plan.keep, classes * min(share, bound.most_cells))


@dataclass(frozen=True)
class Slack:
    """What a batch shares to say how much cells may hide; powers are sums over shells 1..R."""

    shells: Float32  # (n(R), R) takes the mean of c2 over each shell
    above: Float32  # (R, K * r) 1/2 |slice|^2 beyond the coarse radius, of each coarse cell
    later: Float32  # (levels, R) the same beyond each level's radius, a mean over rotations
    lost: Float32  # (levels, R) 1/2 |slice - slice at the cell's corner|^2 up to each radius
    whole: Float32  # (R,) 1/2 |slice|^2, a mean over rotations

    def shell_means(self, c2: Float32) -> Float32:
        """Mean c2 (b, R) of each shell: the CTF's astigmatism does not matter here."""
        return c2[:, : len(self.shells)] @ self.shells

    def amplitude(self, c2: Float32, reached: Float32, xp: Any) -> Float32:
        """Strength a of each particle (b,) over the map's, from the score of a good pose.

        Its expectation is (2 a - 1) times the half power.
        """
        expected = xp.maximum(c2 @ self.whole, np.float32(1e-6))
        return xp.clip(0.5 * (reached / expected + 1), 1, STRONGEST).astype(np.float32)  # type: ignore[no-any-return]

    def coarse_allowance(self, c2: Float32, amplitude: Float32, noise: float, xp: Any) -> Float32:
        """What coarse cells may add to their scores (b, K * r), nats."""
        lost = (c2 @ self.lost[0])[:, None]
        return _allowance(c2 @ self.above, lost, amplitude[:, None], noise, xp)

    def allowance(
        self, c2: Float32, amplitude: Float32, noise: float, level: int, xp: Any
    ) -> Float32:
        """The same (b,) for cells made by ``level`` subdivisions."""
        return _allowance(c2 @ self.later[level], c2 @ self.lost[level], amplitude, noise, xp)


def _allowance(above: Float32, lost: Float32, amplitude: Float32, noise: float, xp: Any) -> Float32:
    spread = np.float32(noise) * xp.sqrt(2 * (above + lost))
    return (2 * amplitude - 1) * above + amplitude * lost + spread  # type: ignore[no-any-return]


def slack_of(
    cubes: Float32,
    plane: HalfPlane,
    plan: SearchPlan,
    *,
    scale: float,
    coarse: CoarseCells,
    backend: Backend,
) -> Slack:
    """Powers behind the bound, once per batch; of several classes, means are of the strongest."""
    xp = backend.xp
    radius = plan.level_radii[-1]
    total = plane.count(radius)
    kx, ky = plane.kx[:total], plane.ky[:total]
    members = plane.shell[:total, None] == np.arange(1, radius + 1)
    sums = backend.asarray(members, np.float32)
    radii = backend.asarray(np.arange(1, radius + 1))
    every = max(1, len(coarse.rotations) // SAMPLED)
    sample = backend.asarray(coarse.rotations[::every])
    m = np.arange(len(sample))
    corners = 2.0 * np.stack([m & 1, m >> 1 & 1, m >> 2 & 1, m >> 3 & 1, m >> 4 & 1], axis=1) - 1
    axes = backend.asarray(corners[:, 3:], np.float32) @ xp.stack([kx, ky])

    extract = _extractor(backend)

    def slices(cube: Float32, rotations: Float32) -> Any:
        out = xp.empty((len(rotations), 2, total), np.float32)
        extract(cube, rotations, kx, ky, np.float32(scale), out)
        return out

    def power(values: Any) -> Any:
        return (0.5 * (values[:, 0] ** 2 + values[:, 1] ** 2)) @ sums

    near = [slices(cube, sample) for cube in cubes]
    beyond = radii[:, None] > plan.coarse_radius
    whole = _strongest([power(values).mean(axis=0) for values in near], xp)
    later, lost = [], []
    for level, reach in enumerate((plan.coarse_radius, *plan.level_radii[:-1])):
        step, move = grid_step(plan.coarse_count) / 2**level, plan.shift_step_pixels / 2**level
        turned = backend.asarray(matrix_from_vector(corners[:, :3] * step / 2), np.float32)
        rotations = backend.asarray((turned @ sample.reshape(-1, 3, 3)).reshape(-1, 9), np.float32)
        angle = axes * np.float32(np.pi * move / plane.box)
        re, im = xp.cos(angle), xp.sin(angle)
        found = []
        for cube, centre in zip(cubes, near, strict=True):
            away = slices(cube, rotations)
            moved = xp.stack(
                [away[:, 0] * re - away[:, 1] * im, away[:, 0] * im + away[:, 1] * re], axis=1
            )
            found.append(power(moved - centre).mean(axis=0))
        lost.append(xp.where(radii <= reach, _strongest(found, xp), 0))
        later.append(xp.where(radii > reach, whole, 0))
    first = coarse.rotations[: coarse.pairs]
    return Slack(
        shells=backend.asarray(members / members.sum(axis=0), np.float32),
        above=xp.concatenate(
            [
                xp.tile(xp.where(beyond, power(slices(cube, first)).T, 0), 2)  # pairs are alike
                for cube in cubes
            ],
            axis=1,
        ).astype(np.float32),
        later=xp.stack(later).astype(np.float32),
        lost=xp.stack(lost).astype(np.float32),
        whole=whole.astype(np.float32),
    )


def _extractor(backend: Backend) -> Callable[..., None]:
    """What makes slices of a cube."""
    if backend.on_device:
        return partial(extract_slices, xp=backend.xp)
    return kernels_cpu.extract_slices  # type: ignore[no-any-return]


def _strongest(powers: list[Any], xp: Any) -> Any:
    """The row with the largest sum."""
    stacked = xp.stack(powers)
    return stacked[int(stacked.sum(axis=1).argmax())]


@dataclass(frozen=True)
class _Job:
    """What all chunks of a batch share."""

    cubes: Float32
    plane: HalfPlane
    plan: SearchPlan
    scale: float
    log_prior: Float32
    coarse: CoarseCells
    slack: Slack
    most: int  # cells that may survive a level
    noise: float
    backend: Backend


def search_branch_and_bound(
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
    backend: Backend | None = None,
    bound: Bound | None = None,
) -> Poses:
    """Posterior over classes, rotations and shifts of every particle; see ``search_poses``.

    All classes are bounded together. With ``start`` there is nothing to bound, and the search is
    that of ``search_poses``, on the CPU.

    Parameters
    ----------
    backend
        Where ``batch``, ``cubes`` and ``plane`` are, and the result will be; the CPU when omitted.
    """
    if start is not None:
        return search_poses(
            batch, cubes, plane, plan, scale=scale, log_class_weights=log_class_weights, turn=turn,
            workers=workers, start=start, group=group,
        )  # fmt: skip
    backend = backend or cpu_backend()
    bound, xp = bound or Bound(), backend.xp
    plan, base = bound_plan(plan, bound), base_grid(plan.coarse_count, group)
    log_prior = backend.asarray(log_class_weights, np.float32)
    coarse = prepare_coarse(
        cubes, plane, plan, scale, log_prior, turn, base, xp=xp, extract=_extractor(backend)
    )
    job = _Job(
        cubes=cubes,
        plane=plane,
        plan=plan,
        scale=scale,
        log_prior=log_prior,
        coarse=coarse,
        slack=slack_of(cubes, plane, plan, scale=scale, coarse=coarse, backend=backend),
        most=_most(plan, bound, len(cubes)),
        noise=bound.noise,
        backend=backend,
    )
    b = len(batch)
    poses = replace(empty_poses(b, plan.keep, xp), cells=xp.zeros(b, np.int32))

    def work(rows: slice) -> None:
        _search_chunk(batch.span(rows), job, pose_rows(poses, rows))

    far = plane.count(plan.level_radii[-1])
    per_row, _ = bound_bytes(plan, classes=len(cubes), near=coarse.n, far=far, bound=bound)
    backend.run_chunks(work, b, bytes_per_row=per_row, workers=workers)
    return with_prior(poses, plan, len(base))


def coarse_scores(
    part: WeightedBatch, coarse: CoarseCells, xp: Any = np
) -> tuple[Float32, Float32]:
    """Re<A, P> (b, t, K r) of every coarse cell and 1/2 <C^2, |P|^2> (b, K r)."""
    even, odd, half_power = coarse_products(part, coarse)
    b, t, _ = even.shape
    shape = (b, t, -1, 1, coarse.pairs)
    even, odd = even.reshape(shape), odd.reshape(shape)
    scores = xp.concatenate([even + odd, even - odd], axis=3).reshape(b, t, -1)
    both = xp.repeat(half_power.reshape(b, -1, 1, coarse.pairs), 2, axis=2)
    return scores, both.reshape(b, -1)


def _search_chunk(part: WeightedBatch, job: _Job, out: Poses) -> None:
    """All levels of one chunk of particles; the last one lands in ``out``."""
    xp, plan, backend, slack = job.backend.xp, job.plan, job.backend, job.slack
    b, last = len(part), len(plan.level_radii) - 1
    scores, half_power = coarse_scores(part, job.coarse, xp)
    index, value = xp.zeros(b, np.int32), xp.zeros(b, np.float32)
    find_best, find_above = kernels_bound.best_cells, kernels_bound.cells_above
    if backend.on_device:
        find_best, find_above = partial(best_cells, xp=xp), partial(cells_above, xp=xp)
    prior = xp.repeat(job.coarse.log_prior, len(job.coarse.rotations))
    find_best(scores, half_power, prior, index, value)
    best = job.coarse.poses(index[:, None], value[:, None], xp.ones(b, np.int32), xp)
    floor = _reached(part, best, job, level=0)
    c2 = slack.shell_means(part.c2)
    amplitude = slack.amplitude(c2, floor, xp)
    # A pose that would hold less than this share of the best one's weight is not worth keeping.
    negligible = np.float32(-np.log1p(-plan.share) * plan.temperature)
    most = min(job.most, scores[0].size)
    index, value = xp.zeros((b, most), np.int32), xp.zeros((b, most), np.float32)
    count = xp.zeros(b, np.int32)
    allowance = slack.coarse_allowance(c2, amplitude, job.noise, xp)
    find_above(scores, allowance, floor - negligible, index, value, count)
    del scores
    cells = job.coarse.poses(index, value, count, xp)
    spent = cells.cells + 32 * (last + 1)
    for level in range(last):
        spent = spent + 32 * (cells.count + last - level)
        children = _split(part, _trimmed(cells, xp), job, level=level, keep=job.most)
        first = pose_columns(children, slice(0, 1), xp.ones(b, np.int32), xp)
        floor = xp.maximum(floor, _reached(part, first, job, level=level + 1))
        hidden = slack.allowance(c2, amplitude, job.noise, level + 1, xp)
        least = floor - hidden - negligible
        valid = xp.arange(children.score.shape[1])[None, :] < children.count[:, None]
        passed = ((children.score >= least[:, None]) & valid).sum(axis=1)  # scores fall
        cells = replace(children, count=xp.maximum(passed, 1).astype(np.int32))
    spent = spent + 32 * cells.count
    final = _split(part, _trimmed(cells, xp), job, level=last, keep=plan.keep)
    for name in ("rotation", "rotation_id", "shift", "shift_id", "class_index", "score"):
        column = getattr(final, name)
        getattr(out, name)[:, : column.shape[1]] = column
    out.count[:], out.evidence[:], out.cells[:] = final.count, final.evidence, spent


def _reached(part: WeightedBatch, best: Poses, job: _Job, *, level: int) -> Float32:
    """The true log-likelihood (b,) of a pose below the best cell, 32 cells a level away.

    The cell is followed down to the last level along its best child at the full radius: the centre
    itself, off the pose by half a cell, is worth much less and would discard little.
    """
    plan = job.plan
    for deeper in range(level, len(plan.level_radii)):
        child = empty_poses(len(part), 1, job.backend.xp)
        refine_level(
            part, best, job.cubes, job.plane, plan, job.scale, job.log_prior, child, job.backend,
            level=deeper, sharpness=0.0, share=1.0, radius=plan.level_radii[-1],
        )  # fmt: skip
        best = child
    return best.score[:, 0]


def _split(part: WeightedBatch, cells: Poses, job: _Job, *, level: int, keep: int) -> Poses:
    """The best ``keep`` children of ``cells``, best first; of the last level, its posterior."""
    plan, backend, xp = job.plan, job.backend, job.backend.xp
    last = level == len(plan.level_radii) - 1

    def children(parents: Poses, share: float) -> Poses:
        made = empty_poses(len(part), min(keep, 32 * parents.score.shape[1]), xp)
        refine_level(
            part, parents, job.cubes, job.plane, plan, job.scale, job.log_prior, made, backend,
            level=level, sharpness=plan.sharpness_at(level) if last else 0.0, share=share,
        )  # fmt: skip
        return made

    if not backend.on_device:
        return children(cells, plan.share if last else 1.0)
    joined = None  # the same bits however many other particles share the chunk
    for first in range(0, cells.score.shape[1], DEVICE_PARENTS):
        held = xp.clip(cells.count - first, 0, DEVICE_PARENTS).astype(np.int32)
        some = pose_columns(cells, slice(first, first + DEVICE_PARENTS), xp.maximum(held, 1), xp)
        made = children(some, 1.0)
        made.rotation_id[:] += 8 * first  # an id names one rotation within a launch only
        made.shift_id[:] += 4 * first
        made.count[:] = xp.where(held > 0, made.count, 0)
        joined = made if joined is None else join_cells(joined, made, keep, xp)
    assert joined is not None
    return cut_cells(joined, plan.sharpness_at(level), plan.share, xp) if last else joined


def _trimmed(cells: Poses, xp: Any) -> Poses:
    """Without the columns that no particle of the chunk needs; waits for a device."""
    return pose_columns(cells, slice(0, int(cells.count.max())), cells.count, xp)
