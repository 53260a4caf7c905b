"""Which search finds the poses of an update, and how often it goes wrong.

Both searches have one signature and one type of result. What branch and bound discards it cannot
know to have been right, so a small share of each update's particles is also searched widely on the
same tree: where that ends at a better cell, the bound was violated. An audit changes nothing that
is learned.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from reconstruct.backend import Backend
from reconstruct.branch_and_bound import Bound, search_branch_and_bound
from reconstruct.class_search import search_classes
from reconstruct.fourier import HalfPlane
from reconstruct.kernels_cuda import coarse_fits
from reconstruct.search import Poses, WeightedBatch, base_grid, join_poses, pose_rows, search_poses
from reconstruct.search_device import search_on_device
from reconstruct.search_plan import SearchPlan
from reconstruct.search_wide import search_on_host
from reconstruct.types import PoseSearch, SearchCount

__all__ = ["WIDE", "add_counts", "audit_search", "find_poses"]

Float32 = npt.NDArray[np.float32]

AUDITED_SHARE = 0.02  # of the particles of an update
TOLERANCE_NATS = 0.05  # float32 sums in another order
WIDE = Bound(noise=1e6, most_cells=1024)  # discards by rank only
_STREAM = 3  # of random numbers; 0 is the learner's own


def find_poses(
    kind: PoseSearch,
    batch: WeightedBatch,
    cubes: Float32,
    first: int,
    plane: HalfPlane,
    plan: SearchPlan,
    *,
    scale: float,
    log_class_weights: Float32,
    turn: npt.NDArray[np.float64],
    group: str,
    workers: Executor,
    backend: Backend,
    resting: npt.NDArray[np.bool_] | None = None,
    start: Poses | None = None,
    audit_seed: Sequence[int],
) -> tuple[Poses, tuple[SearchCount, ...]]:
    """Posterior of every particle by the search ``kind``, and what it took.

    Parameters
    ----------
    cubes
        (K or 2 K, g, g, g, 2), of all particles or of the two half-sets.
    first
        Particles of the first half-set, which come first; all of them where cubes are K.
    resting
        (K,) classes without a map; None: all have one.
    audit_seed
        Decides who is audited.

    The others are as in ``search.search_poses``; all arrays are on ``backend``.
    """
    b, xp, classes = len(batch), backend.xp, len(log_class_weights)
    bounded = kind == "branch_and_bound" and start is None
    if backend.on_device and start is None and not coarse_fits(plane.count(plan.coarse_radius)):
        return search_on_host(
            batch, cubes, first, plane, plan, scale=scale, log_class_weights=log_class_weights,
            turn=turn, group=group, workers=workers, backend=backend,
        ), ()  # fmt: skip
    if backend.on_device and not bounded:
        found = search_on_device(
            batch, cubes, first, plane, plan, scale=scale, log_class_weights=log_class_weights,
            turn=turn, group=group, backend=backend, start=start,
        )  # fmt: skip
        if start is not None:
            return found, ()  # counting would wait for the device
        # almost all cells are coarse ones; counting the others would wait for the device
        cells = 2 * plan.shift_cells**2 * len(base_grid(plan.coarse_count, group)) * classes * b
        return found, (SearchCount(kind, b, cells),)
    settings: dict[str, Any] = {
        "scale": scale, "log_class_weights": log_class_weights, "turn": turn, "group": group,
        "workers": workers,
    }  # fmt: skip
    sets = [(slice(0, first), 0), (slice(first, b), classes)]
    parts, counts = [], []
    for rows, begin in sets if len(cubes) > classes else sets[:1]:
        part, own = batch.span(rows), cubes[begin : begin + classes]
        if not bounded:
            known = None if start is None else pose_rows(start, rows)
            asleep = np.zeros(classes, np.bool_) if resting is None else resting
            search = partial(search_classes, resting=asleep) if classes > 1 else search_poses
            poses = search(part, own, plane, plan, start=known, **settings)
        else:
            poses = search_branch_and_bound(part, own, plane, plan, backend=backend, **settings)
            rng = np.random.default_rng([*audit_seed, _STREAM, begin])
            audited = np.flatnonzero(rng.random(len(part)) < AUDITED_SHARE)
            counts.append(audit_search(part, poses, audited, own, plane, plan, backend, **settings))
        parts.append(poses)
        done = int(poses.cells.sum(dtype=np.int64))
        counts.append(SearchCount(kind if start is None else "local", len(part), done))
    return join_poses(parts, xp), add_counts(counts)


def audit_search(
    batch: WeightedBatch,
    found: Poses,
    rows: npt.NDArray[np.intp],
    cubes: Float32,
    plane: HalfPlane,
    plan: SearchPlan,
    backend: Backend,
    **settings: Any,
) -> SearchCount:
    """Search the particles ``rows`` widely on the tree of ``found``; count what is better."""
    if not len(rows):
        return SearchCount("audit", 0, 0)
    at = backend.asarray(rows)
    some = WeightedBatch(*(backend.asarray(a[at]) for a in (batch.a_re, batch.a_im, batch.c2)))
    wide = search_branch_and_bound(
        some, cubes, plane, plan, backend=backend, bound=WIDE, **settings
    )
    better = wide.score[:, 0] > found.score[at, 0] + np.float32(TOLERANCE_NATS)
    return SearchCount("audit", len(rows), int(wide.cells.sum(dtype=np.int64)), int(better.sum()))


def add_counts(counts: Iterable[SearchCount]) -> tuple[SearchCount, ...]:
    """One count per kind that searched anything."""
    totals: dict[str, SearchCount] = {}
    for one in counts:
        before = totals.get(one.kind, SearchCount(one.kind, 0, 0))
        totals[one.kind] = replace(
            before,
            particles=before.particles + one.particles,
            cells=before.cells + one.cells,
            violations=before.violations + one.violations,
        )
    return tuple(one for one in totals.values() if one.particles)
