"""Name the symmetry of a map that was made without any: which group, and where its axes lie.

The score of a group is the smallest correlation, over its operators, of the map with its rotated
self: per shell 3..9, each shell's mean subtracted (every ball has every symmetry), averaged over
the shells. A verdict's ``axes`` and ``displacement_pixels`` take the map to the standard frame of
``symmetry.parse_group``: ``x_standard = axes @ (x_map + displacement_pixels)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import scipy.optimize
import scipy.spatial

from reconstruct import kernels_symmetry
from reconstruct.fourier import fourier_cube
from reconstruct.rotations import matrix_from_vector, rotation_grid
from reconstruct.symmetry import asymmetric_unit, is_subgroup, parse_group

__all__ = [
    "SymmetryVerdict",
    "centre_of_mass_pixels",
    "decide",
    "name_symmetry",
]

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

FIRST_SHELL, LAST_SHELL = 3, 9  # below: a ball; above: not yet there when the question comes
OVERSAMPLING = 2.0
# The rule: right in 15 of 15 converged maps, silent in 9 of 9 unconverged and 4 of 4 asymmetric
# ones; benchmarks/symmetry_naming.py prints the scores behind it.
LEAST_SCORE = 0.40
ABOVE_CONTINUOUS = 0.03
ABOVE_OTHERS = 1.2
SCAN_AXES = 1024  # over a hemisphere: 4.5 degrees apart
SCAN_FRAMES = 36864  # over all rotations: 6 degrees apart
REFINED_STARTS = 4
PROMISING = 0.6  # of the best score
HOPELESS = 0.15  # groups scoring less in the scan are not refined


@dataclass(frozen=True)
class SymmetryVerdict:
    """What the map says about its symmetry."""

    group: str  # "C1" when nothing can be said
    axes: Float64  # (3, 3)
    displacement_pixels: Float64  # (3,) x, y, z
    score: float  # of the group; of the best candidate when silent
    runner_up: str  # best group that is not part of the one named
    runner_up_score: float
    continuous_score: float  # best axis about which every angle will do: a disc, a rod, a ball
    scores: Mapping[str, float]  # of every candidate
    message: str


@dataclass(frozen=True)
class _Probe:
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


@dataclass(frozen=True)
class _Candidate:
    name: str
    frame: Float64  # (3, 3) x_standard = frame @ x_map
    score: float


def name_symmetry(
    volume: npt.NDArray[np.floating], *, radius: int, max_order: int = 8
) -> SymmetryVerdict:
    """Find the point group of a map, its axes and its centre, or stay silent.

    The largest group is named whose score is at least 0.40, exceeds by 0.03 what any angle about
    one axis gives, and is 1.2 times that of the best group that is not its subgroup.

    Parameters
    ----------
    volume
        (n, n, n) bright map inside a soft window, origin at ``n // 2``.
    radius
        Shells up to which the map is trusted; below 9 the verdict is silent.
    max_order
        Largest n of the Cn and Dn that are tried.
    """
    displacement = -centre_of_mass_pixels(volume)
    if radius < LAST_SHELL:
        return _silent(
            displacement, {}, 0.0, f"The map reaches {radius} shells; symmetry needs {LAST_SHELL}"
        )
    raw = fourier_cube(volume, LAST_SHELL, oversampling=OVERSAMPLING)
    edge = volume.shape[0]
    probe = _probe(raw, displacement, edge)
    if not (probe.power > 0).all():
        return _silent(displacement, {}, 0.0, "The map is empty at the shells that would tell")
    found, _ = _candidates(probe, max_order)
    # A symmetric map says itself where its axes meet, better than its centre of mass does; the
    # largest promising group is asked, because one axis alone says nothing along itself.
    level = PROMISING * max(candidate.score for candidate in found)
    promising = [candidate for candidate in found if candidate.score >= level]
    largest = max(promising, key=lambda one: (parse_group(one.name).order, one.score))
    displacement = displacement + _recentring(probe, largest, edge)
    probe = _probe(raw, displacement, edge)
    found, continuous = _candidates(probe, max_order)
    return _verdict(found, continuous, displacement)


def centre_of_mass_pixels(volume: npt.NDArray[np.floating]) -> Float64:
    """Centre of mass (x, y, z) relative to the voxel ``n // 2``, of what stands out.

    Counted is density above a quarter of the 99.9 % quantile, so noise and the dark rim that
    a high-pass leaves have no pull.
    """
    n = volume.shape[0]
    level = 0.25 * float(np.quantile(volume, 0.999))
    mass = np.maximum(volume.astype(np.float64) - max(level, 0.0), 0.0)
    total = mass.sum()
    if total <= 0:
        return np.zeros(3)
    axis = np.arange(n) - n // 2
    sums = (mass.sum(axis=(0, 1)), mass.sum(axis=(0, 2)), mass.sum(axis=(1, 2)))  # x, y, z
    return np.array([float(line @ axis) / total for line in sums])


def decide(scores: Mapping[str, float], continuous_score: float) -> str:
    """Apply the rule to the scores of the candidates: a group's name, or ``C1``."""
    for name in sorted(scores, key=lambda name: (-parse_group(name).order, -scores[name])):
        others = [scores[other] for other in scores if not is_subgroup(other, name)]
        if (
            scores[name] >= LEAST_SCORE
            and scores[name] >= continuous_score + ABOVE_CONTINUOUS
            and scores[name] >= ABOVE_OTHERS * max(others, default=0.0)
        ):
            return name
    return "C1"


def _verdict(found: list[_Candidate], continuous: float, displacement: Float64) -> SymmetryVerdict:
    scores = {candidate.name: candidate.score for candidate in found}
    group = decide(scores, continuous)
    if group == "C1":
        best = max(found, key=lambda candidate: candidate.score)
        return _silent(
            displacement,
            scores,
            continuous,
            f"No symmetry stands out: the best is {best.name} at {best.score:.2f}, "
            f"any angle about one axis gives {continuous:.2f}",
        )
    chosen = next(candidate for candidate in found if candidate.name == group)
    others = [one for one in found if not is_subgroup(one.name, group)]
    second = max(others, key=lambda one: one.score)
    return SymmetryVerdict(
        group=group,
        axes=chosen.frame,
        displacement_pixels=displacement,
        score=chosen.score,
        runner_up=second.name,
        runner_up_score=second.score,
        continuous_score=continuous,
        scores=scores,
        message=(
            f"The map has {group} symmetry: every operator correlates at {chosen.score:.2f} or "
            f"more; {second.name} reaches {second.score:.2f}, any angle about one axis "
            f"{continuous:.2f}"
        ),
    )


def _silent(
    displacement: Float64, scores: Mapping[str, float], continuous: float, message: str
) -> SymmetryVerdict:
    ranked = sorted(scores, key=lambda name: -scores[name])
    return SymmetryVerdict(
        group="C1",
        axes=np.eye(3),
        displacement_pixels=displacement,
        score=scores[ranked[0]] if ranked else 0.0,
        runner_up=ranked[1] if len(ranked) > 1 else "C1",
        runner_up_score=scores[ranked[1]] if len(ranked) > 1 else 0.0,
        continuous_score=continuous,
        scores=scores,
        message=message,
    )


# ---- the map's low shells


@lru_cache(maxsize=2)
def _lattice() -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int32]]:
    """Frequencies (n, 3) x, y, z of the shells in use, each Friedel pair once, and their shell."""
    axis = np.arange(-LAST_SHELL, LAST_SHELL + 1)
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    shell = np.floor(np.sqrt(x * x + y * y + z * z) + 0.5).astype(np.int32)
    keep = (x > 0) | ((x == 0) & ((y > 0) | ((y == 0) & (z > 0))))
    keep &= (shell >= FIRST_SHELL) & (shell <= LAST_SHELL)
    return np.stack([x[keep], y[keep], z[keep]], axis=-1), shell[keep] - FIRST_SHELL


def _probe(raw: npt.NDArray[np.complex64], displacement: Float64, edge: int) -> _Probe:
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
    return _Probe(
        flat=cube.view(np.float32).reshape(-1),
        edge=g,
        points=steps.astype(np.float32),
        shell=shell,
        values=pairs,
        power=power.astype(np.float32),
    )


def _recentring(probe: _Probe, candidate: _Candidate, edge: int) -> Float64:
    """Displacement in pixels that brings the candidate's axes to the origin."""
    matrices = _in_map(candidate.frame, _elements(candidate.name)[0])
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


# ---- axes and frames


def _elements(name: str) -> tuple[Float64, Float64, list[tuple[int, int]]]:
    """Operators of a group but for the identity and inverses: matrices, axes, turns p / n."""
    operators = parse_group(name).operators[1:]
    chosen, axes, turns = [], [], []
    seen: list[Float64] = []
    for operator in operators:
        if any(np.abs(operator.T - other).max() < 1e-6 for other in seen):
            continue
        seen.append(operator)
        angle = float(np.arccos(np.clip((np.trace(operator) - 1) / 2, -1, 1)))
        values, vectors = np.linalg.eigh((operator + operator.T) / 2)
        axes.append(vectors[:, int(np.argmax(values))])
        chosen.append(operator)
        turns.append(_fraction(angle / (2 * np.pi)))
    return np.stack(chosen), np.stack(axes), turns


def _fraction(turn: float) -> tuple[int, int]:
    fold = next(n for n in range(2, 100) if abs(turn * n - round(turn * n)) < 1e-6)
    return round(turn * fold), fold


def _turns(max_order: int) -> list[tuple[int, int]]:
    """Turns p / n <= 1/2 in lowest terms of every fold up to ``max_order``."""
    return [
        (p, n) for n in range(2, max_order + 1) for p in range(1, n // 2 + 1) if np.gcd(p, n) == 1
    ]


@lru_cache(maxsize=2)
def _hemisphere() -> Float64:
    """Near-uniform axes (SCAN_AXES, 3) on a Fibonacci spiral over the half sphere z > 0."""
    i = np.arange(SCAN_AXES) + 0.5
    z = 1 - i / SCAN_AXES
    angle = np.pi * (1 + np.sqrt(5)) * i
    r = np.sqrt(1 - z * z)
    return np.stack([r * np.cos(angle), r * np.sin(angle), z], axis=-1)


@lru_cache(maxsize=2)
def _axis_tree() -> scipy.spatial.cKDTree:
    axes = _hemisphere()
    return scipy.spatial.cKDTree(np.concatenate([axes, -axes]))


def _nearest_axis(directions: Float64) -> npt.NDArray[np.intp]:
    _, index = _axis_tree().query(directions)
    return np.asarray(index, dtype=np.intp) % SCAN_AXES


@lru_cache(maxsize=8)
def _cubic_frames(name: str) -> tuple[Float64, npt.NDArray[np.intp]]:
    """Orientations of T, O or I (f, 3, 3), and the scanned axis (f, elements) of each element."""
    # frames F and S @ F are equal, so the unit is taken of the transposes
    grid = rotation_grid(SCAN_FRAMES)
    grid = grid[asymmetric_unit(grid, parse_group(name).operators)].transpose(0, 2, 1)
    _, axes, _ = _elements(name)
    directions = np.einsum("fji,ej->fei", grid, axes)
    return np.ascontiguousarray(grid), _nearest_axis(directions)


def _in_map(frame: Float64, operators: Float64) -> Float64:
    """Operators of the standard frame as they act on the map's coordinates."""
    turned: Float64 = frame.T @ operators @ frame
    return turned


def _frame(principal: Float64, second: Float64) -> Float64:
    """The frame whose z is ``principal`` and whose x is closest to ``second``."""
    z = principal / np.linalg.norm(principal)
    x = second - (second @ z) * z
    x /= np.linalg.norm(x)
    return np.stack([x, np.cross(z, x), z])


def _across(axis: Float64) -> Float64:
    helper: Float64 = np.eye(3)[int(np.argmin(np.abs(axis)))]
    return helper


def _candidates(probe: _Probe, max_order: int) -> tuple[list[_Candidate], float]:
    """Best frame and score of every group, and the score of a continuous axis."""
    axes = _hemisphere()
    turns = _turns(max_order)
    table: dict[tuple[int, int], Float64] = {}
    for p, n in turns:
        table[p, n] = probe.correlations(matrix_from_vector(axes * (2 * np.pi * p / n)))
    found = []
    for n in range(2, max_order + 1):
        powers = np.stack([table[turn] for turn in _elements(f"C{n}")[2]]).mean(axis=0)
        order = np.argsort(-powers, kind="stable")
        starts = [_frame(axes[i], _across(axes[i])) for i in order[:REFINED_STARTS]]
        cyclic = _refined(probe, f"C{n}", starts, float(powers[order[0]]))
        found.append(cyclic)
        found.append(_dihedral(probe, n, axes[order[:24]], powers[order[:24]], table, cyclic))
    for name in ("T", "O", "I"):
        frames, lookup = _cubic_frames(name)
        needed = _elements(name)[2]
        if any(turn not in table for turn in needed):
            continue
        means = np.mean([table[turn][lookup[:, e]] for e, turn in enumerate(needed)], axis=0)
        order = np.argsort(-means, kind="stable")
        starts = list(frames[order[:REFINED_STARTS]])
        found.append(_refined(probe, name, starts, float(means[order[0]])))
    return found, _continuous(probe, axes, table, turns)


def _dihedral(
    probe: _Probe,
    n: int,
    axes: Float64,
    powers: Float64,
    table: Mapping[tuple[int, int], Float64],
    cyclic: _Candidate,
) -> _Candidate:
    """Add 2-fold axes across the best n-fold ones."""
    best: list[tuple[float, Float64]] = []
    angles = np.arange(0.0, np.pi / n, np.deg2rad(3.0))
    spokes = np.arange(n) * np.pi / n
    folds = n // 2
    candidates = [(axis, float(power)) for axis, power in zip(axes, powers, strict=True)]
    candidates.insert(0, (cyclic.frame[2], cyclic.score))
    for axis, power in candidates:
        base = _frame(axis, _across(axis))
        around = angles[:, None] + spokes[None, :]
        directions = np.cos(around)[..., None] * base[0] + np.sin(around)[..., None] * base[1]
        twofold = table[1, 2][_nearest_axis(directions.reshape(-1, 3))].reshape(around.shape)
        scores = (folds * power + twofold.sum(axis=1)) / (folds + n)
        i = int(np.argmax(scores))
        x = np.cos(angles[i]) * base[0] + np.sin(angles[i]) * base[1]
        best.append((float(scores[i]), _frame(axis, x)))
    best.sort(key=lambda item: -item[0])
    starts = [frame for _, frame in best[:REFINED_STARTS]]
    return _refined(probe, f"D{n}", starts, best[0][0])


def _refined(probe: _Probe, name: str, starts: list[Float64], scanned: float) -> _Candidate:
    """Turn the frames until the operators fit best on average; score the worst of them."""
    operators, _, _ = _elements(name)

    def mean(frame: Float64) -> float:
        return float(probe.correlations(_in_map(frame, operators)).mean())

    best = max(starts, key=mean)
    if scanned >= HOPELESS:
        best = _turn_to_best(mean, best)
    worst = float(probe.correlations(_in_map(best, operators)).min())
    return _Candidate(name, best, worst)


def _turn_to_best(value: Callable[[Float64], float], frame: Float64) -> Float64:
    """Nelder-Mead over small rotations of a frame, first steps of 3 degrees."""
    step = np.deg2rad(3.0)

    def turned(vector: Float64) -> Float64:
        result: Float64 = matrix_from_vector(np.asarray(vector)[None] * step)[0] @ frame
        return result

    simplex = np.vstack([np.full(3, -0.3), np.eye(3)])
    found = scipy.optimize.minimize(
        lambda vector: -value(turned(vector)),
        np.zeros(3),
        method="Nelder-Mead",
        options={"initial_simplex": simplex, "xatol": 0.03, "fatol": 1e-4, "maxfev": 60},
    )
    return turned(found.x) if -found.fun > value(frame) else frame


def _continuous(
    probe: _Probe,
    axes: Float64,
    table: Mapping[tuple[int, int], Float64],
    turns: list[tuple[int, int]],
) -> float:
    """Best over axes of the worst over all turns: how nearly one axis has every symmetry."""
    worst = np.min([table[turn] for turn in turns], axis=0)
    best = axes[int(np.argmax(worst))]
    angles = np.array([2 * np.pi * p / n for p, n in turns])

    def value(frame: Float64) -> float:
        matrices = matrix_from_vector(frame[2][None] * angles[:, None])
        return float(probe.correlations(matrices).min())

    return value(_turn_to_best(value, _frame(best, _across(best))))
