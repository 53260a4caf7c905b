"""Name the symmetry of a map that was made without any: which group, and where its axes lie.

The score of a group is the smallest correlation, over its operators, of the map with its rotated
self: per shell 3..9, each shell's mean subtracted (every ball has every symmetry), averaged over
the shells. A verdict's ``axes`` and ``displacement_pixels`` take the map to the standard frame of
``symmetry.parse_group``: ``x_standard = axes @ (x_map + displacement_pixels)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from reconstruct.fourier import fourier_cube
from reconstruct.symmetry import is_subgroup, parse_group
from reconstruct.symmetry_frames import (
    Candidate,
    Scan,
    best_frame,
    continuous_score,
    operators_in_map,
)
from reconstruct.symmetry_probe import LAST_SHELL, OVERSAMPLING, make_probe, recentring

__all__ = [
    "Rule",
    "SymmetryVerdict",
    "centre_of_mass_pixels",
    "decide",
    "find_axes",
    "name_symmetry",
]

Float64 = npt.NDArray[np.float64]

PROMISING = 0.6  # of the best score: groups that may say where the centre is


@dataclass(frozen=True)
class Rule:
    """When a group is named; benchmarks/symmetry_naming.py prints the scores behind the numbers."""

    least: float = 0.40
    above_continuous: float = 0.03  # over what any angle about one axis gives
    above_others: float = 1.2  # times the best group that is not a subgroup
    of_parts: float = 0.55  # times the best subgroup: a T map is an O map, but a bad one


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


def name_symmetry(
    volume: npt.NDArray[np.floating], *, radius: int, max_order: int = 8
) -> SymmetryVerdict:
    """Find the point group of a map, its axes and its centre, or stay silent.

    The largest group is named whose score is at least 0.40, exceeds by 0.03 what any angle about
    one axis gives, is 1.2 times that of the best group that is not its subgroup, and 0.55 times
    that of its best subgroup.

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
    probe = make_probe(raw, displacement, edge)
    if not (probe.power > 0).all():
        return _silent(displacement, {}, 0.0, "The map is empty at the shells that would tell")
    groups = [f"{kind}{n}" for n in range(2, max_order + 1) for kind in "CD"] + ["T", "O", "I"]
    scan = Scan(probe)
    found = [best_frame(scan, name) for name in groups]
    # A symmetric map says itself where its axes meet, better than its centre of mass does; the
    # largest promising group is asked, because one axis alone says nothing along itself.
    level = PROMISING * max(candidate.score for candidate in found)
    promising = [candidate for candidate in found if candidate.score >= level]
    largest = max(promising, key=lambda one: (parse_group(one.name).order, one.score))
    displacement = displacement + recentring(probe, operators_in_map(largest), edge)
    scan = Scan(make_probe(raw, displacement, edge))
    found = [best_frame(scan, name) for name in groups]
    return _verdict(found, continuous_score(scan), displacement)


def find_axes(volume: npt.NDArray[np.floating], group: str) -> SymmetryVerdict:
    """Best axes and centre of a group that the user has named, however well they fit.

    Parameters
    ----------
    volume
        (n, n, n) bright map inside a soft window, origin at ``n // 2``.
    group
        A name that ``parse_group`` takes.

    Returns
    -------
    The verdict's ``score`` says how well the worst operator fits: 1 is perfect, and below the
    rule's 0.40 the axes are no more than a guess.
    """
    name = parse_group(group).name
    displacement = -centre_of_mass_pixels(volume)
    edge = volume.shape[0]
    raw = fourier_cube(volume, LAST_SHELL, oversampling=OVERSAMPLING)
    probe = make_probe(raw, displacement, edge)
    if name == "C1" or not (probe.power > 0).all():
        return _silent(displacement, {}, 0.0, f"Nothing in the map says where {name} has its axes")
    guess = best_frame(Scan(probe), name)
    displacement = displacement + recentring(probe, operators_in_map(guess), edge)
    scan = Scan(make_probe(raw, displacement, edge))
    best = best_frame(scan, name)
    return SymmetryVerdict(
        group=name,
        axes=best.frame,
        displacement_pixels=displacement,
        score=best.score,
        runner_up="C1",
        runner_up_score=0.0,
        continuous_score=continuous_score(scan),
        scores={name: best.score},
        message=f"The best axes of {name} fit with {best.score:.2f}",
    )


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


def decide(scores: Mapping[str, float], continuous_score: float, rule: Rule = Rule()) -> str:
    """Apply the rule to the scores of the candidates: the largest group that passes, or ``C1``."""
    for name in sorted(scores, key=lambda name: (-parse_group(name).order, -scores[name])):
        parts = [scores[other] for other in scores if is_subgroup(other, name)]
        others = [scores[other] for other in scores if not is_subgroup(other, name)]
        if scores[name] >= max(
            rule.least,
            continuous_score + rule.above_continuous,
            rule.above_others * max(others, default=0.0),
            rule.of_parts * max(parts),
        ):
            return name
    return "C1"


def _verdict(found: list[Candidate], continuous: float, displacement: Float64) -> SymmetryVerdict:
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
