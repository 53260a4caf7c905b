"""When a session takes up a symmetry: the one it was given, or with ``auto`` the one it shows.

It owns what must be remembered between two searches, so that a session that was interrupted asks
and answers the same questions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reconstruct.adopting import AUTO, adopted_event, name_classes, next_search, wanted_group
from reconstruct.engine_events import symmetry_event
from reconstruct.imposing import impose, seek_axes
from reconstruct.learner import Learner
from reconstruct.store import ParticleStore
from reconstruct.symmetry import is_subgroup
from reconstruct.types import EngineEvent

__all__ = ["SymmetryCourse"]

SYMMETRY_RADIUS = 9  # shells that the map must reach before axes are sought in it
SYMMETRY_SCORE = 0.4  # of the worst operator, for axes to be believed
SEEK_EVERY = 900  # presentations between searches for the axes of a wanted group


class SymmetryCourse:
    """Asked after each update of a session that has its first map.

    Parameters
    ----------
    symmetry
        A group's name, or ``auto``.
    restart_radius
        Shells that a map goes on from once a group was taken up.

    Raises
    ------
    ValueError
        The name is none, or that of an orientation.
    """

    def __init__(self, symmetry: str, *, box_angstrom: float, restart_radius: int) -> None:
        self._auto = symmetry == AUTO
        self._wanted = wanted_group(symmetry)
        self._box_angstrom = box_angstrom
        self._restart_radius = restart_radius
        self._seek_at = 0.0  # presentations
        self._named = "C1"  # what the last search of ``auto`` found

    @property
    def auto(self) -> bool:
        """Whether the session is to find its group by itself."""
        return self._auto

    @property
    def wanted(self) -> str:
        """The group that the session was given; what ``auto`` has is not known before the map."""
        return self._wanted

    def after_update(
        self, leader: Learner, store: ParticleStore, *, last_chance: bool
    ) -> EngineEvent | None:
        """Look for a symmetry if it is time, and take it up if it is there; say so.

        Parameters
        ----------
        last_chance
            A wanted group is taken up now, however well it fits.
        """
        early = leader.radius < SYMMETRY_RADIUS or leader.presented < self._seek_at
        if self._auto:
            return None if early else self._adopt(leader, store)
        if leader.group == self._wanted or (early and not last_chance):
            return None
        self._seek_at = leader.presented + SEEK_EVERY
        axes = seek_axes(leader, self._wanted)
        score = max(verdict.score for verdict in axes)
        believed = score >= SYMMETRY_SCORE
        if not believed and not last_chance:
            return None
        impose(leader, store, self._wanted, axes, restart_radius=self._restart_radius)
        return symmetry_event(self._wanted, score, believed=believed)

    def _adopt(self, leader: Learner, store: ParticleStore) -> EngineEvent | None:
        """Take up a group that the map has shown twice."""
        found = name_classes(leader, box_angstrom=self._box_angstrom)
        news = found.group != leader.group and is_subgroup(leader.group, found.group)
        sure = news and found.group == self._named
        if sure:
            impose(leader, store, found.group, found.axes, restart_radius=self._restart_radius)
        self._named = found.group
        self._seek_at = next_search(leader.presented, named=found.group, held=leader.group)
        return adopted_event(found) if sure else None

    def dump(self) -> dict[str, float | str]:
        """Everything that changes."""
        return {"seek_symmetry_at": self._seek_at, "named_group": self._named}

    def restore(self, meta: Mapping[str, Any]) -> None:
        """Take over a state that ``dump`` returned."""
        self._seek_at = float(meta["seek_symmetry_at"])
        self._named = str(meta.get("named_group", "C1"))
