"""Compiled CPU loops of the branch-and-bound search's coarse level.

They read the scores of all coarse cells in place; the plain versions that work on any backend's
arrays are in ``bound_arrays`` and are what these must agree with.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

__all__ = ["best_cells", "cells_above"]

_OPTIONS: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy"}


@numba.njit(**_OPTIONS)
def best_cells(scores, half_power, log_prior, index, value):  # type: ignore[no-untyped-def]
    """Turn ``scores`` (b, t, r) into log-likelihoods in place and find the best of each row.

    ``half_power`` (b, r) is taken off and ``log_prior`` (r,) added; ``index`` (b,) is the flat cell
    ``t * r_total + r`` and ``value`` (b,) its log-likelihood.
    """
    b, t, r = scores.shape
    for i in range(b):
        best = np.float32(-np.inf)
        where = 0
        for j in range(t):
            for k in range(r):
                v = scores[i, j, k] + (log_prior[k] - half_power[i, k])
                scores[i, j, k] = v
                if v > best:
                    best = v
                    where = j * r + k
        index[i] = where
        value[i] = best


@numba.njit(**_OPTIONS)
def cells_above(scores, allowance, floor, index, value, count):  # type: ignore[no-untyped-def]
    """Cells of ``scores`` (b, t, r) whose bound reaches ``floor`` (b,), best scores first.

    The bound is the score and ``allowance`` (b, r). Of more cells than ``index`` and ``value``
    (b, most) hold, the best scores stay: the safety valve. Where no bound reaches the floor the
    best score does; ``count`` (b,) says how many there are.
    """
    b, t, r = scores.shape
    most = index.shape[1]
    passed_score = np.empty(t * r, np.float32)
    passed_index = np.empty(t * r, np.int32)
    for i in range(b):
        passed = 0
        best = np.float32(-np.inf)
        where = 0
        for j in range(t):
            for k in range(r):
                v = scores[i, j, k]
                if v + allowance[i, k] >= floor[i]:
                    passed_score[passed] = v
                    passed_index[passed] = j * r + k
                    passed += 1
                if v > best:
                    best = v
                    where = j * r + k
        if passed == 0:
            passed_score[0] = best
            passed_index[0] = where
            passed = 1
        if passed > most:  # sort only what can stay
            least = -np.partition(-passed_score[:passed], most - 1)[most - 1]
            stay = 0
            for j in range(passed):
                if passed_score[j] >= least:
                    passed_score[stay] = passed_score[j]
                    passed_index[stay] = passed_index[j]
                    stay += 1
            passed = stay
        order = np.argsort(-passed_score[:passed], kind="mergesort")
        size = min(passed, most)
        for j in range(size):
            index[i, j] = passed_index[order[j]]
            value[i, j] = passed_score[order[j]]
        count[i] = size
