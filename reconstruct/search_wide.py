"""The pose search for particles whose low shells do not depend on the view: a wide coarse pass.

The usual coarse pass over six shells would keep poses of a hollow ball at random. This one takes
half the usual steps in rotation and shift and a radius whose shells tell views apart; with one
asymmetric unit of a cubic group it costs what the usual pass costs over all of SO(3).
"""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from reconstruct.backend import Backend
from reconstruct.fourier import HalfPlane, make_half_plane
from reconstruct.rotations import grid_step
from reconstruct.search import Poses, WeightedBatch, join_poses, search_poses
from reconstruct.search_plan import SearchPlan

__all__ = ["make_wide_plan", "search_on_host"]

COARSE_COUNT = 36864  # rotations 7.5 degrees apart
SHIFT_STEP_PIXELS = 1.0
EDGE_SHELLS = 1.1  # by which a cell of the last level turns the edge at most; posteriors are wider
KEEP = 24  # cells; 60 find the same maps in 1.3 to 1.6 times the time


def make_wide_plan(radius: int, coarse_radius: int, max_shift_pixels: float) -> SearchPlan:
    """Plan a search at ``radius`` shells whose coarse pass takes ``coarse_radius`` of them."""
    levels = max(1, int(np.ceil(np.log2(grid_step(COARSE_COUNT) * radius / EDGE_SHELLS))))
    return SearchPlan(
        coarse_count=COARSE_COUNT,
        coarse_radius=min(radius, coarse_radius),
        shift_cells=max(1, int(np.ceil(2 * max_shift_pixels / SHIFT_STEP_PIXELS - 1e-6))),
        shift_step_pixels=SHIFT_STEP_PIXELS,
        level_radii=(radius,) * levels,
        keep=KEEP,
        sharpness=(0.5, 0.7, 1.0),
        share=0.99,
    )


def search_on_host(
    batch: WeightedBatch,
    cubes: Any,
    first: int,
    plane: HalfPlane,
    plan: SearchPlan,
    *,
    scale: float,
    log_class_weights: npt.NDArray[np.float32],
    turn: npt.NDArray[np.float64],
    group: str,
    workers: Executor,
    backend: Backend,
) -> Poses:
    """Search a device's particles on the CPU; the poses go back to the device.

    Its tensor-core coarse pass holds about a hundred coefficients and a wide one takes more. The
    copies, a few MB an update, are made for near-balls and broad posteriors alone.
    """
    plane = make_half_plane(plane.box, plane.max_radius)  # the one given lies on the device
    n = plane.count(max(plan.level_radii))
    columns = (batch.a_re, batch.a_im, batch.c2)
    on_host = WeightedBatch(*(np.ascontiguousarray(backend.asnumpy(a[:, :n])) for a in columns))
    references = np.ascontiguousarray(backend.asnumpy(cubes)[..., :2])  # less their neighbours
    classes = len(log_class_weights)
    sets = [(slice(0, first), slice(0, classes)), (slice(first, len(batch)), slice(-classes, None))]
    poses = join_poses(
        [
            search_poses(
                on_host.span(rows),
                references[part],
                plane,
                plan,
                scale=scale,
                log_class_weights=log_class_weights,
                turn=turn,
                group=group,
                workers=workers,
            )
            for rows, part in sets
        ]
    )
    arrays = (field.name for field in fields(poses) if field.name != "levels")
    return replace(poses, **{name: backend.asarray(getattr(poses, name)) for name in arrays})
