"""What is said of a session beside its maps, in the same words in pictures, report and terminal.

Conventions owned here: a session's phase is final once each of its classes is; a resolution that is
not there is "not yet" while particles may come, and "none", with the reason, after that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from reconstruct.adopting import AUTO
from reconstruct.snapshot import LEAST_PARTICLES
from reconstruct.types import ClassSnapshot, Phase, Snapshot, WhyNone

__all__ = [
    "NO_CAPTION",
    "SEPARATOR",
    "Caption",
    "caption_of",
    "few_words",
    "no_resolution_words",
    "phase_told",
    "stopped_words",
    "symmetry_words",
]

SEPARATOR = "  ·  "  # of facts in one line
_LONGEST = 48  # characters of a title
_HARDLY = "though its axes hardly fit"
_FLATTERS = "which flatters the resolution"
_WHY: Mapping[WhyNone | None, str] = {
    "racing": "no map chosen",
    "sharing": "half-maps not independent",
    "few_particles": "too few particles",
    "noise": "no better than noise",
    "starts_disagree": "nearly a ball, no two starts agree",
    "in_doubt": "map may be wrong",
    "near_ball": "nearly a ball, name its symmetry",
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
    why: str = ""  # in words, why no class has a resolution, if that is the same for all

    def stands(self, phase: Phase, class_phases: Sequence[Phase]) -> Phase:
        """Where the session stands; by the phases of a step where nothing else was said."""
        return self.phase or phase_told(phase, class_phases)

    @property
    def none(self) -> str:
        """What is said of one of several classes that has no resolution."""
        return "none" if self.over else "not yet"

    @property
    def no_resolution(self) -> str:
        """What is said where no class has a resolution."""
        return f"{self.none}: {self.why}" if self.why else self.none

    @property
    def no_best(self) -> str:
        """What is said in place of the best resolution where no class has one."""
        if not self.over:
            return "no resolution yet"
        return f"no resolution ({self.why})" if self.why else "no resolution"

    @property
    def no_views(self) -> str:
        """What is said of a class of which no view is known."""
        return "no views" if self.over else "no views yet"

    @property
    def flattered(self) -> bool:
        """Whether half-maps share the axes of a group, so that a resolution may be worse."""
        return self.symmetry.endswith((_HARDLY, _FLATTERS))

    @property
    def remarks(self) -> str:
        """What to say of the maps as a whole, in one line."""
        return SEPARATOR.join(filter(None, (self.stopped, self.symmetry))) or " "

    @property
    def warns(self) -> bool:
        """Whether the remarks are something that a person must not overlook."""
        return bool(self.stopped) or self.symmetry.endswith(_HARDLY)


NO_CAPTION = Caption()


def caption_of(
    snapshot: Snapshot, *, title: str, symmetry: str = "", stopped: str = "", over: bool = True
) -> Caption:
    """Give what the pictures of a snapshot say, so that all of them say the same."""
    return Caption(
        title=title if len(title) <= _LONGEST else f"{title[: _LONGEST - 1]}…",
        symmetry=symmetry,
        stopped=stopped,
        over=over,
        phase=phase_told(snapshot.phase, [item.phase for item in snapshot.classes]),
        why=_shared_reason(snapshot.classes, over=over),
    )


def phase_told(phase: Phase, class_phases: Sequence[Phase]) -> Phase:
    """Give where a session stands, from the phase of its schedule and those of its classes."""
    if phase in ("waiting", "initial") or not class_phases:
        return phase
    return "final" if all(one == "final" for one in class_phases) else "intermediate"


def stopped_words(learned: int, coming: int, phase: Phase) -> str:
    """Say that a run was stopped before its end, and how far it had come.

    Parameters
    ----------
    learned, coming
        Particles that were learned from, and that were to be, as far as known.
    """
    if not learned:
        return "stopped early, before the first particle"
    if learned < coming:
        return f"stopped early: {learned:,} of {coming:,} particles learned from"
    left = "no map chosen" if phase == "initial" else "not all replays made"
    return f"stopped early: all {learned:,} particles learned from, {left}"


def symmetry_words(
    wanted: str, imposed: str, phase: Phase, told: Mapping[str, Mapping[str, Any]]
) -> str:
    """Say which symmetry the maps have, if any was asked for or found.

    Parameters
    ----------
    phase
        Of the schedule.
    told
        What was found out about the session; see `streamer.findings`.
    """
    asked = wanted.strip().upper() not in ("C1", AUTO.upper())
    if imposed == "C1":
        return f"symmetry {wanted} not imposed yet" if asked else ""
    if not asked and phase == "initial":  # a start with a group leads the race of a near-ball
        return f"symmetry {imposed} only tried out so far"
    words = f"symmetry {imposed} imposed"
    fits = told.get("symmetry/0", {}).get("values", {}).get("fits", 1.0)
    if not fits:
        return f"{words}, {_HARDLY}"
    return words if phase == "initial" else f"{words}, {_FLATTERS}"


def no_resolution_words(item: ClassSnapshot, *, over: bool) -> str:
    """Say why the map of a class has no resolution, if that is known and will stay so."""
    return _WHY[item.why_none] if over and np.any(item.volume) else ""


def _shared_reason(classes: Sequence[ClassSnapshot], *, over: bool) -> str:
    """Say why there is no resolution, where that is known and the same for all classes."""
    reasons = {no_resolution_words(item, over=over) for item in classes if np.any(item.volume)}
    return reasons.pop() if len(reasons) == 1 else ""


def few_words(particles: int) -> str:
    """Warn of a map of few particles, or say nothing."""
    few = particles < LEAST_PARTICLES
    return f"{particles:,} particles: too few to trust" if few else ""
