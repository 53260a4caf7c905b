"""The array operations of the branch-and-bound search that a device has no kernel of its own for.

Promise: plain operations of the arrays' own library, right before fast; they sort whole rows.
``kernels_bound`` and ``kernels_cpu`` have compiled CPU loops for ``best_cells``, ``cells_above``
and ``extract_slices``, with the same arguments and results.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from reconstruct.search import Poses

__all__ = [
    "best_cells",
    "cells_above",
    "cut_cells",
    "extract_slices",
    "join_cells",
    "pose_columns",
]

Float32 = npt.NDArray[np.float32]
Int32 = npt.NDArray[np.int32]


SLICES_AT_ONCE = 256  # bounds the memory of their eight neighbours


def extract_slices(
    cube: Float32,
    rotations: Float32,
    kx: Float32,
    ky: Float32,
    scale: float,
    out: Float32,
    *,
    xp: Any = np,
) -> None:
    """Trilinear slices of a cube (g, g, g, 2 or more) at rotations (m, 9) into out (m, 2, n)."""
    g = len(cube)
    flat = cube[..., :2].reshape(-1, 2)  # a device keeps the neighbours along x behind each value
    for begin in range(0, len(rotations), SLICES_AT_ONCE):
        a = rotations[begin : begin + SLICES_AT_ONCE, :, None]
        position = [(kx * a[:, i] + ky * a[:, 3 + i]) * scale + (g - 1) // 2 for i in range(3)]
        low = [xp.floor(p).astype(np.int64) for p in position]
        part = [p - at for p, at in zip(position, low, strict=True)]
        total: Any = 0.0
        for corner in range(8):
            dx, dy, dz = corner & 1, corner >> 1 & 1, corner >> 2
            x, y, z = (f if up else 1 - f for f, up in zip(part, (dx, dy, dz), strict=True))
            place = ((low[2] + dz) * g + low[1] + dy) * g + low[0] + dx
            total = total + (x * y * z).astype(np.float32)[..., None] * flat[place]
        out[begin : begin + SLICES_AT_ONCE, 0] = total[..., 0]
        out[begin : begin + SLICES_AT_ONCE, 1] = total[..., 1]


def best_cells(
    scores: Float32,
    half_power: Float32,
    log_prior: Float32,
    index: Int32,
    value: Float32,
    *,
    xp: Any = np,
) -> None:
    """Turn ``scores`` (b, t, r) into log-likelihoods in place and find the best of each row."""
    scores += (log_prior - half_power)[:, None]
    flat = scores.reshape(len(scores), -1)
    index[:] = xp.argmax(flat, axis=1)
    value[:] = xp.max(flat, axis=1)


def cells_above(
    scores: Float32,
    allowance: Float32,
    floor: Float32,
    index: Int32,
    value: Float32,
    count: Int32,
    *,
    xp: Any = np,
) -> None:
    """Cells of ``scores`` (b, t, r) whose bound reaches ``floor`` (b,), best scores first.

    See ``kernels_bound.cells_above``; places beyond ``count`` hold cells that did not pass.
    """
    most = index.shape[1]
    flat = scores.reshape(len(scores), -1)
    passed = (scores + allowance[:, None]).reshape(flat.shape) >= floor[:, None]
    # those that did not pass come last, among themselves in the order of their scores
    lowered = xp.where(passed, flat, flat - np.float32(2) * (flat.max() - flat.min() + 1))
    order = xp.argsort(-lowered, axis=1)[:, :most]
    index[:] = order
    value[:] = xp.take_along_axis(flat, order, axis=1)
    count[:] = xp.clip(passed.sum(axis=1), 1, most)


def join_cells(first: Poses, second: Poses, keep: int, xp: Any = np) -> Poses:
    """The best ``keep`` cells of two disjoint sets of each particle, best first."""

    def both(name: str) -> Any:
        return xp.concatenate([getattr(first, name), getattr(second, name)], axis=1)

    def valid(poses: Poses) -> Any:
        return xp.arange(poses.score.shape[1])[None, :] < poses.count[:, None]

    lowest = np.float32(-np.inf)
    known = xp.concatenate([valid(first), valid(second)], axis=1)
    order = xp.argsort(-xp.where(known, both("score"), lowest), axis=1)[:, :keep]
    columns: dict[str, Any] = {
        name: xp.take_along_axis(both(name), order, axis=1)
        for name in ("rotation_id", "shift_id", "class_index", "score")
    }
    for name in ("rotation", "shift"):
        columns[name] = xp.take_along_axis(both(name), order[:, :, None], axis=1)
    evidence = [xp.where(part.count > 0, part.evidence, lowest) for part in (first, second)]
    count = xp.minimum(first.count + second.count, order.shape[1]).astype(np.int32)
    return replace(first, **columns, count=count, evidence=xp.logaddexp(*evidence))


def cut_cells(poses: Poses, sharpness: float, share: float, xp: Any = np) -> Poses:
    """The cells that hold ``share`` of the tempered posterior, as the kernels cut it."""
    valid = xp.arange(poses.score.shape[1])[None, :] < poses.count[:, None]
    above = (poses.score - poses.score[:, :1]).astype(np.float64) * sharpness
    mass = xp.cumsum(xp.where(valid, xp.exp(above), 0.0), axis=1)
    count = (mass < share * mass[:, -1:]).sum(axis=1) + 1
    return replace(poses, count=xp.minimum(count, poses.count).astype(np.int32))


def pose_columns(poses: Poses, columns: slice, count: Int32, xp: Any = np) -> Poses:
    """Some of the cells of each particle, ``count`` (b,) of them valid."""
    picked = {
        name: xp.ascontiguousarray(column[:, columns])
        for name, column in vars(poses).items()
        if name != "levels" and column.ndim > 1
    }
    return replace(poses, **picked, count=count)
