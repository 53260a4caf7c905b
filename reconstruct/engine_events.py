"""What an engine tells a person, in one sentence each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from reconstruct.types import EngineEvent, StepReport

__all__ = [
    "ball_event",
    "centred_events",
    "groups_event",
    "mask_event",
    "pace_event",
    "race_event",
    "spherical_event",
    "store_event",
    "symmetry_event",
    "with_events",
]


def with_events(report: StepReport, *events: EngineEvent) -> StepReport:
    """Add events to a report."""
    return replace(report, events=(*report.events, *events))


def pace_event(explained: float, stretch: float, *, looked_at: int, particles: int) -> EngineEvent:
    """Tell that particles show little, and that the first map takes longer for it."""
    slower = f" {stretch:.1f} times as slowly" if stretch >= 1.05 else ""
    return EngineEvent(
        kind="low_signal",
        message=(
            f"A first look at {looked_at:,} particles explains {explained:.1f} nats of each, too "
            f"little to tell a right start from a wrong one: it begins anew{slower}, with about "
            f"{particles:,} particles"
        ),
        values={"evidence": explained, "stretch": stretch, "particles": float(particles)},
    )


def race_event(
    evidences: Sequence[float], *, starts: int, particles: int, kind: str = "random starts"
) -> EngineEvent:
    """Tell which of the ``starts`` goes on, from the evidence of the last two or more."""
    best, *others = sorted(evidences, reverse=True)
    if not others:
        return EngineEvent(
            kind="race",
            message=f"A first map after {particles} particles: {best:.1f} nats per particle",
            values={"best": best},
        )
    second = others[0]
    return EngineEvent(
        kind="race",
        message=(
            f"Kept the best of {starts} {kind} after {particles} particles: "
            f"{best:.1f} nats per particle, the next {second:.1f}"
        ),
        values={"best": best, "second": second},
    )


def centred_events(off_angstrom: npt.NDArray[np.floating]) -> tuple[EngineEvent, ...]:
    """Tell how far (K,) the maps that were moved had lain off the boxes of their particles."""
    return tuple(
        EngineEvent(
            kind="map_centred",
            message=(
                f"Class {k + 1}: the map lay {off_angstrom[k]:.1f} A off the centres of its "
                "particles' boxes; it was moved there, and their shifts with it"
            ),
            class_index=int(k),
            values={"off_angstrom": float(off_angstrom[k])},
        )
        for k in np.flatnonzero(off_angstrom)
    )


def mask_event(diameter_angstrom: float) -> EngineEvent:
    """Tell how wide the widest mask is that the particle needs."""
    return EngineEvent(
        kind="mask",
        message=(
            f"The particle needs a mask {diameter_angstrom:.0f} A across; "
            "half-sets go on separately"
        ),
        values={"diameter_angstrom": diameter_angstrom},
    )


def spherical_event(share: float, group: str, *, starts: int) -> EngineEvent:
    """Tell that the particle is nearly a ball, and what is done about it."""
    return EngineEvent(
        kind="near_spherical",
        message=(
            f"The particle is nearly a ball: views explain {100 * share:.0f} % of the evidence; "
            f"a race at higher resolution, a matter of minutes, of {starts} starts with {group} "
            "from the first batch and the opposite of each"
        ),
        values={"view_share": share},
    )


def ball_event(share: float, agreed: float | None, *, tried: Sequence[str] = ()) -> EngineEvent:
    """Tell that the map of a near-ball is not to be trusted, and what helps or is ``tried``.

    ``agreed`` is the FSC of two starts' maps; None where there was one start only.
    """
    starts = "one random start cannot be told from a wrong one"
    if agreed is not None:
        starts = f"two random starts found different maps (FSC {agreed:.2f} beyond the ball)"
    remedy = "if it has a symmetry, name it (--symmetry O, T or I), or have it found (auto)"
    if tried:
        groups = " and ".join(tried)
        remedy = f"a race, a matter of minutes, of starts with {groups} from the first batch"
    return EngineEvent(
        kind="near_spherical",
        message=(
            f"The particle is nearly a ball: views explain {100 * share:.0f} % of the evidence, "
            f"and {starts}, so that no resolution is told; {remedy}"
        ),
        values={"view_share": share} | ({} if agreed is None else {"agreement": agreed}),
    )


def groups_event(evidence: Mapping[str, float], *, told: bool, kept: bool) -> EngineEvent:
    """Tell what came of a race of groups, from the nats per particle that each explains.

    Whether one was ``told`` from the others, and is ``kept`` then.
    """
    (group, best), (other, second) = sorted(evidence.items(), key=lambda item: -item[1])[:2]
    if not told:
        outcome = "too close to tell, so no group is taken up and no resolution is told"
    elif kept:
        outcome = f"{group} is taken up"
    else:
        outcome = (
            f"it has {group} symmetry, which is not imposed: the map goes on in C1 from that with "
            f"{group}, and no resolution is told of it; --symmetry {group} or auto keeps {group}"
        )
    return EngineEvent(
        kind="near_spherical",
        message=(
            f"The particle is nearly a ball; {group} explains {best:.1f} nats of each, {other} "
            f"{second:.1f}: {outcome}"
        ),
        values={"best": best, "second": second},
    )


def store_event(particles: int) -> EngineEvent:
    """Tell that the store is full, and what that means."""
    return EngineEvent(
        kind="store_full",
        message=(
            f"The store keeps {particles} particles beside the latest: each new one is still "
            f"trained, and replay draws from a random sample of all"
        ),
        values={"particles": float(particles)},
    )


def symmetry_event(group: str, score: float, *, believed: bool) -> EngineEvent:
    """Tell that a symmetry was imposed, and how well its worst operator fits."""
    words = "fit" if believed else "hardly fit, and the stream has ended"
    return EngineEvent(
        kind="symmetry",
        message=f"{group} imposed: its axes {words} (worst operator {score:.2f})",
        values={"score": score, "fits": float(believed)},
    )
