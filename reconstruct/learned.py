"""What goes into one update beside its images, and what it finds out about its particles."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from reconstruct.backend import Backend
from reconstruct.classes import blur_classes, class_mass
from reconstruct.search import Poses, WeightedBatch
from reconstruct.search_device import posterior
from reconstruct.types import SearchCount

__all__ = ["LearnResult", "Searched", "Span", "Start", "first_half", "learned"]

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Start:
    """Poses that a local search starts from."""

    rotation: Float32  # (b, 9)
    shift: Float32  # (b, 2) pixels
    class_index: npt.NDArray[np.int32]  # (b,)


@dataclass(frozen=True)
class LearnResult:
    """What one update found out about its particles, in NumPy arrays."""

    poses: Poses  # a device hands back only the best cell of each particle
    weights: Float32  # (b, keep) posterior weights, of as many cells
    class_mass: Float32  # (b, K)
    stage_seconds: dict[str, float] = field(default_factory=dict)
    searches: tuple[SearchCount, ...] = ()


@dataclass(frozen=True)
class Span:
    """Consecutive particles of a batch with their posterior, those of half-set 0 first."""

    batch: WeightedBatch
    first: int  # particles of half-set 0
    poses: Poses
    weights: Any  # (b, keep) on the backend


@dataclass(frozen=True)
class Searched:
    """What a search found out about a minibatch, before anything is learned from it."""

    spans: tuple[Span, ...]  # on a device those of a larger search may lie apart
    found: LearnResult  # of all half-set 0, then of all half-set 1
    temperature: float = 1.0  # of the posterior
    tells_breadth: bool = False  # whether it was warm and everywhere, not of a near-ball

    def __len__(self) -> int:
        return len(self.found.class_mass)


def learned(
    poses: Poses,
    n_classes: int,
    similarity: float,
    backend: Backend,
    *,
    temperature: float = 1.0,
) -> tuple[Any, LearnResult]:
    """Posterior weights (b, keep) on the backend, and what the host is told of the poses.

    ``similarity`` blurs the weights between classes (``classes.blur_classes``); at a temperature
    above 1 they are those of scores divided by it.
    """
    if temperature != 1.0:
        poses = replace(poses, score=poses.score / np.float32(temperature))
    if backend.on_device:
        weights, report = posterior(poses, n_classes, similarity, backend)
        best = Poses.from_report(report, levels=poses.levels)
        return weights, LearnResult(best, report[:, 11:12], report[:, 13:])
    weights = blur_classes(poses, poses.weights(), n_classes, similarity)
    return weights, LearnResult(poses, weights, class_mass(poses, weights, n_classes))


def first_half(half: npt.NDArray[np.integer]) -> int:
    """Particles of half-set 0 in a batch that has them first.

    Raises
    ------
    ValueError
        The half-sets are mixed.
    """
    first = int(np.count_nonzero(half == 0))
    if np.any(half[:first]):
        raise ValueError("a batch must have half-set 0 before half-set 1: sort it")
    return first
