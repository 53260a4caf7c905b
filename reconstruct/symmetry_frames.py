"""Where the axes of every point group fit a map best: a scan over axes and frames, then refined.

Convention: a candidate's ``frame`` (3, 3) takes the map's coordinates to the group's standard ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import scipy.optimize
import scipy.spatial

from reconstruct.rotations import matrix_from_vector, rotation_grid
from reconstruct.symmetry import asymmetric_unit, parse_group
from reconstruct.symmetry_probe import Probe

__all__ = ["Candidate", "find_candidates", "operators_in_map"]

Float64 = npt.NDArray[np.float64]

SCAN_AXES = 1024  # over a hemisphere: 4.5 degrees apart
SCAN_FRAMES = 36864  # over all rotations: 6 degrees apart
REFINED_STARTS = 4
HOPELESS = 0.15  # groups scoring less in the scan are not refined


@dataclass(frozen=True)
class Candidate:
    """A group, where its axes fit best, and how well the worst of its operators fits there."""

    name: str
    frame: Float64  # (3, 3) x_standard = frame @ x_map
    score: float


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


def operators_in_map(candidate: Candidate) -> Float64:
    """A candidate's operators on the map's coordinates, without identity and inverses."""
    return _in_map(candidate.frame, _elements(candidate.name)[0])


def find_candidates(probe: Probe, max_order: int) -> tuple[list[Candidate], float]:
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
    probe: Probe,
    n: int,
    axes: Float64,
    powers: Float64,
    table: Mapping[tuple[int, int], Float64],
    cyclic: Candidate,
) -> Candidate:
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


def _refined(probe: Probe, name: str, starts: list[Float64], scanned: float) -> Candidate:
    """Turn the frames until the operators fit best on average; score the worst of them."""
    operators, _, _ = _elements(name)

    def mean(frame: Float64) -> float:
        return float(probe.correlations(_in_map(frame, operators)).mean())

    best = max(starts, key=mean)
    if scanned >= HOPELESS:
        best = _turn_to_best(mean, best)
    worst = float(probe.correlations(_in_map(best, operators)).min())
    return Candidate(name, best, worst)


def _turn_to_best(value: Callable[[Float64], float], frame: Float64) -> Float64:
    """Nelder-Mead over small rotations of a frame, first steps of 3 degrees."""
    step = np.deg2rad(3.0)

    def turned(vector: Float64) -> Float64:
        result: Float64 = matrix_from_vector(np.asarray(vector)[None] * step)[0] @ frame
        return result

    def loss(vector: Float64) -> float:
        return -value(turned(vector))

    simplex = np.vstack([np.full(3, -0.3), np.eye(3)])
    found = scipy.optimize.minimize(
        loss,
        np.zeros(3),
        method="Nelder-Mead",
        options={"initial_simplex": simplex, "xatol": 0.03, "fatol": 1e-4, "maxfev": 60},
    )
    return turned(found.x) if -found.fun > value(frame) else frame


def _continuous(
    probe: Probe,
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
