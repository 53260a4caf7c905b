"""Whether the particles of one class are of two compositions or states, and which is which.

One map of all particles and their poses is there already; what may differ is found in what the map
leaves (``heterogeneity``), at low resolution, where a difference of a few per cent of the mass is
strong enough. Each half-set finds its own direction of variation. If there are two states these are
the same; what noise or chance makes they are not. Then both together sort the particles by
expectation maximisation with poses held, so that it costs little.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from reconstruct.class_actions import Session, alone, score
from reconstruct.heterogeneity import (
    Residuals,
    leading_scores,
    make_residuals,
    random_scores,
)
from reconstruct.siblings import move
from reconstruct.update import half_map_fsc, quotient, reference_cube, symmetric_plane

__all__ = ["Sorting", "Split", "attempt_split", "sort_again"]

Complex64 = npt.NDArray[np.complex64]
Float64 = npt.NDArray[np.float64]
Rows = npt.NDArray[np.intp]

FEWEST = 1500  # particles that a difference is looked for in
MOST_VALUES = 2_000_000  # coefficients of all particles that are looked at together
FINER = 1.5  # how much further than where variation is looked for, the difference reaches
AGREEMENT = 0.3  # correlation of the scores that the half-sets' directions give; chance: 0.05
SIGMAS = 4.0  # of the variance along the other half-set's direction, above that of noise
SHARE = 0.15  # of the particles, that each of two states must have
PASSES = 6  # of expectation maximisation at each radius
ASKED = 240  # particles that are searched everywhere in both maps
STILL = 0.5  # of what poses held say for a particle's state, that a search everywhere must say
SURE = 0.9  # how far a class is believed when particles are sorted again


@dataclass(frozen=True)
class Sorting:
    """Particles of one complex by state, and what sets the two maps off from that of both."""

    rows: Rows
    second: npt.NDArray[np.bool_]  # which of them are in the second state
    differences: Complex64  # (2, g, g, r + 1)
    share: float  # of the second state
    lead: Float64  # (n,) nats that the second state is ahead by, with poses held


@dataclass(frozen=True)
class Split:
    """A class that holds two states."""

    sorting: Sorting
    agreement: float
    gain: float  # nats per particle of two states along the direction of the other half-set


def attempt_split(session: Session, k: int, *, number: int) -> Split | None:
    """Look for two states among the particles of class ``k``; ``number`` keys what is random."""
    learner = session.learner
    first = learner.schedule.join_radius
    if learner.backend.on_device or learner.optimizer.name != "em" or learner.siblings is not None:
        return None
    rows = _latest(session, session.of_class(k), first)
    if len(rows) < FEWEST or learner.radius < first + 2:
        return None
    residuals = _residuals(session, rows, (k,), first)
    rng = np.random.default_rng([*learner.seed, number])
    members = _members(residuals)
    if min(len(one) for one in members) < FEWEST // 4:
        return None
    found = [leading_scores(residuals, one, rng) for one in members]
    noise = _noise(residuals, members, rng)
    fit = residuals.fit
    agreement = float(np.corrcoef(found[0][fit], found[1][fit])[0, 1])
    held_out = [scores[members[1 - h]] / np.sqrt(noise) for h, scores in enumerate(found)]
    excess = [float(scores.var()) - 1.0 for scores in held_out]
    sigmas = [e / np.sqrt(4.0 / len(s)) for e, s in zip(excess, held_out, strict=True)]
    if abs(agreement) < AGREEMENT or min(sigmas) < SIGMAS:
        return None
    gain = float(np.mean([_gain(s, e) for s, e in zip(held_out, excess, strict=True)]))
    # Each particle begins by the direction that the other half-set found.
    scores = np.where(residuals.half == 0, np.sign(agreement) * found[1], found[0])
    log_odds = 2.0 * np.sqrt(np.mean(excess)) * scores / np.sqrt(noise)
    second = _probability(log_odds)
    _, second, _ = _two_maps(residuals, second, noise)
    finer = min(round(FINER * first), learner.radius - 2)
    rows, second = rows[-_room(session, finer) :], second[-_room(session, finer) :]
    sorting = _sorted(session, rows, second, (k,), finer, noise)
    if not SHARE <= sorting.share <= 1.0 - SHARE or _one_turned(session, k, sorting, number):
        return None
    return Split(sorting, abs(agreement), gain)


def sort_again(session: Session) -> Sorting | None:
    """Sort siblings' particles anew, as they are seen now; None if one state is left."""
    learner = session.learner
    assert learner.siblings is not None
    classes = learner.siblings.classes
    radius = min(round(FINER * learner.schedule.join_radius), learner.radius - 2)
    rows = _latest(session, np.sort(np.concatenate([session.of_class(k) for k in classes])), radius)
    if len(rows) < FEWEST // 2:
        return None
    known = session.classes[rows] == classes[1]
    second = np.where(known, SURE, 1.0 - SURE)
    sorting = _sorted(session, rows, second, classes, radius, None)
    return sorting if SHARE <= sorting.share <= 1.0 - SHARE else None


def _one_turned(session: Session, k: int, sorting: Sorting, number: int) -> bool:
    """Whether each state's particles find their place in the map of the other as well.

    A map that is wrong as a whole, such as two structures on top of each other that differ by a
    turn only, varies as well, but with poses free either state is as good as the other.
    """
    rng = np.random.default_rng([*session.learner.seed, number, 1])
    some = np.sort(rng.permutation(len(sorting.rows))[:ASKED])
    rows, evidence = sorting.rows[some], []
    for difference in sorting.differences:
        learner = alone(session, k, number)
        for half in learner.statistics[:, 0]:
            move(half, difference)
        learner.make_references()
        found, result = score(session, learner, rows, 0, crossed=True)
        evidence.append(result.poses.evidence.astype(np.float64)[np.argsort(found)])
    lead = sorting.lead[some]
    free = float((np.sign(lead) * (evidence[1] - evidence[0])).mean())
    return free < STILL * float(abs(lead).mean())


def _members(residuals: Residuals) -> list[Rows]:
    """Particles of each half-set whose poses fit."""
    return [np.flatnonzero((residuals.half == h) & residuals.fit) for h in (0, 1)]


def _noise(residuals: Residuals, members: list[Rows], rng: np.random.Generator) -> float:
    """Variance of each half-set's scores along directions that chance made of the other."""
    scores = [random_scores(residuals, one, rng)[other] for one, other in _crossed(members)]
    return float(np.mean([one.var() for one in scores]))


def _crossed(members: list[Rows]) -> tuple[tuple[Rows, Rows], ...]:
    return (members[0], members[1]), (members[1], members[0])


def _room(session: Session, radius: int) -> int:
    return MOST_VALUES // session.learner.plane.count(radius)


def _latest(session: Session, rows: Rows, radius: int) -> Rows:
    return rows[-_room(session, radius) :]


def _probability(log_odds: Float64) -> Float64:
    return 1.0 / (1.0 + np.exp(-np.clip(log_odds, -50.0, 50.0)))


def _gain(scores: Float64, excess: float) -> float:
    """Mean log-likelihood of two states above that of one, of scores in deviations of noise."""
    drive = np.sqrt(excess) * scores
    return float((np.logaddexp(drive, -drive) - np.log(2.0) - 0.5 * excess).mean())


def _residuals(session: Session, rows: Rows, classes: tuple[int, ...], radius: int) -> Residuals:
    """Residuals of particles against the map of some classes together."""
    learner = session.learner
    total = sum(learner.statistics[h, k] for h in (0, 1) for k in classes)
    clipped = np.clip(learner.fsc[classes[0]], 0.02, 0.999)
    crop = symmetric_plane(total, learner.grid.reach(learner.radius))
    spectrum = quotient(crop, learner.grid, learner.radius, 2 * clipped / (1 + clipped))
    grid = learner.class_grid(classes[0])
    poses = session.store.poses(rows)
    return make_residuals(
        session.weigh(rows, radius),
        session.store.half_of(rows),
        rotation=poses["rotation"],
        shift=poses["shift"],
        reference=reference_cube(spectrum, grid),
        plane=learner.plane,
        grid=grid,
        radius=radius,
    )


def _sorted(
    session: Session,
    rows: Rows,
    second: Float64,
    classes: tuple[int, ...],
    radius: int,
    noise: float | None,
) -> Sorting:
    """Sort particles at ``radius`` shells, from what is believed of them."""
    residuals = _residuals(session, rows, classes, radius)
    if noise is None:
        rng = np.random.default_rng([*session.learner.seed, session.learner.updates])
        noise = _noise(residuals, _members(residuals), rng)
    differences, second, lead = _two_maps(residuals, second, noise)
    share = float(second[residuals.fit].mean())
    return Sorting(rows, second > 0.5, differences, share, lead)


def _two_maps(
    residuals: Residuals, second: Float64, noise: float
) -> tuple[Complex64, Float64, Float64]:
    """Expectation maximisation of two maps with poses held.

    Each map is that of both plus a difference whose power, shell by shell, is what the half-sets
    agree about. ``noise`` is the variance of scores where nothing varies.

    Returns
    -------
    Differences (2, g, g, r + 1), the probability (b,) of the second state, and how many nats (b,)
    it is ahead by if noise is white.
    """
    grid, radius = residuals.grid, residuals.radius
    members = _members(residuals)
    assumed = np.full(radius + 1, 0.8)
    differences: list[Complex64] = []
    lead = np.zeros(len(second))
    for _ in range(PASSES):
        crops = [
            [residuals.project_back(held, held, rows) for rows in members]
            for held in (1.0 - second, second)
        ]
        apart = [
            quotient(crops[1][h], grid, radius, assumed)
            - quotient(crops[0][h], grid, radius, assumed)
            for h in (0, 1)
        ]
        fsc = np.clip(half_map_fsc(apart[0], apart[1], grid, radius), 0.02, 0.97)
        fraction = 2 * fsc / (1 + fsc)
        differences = [quotient(one + two, grid, radius, fraction) for one, two in crops]
        share = float(np.clip(second[residuals.fit].mean(), 0.02, 0.98))
        lead = np.zeros(len(second))
        for sign, difference in zip((-1.0, 1.0), differences, strict=True):
            product, power = residuals.match(residuals.slices(difference))
            lead += sign * (product - 0.5 * power)
        second = _probability(lead / noise + np.log(share / (1.0 - share)))
    return np.stack(differences), second, lead
