"""Compiled CPU loops: slices out of a Fourier cube, pose refinement, slices into statistics.

Every kernel releases the GIL, works on a range of particles that no other call touches, and adds
in a fixed order, so results do not depend on how many threads share the work. Complex vectors
travel as two float32 planes, which LLVM vectorises. ``kernels_numpy`` has a plain twin of each.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from numba import uintp

from reconstruct.kernels_images import ctf_rows, normalise_images, shell_sums
from reconstruct.vector_loads import add_between, between

__all__ = [
    "ctf_rows",
    "extract_slices",
    "insert_particles",
    "normalise_images",
    "refine_poses",
    "select_cells",
    "shell_sums",
]

# Reassociation lets sums vectorise; infinities and NaNs keep their meaning.
_FASTMATH = {"reassoc", "contract", "nsz", "arcp"}
BLOCK = 64  # pairs of rotations that are looked at together
_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "cache": True,
    "fastmath": _FASTMATH,
    "error_model": "numpy",
}


@numba.njit(inline="always", **_OPTIONS)
def _slice(cube, edge, a, kx, ky, n, scale, place, fraction, out_re, out_im):  # type: ignore[no-untyped-def]
    """Trilinear central slice at A.T @ (kx, ky, 0) * scale of a flat cube (edge^3 * 2).

    Where the samples lie is found for several at a time first: ``place`` (n,) int32 and
    ``fraction`` (3, n) float32 are room for that.
    """
    centre = np.float32((edge - 1) // 2)
    row, sheet = np.int32(edge), np.int32(edge * edge)
    xx, xy = a[0] * scale, a[3] * scale
    yx, yy = a[1] * scale, a[4] * scale
    zx, zy = a[2] * scale, a[5] * scale
    fx, fy, fz = fraction[0], fraction[1], fraction[2]
    for j in range(n):
        x = kx[j] * xx + ky[j] * xy + centre
        y = kx[j] * yx + ky[j] * yy + centre
        z = kx[j] * zx + ky[j] * zy + centre
        ix, iy, iz = np.int32(x), np.int32(y), np.int32(z)  # positive: truncation is floor
        fx[j], fy[j], fz[j] = x - np.float32(ix), y - np.float32(iy), z - np.float32(iz)
        place[j] = np.int32(iz * sheet + iy * row + ix)
    for j in range(n):
        out_re[j], out_im[j] = between(
            cube, uintp(place[j]), uintp(row), uintp(sheet), fx[j], fy[j], fz[j]
        )


@numba.njit(**_OPTIONS)
def extract_slices(cube, rotations, kx, ky, scale, out):  # type: ignore[no-untyped-def]
    """Slices of one cube at many rotations.

    ``cube`` (g, g, g, 2), ``rotations`` (m, 9), ``out`` (m, 2, n) with real and imaginary planes.
    """
    n = out.shape[2]
    edge = cube.shape[0]
    flat = cube.reshape(-1)
    place, fraction = np.empty(n, np.int32), np.empty((3, n), np.float32)
    for m in range(rotations.shape[0]):
        _slice(flat, edge, rotations[m], kx, ky, n, scale, place, fraction, out[m, 0], out[m, 1])


@numba.njit(**_OPTIONS)
def _cut(values, order, count, keep, sharpness, share):  # type: ignore[no-untyped-def]
    """Number of leading entries, ``values`` sorted down by ``order``, that hold ``share``."""
    top = values[order[0]]
    total = 0.0
    for i in range(count):
        total += math.exp((values[order[i]] - top) * sharpness)
    running = 0.0
    for i in range(min(keep, count)):
        running += math.exp((values[order[i]] - top) * sharpness)
        if running >= share * total:
            return i + 1
    return min(keep, count)


@numba.njit(inline="always", **_OPTIONS)
def _push(v, i, size, keep, best_value, best_index):  # type: ignore[no-untyped-def]
    """Put ``v``, numbered ``i``, on a min-heap of ``keep`` values, of which there are ``size``.

    A full heap loses its least, so ``v`` must be above that. Returns how many there are now.
    """
    if size < keep:
        j = size
        size += 1
        while j > 0:
            up = (j - 1) >> 1
            if best_value[up] <= v:
                break
            best_value[j] = best_value[up]
            best_index[j] = best_index[up]
            j = up
    else:
        j = 0
        while True:
            child = 2 * j + 1
            if child >= size:
                break
            if child + 1 < size and best_value[child + 1] < best_value[child]:
                child += 1
            if best_value[child] >= v:
                break
            best_value[j] = best_value[child]
            best_index[j] = best_index[child]
            j = child
    best_value[j] = v
    best_index[j] = i
    return size


@numba.njit(**_OPTIONS)
def _top(values, count, keep, best_value, best_index):  # type: ignore[no-untyped-def]
    """Keep the ``keep`` largest of ``values[:count]``; returns how many."""
    size = 0
    floor = np.float32(-np.inf)
    for i in range(count):
        if size < keep or values[i] > floor:
            size = _push(values[i], i, size, keep, best_value, best_index)
            floor = best_value[0]
    return size


@numba.njit(**_OPTIONS)
def _top_pairs(even, odd, less, pairs, keep, best_value, best_index):  # type: ignore[no-untyped-def]
    """Keep the ``keep`` largest of ``even - less + odd`` and ``even - less - odd``.

    Nearly all are too small: blocks of such are passed over, several values at a time. Arguments
    are as in ``select_cells``, of one particle. Returns how many are kept.
    """
    moves, columns = even.shape
    size = 0
    floor = np.float32(-np.inf)
    for m in range(moves):
        for first in range(0, columns, pairs):
            span = slice(first, first + pairs)
            half, other, taken = even[m, span], odd[m, span], less[span]
            cell = 2 * (m * columns + first)
            for start in range(0, pairs, BLOCK):
                stop = min(start + BLOCK, pairs)
                if size == keep and stop - start == BLOCK:
                    above = np.float32(0)
                    for j in range(BLOCK):
                        i = uintp(start + j)
                        best = half[i] - taken[i] + abs(other[i])
                        above += np.float32(1) if best > floor else np.float32(0)
                    if above == 0:
                        continue
                for j in range(start, stop):
                    middle, apart = half[uintp(j)] - taken[uintp(j)], other[uintp(j)]
                    if size < keep or middle + apart > floor:
                        v = middle + apart
                        size = _push(v, cell + j, size, keep, best_value, best_index)
                        floor = best_value[0]
                    if size < keep or middle - apart > floor:
                        v = middle - apart
                        size = _push(v, cell + pairs + j, size, keep, best_value, best_index)
                        floor = best_value[0]
    return size


@numba.njit(**_OPTIONS)
def select_cells(  # type: ignore[no-untyped-def]
    even, odd, less, pairs, keep, sharpness, share, index, value, count
):
    """Keep the best coarse cells of each particle.

    Parameters
    ----------
    even, odd
        (b, t, K * pairs) float32, what the real and the imaginary parts add to Re<A, P>: a
        rotation has their sum, its pair, turned by 180 degrees in the image, their difference.
    less
        (b, K * pairs) float32, 1/2 <C^2, |P|^2> less the log weight of the class.
    pairs
        Pairs of rotations of a class.
    keep, sharpness, share
        Cap, inverse temperature and share of the tempered posterior that is kept.
    index, value, count
        Output: (b, keep) cells, numbered by shift, class, half of the pair and pair, their
        log-likelihood, and (b,) how many.
    """
    best_value = np.empty(keep, np.float32)
    best_index = np.empty(keep, np.int32)
    for i in range(len(even)):
        size = _top_pairs(even[i], odd[i], less[i], pairs, keep, best_value, best_index)
        order = np.argsort(-best_value[:size])
        kept = _cut(best_value, order, size, keep, sharpness, share)
        for j in range(kept):
            index[i, j] = best_index[order[j]]
            value[i, j] = best_value[order[j]]
        count[i] = kept


@numba.njit(inline="always", **_OPTIONS)
def _phase_tables(sx, sy, box, ex_re, ex_im, ey_re, ey_im):  # type: ignore[no-untyped-def]
    """exp(-2 pi i k s / box) for k = 0..len-1 along x and y."""
    for k in range(ex_re.shape[0]):
        angle = -2.0 * math.pi * k * sx / box
        ex_re[k] = math.cos(angle)
        ex_im[k] = math.sin(angle)
        angle = -2.0 * math.pi * k * sy / box
        ey_re[k] = math.cos(angle)
        ey_im[k] = math.sin(angle)


@numba.njit(inline="always", **_OPTIONS)
def _shift(re, im, ikx, iky, n, tables, out_re, out_im):  # type: ignore[no-untyped-def]
    """Multiply a spectrum by the phases of a translation."""
    ex_re, ex_im, ey_re, ey_im = tables
    for j in range(n):
        ky = iky[j]
        sign = np.float32(1)
        if ky < 0:
            ky = -ky
            sign = np.float32(-1)
        yr, yi = ey_re[ky], sign * ey_im[ky]
        xr, xi = ex_re[ikx[j]], ex_im[ikx[j]]
        pr = xr * yr - xi * yi
        pi = xr * yi + xi * yr
        out_re[j] = re[j] * pr - im[j] * pi
        out_im[j] = re[j] * pi + im[j] * pr


@numba.njit(**_OPTIONS)
def refine_poses(  # type: ignore[no-untyped-def]
    cubes, kx, ky, ikx, iky, scale, box,
    a_re, a_im, c2, n,
    offsets, shift_step, log_prior,
    cell_rotation, cell_rotation_id, cell_shift, cell_shift_id, cell_class, cell_count,
    keep, sharpness, share,
    out_rotation, out_rotation_id, out_shift, out_shift_id, out_class, out_score, out_count,
    out_evidence,
):  # fmt: skip
    """Split every cell of each particle into 8 rotations x 4 shifts, score them, keep the best.

    Parameters
    ----------
    cubes
        (K, g, g, g, 2) float32 Fourier cubes of the class volumes.
    a_re, a_im, c2
        (b, >= n) float32: C X and C^2, both divided by the noise variance; only the first ``n``
        coefficients are used.
    offsets
        (8, 9) float32 rotations from a cell's centre to its children's.
    shift_step
        Edge of the parents' shift cells in pixels; children sit at +-step/4.
    log_prior
        (K,) float32 log class weights.
    cell_*
        Parents, (b, p, ...) with ``cell_count`` (b,) of them valid. Cells with one
        ``rotation_id`` (unique over classes) share their slices, cells with one ``shift_id``
        their shifted images.
    out_*
        Children that were kept, best first; ``out_evidence`` (b,) is the log of the sum over
        all children of exp(score).
    """
    b = cell_count.shape[0]
    edge = cubes.shape[1]
    capacity = cell_rotation.shape[1]
    shifted = np.empty((capacity * 4, 2, n), np.float32)
    child_shift = np.empty((capacity * 4, 2), np.float32)
    shift_slot = np.empty(capacity, np.int32)
    unique_shift = np.empty(capacity, np.int32)
    done = np.empty(capacity, np.bool_)
    p_re = np.empty(n, np.float32)
    p_im = np.empty(n, np.float32)
    place, fraction = np.empty(n, np.int32), np.empty((3, n), np.float32)
    child = np.empty(9, np.float32)
    scores = np.empty(capacity * 32, np.float32)
    child_rotation = np.empty((capacity * 8, 9), np.float32)
    child_cell = np.empty(capacity * 32, np.int32)
    child_turn = np.empty(capacity * 32, np.int32)
    child_move = np.empty(capacity * 32, np.int32)
    best_value = np.empty(keep, np.float32)
    best_index = np.empty(keep, np.int32)
    reach = int(kx[n - 1] * kx[n - 1] + ky[n - 1] * ky[n - 1])
    length = int(math.sqrt(reach)) + 2
    ex_re = np.empty((2, length), np.float32)
    ex_im = np.empty((2, length), np.float32)
    ey_re = np.empty((2, length), np.float32)
    ey_im = np.empty((2, length), np.float32)
    away = (-shift_step / 4.0, shift_step / 4.0)

    for i in range(b):
        cells = cell_count[i]
        # shifted images, once per distinct parent shift
        shifts = 0
        for c in range(cells):
            slot = -1
            for s in range(shifts):
                if unique_shift[s] == cell_shift_id[i, c]:
                    slot = s
                    break
            if slot < 0:
                slot = shifts
                unique_shift[slot] = cell_shift_id[i, c]
                shifts += 1
                for side in range(2):
                    sx, sy = cell_shift[i, c, 0] + away[side], cell_shift[i, c, 1] + away[side]
                    _phase_tables(sx, sy, box, ex_re[side], ex_im[side], ey_re[side], ey_im[side])
                for m in range(4):
                    x, y = m & 1, m >> 1
                    child_shift[slot * 4 + m, 0] = cell_shift[i, c, 0] + away[x]
                    child_shift[slot * 4 + m, 1] = cell_shift[i, c, 1] + away[y]
                    _shift(
                        a_re[i], a_im[i], ikx, iky, n, (ex_re[x], ex_im[x], ey_re[y], ey_im[y]),
                        shifted[slot * 4 + m, 0], shifted[slot * 4 + m, 1],
                    )  # fmt: skip
            shift_slot[c] = slot
            done[c] = False
        # slices, once per distinct parent rotation
        count = 0
        turns = 0
        for c in range(cells):
            if done[c]:
                continue
            k = cell_class[i, c]
            for o in range(8):
                for row in range(3):
                    for col in range(3):
                        child[3 * row + col] = (
                            offsets[o, 3 * row] * cell_rotation[i, c, col]
                            + offsets[o, 3 * row + 1] * cell_rotation[i, c, 3 + col]
                            + offsets[o, 3 * row + 2] * cell_rotation[i, c, 6 + col]
                        )
                child_rotation[turns] = child
                _slice(
                    cubes[k].reshape(-1), edge, child, kx, ky, n, scale, place, fraction, p_re, p_im
                )
                power = np.float32(0)
                for j in range(n):
                    power += c2[i, j] * (p_re[j] * p_re[j] + p_im[j] * p_im[j])
                base = log_prior[k] - np.float32(0.5) * power
                for d in range(c, cells):
                    if cell_rotation_id[i, d] != cell_rotation_id[i, c]:
                        continue
                    done[d] = True
                    for m in range(4):
                        slot = shift_slot[d] * 4 + m
                        dot = np.float32(0)
                        for j in range(n):
                            dot += shifted[slot, 0, j] * p_re[j] + shifted[slot, 1, j] * p_im[j]
                        scores[count] = dot + base
                        child_cell[count] = d
                        child_turn[count] = turns
                        child_move[count] = slot
                        count += 1
                turns += 1
        size = _top(scores, count, keep, best_value, best_index)
        order = np.argsort(-best_value[:size])
        top = best_value[order[0]]
        total = 0.0
        for c in range(count):
            total += math.exp(scores[c] - top)
        out_evidence[i] = top + math.log(total)
        kept = _cut(best_value, order, size, keep, sharpness, share)
        for c in range(kept):
            child_index = best_index[order[c]]
            turn, move = child_turn[child_index], child_move[child_index]
            out_rotation[i, c] = child_rotation[turn]
            out_rotation_id[i, c] = turn
            out_shift[i, c, 0] = child_shift[move, 0]
            out_shift[i, c, 1] = child_shift[move, 1]
            out_shift_id[i, c] = move
            out_class[i, c] = cell_class[i, child_cell[child_index]]
            out_score[i, c] = best_value[order[c]]
        out_count[i] = kept


@numba.njit(**_OPTIONS)
def insert_particles(  # type: ignore[no-untyped-def]
    statistics, members, kx, ky, ikx, iky, scale, box,
    a_re, a_im, c2, n,
    cell_rotation, cell_rotation_id, cell_shift, cell_class, cell_weight, cell_count,
):  # fmt: skip
    """Back-project the posterior-weighted particles ``members`` into one half-set's statistics.

    ``statistics`` (K, g, g, r + 2, 3) float32 holds Re N, Im N and D on a centred half cube whose
    x axis starts at 0; the plane x = 0 is completed by ``update.symmetric_plane``.
    """
    capacity = cell_rotation.shape[1]
    im_re = np.empty(n, np.float32)
    im_im = np.empty(n, np.float32)
    t_re = np.empty(n, np.float32)
    t_im = np.empty(n, np.float32)
    done = np.empty(capacity, np.bool_)
    reach = int(kx[n - 1] * kx[n - 1] + ky[n - 1] * ky[n - 1])
    length = int(math.sqrt(reach)) + 2
    ex_re = np.empty(length, np.float32)
    ex_im = np.empty(length, np.float32)
    ey_re = np.empty(length, np.float32)
    ey_im = np.empty(length, np.float32)
    centre = np.float32((statistics.shape[1] - 1) // 2)
    row = np.int32(statistics.shape[3])
    sheet = np.int32(statistics.shape[3] * statistics.shape[1])
    place, fraction = np.empty(n, np.int32), np.empty((3, n), np.float32)
    fx, fy, fz = fraction[0], fraction[1], fraction[2]
    for member in range(members.shape[0]):
        i = members[member]
        cells = cell_count[i]
        for c in range(cells):
            done[c] = False
        for c in range(cells):
            if done[c]:
                continue
            for j in range(n):
                im_re[j] = np.float32(0)
                im_im[j] = np.float32(0)
            mass = np.float32(0)
            for d in range(c, cells):
                if cell_rotation_id[i, d] != cell_rotation_id[i, c]:
                    continue
                done[d] = True
                w = cell_weight[i, d]
                if w <= 0:
                    continue
                mass += w
                sx, sy = cell_shift[i, d, 0], cell_shift[i, d, 1]
                _phase_tables(sx, sy, box, ex_re, ex_im, ey_re, ey_im)
                _shift(a_re[i], a_im[i], ikx, iky, n, (ex_re, ex_im, ey_re, ey_im), t_re, t_im)
                for j in range(n):
                    im_re[j] += w * t_re[j]
                    im_im[j] += w * t_im[j]
            if mass <= 0:
                continue
            a = cell_rotation[i, c]
            xx, xy = a[0] * scale, a[3] * scale
            yx, yy = a[1] * scale, a[4] * scale
            zx, zy = a[2] * scale, a[5] * scale
            for j in range(n):
                x = kx[j] * xx + ky[j] * xy
                y = kx[j] * yx + ky[j] * yy
                z = kx[j] * zx + ky[j] * zy
                sign = np.float32(1) if x >= 0 else np.float32(-1)  # of the Friedel mate
                x, y, z = sign * x, sign * y + centre, sign * z + centre
                im_im[j] *= sign
                ix, iy, iz = np.int32(x), np.int32(y), np.int32(z)
                fx[j], fy[j], fz[j] = x - np.float32(ix), y - np.float32(iy), z - np.float32(iz)
                place[j] = np.int32(iz * sheet + iy * row + ix)
            target = statistics[cell_class[i, c]].reshape(-1)
            for j in range(n):
                add_between(
                    target, uintp(place[j]), uintp(row), uintp(sheet),
                    im_re[j], im_im[j], mass * c2[i, j], fx[j], fy[j], fz[j],
                )  # fmt: skip
