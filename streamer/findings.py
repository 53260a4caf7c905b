"""What a snapshot says about its classes: failed starts, preferred views, a symmetry.

Promise: a finding is told when it appears and when it goes, not at each snapshot; what was told is
part of the session's state, so that a restart repeats nothing. What the engine finds once about the
particle itself stays among them. Nothing is said of a class with
fewer than `LEAST_PARTICLES` particles or while random starts are still raced.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import ThreadpoolController

from reconstruct.adopting import convincing
from reconstruct.session_verdicts import class_overlap, converged, enough_data, imposed_symmetry
from reconstruct.snapshot import LEAST_PARTICLES, direction_histogram, view_histogram
from reconstruct.symmetry import parse_group
from reconstruct.symmetry_naming import SymmetryVerdict, name_symmetry
from reconstruct.types import (
    Assignments,
    ClassSnapshot,
    EngineEvent,
    Geometry,
    Snapshot,
    StepReport,
)
from reconstruct.verdicts import Verdict, flattened_disc, preferred_orientation, view_directions

__all__ = ["Told", "find", "lasting", "news", "still", "with_all_views"]

Told = dict[str, dict[str, Any]]
"""What holds now, by ``kind/class``: JSON-able, one entry per finding."""

_LASTING = frozenset({"near_spherical", "symmetry"})  # events of the engine that hold to the end
_BLAS = ThreadpoolController()


def with_all_views(
    snapshot: Snapshot, assignments: Assignments, *, group: str
) -> tuple[Snapshot, tuple[npt.NDArray[np.float64], ...]]:
    """Count each particle once per operator of the imposed group, in histograms and directions.

    With a group imposed, poses come from one asymmetric unit, which looks like preferred views.

    Returns
    -------
    The snapshot with whole histograms, and per class the view directions (m, 3).
    """
    operators = parse_group(group).operators
    classes, views = [], []
    for index, item in enumerate(snapshot.classes):
        rotations = np.asarray(assignments.rotations[assignments.class_index == index], np.float64)
        views.append(view_directions(rotations, operators))
        if len(operators) > 1:
            copies = np.einsum("nij,mjk->nmik", rotations, operators).reshape(-1, 3, 3)
            item = replace(item, view_histogram=view_histogram(copies))
        classes.append(item)
    return replace(snapshot, classes=tuple(classes)), tuple(views)


def find(
    snapshot: Snapshot,
    views: tuple[npt.NDArray[np.float64], ...],
    *,
    group: str,
    is_final: bool,
) -> Told:
    """Give every finding of a snapshot; the symmetry of a C1 map only at the end."""
    found: Told = {}
    if snapshot.phase in ("waiting", "initial"):
        return found
    if (verdict := converged(snapshot)) is not None:
        found["converged/0"] = _entry(verdict, verdict.message, number=1)
    for index, item in enumerate(snapshot.classes):
        if item.particles < LEAST_PARTICLES or not np.any(item.volume):
            continue  # a class at rest has no map
        preferred = preferred_orientation(item.view_histogram)
        named = None
        if group == "C1" and (is_final or preferred is not None):
            named = _named(item, geometry=snapshot.geometry)
        if preferred is not None and named is not None:
            # a particle with a symmetry is seen from any of several equal sides; one is as good
            equal = _equal_views(views[index], named)
            preferred = preferred_orientation(direction_histogram(equal))
        verdicts = [
            flattened_disc(item.volume, views[index]),
            preferred,
            class_overlap(item.overlap, index, particles=[c.particles for c in snapshot.classes]),
            # a forecast would continue a curve that the axes have raised
            enough_data(item, snapshot) if group == "C1" else imposed_symmetry(item, group),
        ]
        if is_final and named is not None:
            verdicts.append(_symmetry(named))
        for verdict in verdicts:
            if verdict is not None:
                words = f"Class {index + 1}: {verdict.message}"
                found[f"{verdict.kind}/{index}"] = _entry(verdict, words, number=index + 1)
    return found


def lasting(report: StepReport) -> Told:
    """Give what the engine has found out in a step that holds from then on."""
    return {
        f"{event.kind}/0": {
            "class": 1,
            "kind": event.kind,
            "message": event.message,
            "values": {name: float(value) for name, value in event.values.items()},
        }
        for event in report.events
        if event.kind in _LASTING
    }


def still(told: Told) -> Told:
    """Give those of earlier findings that no snapshot is asked about again."""
    return {key: entry for key, entry in told.items() if entry["kind"] in _LASTING}


def _entry(verdict: Verdict, message: str, *, number: int) -> dict[str, Any]:
    return {
        "class": number,
        "kind": verdict.kind,
        "message": message,
        "values": {name: float(value) for name, value in verdict.values.items()},
    }


def _named(item: ClassSnapshot, *, geometry: Geometry) -> SymmetryVerdict | None:
    """Name the symmetry of a map made in C1, as far as the map can be trusted."""
    if item.resolution_angstrom is None:
        return None
    radius = int(geometry.box_angstrom / item.resolution_angstrom)
    with _BLAS.limit(limits=1, user_api="blas"):
        named = name_symmetry(item.volume, radius=radius)
    return named if convincing(named) else None


def _equal_views(
    directions: npt.NDArray[np.float64], named: SymmetryVerdict
) -> npt.NDArray[np.float64]:
    """All directions (m * n, 3) that ``directions`` (n, 3) cannot be told from."""
    operators = parse_group(named.group).operators  # in the group's frame: axes @ x
    turned = np.einsum("ji,sjk,kl,nl->sni", named.axes, operators, named.axes, directions)
    return np.asarray(turned.reshape(-1, 3))


def _symmetry(named: SymmetryVerdict) -> Verdict:
    return Verdict(
        kind="symmetry_named",
        message=f"{named.message}; a run with --symmetry {named.group} or auto would use it",
        values={
            "score": named.score,
            "runner_up_score": named.runner_up_score,
            "continuous_score": named.continuous_score,
        },
    )


def news(before: Mapping[str, Mapping[str, Any]], now: Told) -> Iterator[EngineEvent]:
    """Give what has changed: findings that are new, and those that no longer hold."""
    for key in sorted(now.keys() - before.keys()):
        yield _event(now[key], kind=now[key]["kind"], message=now[key]["message"])
    for key in sorted(before.keys() - now.keys()):
        told = before[key]
        words = told["kind"].replace("_", " ")
        yield _event(
            told,
            kind="verdict_withdrawn",
            message=f"Class {told['class']}: {words} no longer holds",
        )


def _event(told: Mapping[str, Any], *, kind: str, message: str) -> EngineEvent:
    values = told["values"] if kind != "verdict_withdrawn" else {}
    return EngineEvent(kind, message, class_index=told["class"] - 1, values=values)
