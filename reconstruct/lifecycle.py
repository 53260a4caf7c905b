"""What becomes of classes: duplicates merged, empty ones put to rest, junk named, new ones born.

A class at rest has no map and is not searched; it stands for noise, so particles that no map
explains can go there. Everything here is decided from the maps and from stored particles, at
numbers of presentations that follow from the course, so it needs hardly any state of its own.
docs/decisions/classes.md has the measurements behind the numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from reconstruct.births import attempt_birth
from reconstruct.class_actions import (
    Session,
    claim,
    class_evidence,
    divide,
    fill,
    merge,
    put_to_rest,
    tell_apart,
    unite,
)
from reconstruct.doubts import Doubts
from reconstruct.engine_state import plain_fields, take_fields
from reconstruct.learner import Learner
from reconstruct.merging import candidates, try_merger
from reconstruct.outliers import newcomers
from reconstruct.quality import RESOLUTION_FSC, crossing_radius
from reconstruct.snapshot import tells_signal
from reconstruct.splitting import attempt_split, sort_again
from reconstruct.types import EngineEvent

__all__ = ["Lifecycle"]

Float64 = npt.NDArray[np.float64]

REVIEW_GROWTH = 1.6  # presentations between reviews grow by this factor
REVIEW_RADIUS = 11  # shells that maps must reach before they are compared
EMPTY_SHARE = 0.1  # of an even share, below which a class holds nothing
JUNK_EVIDENCE = 0.5  # of the best class's evidence
JUNK_RADIUS = 0.75  # of the best class's resolution in shells
SIGMAS = 5.5  # of outliers among the latest particles, that are a sign of newcomers
MOST_SIGMAS = 8.0  # that are, after up to FEW_FRUITLESS signs that came to nothing
FEW_FRUITLESS, MORE_SIGMAS = 2, 0.5  # and so many more after each one further
TRIAL_SEEDS = 1_000_000  # numbers of learners from here on are those of mergers, below of births
SPLIT_SEEDS = 3_000_000  # and from here on those of splits
WATCH_EVERY = 100  # particles between looks for newcomers
WINDOW = 720  # latest particles that a birth is tried on
SORT_GROWTH = 1.25  # presentations between two sortings of siblings grow by this factor
SETTLE = 500  # particles between the first sign of a newcomer and the birth


@dataclass
class Lifecycle:
    """When classes are looked at next, and what was said of them."""

    most_classes: int
    splitting: bool = True  # whether two states of one structure are looked for
    doubts: Doubts = field(default_factory=Doubts)  # which maps may be wrong
    next_review: float = 0.0  # presentations of the learner
    alarm_at: int = 0  # particles trained when a newcomer was first suspected; 0: no suspicion
    quiet_until: int = 0  # particles trained before which no newcomer is looked for
    sigmas: float = SIGMAS  # that make a sign; signs that come to nothing raise it
    sign: float = 0.0  # what the last sign had
    fruitless: int = 0  # signs one after the other that came to nothing
    births: int = 0  # births tried, which key their random numbers
    trials: int = 0  # mergers tried, likewise
    junk: tuple[int, ...] = ()  # classes that were named junk
    splits: int = 0  # tried, which key their random numbers
    next_sorting: float = 0.0  # presentations of the learner, where classes are siblings

    def after_update(self, session: Session, *, streaming: bool) -> tuple[EngineEvent, ...]:
        """Look after the classes once an update is learned.

        ``streaming`` says that its particles were new.
        """
        learner = session.learner
        events = self._watch(session) if streaming else []
        far_enough = learner.radius >= min(REVIEW_RADIUS, learner.max_radius)
        due = learner.presented >= self.next_review and far_enough
        if due and (learner.n_classes > 1 or any(self.doubts.which(1))):
            self.doubts.look_at_views(session)
            self.next_review = learner.presented * REVIEW_GROWTH
            if learner.n_classes > 1:
                events += self._review(session)
            tried = self.doubts.try_maps(session, junk=self.junk)
            self._forget_junk(*(e.class_index for e in tried if e.kind == "class_split"))
            events += tried
            resting = np.flatnonzero(learner.resting)
            if len(resting) and self.splitting and learner.siblings is None:
                events += self._split(session, int(resting[0]))
        if learner.siblings is not None and learner.presented >= self.next_sorting:
            self.next_sorting = learner.presented * SORT_GROWTH
            events += self._sort(session)
        return tuple(events)

    # ---- reviews

    def _review(self, session: Session) -> list[EngineEvent]:
        learner = session.learner
        events = self._rest_the_empty(session)
        evidence = class_evidence(session)
        events += self._merge(session, evidence)
        events += self._rest_the_noise(session, evidence)
        # A class that was freed is worth a birth at once; later ones wait for a sign of newcomers.
        if events and learner.resting.any() and session.trained >= WINDOW:
            events += self._birth(session, int(np.flatnonzero(learner.resting)[0]), kind="recycled")
        return events + self._name_junk(session, evidence)

    def _merge(self, session: Session, evidence: Float64) -> list[EngineEvent]:
        events: list[EngineEvent] = []
        changed: set[int] = set()
        for j, k in candidates(evidence)[: session.learner.n_classes]:
            if {j, k} & changed:
                continue  # what it holds now was not compared: the next review will
            siblings = session.learner.siblings
            if siblings is not None and {j, k} & set(siblings.classes):
                continue  # they are known to be nearly one species, and what their maps share
            self.trials += 1
            merger = try_merger(session, j, k, number=TRIAL_SEEDS + self.trials)
            if not merger.holds:
                continue
            moved = merge(session, j, k, merger.source)
            changed |= {j, k}
            self._forget_junk(j, k)
            self.doubts.begin(j, k)
            events.append(
                EngineEvent(
                    kind="classes_merged",
                    message=(
                        f"Class {j + 1} is of the same species as class {k + 1} and joins it with "
                        f"{moved} particles: one map of both explains them with "
                        f"{merger.together:.0f} nats per particle, two maps with "
                        f"{merger.apart:.0f}"
                    ),
                    class_index=k,
                    values={
                        "merged_class": float(j),
                        "together": merger.together,
                        "apart": merger.apart,
                    },
                )
            )
        return events

    @staticmethod
    def _independent(learner: Learner) -> npt.NDArray[np.bool_]:
        """Which classes (K,) have a map of their own: siblings are united, not put to rest."""
        own = ~learner.resting
        if learner.siblings is not None:
            own[list(learner.siblings.classes)] = False
        return own

    def _rest_the_empty(self, session: Session) -> list[EngineEvent]:
        learner = session.learner
        least = EMPTY_SHARE / learner.n_classes
        events = []
        for k in np.flatnonzero((learner.class_share < least) & self._independent(learner)):
            if np.count_nonzero(~learner.resting) == 1:
                break  # one map stays
            share = float(learner.class_share[k])
            put_to_rest(learner, int(k))
            events.append(
                EngineEvent(
                    kind="class_emptied",
                    message=f"Class {k + 1} is put to rest: it holds {share:.1%} of the particles",
                    class_index=int(k),
                    values={"share": share},
                )
            )
        return events

    def _rest_the_noise(self, session: Session, evidence: Float64) -> list[EngineEvent]:
        learner = session.learner
        counts = np.bincount(session.classes, minlength=learner.n_classes)
        events: list[EngineEvent] = []
        awake = np.flatnonzero(self._independent(learner))
        told = np.nan_to_num(np.diag(evidence)[awake], nan=np.inf)
        best = awake[np.argmax(told)] if len(awake) else -1
        for k in awake:
            own = float(evidence[k, k])
            if k == best or np.isnan(own) or tells_signal(own, max(int(counts[k]), 300)):
                continue
            put_to_rest(learner, int(k))
            events.append(
                EngineEvent(
                    kind="junk_class",
                    message=(
                        f"Class {k + 1} holds noise: {own:.1f} nats per particle, no more than a "
                        f"map of noise has; it goes on without a map"
                    ),
                    class_index=int(k),
                    values={"evidence": own},
                )
            )
        return events

    def _name_junk(self, session: Session, evidence: Float64) -> list[EngineEvent]:
        learner = session.learner
        own = np.where(learner.resting, np.nan, np.diag(evidence))
        reach = np.array([crossing_radius(fsc, RESOLUTION_FSC) for fsc in learner.fsc])
        events: list[EngineEvent] = []
        if np.isnan(own).all() or learner.radius < learner.max_radius // 2:
            return events
        best = int(np.nanargmax(own))
        for k in np.flatnonzero(~np.isnan(own)):
            poor = own[k] < JUNK_EVIDENCE * own[best] and reach[k] < JUNK_RADIUS * reach[best]
            if poor and k not in self.junk:
                events.append(
                    EngineEvent(
                        kind="junk_class",
                        message=(
                            f"Class {k + 1} is likely junk: {own[k]:.0f} nats per particle against "
                            f"{own[best]:.0f} in class {best + 1}, and its half maps agree to "
                            f"{reach[k]:.0f} shells against {reach[best]:.0f}"
                        ),
                        class_index=int(k),
                        values={"evidence": float(own[k]), "best": float(own[best])},
                    )
                )
            known = set(self.junk)
            self.junk = tuple(sorted(known | {int(k)} if poor else known - {int(k)}))
        return events

    def _forget_junk(self, *classes: int | None) -> None:
        """Forget what was said of classes that hold another map now."""
        self.junk = tuple(k for k in self.junk if k not in classes)

    # ---- two states of one complex

    def _split(self, session: Session, slot: int) -> list[EngineEvent]:
        """Look for two states in the largest class; the second one takes a class at rest."""
        learner = session.learner
        k = int(np.argmax(np.where(learner.resting, -1.0, learner.class_share)))
        if self.doubts.which(learner.n_classes)[k]:
            return []  # a wrong map varies as well
        if learner.class_share[slot] * learner.n_classes > EMPTY_SHARE:
            return []  # the class at rest stands for particles that no map explains
        self.splits += 1
        found = attempt_split(session, k, number=SPLIT_SEEDS + self.splits)
        if found is None:
            return []
        sorting = found.sorting
        divide(session, k, slot, differences=sorting.differences, share=sorting.share)
        tell_apart(session, sorting.rows, sorting.second, sorting.differences)
        self.next_sorting = learner.presented * SORT_GROWTH
        self._forget_junk(slot)
        self.doubts.inherit(slot, k)
        return [
            EngineEvent(
                kind="class_split",
                message=(
                    f"Class {k + 1} holds two states of one structure, and class {slot + 1} takes "
                    f"{sorting.share:.0%} of its particles: what they differ by was found in each "
                    f"half-set (agreement {found.agreement:.2f}), and explains the other with "
                    f"{found.gain:.2f} nats per particle more"
                ),
                class_index=slot,
                values={
                    "from_class": float(k),
                    "share": sorting.share,
                    "agreement": found.agreement,
                    "gain": found.gain,
                },
            )
        ]

    def _sort(self, session: Session) -> list[EngineEvent]:
        """Sort the particles of siblings anew, as poses and maps are better now."""
        learner = session.learner
        assert learner.siblings is not None
        sorting = sort_again(session) if learner.group == "C1" else None
        if sorting is not None:
            tell_apart(session, sorting.rows, sorting.second, sorting.differences)
            return []
        goes, stays = unite(session)
        return [
            EngineEvent(
                kind="classes_merged",
                message=(
                    f"Classes {stays + 1} and {goes + 1}, two states of one structure, are one "
                    f"again: hardly a particle is left in one of them, or a symmetry holds for both"
                ),
                class_index=stays,
                values={"merged_class": float(goes)},
            )
        ]

    # ---- newcomers

    def _watch(self, session: Session) -> list[EngineEvent]:
        """Look for particles unlike those before; after a first sign, wait for enough of them."""
        trained = session.trained
        if self.alarm_at:
            if trained < self.alarm_at + SETTLE:
                return []
            self.alarm_at, self.quiet_until = 0, trained + 2 * WINDOW
            resting = np.flatnonzero(session.learner.resting)
            if len(resting):
                return self._birth(session, int(resting[0]), kind="born")
            if session.learner.n_classes < self.most_classes:
                return self._birth(session, session.learner.n_classes, kind="born")
            return []
        if trained < self.quiet_until:
            return []
        self.quiet_until = trained + WATCH_EVERY
        sigmas = newcomers(session.store, trained, session.shell_sums)
        if sigmas > self.sigmas:
            self.alarm_at, self.sign = trained, sigmas
        return []

    def _birth(self, session: Session, slot: int, *, kind: str) -> list[EngineEvent]:
        learner = session.learner
        if learner.group != "C1":
            return []  # it would have to be turned into the group's frame first
        if 0 < learner.breadth.changed_at > learner.presented - 2 * WINDOW:
            return []  # what was explained of the latest particles, another search has said
        self.births += 1
        birth = attempt_birth(session, number=self.births, window=WINDOW)
        if birth is None:
            self.fruitless += 1
            most = MOST_SIGMAS + MORE_SIGMAS * max(0, self.fruitless - FEW_FRUITLESS)
            self.sigmas = float(np.clip(self.sign, self.sigmas, most))
            return []
        self.sigmas, self.fruitless = SIGMAS, 0
        fill(session.learner, slot, birth.source, share=birth.share)
        # Those that came since the first sign, and as many before it, may be of the new class.
        latest = session.held(np.arange(max(0, session.trained - 2 * WINDOW), session.trained))
        claimed = claim(session, latest, slot)
        self._forget_junk(slot)
        self.doubts.begin(slot)
        return [
            EngineEvent(
                kind=f"class_{kind}",
                message=(
                    f"Class {slot + 1} is {kind} from the particles that no class explains: "
                    f"{birth.gain:.1f} nats per particle gained on {birth.tested} others, of which "
                    f"it takes {birth.share:.0%}; {claimed} of the latest particles are its own"
                ),
                class_index=slot,
                values={"gain": birth.gain, "share": birth.share},
            )
        ]

    # ---- state

    def dump(self) -> dict[str, Any]:
        """Everything that changes."""
        return {**plain_fields(self), "doubts": plain_fields(self.doubts)}

    def restore(self, meta: Mapping[str, Any]) -> None:
        """Take over a state that ``dump`` returned."""
        state = dict(meta)
        take_fields(self.doubts, state.pop("doubts"))
        take_fields(self, state)
