"""Whether the latest particles are unlike those before: the first sign of a species that is new.

Low evidence alone misses a bright newcomer, so the power of the images at low resolution counts
too, on both sides, with what their CTF accounts for taken away.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from reconstruct.store import ParticleStore

__all__ = ["contrast", "newcomers", "outlying"]

Float64 = npt.NDArray[np.float64]
Rows = npt.NDArray[np.intp]

LATEST = 200  # particles that are compared
GAP = 400  # particles between them and those before, which newcomers may have slipped into
BEFORE = 2000  # at most, of those before
FEWEST_BEFORE = 800
TAIL = 0.01  # of those before, on each side: newcomers lie far outside, if they can be told


def newcomers(store: ParticleStore, trained: int, sums: Callable[[Rows], Float64]) -> float:
    """By how many standard deviations the latest particles have more outliers than those before.

    0 where there are too few to compare. ``sums`` gives what ``ShellSums`` does of rows.
    """
    stop = trained - LATEST
    before = np.arange(max(0, stop - GAP - BEFORE), max(0, stop - GAP))
    # The race's particles have been learned from: their evidence says nothing about newcomers.
    before = before[(store["visits"][before] == 1) & store.holds(before)]
    if len(before) < FEWEST_BEFORE:
        return 0.0
    rows = np.concatenate([before, np.arange(stop, trained)])
    known = sums(rows)
    evidence = np.asarray(store["evidence"][rows], np.float64)
    power, evidence = (
        _unexplained(values, known, len(before)) for values in (known[:, 2].sum(axis=1), evidence)
    )
    outside = outlying(power, evidence, len(before))
    return contrast(outside[: len(before)], outside[len(before) :])


def contrast(before: npt.NDArray[np.bool_], latest: npt.NDArray[np.bool_]) -> float:
    """How many deviations the share of outliers in ``latest`` is above that of such blocks before.

    Particles of one micrograph share its ice and defocus, so blocks differ by more than chance.
    """
    size = len(latest)
    usual = max(float(before.mean()), 1.0 / len(before))
    blocks = before[len(before) % size :].reshape(-1, size).mean(axis=1)
    among = float(blocks.std(ddof=1)) if len(blocks) > 1 else 0.0
    deviation = max(float(np.sqrt(usual * (1.0 - usual) / size)), among)
    return float((latest.mean() - usual) / deviation)


def outlying(power: Float64, evidence: Float64, before: int) -> npt.NDArray[np.bool_]:
    """Which particles are in the tails of the first ``before`` of them.

    Those of ``power`` (rows,) on both sides, those of ``evidence`` below.
    """
    tail = int(TAIL * before)
    ordered = np.sort(power[:before])
    low, high = ordered[tail], ordered[before - 1 - tail]
    least = np.partition(evidence[:before], tail)[tail]
    outside: npt.NDArray[np.bool_] = (power < low) | (power > high) | (evidence < least)
    return outside


def _unexplained(values: Float64, sums: Float64, before: int) -> Float64:
    """What of ``values`` (rows,) the particles' CTF does not account for, over what it does.

    Of images' power and evidence alike is expected, per shell, C^4 times one number and C^2 times
    another; these are fitted to the first ``before`` rows. ``sums`` (rows, 3, shells) are those of
    C^2, C^4 and of the images' power.
    """
    table = np.concatenate([np.ones((len(sums), 1)), sums[:, 0], sums[:, 1]], axis=1)
    some = table[:before]
    fit = np.linalg.lstsq(some.T @ some, some.T @ values[:before], rcond=None)[0]
    expected = table @ fit
    residual: Float64 = (values - expected) / np.maximum(expected, 1e-12)
    return residual
