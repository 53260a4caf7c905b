"""The pose search on a device: the coarse pass on tensor cores, then the levels of ``search``.

Same plan, same posterior and same result as on the CPU; only the coarse pass is another, which
writes no scores (cuda/coarse.cu). Particles of both half-sets are searched by the same launches:
the first ``first`` of a batch against the first half of the cubes, the others against the second.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from reconstruct.backend import Backend
from reconstruct.fourier import HalfPlane, make_half_plane
from reconstruct.kernels_cuda import fragment_shape, maxima_shape
from reconstruct.search import (
    Poses,
    WeightedBatch,
    base_grid,
    empty_poses,
    pose_rows,
    refine_levels,
    shift_grid,
    with_prior,
)
from reconstruct.search_plan import SearchPlan

__all__ = ["posterior", "search_on_device"]


def search_on_device(
    batch: WeightedBatch,
    cubes: Any,
    first: int,
    plane: HalfPlane,
    plan: SearchPlan,
    *,
    scale: float,
    log_class_weights: npt.NDArray[np.float32],
    turn: npt.NDArray[np.float64],
    group: str,
    backend: Backend,
    start: Poses | None = None,
) -> Poses:
    """Posterior over classes, rotations and shifts of every particle.

    Parameters
    ----------
    cubes
        (K or 2 K, g, g, g, 4), of all particles or of the two half-sets (``device_maps``).
    first
        Particles of the first half-set, which come first; all of them where cubes are K.
    group
        Symmetry whose asymmetric unit is searched.

    The others are as in ``search.search_poses``.
    """
    b, xp = len(batch), backend.xp
    poses = empty_poses(b, plan.keep, xp)
    uploaded = backend.asarray(np.concatenate([turn.ravel(), log_class_weights]), np.float32)
    log_prior = uploaded[9:]
    base = _device_base(plan.coarse_count, group, backend)
    coarse, bytes_per_row = None, 1
    if start is None:
        coarse = _Coarse(cubes, plane, plan, scale, uploaded[:9], log_prior, base, backend)
        bytes_per_row = coarse.bytes_per_particle

    def work(rows: slice) -> None:
        part = batch.span(rows)
        own = min(max(first - rows.start, 0), len(part))
        if coarse is not None:
            cells = coarse.cells(part, own)
        else:
            assert start is not None
            cells = pose_rows(start, rows)
        target = pose_rows(poses, rows)
        refine_levels(
            part, cells, cubes, plane, plan, scale, log_prior, target, backend, {"first": own}
        )

    backend.run_chunks(work, b, bytes_per_row=bytes_per_row, workers=None)
    return with_prior(poses, plan, len(base))


class _Coarse:
    """What the coarse pass shares between all particles of a batch."""

    def __init__(
        self,
        cubes: Any,
        plane: HalfPlane,
        plan: SearchPlan,
        scale: float,
        turn: Any,
        log_prior: Any,
        base: Any,
        backend: Backend,
    ) -> None:
        xp = backend.xp
        n, r = plane.count(plan.coarse_radius), 2 * len(base)
        self._plan, self._log_prior, self._backend = plan, log_prior, backend
        self._rotations = xp.empty((r, 9), np.float32)
        self._slices = xp.empty((len(cubes), r, n, 2), np.float32)
        self._fragments = xp.empty(fragment_shape(len(cubes), r), np.uint32)
        self._shifts, self._phases, self._turns = _shift_tables(
            plan.shift_cells, plan.shift_step_pixels, plane.box, n, backend
        )
        backend.kernels.coarse_slices(
            cubes, base, turn, plane.kx, plane.ky, scale,
            self._rotations, self._slices, self._fragments,
        )  # fmt: skip
        self._shape = maxima_shape(1, len(self._shifts), len(log_prior), r)[1:]

    @property
    def bytes_per_particle(self) -> int:
        """Memory that the pass takes for each particle of a chunk."""
        return 4 * int(np.prod(self._shape))

    def cells(self, part: WeightedBatch, first: int) -> Poses:
        """The best cells of each particle."""
        xp, plan, kernels = self._backend.xp, self._plan, self._backend.kernels
        maxima = xp.empty((len(part), *self._shape), np.float32)
        kernels.coarse_maxima(
            part.a_re, part.a_im, part.c2, self._phases, self._fragments, first, maxima
        )
        cells = empty_poses(len(part), plan.keep, xp)
        kernels.choose_cells(
            maxima, self._log_prior, self._slices, self._rotations, self._turns, self._shifts,
            part.a_re, part.a_im, part.c2, first, plan.keep, plan.sharpness[0], plan.share,
            cells.rotation, cells.rotation_id, cells.shift, cells.shift_id, cells.class_index,
            cells.score, cells.count,
        )  # fmt: skip
        return cells


def posterior(
    poses: Poses, n_classes: int, similarity: float, backend: Backend
) -> tuple[Any, npt.NDArray[np.float32]]:
    """Posterior weights (b, keep) on the device, and a report (b, 13 + K) for the host.

    Class similarity is applied; see ``CudaKernels.posterior_weights`` for the report's columns.
    """
    xp = backend.xp
    weights = xp.empty(poses.score.shape, np.float32)
    report = xp.empty((len(poses.count), 13 + n_classes), np.float32)
    backend.kernels.posterior_weights(
        poses.score, poses.class_index, poses.count, poses.rotation, poses.shift, poses.evidence,
        similarity, weights, report,
    )  # fmt: skip
    return weights, backend.asnumpy(report)


@lru_cache(maxsize=8)
def _device_base(count: int, group: str, backend: Backend) -> Any:
    return backend.asarray(base_grid(count, group).reshape(-1, 9), np.float32)


@lru_cache(maxsize=8)
def _shift_tables(
    cells: int, step_pixels: float, box: int, n: int, backend: Backend
) -> tuple[Any, Any, Any]:
    """Shifts (t, 2) in pixels, their phases at ``n`` coefficients (t, n, 2), and as (n, t, 2)."""
    plane = make_half_plane(box, min(box // 2 - 1, 12))
    shifts = shift_grid(cells, step_pixels)
    angles = shifts @ np.stack([plane.kx[:n], plane.ky[:n]]).astype(np.float64) / box
    phases = np.exp(-2j * np.pi * angles).astype(np.complex64)
    table = phases.view(np.float32).reshape(len(shifts), n, 2)
    turns = table.transpose(1, 0, 2)
    return backend.asarray(shifts, np.float32), backend.asarray(table), backend.asarray(turns)
