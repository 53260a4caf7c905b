"""How much a first look at the particles explains, and how much longer a start takes if little.

What a start needs is not a number of particles but an amount of signal: a memory of 100 particles
that holds a ribosome at SNR 0.1 holds mostly noise at 0.02, and detail then freezes in a wrong map
whose half-sets agree. docs/decisions/cold-start.md has the measurements behind the numbers.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from reconstruct.learner import EVIDENCE_MEMORY, Learner
from reconstruct.schedule import Schedule

__all__ = ["BRIGHT", "DIM", "mean_evidence", "particles_for", "stretch_for", "stretched"]

DIM = 21.0  # nats per particle after the first look, below which starts were seen to fail
BRIGHT = 42.0  # likewise, from which even views vouch for one of several maps
LONGEST = 6.0


def mean_evidence(learner: Learner) -> float:
    """Running mean of a learner's evidence in nats, without the zero that it began with."""
    return learner.evidence / max(-math.expm1(-learner.presented / EVIDENCE_MEMORY), 1e-6)


def particles_for(count: int, stretch: float) -> int:
    """How many particles a start learns from, where ``count`` bright ones would do."""
    return round(count * stretch * min(max(stretch, 1.0), 2.0))


def stretch_for(evidence: float) -> float:
    """How many times longer a start takes than for bright particles.

    From the evidence in nats per particle of the best start that was shown the race's particles
    once: 9 for ribosomes at SNR 0.02, 24 at 0.05, 61 to 83 at 0.1; 24 for a 130-kDa protein at
    0.02; 60 for real apoferritin.
    """
    return float(np.clip(DIM / max(evidence, 1e-6), 1.0, LONGEST))


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
