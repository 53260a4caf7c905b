"""What is said of a session beside its maps, in the same words in pictures, report and terminal.

Conventions owned here: a session's phase is final once each of its classes is; a resolution that is
not there is "not yet" while particles may come, and "none", with the reason, after that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reconstruct.adopting import AUTO
from reconstruct.snapshot import LEAST_PARTICLES
from reconstruct.types import ClassSnapshot, Phase, Snapshot, WhyNone

__all__ = [
    "Caption",
    "best_resolution_words",
    "caption_of",
    "few_words",
    "no_resolution_words",
    "phase_told",
    "stopped_words",
    "symmetry_words",
]

_HARDLY = "though its axes hardly fit"
_WHY: Mapping[WhyNone | None, str] = {
    "racing": "no map chosen yet",
    "sharing": "halves just parted",
    "few_particles": "too few particles",
    "noise": "no better than noise",
    "starts_disagree": "two starts disagree",
    "in_doubt": "map in doubt",
    "halves_disagree": "half-maps disagree",
    None: "",
}


@dataclass(frozen=True)
class Caption:
    """What a picture says beside its maps."""

    title: str = ""  # what a person calls the session
    symmetry: str = ""  # in words, if there is something to say of it
    stopped: str = ""  # in words, if the session was stopped early
    over: bool = False  # no more particles come
    phase: Phase | None = None  # where the session stands, if not as its steps say
    no_resolution: str = "not yet"  # what is said where no class has a resolution

    @property
    def warns(self) -> bool:
        """Whether there is something that a person must not overlook."""
        return bool(self.stopped) or self.symmetry.endswith(_HARDLY)


def caption_of(
    snapshot: Snapshot, *, title: str, symmetry: str = "", stopped: str = "", over: bool = True
) -> Caption:
    """Give what the pictures of a snapshot say, so that all of them say the same."""
    return Caption(
        title=title,
        symmetry=symmetry,
        stopped=stopped,
        over=over,
        phase=phase_told(snapshot.phase, [item.phase for item in snapshot.classes]),
        no_resolution=best_resolution_words(snapshot.classes, over=over),
    )


def phase_told(phase: Phase, class_phases: Sequence[Phase]) -> Phase:
    """Give where a session stands, from the phase of its schedule and those of its classes."""
    if phase in ("waiting", "initial") or not class_phases:
        return phase
    return "final" if all(one == "final" for one in class_phases) else "intermediate"


def stopped_words(learned: int, expected: int) -> str:
    """Say that a session was stopped before its end, and with how much of its particles."""
    words = f"stopped early: {learned:,} of {expected:,} particles learned from"
    return words if learned < expected else f"{words}, not all replays made"


def symmetry_words(wanted: str, imposed: str, told: Mapping[str, Mapping[str, Any]]) -> str:
    """Say which symmetry the maps have, if any was asked for or found.

    Parameters
    ----------
    told
        What was found out about the session; see `streamer.findings`.
    """
    if imposed == "C1":
        asked = wanted.strip().upper() not in ("C1", AUTO.upper())
        return f"symmetry {wanted} not imposed" if asked else ""
    if wanted.strip().upper() == "C1":  # a start with a group leads the race of a near-ball
        return f"symmetry {imposed} only tried out so far"
    words = f"symmetry {imposed} imposed"
    fits = told.get("symmetry/0", {}).get("values", {}).get("fits", 1.0)
    return words if fits else f"{words}, {_HARDLY}"


def no_resolution_words(item: ClassSnapshot, *, over: bool) -> str:
    """Say why a class has no resolution, if that is known and will stay so."""
    return _WHY[item.why_none] if over else ""


def best_resolution_words(classes: Sequence[ClassSnapshot], *, over: bool) -> str:
    """Say that there is no resolution, and why where it is the same for all classes."""
    if not over:
        return "not yet"
    reasons = {no_resolution_words(item, over=over) for item in classes}
    only = reasons.pop() if len(reasons) == 1 else ""
    return f"none: {only}" if only else "none"


def few_words(particles: int) -> str:
    """Warn of a map of few particles, or say nothing."""
    few = particles < LEAST_PARTICLES
    return f"{particles:,} particles: too few to trust" if few else ""
