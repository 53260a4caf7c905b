"""A learner from a session's settings, and its changing state as plain values and arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from reconstruct.backend import Backend
from reconstruct.breadth import Breadth
from reconstruct.fourier import full_from_half
from reconstruct.layout import Layout
from reconstruct.learner import Learner
from reconstruct.optimizer import optimizer_of
from reconstruct.positivity import Positivity
from reconstruct.schedule import ShellGrowth
from reconstruct.siblings import dump_siblings, restore_siblings
from reconstruct.types import EngineSettings

__all__ = ["dump_learner", "new_learner", "restore_learner"]

_PLAIN = (
    *("presented", "updates", "stale", "drawn", "evidence", "split", "group", "temperature"),
    *("coarse_radius", "aside", "split_at"),
)
_ARRAYS = ("class_share", "prior", "mass", "mask_radius", "shift_sums")


def new_learner(
    settings: EngineSettings,
    layout: Layout,
    number: int,
    *,
    backend: Backend,
    n_classes: int | None = None,
) -> Learner:
    """Make an empty learner; ``number`` tells its random numbers from those of others."""
    return Learner(
        plane=layout.plane,
        grid=layout.grid,
        n_classes=n_classes or settings.n_classes,
        seed=(settings.seed, number),
        max_shift_pixels=layout.max_shift_pixels,
        max_radius=layout.max_radius,
        schedule=layout.schedule,
        class_similarity=settings.class_similarity,
        initial_ess_fraction=settings.initial_ess_fraction,
        positivity=Positivity(settings.nonnegativity),
        centring=settings.centring,
        optimizer=optimizer_of(settings),
        pose_search=settings.pose_search,
        backend=backend,
    )


def dump_learner(learner: Learner) -> tuple[dict[str, Any], dict[str, npt.NDArray[np.generic]]]:
    """Everything that changes: a JSON-able dict and arrays."""
    meta = {
        "seed": list(learner.seed),
        "radius": learner.radius,
        "presented_at_growth": learner.growth.presented_at_growth,
        "started": learner.cubes is not None,
        "cut": learner.positivity.dump(),
        "breadth": learner.breadth.dump(),
        **{name: getattr(learner, name) for name in _PLAIN},
    }
    arrays: dict[str, npt.NDArray[np.generic]] = {
        "statistics": learner.backend.asnumpy(learner.statistics).copy(),  # learning adds in place
        "resting": learner.resting.copy(),
        "fsc": np.stack(learner.fsc),
        **{name: getattr(learner, name).copy() for name in _ARRAYS},
        **dump_siblings(learner.siblings),
    }
    if learner.stale and learner.cubes is not None:  # else they follow from the statistics
        reach = learner.cubes.shape[-2] // 2
        arrays["references"] = learner.backend.asnumpy(learner.cubes[..., reach:, :2]).copy()
    if learner.velocity is not None:
        arrays["velocity"] = learner.backend.asnumpy(learner.velocity).copy()
    return meta, arrays


def restore_learner(
    learner: Learner, meta: dict[str, Any], arrays: dict[str, npt.NDArray[Any]]
) -> None:
    """Take over a state that ``dump_learner`` returned."""
    learner.growth = ShellGrowth(int(meta["radius"]), float(meta["presented_at_growth"]))
    for name in _PLAIN:
        setattr(learner, name, meta.get(name, getattr(learner, name)))
    for name in _ARRAYS:
        setattr(learner, name, np.array(arrays[name], np.float64))
    learner.positivity.restore(meta)
    learner.breadth = Breadth.load(meta["breadth"])
    learner.statistics = learner.backend.asarray(np.array(arrays["statistics"], np.float32))
    moving = arrays.get("velocity")
    learner.velocity = None if moving is None else learner.backend.asarray(np.array(moving))
    learner.fsc = [np.array(row, dtype=np.float64) for row in arrays["fsc"]]
    learner.n_classes = len(learner.fsc)  # one may have been born
    resting = arrays.get("resting", np.zeros(learner.n_classes))
    learner.resting = np.array(resting, dtype=np.bool_)
    # only the host knows siblings: taken up on a device they go on as two classes
    learner.siblings = None if learner.backend.on_device else restore_siblings(arrays)
    learner.cubes = None
    if "references" in arrays:
        learner.cubes = _references(arrays["references"], learner.backend)
    elif meta["started"]:
        learner.make_references()


def _references(half: npt.NDArray[Any], backend: Backend) -> Any:
    """Reference cubes as the backend's kernels take them, of half cubes (m, g, g, h, 2)."""
    numbers = np.ascontiguousarray(half, np.float32).view(np.complex64)[..., 0]
    cubes = np.stack([full_from_half(one) for one in numbers])[..., None].view(np.float32)
    if backend.on_device:  # each value with the next along x
        beyond = np.zeros_like(cubes[..., :1, :])
        following = np.concatenate([cubes[..., 1:, :], beyond], axis=-2)
        cubes = np.concatenate([cubes, following], axis=-1)
    return backend.asarray(cubes)
