"""Which maps may be wrong: what is known of it, and the fresh starts that try them.

Half-sets that took the same wrong turn agree, so a map in doubt is told without a resolution until
it stood against a start that knows nothing of it. docs/decisions/classes.md has the measurements
behind the numbers.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from reconstruct.challenge import (
    FEWEST,
    JUNK_SHARE,
    Challenge,
    challenge,
    challenge_by_two,
)
from reconstruct.class_actions import Session, asked, replace_map, score, share_out
from reconstruct.coverage import orientation_coverage
from reconstruct.snapshot import view_histogram
from reconstruct.types import EngineEvent, WhyNone

__all__ = ["Doubts"]

CHALLENGE_SEEDS = 2_000_000  # numbers of learners from here on are those of challengers
EVEN_VIEWS = 0.75  # coverage of the sphere from which a map is not suspected
CROWDED_VIEWS = 0.5  # below which a start must find the ``SAME`` map; half right ones had 0.14-0.51
SAME = 0.9  # agreement; two half right maps had 0.83 to 0.89


@dataclass
class Doubts:
    """What speaks against the maps of classes, and for them."""

    stretch: float = 1.0  # of a start, against one of bright particles
    faint: bool = False  # whether too little is explained for even views to speak for a class
    unsettled: bool = False  # whether random starts found different maps of a near-ball
    guided: bool = False  # whether the map of one began as that of a group: starts find worse ones
    looked: bool = False  # whether it is known how even the classes' views are
    uneven: tuple[int, ...] = ()  # classes that were seen from some sides only, as far as known
    stood: tuple[int, ...] = ()  # classes whose map stood against a fresh start
    challenges: int = 0  # fresh starts that maps were compared with, which key their numbers

    def which(self, n_classes: int) -> tuple[bool, ...]:
        """Which classes' maps may be wrong, as long as they did not stand against fresh starts.

        The race finds the map of one bright species. Several species have fewer particles each in
        it; a class that took a wrong turn then crowds its views, as one of dim particles need not,
        or one of particles that are hardly bright.
        """
        if self.stretch == 1.0 and n_classes == 1:
            return (self.unsettled and 0 not in self.stood,)
        found_wrong = {0} if self.unsettled else set()
        known = self.stretch == 1.0 and self.looked and not self.faint
        return tuple(
            k not in self.stood and (k in self.uneven or k in found_wrong or not known)
            for k in range(n_classes)
        )

    def words(self, n_classes: int) -> tuple[WhyNone | None, ...]:
        """Give what speaks against each class's map, if anything does."""
        ball: WhyNone = "near_ball" if self.guided else "starts_disagree"
        return tuple(
            (ball if self.unsettled and k == 0 else "in_doubt") if doubted else None
            for k, doubted in enumerate(self.which(n_classes))
        )

    def begin(self, *classes: int) -> None:
        """Doubt classes that hold another map now, until their views are looked at."""
        self.stood = tuple(k for k in self.stood if k not in classes)
        self.uneven = tuple(sorted({*self.uneven, *classes}))

    def inherit(self, k: int, source: int) -> None:
        """Know of class ``k`` what is known of the class whose map it has."""
        self.begin(k)
        if source in self.stood:
            self.stood = tuple(sorted((*self.stood, k)))
        if source not in self.uneven:
            self.uneven = tuple(one for one in self.uneven if one != k)

    def look_at_views(self, session: Session) -> None:
        """Note the classes that are seen from some sides only."""
        counts = np.bincount(session.classes, minlength=session.learner.n_classes)
        known = np.flatnonzero(~session.learner.resting & (counts >= FEWEST)).tolist()
        self.uneven = tuple(k for k in known if _coverage(session, k) < EVEN_VIEWS)
        self.looked = True

    def try_maps(self, session: Session, *, junk: Collection[int]) -> list[EngineEvent]:
        """Let fresh starts try the maps that may be wrong, but those of classes of ``junk``."""
        learner = session.learner
        if learner.group != "C1" or self.guided:
            return []  # a start would have to be turned into the group's frame, or overfits
        events = []
        for k in np.flatnonzero(self.which(learner.n_classes) & ~learner.resting).tolist():
            if len(session.of_class(k)) < FEWEST * self.stretch or k in junk:
                continue
            if learner.siblings is not None and k in learner.siblings.classes:
                continue  # its map is not its own
            if learner.n_classes > 1 and _holds_little(session, k):
                continue  # a start on junk finds nothing
            events.append(self._try_map(session, k))
        return events

    def _try_map(self, session: Session, k: int) -> EngineEvent:
        tried = challenge(session, k, number=self._next_number(), stretch=self.stretch)
        if self._stands(session, k, tried):
            self.stood = tuple(sorted((*self.stood, k)))
            outcome, kind = "found the same map", "map_confirmed"
        elif tried.may_blend(session.learner.evidence) and (divided := self._share_out(session, k)):
            return divided
        elif tried.won:
            replace_map(session, k, tried.source)
            self.begin(k)
            outcome, kind = "takes its place", "class_restarted"
        elif tried.confirms:
            outcome, kind = "found one like it, but half right maps look so too", "map_in_doubt"
        else:
            outcome, kind = "found another that is no better", "map_in_doubt"
        compared = {} if tried.agreed is None else {"agreement": tried.agreed}
        return EngineEvent(
            kind=kind,
            message=(
                f"Class {k + 1}: a fresh start on its own particles {outcome}, "
                f"{tried.start_evidence:.1f} nats per particle against "
                f"{tried.map_evidence:.1f} of the map at the same resolution"
                + (f"; both agree at FSC {tried.agreed:.2f}" if compared else "")
            ),
            class_index=k,
            values={"start": tried.start_evidence, "map": tried.map_evidence, **compared},
        )

    def _next_number(self) -> int:
        self.challenges += 1
        return CHALLENGE_SEEDS + self.challenges

    def _stands(self, session: Session, k: int, tried: Challenge) -> bool:
        """Whether the map of class ``k`` is confirmed.

        Two starts may be half right alike; such a map crowds its views.
        """
        crowded = self.stretch == 1.0 and _coverage(session, k) < CROWDED_VIEWS
        return tried.confirms and (not crowded or (tried.agreed or 0.0) >= SAME)

    def _share_out(self, session: Session, k: int) -> EngineEvent | None:
        """Make two classes of one that holds two species, where a class is free."""
        free = np.flatnonzero(session.learner.resting)
        if not len(free) or len(session.of_class(k)) < 2 * FEWEST * self.stretch:
            return None
        pair = challenge_by_two(session, k, number=self._next_number(), stretch=self.stretch)
        if not pair.won:
            return None
        slot = int(free[0])
        moved = share_out(session, k, slot, pair.sources)
        self.begin(k, slot)
        return EngineEvent(
            kind="class_split",
            message=(
                f"Class {k + 1} holds two species: two fresh maps explain its particles with "
                f"{pair.pair_evidence:.1f} nats of each, its map with {pair.map_evidence:.1f}; "
                f"{moved} of them go to class {slot + 1}"
            ),
            class_index=slot,
            values={"pair": pair.pair_evidence, "map": pair.map_evidence},
        )


def _holds_little(session: Session, k: int) -> bool:
    """Whether class ``k`` explains so little of its particles that most are junk."""
    learner = session.learner
    found = score(session, learner, asked(session, k), k, crossed=True)[1]
    return float(found.poses.evidence.mean(dtype=np.float64)) < JUNK_SHARE * learner.evidence


def _coverage(session: Session, k: int) -> float:
    """How evenly the particles of class ``k`` look at it, 0 to 1."""
    own = np.asarray(session.store["rotation"][np.flatnonzero(session.classes == k)], np.float64)
    return orientation_coverage(view_histogram(own.reshape(-1, 3, 3)))
