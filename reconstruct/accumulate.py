"""How a batch enters a learner's statistics once its poses are known."""

from __future__ import annotations

from concurrent.futures import Executor
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from reconstruct.backend import Backend
from reconstruct.fourier import HalfPlane
from reconstruct.learned import Searched, Span
from reconstruct.optimizer import Optimizer, gradient_step
from reconstruct.update import MapGrid

__all__ = ["Accumulating", "accumulate", "fade"]

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

SHARE_MEMORY = 3000.0  # particles, at most, of the running mean of class shares


class Accumulating(Protocol):
    """What of a learner takes part."""

    backend: Backend
    placed: HalfPlane  # on the backend
    grid: MapGrid
    optimizer: Optimizer
    n_classes: int
    updates: int
    resting: npt.NDArray[np.bool_]  # (K,)
    class_share: Float64  # (K,)
    mass: Float64  # (K,)
    statistics: Float32  # (2, K, g, g, h, 3)
    velocity: Float32 | None

    @property
    def insert_radius(self) -> int:
        """Radius in shells up to which particles enter."""


def accumulate(learner: Accumulating, searched: Searched, window: float, workers: Executor) -> None:
    """Let the statistics fade, and add what the particles say by their posterior weights.

    Changes the learner's statistics (2, K, g, g, h, 3), ``mass``, ``class_share`` and, by gradient
    descent, ``velocity``. A class forgets by what it receives, so a rare one keeps its particles
    for longer: ``window`` is how many all of them remember; ``inf`` forgets nothing.
    """
    received = searched.found.class_mass.sum(axis=0, dtype=np.float64)  # (K,)
    decay = np.exp(-received * learner.n_classes / window).astype(np.float32)
    learner.mass = learner.mass * decay + received
    keep = np.exp(-len(searched) / min(window, SHARE_MEMORY))
    learner.class_share = keep * learner.class_share + (1 - keep) * received / len(searched)
    backend, em = learner.backend, learner.optimizer.name == "em"
    target = learner.statistics if em else backend.xp.zeros_like(learner.statistics)
    if backend.on_device:
        kept = backend.asarray(decay if em else np.ones_like(decay))
        spans = [
            value for span in searched.spans for value in (span.first, *_columns(learner, span))
        ]
        backend.kernels.insert_halves(target, kept, *_space(learner), *spans)
    else:
        if em:
            _forget(learner, decay)
        for span in searched.spans:
            _insert(learner, target, span, workers)
    if not em:
        learner.velocity = gradient_step(
            learner.statistics, target, learner.velocity, decay=decay,
            optimizer=learner.optimizer, updates=learner.updates, scale=learner.grid.scale,
            backend=backend,
        )  # fmt: skip


def fade(learner: Accumulating, kept: float) -> None:
    """Let what was learned so far count for ``kept`` of what it did, against what is to come."""
    _forget(learner, np.full(learner.n_classes, kept, np.float32))
    learner.mass = learner.mass * kept


def _forget(learner: Accumulating, decay: Any) -> None:
    for k, kept in enumerate(decay.tolist()):
        if kept < 1:
            learner.statistics[:, k] *= kept


def _insert(learner: Accumulating, target: Any, span: Span, workers: Executor) -> None:
    """Add the particles of each half-set to theirs, side by side."""
    members = np.arange(0, span.first), np.arange(span.first, len(span.batch))
    *space, n = _space(learner)
    a_re, a_im, c2, *cells = _columns(learner, span)

    def insert(h: int) -> None:
        learner.backend.kernels.insert_particles(
            target[h], members[h], *space, a_re, a_im, c2, n, *cells
        )

    for _ in workers.map(insert, (0, 1)):
        pass


def _space(learner: Accumulating) -> tuple[Any, ...]:
    """Coefficients, scale and box as kernels take them, and how many coefficients enter."""
    plane = learner.placed
    return (
        plane.kx, plane.ky, *plane.integers, np.float32(learner.grid.scale), float(plane.box),
        plane.count(learner.insert_radius),
    )  # fmt: skip


def _columns(learner: Accumulating, span: Span) -> tuple[Any, ...]:
    """Particles and their cells; classes at rest receive nothing."""
    batch, poses, weights = span.batch, span.poses, span.weights
    if learner.resting.any():
        weights = weights * learner.backend.asarray(~learner.resting)[poses.class_index]
    return (
        batch.a_re, batch.a_im, batch.c2, poses.rotation, poses.rotation_id, poses.shift,
        poses.class_index, weights, poses.count,
    )  # fmt: skip
