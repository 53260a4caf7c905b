"""Plain NumPy twins of the kernels: what each must compute, in float64 and without cleverness.

Same names and arguments as ``kernels_cpu`` and ``kernels_maps``, and as ``kernels_cuda`` but for
whole maps, whose twin is ``host_maps``; only tests and rehearsals call them. Cells with equal
scores keep the order of their index.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from reconstruct.kernels_cuda import SPAN_COLUMNS

__all__ = [
    "choose_cells",
    "coarse_maxima",
    "compare_shells",
    "ctf_rows",
    "extract_slices",
    "insert_halves",
    "insert_particles",
    "normalise_images",
    "posterior_weights",
    "refine_poses",
    "sample_cube",
    "select_cells",
    "shell_sums",
    "weigh_rows",
    "wiener_quotient",
]

Float = npt.NDArray[np.floating]
Int = npt.NDArray[np.integer]
Complex = npt.NDArray[np.complexfloating]

_CORNERS = [(z, y, x) for z in (0, 1) for y in (0, 1) for x in (0, 1)]


def _slice_positions(rotation: Float, kx: Float, ky: Float, scale: float) -> Float:
    """Grid positions (n, 3) in x, y, z of a central slice, from the centre."""
    a = np.asarray(rotation, np.float64).reshape(3, 3)
    plane = np.stack([kx, ky, np.zeros_like(kx)], axis=1).astype(np.float64) * scale
    return plane @ a  # rows of A.T @ k


def _slice(cube: Float, rotation: Float, kx: Float, ky: Float, scale: float) -> Complex:
    """Trilinear central slice (n,) of a cube (g, g, g, 2)."""
    values = cube[..., 0].astype(np.float64) + 1j * cube[..., 1]
    position = _slice_positions(rotation, kx, ky, scale) + (len(cube) - 1) // 2
    low = np.floor(position).astype(int)
    part = position - low
    total = np.zeros(len(kx), np.complex128)
    for z, y, x in _CORNERS:
        weight = np.prod(np.where([x, y, z], part, 1 - part), axis=1)
        total += weight * values[low[:, 2] + z, low[:, 1] + y, low[:, 0] + x]
    return total


def _complex(pairs: Float) -> Complex:
    """Pairs (..., 2) of real and imaginary parts."""
    values: Complex = pairs[..., 0] + 1j * pairs[..., 1].astype(np.float64)
    return values


def _phases(shift: Float, kx: Float, ky: Float, box: float) -> Complex:
    turns = (kx.astype(np.float64) * shift[0] + ky * float(shift[1])) / box
    phases: Complex = np.exp(-2j * np.pi * turns)
    return phases


def extract_slices(
    cube: Float, rotations: Float, kx: Float, ky: Float, scale: float, out: Float
) -> None:
    """Slices of one cube (g, g, g, 2) at rotations (m, 9) into out (m, 2, n)."""
    for row, rotation in zip(out, rotations, strict=True):
        values = _slice(cube, rotation, kx, ky, scale)
        row[0], row[1] = values.real, values.imag


def coarse_maxima(
    a_re: Float, a_im: Float, c2: Float, phases: Float, slices: Float, first: int, maxima: Float
) -> None:
    """Best score over units of 16 shifts: maxima (b, units, K, at least r), see ``_places``.

    ``slices`` (sets K, r, n, 2) here, where a device takes its fragments; phases (t, n, 2).
    """
    classes, r, n = maxima.shape[2], *slices.shape[1:3]
    turns, references = _complex(phases), _complex(slices)
    maxima[:] = -np.inf
    for i in range(len(maxima)):
        own = references[classes:] if i >= first else references[:classes]
        shifted = (a_re[i, :n] + 1j * a_im[i, :n]) * turns
        scores = np.einsum("tn,krn->tkr", shifted, own.conj()).real
        scores -= 0.5 * np.einsum("n,krn->kr", c2[i, :n].astype(np.float64), np.abs(own) ** 2)
        for unit in range(maxima.shape[1]):
            best = scores[16 * unit : 16 * unit + 16].max(axis=0)
            maxima[i, unit][:, _places(r, maxima.shape[3])] = best


def _places(r: int, padded: int) -> Int:
    """Where maxima has ``r`` rotations: each half of them begins a half of ``padded`` places."""
    return np.concatenate([np.arange(r // 2), padded // 2 + np.arange(r // 2)])


def choose_cells(
    maxima: Float, log_prior: Float, slices: Float, rotations: Float, turns: Float, shifts: Float,
    a_re: Float, a_im: Float, c2: Float, first: int, keep: int, sharpness: float, share: float,
    out_rotation: Float, out_rotation_id: Int, out_shift: Float, out_shift_id: Int,
    out_class: Int, out_score: Float, out_count: Int,
) -> None:  # fmt: skip
    """Score every shift of the ``keep`` best rotations of any class; keep the best cells."""
    classes, r, n = maxima.shape[2], *slices.shape[1:3]
    moves, references = _complex(turns).T, _complex(slices)
    for i, unit_maxima in enumerate(maxima):
        best = unit_maxima.max(axis=0)[:, _places(r, maxima.shape[3])]
        best = (best + log_prior[:, None]).ravel()
        chosen = np.argsort(-best, kind="stable")[:keep]
        own = (references[classes:] if i >= first else references[:classes]).reshape(-1, n)[chosen]
        shifted = (a_re[i, :n] + 1j * a_im[i, :n].astype(np.float64)) * moves
        power = 0.5 * np.abs(own) ** 2 @ c2[i, :n]
        scores = np.full((len(moves), classes * r), -np.inf)
        scores[:, chosen] = (shifted @ own.conj().T).real - power + log_prior[chosen // r]
        kept = _kept(scores.ravel().astype(np.float32), keep, sharpness, share)
        shift_id, rotation_id = np.divmod(kept, classes * r)
        count = len(kept)
        out_count[i] = count
        out_rotation[i, :count] = rotations[rotation_id % r]
        out_rotation_id[i, :count], out_shift_id[i, :count] = rotation_id, shift_id
        out_shift[i, :count], out_class[i, :count] = shifts[shift_id], rotation_id // r
        out_score[i, :count] = scores.ravel()[kept]


def _kept(scores: Float, keep: int, sharpness: float, share: float) -> Int:
    """Indices of the best ``keep`` scores, cut at ``share`` of their tempered mass."""
    order = np.argsort(-scores, kind="stable")[:keep]
    best = scores[order].astype(np.float64)
    mass = np.cumsum(np.exp((best - best[0]) * sharpness))
    return order[: int(np.searchsorted(mass, share * mass[-1])) + 1]


def select_cells(
    even: Float,
    odd: Float,
    less: Float,
    pairs: int,
    keep: int,
    sharpness: float,
    share: float,
    index: Int,
    value: Float,
    count: Int,
) -> None:
    """See ``kernels_cpu``: the best cells of even + odd - less and even - odd - less."""
    b, t, _ = even.shape
    split = (b, t, -1, 1, pairs)
    middle, apart = (even - less[:, None]).reshape(split), odd.reshape(split)
    total = np.concatenate([middle + apart, middle - apart], axis=3).reshape(b, -1)
    for i, row in enumerate(total):
        kept = _kept(row, keep, sharpness, share)
        count[i] = len(kept)
        index[i, : len(kept)] = kept
        value[i, : len(kept)] = row[kept]


def refine_poses(
    cubes: Float, kx: Float, ky: Float, ikx: Int, iky: Int, scale: float, box: float,
    a_re: Float, a_im: Float, c2: Float, n: int,
    offsets: Float, shift_step: float, log_prior: Float,
    cell_rotation: Float, cell_rotation_id: Int, cell_shift: Float, cell_shift_id: Int,
    cell_class: Int, cell_count: Int,
    keep: int, sharpness: float, share: float,
    out_rotation: Float, out_rotation_id: Int, out_shift: Float, out_shift_id: Int,
    out_class: Int, out_score: Float, out_count: Int, out_evidence: Float,
    first: int | None = None,
) -> None:  # fmt: skip
    """Split every cell of each particle into 8 rotations x 4 shifts, score them, keep the best."""
    kx, ky = kx[:n], ky[:n]
    moves = [(x, y) for y in (-0.25, 0.25) for x in (-0.25, 0.25)]
    for i in range(len(cell_count)):
        cells = int(cell_count[i])
        spectrum = a_re[i, :n] + 1j * a_im[i, :n].astype(np.float64)
        turned = [
            np.einsum("oij,jk->oik", offsets.reshape(8, 3, 3), cell_rotation[i, c].reshape(3, 3))
            for c in range(cells)
        ]
        moved = [cell_shift[i, c] + np.array(moves) * shift_step for c in range(cells)]
        scores = np.empty((cells, 8, 4))
        for c in range(cells):
            k = int(cell_class[i, c])
            second = len(log_prior) if first is not None and i >= first else 0
            for o in range(8):
                values = _slice(cubes[second + k], turned[c][o], kx, ky, scale)
                power = 0.5 * np.sum(c2[i, :n] * np.abs(values) ** 2)
                for m in range(4):
                    shifted = spectrum * _phases(moved[c][m], kx, ky, box)
                    scores[c, o, m] = (shifted * values.conj()).real.sum() - power + log_prior[k]
        flat = scores.ravel()
        kept = _kept(flat, keep, sharpness, share)
        groups = _first_seen(cell_rotation_id[i, :cells])
        slots = _first_seen(cell_shift_id[i, :cells])
        for place, child in enumerate(kept):
            c, o, m = np.unravel_index(child, scores.shape)
            out_rotation[i, place] = turned[c][o].ravel()
            out_rotation_id[i, place] = 8 * groups[c] + o
            out_shift[i, place] = moved[c][m]
            out_shift_id[i, place] = 4 * slots[c] + m
            out_class[i, place] = cell_class[i, c]
            out_score[i, place] = flat[child]
        out_count[i] = len(kept)
        out_evidence[i] = flat.max() + np.log(np.exp(flat - flat.max()).sum())


def posterior_weights(
    score: Float, class_index: Int, count: Int, rotation: Float, shift: Float, evidence: Float,
    similarity: float, weights: Float, report: Float,
) -> None:  # fmt: skip
    """Posterior weights of cells (b, keep), blurred between classes, and a report (b, 13 + K)."""
    classes = report.shape[1] - 13
    weights[:] = 0
    for i, cells in enumerate(count):
        own = np.exp(score[i, :cells].astype(np.float64) - score[i, 0])
        own /= own.sum()
        of_class = class_index[i, :cells]
        mass = np.bincount(of_class, own, classes)
        kept = mass > 0
        wanted = np.where(kept, (1 - similarity) * mass + similarity / kept.sum(), 0)
        if classes == 1:
            wanted = mass
        weights[i, :cells] = own * (wanted / np.where(kept, mass, 1))[of_class]
        report[i, :9], report[i, 9:11] = rotation[i, 0], shift[i, 0]
        report[i, 11], report[i, 12], report[i, 13:] = weights[i, 0], evidence[i], wanted


def _first_seen(ids: Int) -> list[int]:
    """Number of each id in the order in which the ids first appear."""
    known: dict[int, int] = {}
    return [known.setdefault(int(one), len(known)) for one in ids]


def insert_particles(
    statistics: Float, members: Int, kx: Float, ky: Float, ikx: Int, iky: Int,
    scale: float, box: float, a_re: Float, a_im: Float, c2: Float, n: int,
    cell_rotation: Float, cell_rotation_id: Int, cell_shift: Float, cell_class: Int,
    cell_weight: Float, cell_count: Int,
) -> None:  # fmt: skip
    """Add weighted slices to statistics (K, g, g, r + 2, 3): Re N, Im N, D."""
    kx, ky = kx[:n], ky[:n]
    total = np.zeros(statistics.shape)
    centre = (statistics.shape[1] - 1) // 2
    for i in members:
        spectrum = a_re[i, :n] + 1j * a_im[i, :n].astype(np.float64)
        for c in range(int(cell_count[i])):
            weight = float(cell_weight[i, c])
            values = weight * spectrum * _phases(cell_shift[i, c], kx, ky, box)
            position = _slice_positions(cell_rotation[i, c], kx, ky, scale)
            mirrored = position[:, 0] < 0
            position[mirrored] *= -1
            values = np.where(mirrored, values.conj(), values)
            position[:, 1:] += centre
            low = np.floor(position).astype(int)
            part = position - low
            rows = np.stack([values.real, values.imag, weight * c2[i, :n]], axis=1)
            for z, y, x in _CORNERS:
                share = np.prod(np.where([x, y, z], part, 1 - part), axis=1)
                place = (low[:, 2] + z, low[:, 1] + y, low[:, 0] + x)
                np.add.at(total[cell_class[i, c]], place, share[:, None] * rows)
    statistics += total.astype(statistics.dtype)


def insert_halves(
    statistics: Float, decay: Float, kx: Float, ky: Float, ikx: Int, iky: Int,
    scale: float, box: float, n: int, *spans: Any,
) -> None:  # fmt: skip
    """Let statistics (2, K, ...) fade and add the particles of each half-set to theirs."""
    statistics *= decay[:, None, None, None, None]
    for i in range(0, len(spans), SPAN_COLUMNS):
        first, a_re, a_im, c2, *cells = spans[i : i + SPAN_COLUMNS]
        for h, members in enumerate((np.arange(first), np.arange(first, len(c2)))):
            insert_particles(
                statistics[h], members, kx, ky, ikx, iky, scale, box, a_re, a_im, c2, n, *cells
            )


def sample_cube(cube: Complex, points: Float, out: Complex) -> None:
    """See ``kernels_maps``."""
    p = points + (cube.shape[0] - 1) // 2
    base = np.floor(p).astype(np.intp)
    f = p - base
    out[:] = 0
    for dz, dy, dx in _CORNERS:
        weight = np.where((dx, dy, dz), f, 1 - f).prod(axis=1)
        out += weight * cube[base[:, 2] + dz, base[:, 1] + dy, base[:, 0] + dx]


def ctf_rows(
    kx: Float, ky: Float, step: float, parameters: Float,
    wavelength: Float, cs_angstrom: Float, amplitude: Float, out: Float,
) -> None:  # fmt: skip
    """CTF of each particle (b, n); see ``kernels_cpu.ctf_rows`` for the arguments."""
    u, v, angle, phase = (column[:, None] for column in parameters.T)
    wavelength, cs, w = (column[:, None] for column in (wavelength, cs_angstrom, amplitude))
    x, y = kx.astype(np.float64) * step, ky.astype(np.float64) * step
    squared = x * x + y * y
    defocus = 0.5 * (u + v) + 0.5 * (u - v) * np.cos(2 * (np.arctan2(y, x) - angle))
    chi = (
        0.5 * np.pi * cs * wavelength**3 * squared**2
        - np.pi * wavelength * defocus * squared
        - phase
        - np.arctan(w / np.sqrt(1 - w * w))
    )
    out[:] = -np.sin(chi)


def weigh_rows(
    segments: list[Complex], segment_bits: int, width: int, places: Int,
    parameters: Float, group: Int, variance: Float, kx: Float, ky: Float, step: float,
    a_re: Float, a_im: Float, c2: Float,
) -> None:  # fmt: skip
    """``weigh`` of stored particles; ``segments`` are arrays here, not addresses."""
    n, size = a_re.shape[1], 1 << segment_bits
    spectra = np.stack([segments[place >> segment_bits][place % size] for place in places[0]])
    parameters, group = parameters[places[1]], group[places[1]]
    ctf = np.empty((len(group), n))
    optics = parameters[:, 4], parameters[:, 5], parameters[:, 6]
    ctf_rows(kx[:n], ky[:n], step, parameters[:, :4], *optics, ctf)
    weighted = ctf / variance[group]
    a_re[:], a_im[:] = spectra.real[:, :n] * weighted, spectra.imag[:, :n] * weighted
    c2[:] = ctf * weighted


def shell_sums(a_re: Float, a_im: Float, c2: Float, starts: Int, out: Float) -> None:
    """C^2, C^4 and |A|^2 summed over each shell into out (b, 3, shells)."""
    power = a_re.astype(np.float64) ** 2 + a_im.astype(np.float64) ** 2
    for row, values in enumerate((c2.astype(np.float64), c2.astype(np.float64) ** 2, power)):
        for s in range(out.shape[2]):
            out[:, row, s] = values[:, starts[s] : starts[s + 1]].sum(axis=1)


def normalise_images(images: Float, outside: npt.NDArray[np.bool_], out: Float) -> None:
    """Background mean 0 and deviation 1; a constant background keeps its scale."""
    for source, target in zip(images, out, strict=True):
        background = source.ravel()[outside].astype(np.float64)
        deviation = background.std()
        target[:] = (source - background.mean()) / (deviation if deviation > 0 else 1.0)


def wiener_quotient(
    crop: Float, shells: Int, counts: Float, noise_over_signal: Float, out: Complex
) -> None:
    """See ``kernels_maps``."""
    means = np.bincount(shells.ravel(), crop[..., 2].ravel()) / counts
    ridge = np.full(len(means), np.inf)
    known = len(noise_over_signal)
    ridge[:known] = means[:known] * noise_over_signal + 1e-6 * means.max() + 1e-20
    out[:] = (crop[..., 0] + 1j * crop[..., 1].astype(np.float64)) / (crop[..., 2] + ridge[shells])


def compare_shells(first: Complex, second: Complex, shells: Int, sums: Float) -> None:
    """See ``kernels_maps``."""
    times = np.where(np.arange(first.shape[2]) > 0, 2.0, 1.0)
    products = (first * second.conj()).real, np.abs(first) ** 2, np.abs(second) ** 2
    for row, product in zip(sums, products, strict=True):
        row += np.bincount(shells.ravel(), (times * product).ravel(), len(row))
