"""Searching several minibatches in one go on a device, while their references stay the same.

Minibatches that wait are searched together, since a few hundred particles do not fill a device,
and are learned from one by one. A particle's posterior does not depend on what is searched beside
it, so this shows in nothing but time. What turns out to be outdated is searched again.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from reconstruct.learned import Searched, Span
from reconstruct.learner import Learner
from reconstruct.search import WeightedBatch, pose_rows
from reconstruct.store import ParticleStore
from reconstruct.types import SearchCount

__all__ = ["SearchAhead"]

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Rows = npt.NDArray[np.intp]

MOST = 3000  # particles searched at once
MEMORY_PARTS = 16  # of the free memory, one of which their coefficients may fill


@dataclass(frozen=True)
class _Group:
    """Consecutive minibatches and what they were searched with."""

    start: int  # first row of the store
    size: int  # particles of each minibatch
    references: Any
    resting: npt.NDArray[np.bool_]
    noise: Float64
    whole: Searched
    sums: Float32  # (particles, 3, shells)
    edges: tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]  # of the minibatches, by half-set

    @property
    def stop(self) -> int:
        """Row behind the last one."""
        return self.start + self.size * (len(self.edges[0]) - 1)

    def holds(self, learner: Learner, rows: Rows, noise: Float64) -> bool:
        """Whether ``rows`` are one of the minibatches, and would be searched in the same way."""
        place, beside = divmod(int(rows[0]) - self.start, self.size)
        return (
            beside == 0
            and 0 <= place < len(self.edges[0]) - 1
            and len(rows) == self.size
            and learner.cubes is self.references
            and np.array_equal(learner.resting, self.resting)
            and np.array_equal(noise, self.noise)
        )

    def of(self, rows: Rows) -> tuple[Searched, Float32]:
        """What was found of the minibatch ``rows``, and its sums over shells."""
        place = (int(rows[0]) - self.start) // self.size
        (whole,) = self.whole.spans
        found, spans, index = self.whole.found, [], []
        for half, edges in enumerate(self.edges):
            part = slice(int(edges[place]), int(edges[place + 1]))
            count = part.stop - part.start
            index.append(np.arange(part.start, part.stop))
            if count:
                poses, weights = pose_rows(whole.poses, part), whole.weights[part]
                first = 0 if half else count
                spans.append(Span(whole.batch.span(part), first, poses, weights))
        both = np.concatenate(index)
        mine = replace(
            found,
            poses=pose_rows(found.poses, both),
            weights=found.weights[both],
            class_mass=found.class_mass[both],
            searches=tuple(self._share(count) for count in found.searches),
        )
        return replace(self.whole, spans=tuple(spans), found=mine), self.sums[both]

    def _share(self, count: SearchCount) -> SearchCount:
        minibatches = len(self.edges[0]) - 1
        return replace(count, particles=self.size, cells=count.cells // minibatches)


class SearchAhead:
    """Holds the minibatches of one search until the last of them is learned from.

    Parameters
    ----------
    store, weigh, sums, workers
        The session's particles, what gives rows of them up to a radius ready to be scored, their
        sums over shells, and its threads.
    """

    def __init__(
        self,
        store: ParticleStore,
        *,
        weigh: Callable[[Rows, int], WeightedBatch],
        sums: Callable[[WeightedBatch], Float32],
        workers: Executor,
    ) -> None:
        self._store, self._weigh, self._sums, self._workers = store, weigh, sums, workers
        self._group: _Group | None = None
        self._noise: Float64 | None = None  # of the minibatch before

    def take(
        self, learner: Learner, rows: Rows, *, waiting: int, noise: Float64
    ) -> tuple[Searched, Float32] | None:
        """What a search found of the new particles ``rows``, and their sums over shells.

        None where they are better searched alone.

        Parameters
        ----------
        rows
            One minibatch, consecutive in the store.
        waiting
            New particles there, these among them.
        noise
            Variances that particles are weighed by now.
        """
        settled = self._noise is not None and np.array_equal(noise, self._noise)
        self._noise = noise
        if self._group is None or not self._group.holds(learner, rows, noise):
            self._group = None  # before another takes as much memory
            count = _minibatches(learner, len(rows), waiting)
            if settled and count > 1:
                self._group = self._search(learner, rows, count, noise)
        group = self._group
        if group is None:
            return None
        if int(rows[-1]) + 1 == group.stop:  # the last of them: nothing else needs its memory
            self._group = None
        return group.of(rows)

    def forget(self) -> None:
        """Let go of what was searched: no minibatch follows for now."""
        self._group = None

    def _search(self, learner: Learner, rows: Rows, count: int, noise: Float64) -> _Group:
        """Search ``count`` minibatches, the first of which are ``rows``."""
        size = len(rows)
        order, half = self._store.by_half(rows[0] + np.arange(count * size))
        first = int(np.count_nonzero(half == 0))
        starts = rows[0] + size * np.arange(count + 1)
        batch = self._weigh(order, learner.insert_radius)
        return _Group(
            start=int(rows[0]),
            size=size,
            references=learner.cubes,
            resting=learner.resting.copy(),
            noise=noise,
            whole=learner.look(batch, first, cold=False, workers=self._workers),
            sums=self._sums(batch),
            edges=(
                np.searchsorted(order[:first], starts),
                first + np.searchsorted(order[first:], starts),
            ),
        )


def _minibatches(learner: Learner, size: int, waiting: int) -> int:
    """How many minibatches of those that wait will meet the references that there are now."""
    blurred = learner.n_classes > 1 and learner.similarity > 0
    changes = learner.optimizer.name != "em" or learner.positivity.judges or blurred
    changes |= learner.temperature != 1.0
    alike = learner.pose_search == "exhaustive" and not learner.coarse_radius  # in any company
    if not (learner.backend.on_device and alike) or learner.cubes is None or changes:
        return 1
    row = 3 * 4 * learner.plane.count(learner.insert_radius)  # bytes
    most = min(MOST, learner.backend.memory()[0] // MEMORY_PARTS // row)
    left = max(learner.particles_to_renewal - learner.stale, 0.0)
    return int(min(waiting // size, most // size, left // size + 1))
