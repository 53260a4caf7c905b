"""Whether the latest particles are unlike those before: the first sign of a species that is new.

Low evidence alone misses a bright newcomer, so the power of the images at low resolution counts
too, on both sides, with what their CTF accounts for taken away.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from reconstruct.learner import Learner
from reconstruct.search import WeightedBatch
from reconstruct.store import ParticleStore

__all__ = ["newcomers", "outlying"]

Float64 = npt.NDArray[np.float64]
Rows = npt.NDArray[np.intp]
Weigh = Callable[[Rows, int], WeightedBatch]

RADIUS = 8  # shells
LATEST = 200  # particles that are compared
GAP = 400  # particles between them and those before, which newcomers may have slipped into
BEFORE = 2000  # at most, of those before
FEWEST_BEFORE = 800
TAIL = 0.05  # of those before, on each side


def newcomers(store: ParticleStore, trained: int, learner: Learner, weigh: Weigh) -> float:
    """How many standard deviations more outliers the latest particles have than those before.

    0 where there are too few to compare.
    """
    stop = trained - LATEST
    before = np.arange(max(0, stop - GAP - BEFORE), max(0, stop - GAP))
    # The race's particles have been learned from: their evidence says nothing about newcomers.
    before = before[(store["visits"][before] == 1) & store.holds(before)]
    if len(before) < FEWEST_BEFORE:
        return 0.0
    rows = np.concatenate([before, np.arange(stop, trained)])
    power = _low_power(rows, learner, weigh)
    evidence = np.asarray(store["evidence"], np.float64)[rows]
    outside = outlying(power, evidence, len(before))
    usual = max(float(outside[: len(before)].mean()), 1.0 / len(before))
    share = float(outside[len(before) :].mean())
    return float((share - usual) / np.sqrt(usual * (1.0 - usual) / LATEST))


def outlying(power: Float64, evidence: Float64, before: int) -> npt.NDArray[np.bool_]:
    """Which particles are in the tails of the first ``before`` of them."""
    low, high = np.quantile(power[:before], [TAIL, 1.0 - TAIL])
    least = np.quantile(evidence[:before], TAIL)
    outside: npt.NDArray[np.bool_] = (power < low) | (power > high) | (evidence < least)
    return outside


def _low_power(rows: Rows, learner: Learner, weigh: Weigh) -> Float64:
    """Power of images at low resolution, less what their CTF accounts for, (len(rows),)."""
    plane, numpy = learner.plane, learner.backend.asnumpy
    radius = min(RADIUS, learner.max_radius)
    batch = weigh(rows, radius)
    n = plane.count(radius)
    c2 = numpy(batch.c2)[:, :n].astype(np.float64)
    power = (numpy(batch.a_re)[:, :n] ** 2 + numpy(batch.a_im)[:, :n] ** 2).sum(axis=1)
    starts = np.searchsorted(plane.shell[:n], np.arange(1, radius + 1))
    parts = [np.add.reduceat(table, starts, axis=1) for table in (c2, c2**2)]
    table = np.concatenate([np.ones((len(rows), 1)), *parts], axis=1)
    # Expected: per shell, C^4 times the signal's power and C^2 times the noise's.
    fit = np.linalg.lstsq(table, power, rcond=None)[0]
    residual: Float64 = (power - table @ fit) / np.maximum(table @ fit, 1e-12)
    return residual
