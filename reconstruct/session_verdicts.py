"""Verdicts on how a session goes: enough data, classes that overlap, converged; numbers and words.

As in ``verdicts``: a verdict is a value or None, and None means that there is nothing to say.
"""

from __future__ import annotations

from collections.abc import Sequence

from reconstruct.forecast import Forecast, forecast
from reconstruct.snapshot import LEAST_PARTICLES
from reconstruct.types import ClassSnapshot, Snapshot
from reconstruct.verdicts import Verdict

__all__ = ["class_overlap", "converged", "enough_data", "forecast_of", "imposed_symmetry"]

# Of particles asked (32 of each class), the share that the other class explains better: a half
# where the maps are one and the same, 0 to 0.1 where they are two structures.
OVERLAPPING = 0.3


def forecast_of(item: ClassSnapshot, snapshot: Snapshot) -> Forecast | None:
    """What a class's half-maps say about more particles, once its map is what they can give.

    That is when its detail has come to an end, or every particle was presented twice: one pass
    leaves a map that more training improves, not only more particles.
    """
    trained = snapshot.particles_presented >= 2 * snapshot.particles_seen
    if item.phase != "final" and not trained:
        return None
    return forecast(
        item.fsc,
        particles=float(item.particles),
        box_angstrom=snapshot.geometry.box_angstrom,
        resolution_angstrom=item.resolution_angstrom,
    )


def enough_data(item: ClassSnapshot, snapshot: Snapshot) -> Verdict | None:
    """Say whether more particles would help, and how many; or nothing."""
    found = forecast_of(item, snapshot)
    if found is None:
        return None
    if found.limited_by == "settings":
        return Verdict(
            kind="enough_data",
            message=(
                f"{item.particles} particles are enough for {item.resolution_angstrom:.1f} A, the "
                f"finest detail in use: more of them need a finer max_resolution_angstrom to help"
            ),
            values={"particles": float(item.particles)},
        )
    parts = [
        f"{need.resolution_angstrom:.1f} A needs about {_round(need.particles)} "
        f"({_round(need.low)} to {_round(need.high)})"
        for need in found.needs
    ]
    values = {"particles": float(item.particles)}
    for number, need in enumerate(found.needs, 1):
        values |= {
            f"resolution_{number}_angstrom": need.resolution_angstrom,
            f"particles_{number}": need.particles,
            f"particles_{number}_low": need.low,
            f"particles_{number}_high": need.high,
        }
    return Verdict(
        kind="enough_data",
        message=(
            f"{item.particles} particles give {item.resolution_angstrom:.1f} A; {', '.join(parts)}"
        ),
        values=values,
    )


def imposed_symmetry(item: ClassSnapshot, group: str) -> Verdict | None:
    """Say that a resolution is not to be relied on because a group was imposed, or nothing.

    Half-maps on the same axes agree by more than what they learned.
    """
    if group == "C1" or item.resolution_angstrom is None:
        return None
    return Verdict(
        kind="imposed_symmetry",
        message=(
            f"with {group} imposed the half-maps share its axes, so that the "
            f"{item.resolution_angstrom:.1f} A of their FSC flatter the map, and a wrong one too; "
            f"compare the maps of two runs, each on one half of the particles"
        ),
        values={"resolution_angstrom": item.resolution_angstrom},
    )


def class_overlap(
    overlap: Sequence[float], index: int, *, particles: Sequence[int]
) -> Verdict | None:
    """Say that a class cannot be told from another, or nothing.

    Parameters
    ----------
    overlap
        (K,) share of the particles of class ``index`` that each class explains better.
    particles
        (K,) of each class.
    """
    others = [
        (share, other)
        for other, share in enumerate(overlap)
        if other != index and particles[other] >= LEAST_PARTICLES
    ]
    if not others:
        return None
    share, other = max(others)
    if share < OVERLAPPING:
        return None
    return Verdict(
        kind="class_overlap",
        message=(
            f"class {other + 1} explains {100 * share:.0f} % of its particles better (50 % if the "
            f"two were one): they may be one structure, or too alike at this resolution"
        ),
        values={"share": share, "other_class": float(other + 1)},
    )


def converged(snapshot: Snapshot) -> Verdict | None:
    """Say that new particles teach nothing more, or nothing."""
    if not snapshot.converged or snapshot.held_out_gain is None:
        return None
    gain, error = snapshot.held_out_gain
    return Verdict(
        kind="converged",
        message=(
            f"Converged: the last 3,000 particles are explained as well as the 3,000 before them "
            f"({100 * gain:+.1f} +- {100 * error:.1f} %); the stream goes on being watched"
        ),
        values={"gain": gain, "error": error},
    )


def _round(particles: float) -> str:
    """A number of particles with two digits that mean something."""
    digits = max(0, len(str(int(particles))) - 2)
    return f"{round(particles, -digits):,.0f}"
