"""Two ways to score the same particles, tried on a minibatch before it is learned from.

Which of them explains the particles better is what a learner goes on with.
"""

from __future__ import annotations

from concurrent.futures import Executor
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from reconstruct.backend import Backend
from reconstruct.breadth import COMPARED_ON, Breadth
from reconstruct.learned import LearnResult, Searched, Start
from reconstruct.positivity import Positivity
from reconstruct.search import Poses, WeightedBatch

__all__ = ["Comparing", "compare_cut", "compare_widths"]

Float32 = npt.NDArray[np.float32]


class Comparing(Protocol):
    """What of a learner takes part."""

    backend: Backend
    n_classes: int
    presented: float
    stale: int
    positivity: Positivity
    breadth: Breadth

    def make_references(self, workers: Executor | None = None) -> None:
        """Make what particles are scored against."""

    def search(
        self,
        batch: WeightedBatch,
        first: int,
        rng: np.random.Generator,
        *,
        cold: bool,
        workers: Executor,
        start: Start | None,
    ) -> tuple[Poses, Any]:
        """Poses of a batch, whose first ``first`` particles are of half-set 0."""


def compare_cut(
    learner: Comparing,
    batch: WeightedBatch,
    first: int,
    found: LearnResult,
    rng: np.random.Generator,
    workers: Executor,
) -> None:
    """Score particles around known poses with and without the cut of references at 0.

    ``first`` of them are of half-set 0; ``found`` are their poses.
    """
    best, stale = found.poses, learner.stale
    start = Start(best.rotation[:, 0], best.shift[:, 0], best.class_index[:, 0])

    def evidence() -> Float32:
        learner.make_references()
        poses, _ = learner.search(batch, first, rng, cold=False, workers=workers, start=start)
        return learner.backend.asnumpy(poses.evidence)

    learner.positivity.judge(evidence, start.class_index, learner.n_classes)
    learner.make_references(workers)  # as was decided; the half maps are not compared yet
    learner.stale = stale


def compare_widths(
    learner: Comparing, searched: Searched, rng: np.random.Generator, workers: Executor
) -> None:
    """Search some particles of a minibatch in the width that is not in use, too."""
    now, others, before = [], [], 0
    breadth = learner.breadth
    for span in searched.spans:
        each = COMPARED_ON // 2
        rows = slice(max(0, span.first - each), min(len(span.batch), span.first + each))
        some, first = span.batch.span(rows), span.first - rows.start
        learner.breadth = breadth.other
        poses, _ = learner.search(some, first, rng, cold=False, workers=workers, start=None)
        learner.breadth = breadth
        others.append(learner.backend.asnumpy(poses.evidence))
        now.append(searched.found.poses.evidence[before:][rows])
        before += len(span.batch)
    breadth.compare(np.concatenate(now), np.concatenate(others), learner.presented)
