"""How much the first particles show, and how much longer a start takes where that is little.

What a start needs is not a number of particles but an amount of signal: a memory of 100 particles
that holds a ribosome at SNR 0.1 holds mostly noise at 0.02, and detail then freezes in a wrong map
whose half-sets agree. docs/decisions/cold-start.md has the measurements behind the numbers.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from reconstruct.backend import Backend
from reconstruct.fourier import HalfPlane
from reconstruct.schedule import Schedule
from reconstruct.search import WeightedBatch

__all__ = ["SHELLS", "shown_signal", "stretch_for", "stretched"]

SHELLS = (2, 8)  # low enough to be signal; the first holds what background subtraction left
BRIGHT = 60.0  # nats per particle in those shells from which on a start is as short as it gets
STEEPNESS = 2.0  # a map half as good also places its particles worse
LONGEST = 6.0


def shown_signal(batch: WeightedBatch, plane: HalfPlane, backend: Backend) -> float:
    """Signal of a typical particle in ``SHELLS``, in nats: what a perfect map could explain.

    It is the median over particles of sum (|X|^2 / (2 sigma^2) - 1), X a coefficient and sigma^2
    the variance of noise in its real and in its imaginary part. The median is not moved by
    aggregates and ice.
    """
    shells = plane.shell[: batch.c2.shape[1]]
    some = backend.asarray(np.flatnonzero((shells >= SHELLS[0]) & (shells <= SHELLS[1])))
    power = batch.a_re[:, some] ** 2 + batch.a_im[:, some] ** 2  # (C X / sigma^2)^2
    floor = np.float32(1e-12)  # where the transfer function is 0
    excess = 0.5 * power / backend.xp.maximum(batch.c2[:, some], floor) - 1
    return float(np.median(backend.asnumpy(excess.sum(axis=1))))


def stretch_for(signal: float) -> float:
    """How many times longer a start takes than for bright particles, from their signal in nats."""
    return float(np.clip((BRIGHT / max(signal, 1e-6)) ** STEEPNESS, 1.0, LONGEST))


def stretched(schedule: Schedule, stretch: float) -> Schedule:
    """The schedule in which as much signal is presented as in ``schedule`` for bright particles."""
    return replace(
        schedule,
        grow_every=round(schedule.grow_every * stretch),
        cold_presented=round(schedule.cold_presented * stretch),
        cold_window=schedule.cold_window * stretch,
        warm_window=schedule.warm_window * stretch,
        mask_from=round(schedule.mask_from * stretch),
        mask_every=round(schedule.mask_every * stretch),
    )
