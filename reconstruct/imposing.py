"""Taking up a symmetry that a C1 session has earned: axes found, statistics and poses turned.

A group imposed from the first batch makes the flattened discs that the CryoSPARC guide warns of;
so a session starts in C1, the axes of the wanted group are sought in its map, and everything known
so far is turned into the group's standard frame. Statistics stay sums of what was inserted: the
average over the group is taken afresh whenever a map is made.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import numpy.typing as npt

from reconstruct.centring import shift_with, turned
from reconstruct.learner import Learner
from reconstruct.snapshot import class_volume
from reconstruct.store import ParticleStore
from reconstruct.symmetry import (
    changed_statistics,
    parse_group,
    rotate_poses,
    rotate_statistics,
    shift_statistics,
    symmetrise_statistics,
)
from reconstruct.symmetry_naming import SymmetryVerdict, find_axes

__all__ = ["impose", "nowhere", "release", "seek_axes"]


def seek_axes(learner: Learner, group: str) -> tuple[SymmetryVerdict, ...]:
    """Best axes of ``group`` in the map of every class, good or not; a class at rest has none."""
    found = []
    for k in range(learner.n_classes):
        if learner.resting[k]:
            found.append(nowhere(group))
            continue
        found.append(find_axes(class_volume(learner, k), group))
    return tuple(found)


def impose(
    learner: Learner,
    store: ParticleStore,
    group: str,
    axes: tuple[SymmetryVerdict, ...],
    *,
    restart_radius: int,
) -> None:
    """Turn a session into ``group``'s frame and go on from ``restart_radius`` shells."""
    statistics = learner.backend.asnumpy(learner.statistics)
    for k, verdict in enumerate(axes):
        for h in (0, 1):
            statistics[h, k] = _turned(statistics[h, k], verdict, padded=learner.grid.padded)
        learner.shift_sums[k] = turned(
            learner.shift_sums[k], verdict.axes, verdict.displacement_pixels
        )
        rows, old = shift_with(store, k, verdict.displacement_pixels)
        store["rotation"][rows] = rotate_poses(old, verdict.axes).reshape(-1, 9)
    learner.statistics = learner.backend.asarray(statistics)
    learner.velocity = None  # it is in the frame that was left
    learner.group = group
    learner.split_halves(restart_radius)


def release(learner: Learner) -> None:
    """Go on in C1 from a map with a group: its statistics become the group's, its particles free.

    So views that the asymmetric unit leaves out are there from the start.
    """
    operators = parse_group(learner.group).operators
    statistics = learner.backend.asnumpy(learner.statistics)
    averaged = partial(symmetrise_statistics, operators=operators)
    for place in np.ndindex(*statistics.shape[:2]):
        statistics[place] = changed_statistics(statistics[place], averaged)
    learner.statistics = learner.backend.asarray(statistics)
    learner.velocity = None  # of a map with the group
    learner.group = "C1"
    learner.make_references()


def _turned(
    statistics: npt.NDArray[np.float32], verdict: SymmetryVerdict, *, padded: int
) -> npt.NDArray[np.float32]:
    def change(crop: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        moved = shift_statistics(crop, verdict.displacement_pixels, padded=padded)
        return rotate_statistics(moved, verdict.axes)

    return changed_statistics(statistics, change)


def nowhere(group: str) -> SymmetryVerdict:
    """Say nothing of a class without a map: axes that turn and move nothing."""
    return SymmetryVerdict(
        group=group,
        axes=np.eye(3),
        displacement_pixels=np.zeros(3),
        score=0.0,
        runner_up="C1",
        runner_up_score=0.0,
        continuous_score=0.0,
        scores={},
        message="The class has no map",
    )
