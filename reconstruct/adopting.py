"""Symmetry on request without a name: the group is found in the C1 map, and taken up when sure.

The promise of ``symmetry="auto"``: nothing is imposed that the naming rule does not say of every
class that matters, twice in a row, at a resolution that the half-maps vouch for. A larger group
that contains the one taken up may still follow; a group is never given up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from reconstruct.imposing import nowhere
from reconstruct.learner import Learner
from reconstruct.snapshot import class_volume, honest_resolution
from reconstruct.symmetry import is_subgroup, parse_group
from reconstruct.symmetry_naming import SymmetryVerdict, find_axes, name_symmetry
from reconstruct.types import EngineEvent

__all__ = [
    "AUTO",
    "ClassNames",
    "adopted_event",
    "convincing",
    "name_classes",
    "next_search",
    "wanted_group",
]

AUTO = "auto"
CONFIRM_AFTER = 900  # presentations until a group that was named is asked for again
LATER = 1.5  # times the presentations so far until the next search: a search is 1.5 CPU-seconds
MINOR_SHARE = 0.5  # of an even share: classes under it do not vote, being junk or empty
CONVINCING = {"C2": 0.9}  # maps in local minima were seen to reach 0.83 with one 2-fold axis


@dataclass(frozen=True)
class ClassNames:
    """What the classes say together."""

    group: str  # "C1" where they do not agree on one
    axes: tuple[SymmetryVerdict, ...]  # of that group in every class
    score: float  # the lowest among the classes that vote


def wanted_group(symmetry: str) -> str:
    """Group that a session is to end with, as far as its settings say.

    Raises
    ------
    ValueError
        The name is none, or that of an orientation.
    """
    if symmetry == AUTO:
        return "C1"
    name = parse_group(symmetry).name
    if name in ("I1", "I2"):
        raise ValueError(f"symmetry {symmetry}: give I, whose axes are those of I2")
    return name


def convincing(verdict: SymmetryVerdict) -> bool:
    """Whether a named group may be told, or imposed."""
    return verdict.group != "C1" and verdict.score >= CONVINCING.get(verdict.group, 0.0)


def name_classes(learner: Learner, *, box_angstrom: float) -> ClassNames:
    """Name the group that every class with a map and a fair share has."""
    nothing = ClassNames("C1", (), 0.0)
    volumes: dict[int, npt.NDArray[np.float32]] = {}
    verdicts: dict[int, SymmetryVerdict] = {}
    for k in np.flatnonzero(~learner.resting).tolist():
        volumes[k] = class_volume(learner, k)
        if learner.class_share[k] * learner.n_classes < MINOR_SHARE:
            continue
        resolution = honest_resolution(learner.fsc[k], box_angstrom)
        if resolution is None:
            return nothing
        radius = min(learner.radius, int(box_angstrom / resolution))
        verdicts[k] = name_symmetry(volumes[k], radius=radius)
        if not convincing(verdicts[k]):
            return nothing
    groups = {verdict.group for verdict in verdicts.values()}
    if len(groups) != 1:
        return nothing
    (group,) = groups

    def axes_of(k: int) -> SymmetryVerdict:
        if k in verdicts:
            return verdicts[k]
        return find_axes(volumes[k], group) if k in volumes else nowhere(group)

    axes = tuple(axes_of(k) for k in range(learner.n_classes))
    return ClassNames(group, axes, min(verdict.score for verdict in verdicts.values()))


def next_search(presented: float, *, named: str, held: str) -> float:
    """Presentations at which to look again: soon where a new group waits to be confirmed."""
    if named != held and is_subgroup(held, named):
        return presented + CONFIRM_AFTER
    return max(LATER * presented, presented + CONFIRM_AFTER)


def adopted_event(found: ClassNames) -> EngineEvent:
    """Tell that a group was named and taken up."""
    return EngineEvent(
        kind="symmetry",
        message=(
            f"{found.group} named twice in the map and taken up (worst operator {found.score:.2f})"
        ),
        values={"score": found.score},
    )
