"""Where the axes of every point group fit a map best: a scan over axes and frames, then refined.

Convention: a candidate's ``frame`` (3, 3) takes the map's coordinates to the group's standard ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import scipy.optimize
import scipy.spatial

from reconstruct.rotations import matrix_from_vector, rotation_grid
from reconstruct.symmetry import asymmetric_unit, parse_group
from reconstruct.symmetry_probe import Probe

__all__ = ["Candidate", "Scan", "best_frame", "continuous_score", "operators_in_map"]

Float64 = npt.NDArray[np.float64]

SCAN_AXES = 1024  # over a hemisphere: 4.5 degrees apart
SCAN_FRAMES = 36864  # over all rotations: 6 degrees apart
REFINED_STARTS = 4
DIHEDRAL_AXES = 24  # n-fold axes that 2-fold ones are tried across
CONTINUOUS_ORDER = 8  # any angle: all turns of the folds up to this
HOPELESS = 0.15  # groups scoring less in the scan are not refined


@dataclass(frozen=True)
class Candidate:
    """A group, where its axes fit best, and how well the worst of its operators fits there."""

    name: str
    frame: Float64  # (3, 3) x_standard = frame @ x_map
    score: float


@dataclass(frozen=True)
class Scan:
    """Correlations of a map with itself about many axes, each computed when it is asked for."""

    probe: Probe
    known: dict[tuple[int, int], Float64] = field(default_factory=dict)
    cyclic: dict[int, tuple[Candidate, Float64]] = field(default_factory=dict)

    def along_axes(self, turn: tuple[int, int]) -> Float64:
        """Correlation after a turn of 2 pi p / n about every axis of the hemisphere."""
        if turn not in self.known:
            vectors = _hemisphere() * (2 * np.pi * turn[0] / turn[1])
            self.known[turn] = self.probe.correlations(matrix_from_vector(vectors))
        return self.known[turn]


@lru_cache(maxsize=64)
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
def _scanned_frames(name: str) -> tuple[Float64, npt.NDArray[np.intp]]:
    """Orientations of a group (f, 3, 3), and the scanned axis (f, elements) of each element."""
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


def best_frame(scan: Scan, name: str) -> Candidate:
    """Where a group other than C1 fits the map best."""
    fold = int(name[1:]) if name[0] in "CD" else 0
    if fold >= 2:
        return _cyclic(scan, fold)[0] if name[0] == "C" else _dihedral(scan, fold)
    frames, lookup = _scanned_frames(name)
    turns = _elements(name)[2]
    means = np.mean([scan.along_axes(turn)[lookup[:, e]] for e, turn in enumerate(turns)], axis=0)
    order = np.argsort(-means, kind="stable")
    starts = list(frames[order[:REFINED_STARTS]])
    return _refined(scan.probe, name, starts, float(means[order[0]]))


def _cyclic(scan: Scan, n: int) -> tuple[Candidate, Float64]:
    """Best axis of Cn, and the mean correlation of its powers about every scanned axis."""
    if n in scan.cyclic:
        return scan.cyclic[n]
    axes = _hemisphere()
    powers = np.stack([scan.along_axes(turn) for turn in _elements(f"C{n}")[2]]).mean(axis=0)
    order = np.argsort(-powers, kind="stable")
    starts = [_frame(axes[i], _across(axes[i])) for i in order[:REFINED_STARTS]]
    best = _refined(scan.probe, f"C{n}", starts, float(powers[order[0]]))
    scan.cyclic[n] = (best, powers)
    return scan.cyclic[n]


def _dihedral(scan: Scan, n: int) -> Candidate:
    """Add 2-fold axes across the best n-fold ones."""
    cyclic, powers = _cyclic(scan, n)
    order = np.argsort(-powers, kind="stable")[:DIHEDRAL_AXES]
    candidates = [(cyclic.frame[2], cyclic.score)]
    candidates += [(_hemisphere()[i], float(powers[i])) for i in order]
    twofold = scan.along_axes((1, 2))
    best: list[tuple[float, Float64]] = []
    angles = np.arange(0.0, np.pi / n, np.deg2rad(3.0))
    around = angles[:, None] + np.arange(n) * np.pi / n
    for axis, power in candidates:
        base = _frame(axis, _across(axis))
        directions = np.cos(around)[..., None] * base[0] + np.sin(around)[..., None] * base[1]
        across = twofold[_nearest_axis(directions.reshape(-1, 3))].reshape(around.shape)
        scores = (n // 2 * power + across.sum(axis=1)) / (n // 2 + n)
        i = int(np.argmax(scores))
        x = np.cos(angles[i]) * base[0] + np.sin(angles[i]) * base[1]
        best.append((float(scores[i]), _frame(axis, x)))
    best.sort(key=lambda item: -item[0])
    starts = [frame for _, frame in best[:REFINED_STARTS]]
    return _refined(scan.probe, f"D{n}", starts, best[0][0])


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


def continuous_score(scan: Scan) -> float:
    """Best over axes of the worst over many turns: how nearly one axis has every symmetry."""
    turns = [
        (p, n)
        for n in range(2, CONTINUOUS_ORDER + 1)
        for p in range(1, n // 2 + 1)
        if math.gcd(p, n) == 1
    ]
    worst = np.min([scan.along_axes(turn) for turn in turns], axis=0)
    best = _hemisphere()[int(np.argmax(worst))]
    angles = np.array([2 * np.pi * p / n for p, n in turns])

    def value(frame: Float64) -> float:
        matrices = matrix_from_vector(frame[2][None] * angles[:, None])
        return float(scan.probe.correlations(matrices).min())

    return value(_turn_to_best(value, _frame(best, _across(best))))
