"""Which maps are in doubt, what tries them, and that no resolution is told of them until it did."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from reconstruct.challenge import Challenge
from reconstruct.class_actions import Session
from reconstruct.doubts import Doubts, _holds_little
from reconstruct.engine import Engine
from reconstruct.snapshot import Resolution, resolutions_told
from tests.reconstruct.known_session import PARTICLES, SETTINGS, finished_engine, known_session
from tests.reconstruct.small_sets import GEOMETRY, simulated
from tests.reconstruct.test_learner import make_learner

CHALLENGED = {"map_confirmed", "map_in_doubt", "class_restarted"}


@pytest.fixture
def session() -> Iterator[Session]:
    with known_session() as found:
        yield found


def test_one_bright_species_is_not_doubted_and_dim_ones_are_until_a_map_stood() -> None:
    assert Doubts().which(1) == (False,)
    assert Doubts(stretch=2.0).which(1) == (True,)
    assert Doubts(stretch=2.0, stood=(0,)).which(1) == (False,)


def test_of_several_classes_those_with_uneven_views_are_doubted_until_they_stood() -> None:
    doubts = Doubts()
    assert doubts.which(3) == (True, True, True)  # nobody has looked at their views yet
    doubts.looked, doubts.uneven = True, (1,)
    assert doubts.which(3) == (False, True, False)
    doubts.stood = (1,)
    assert doubts.which(3) == (False, False, False)


def test_even_views_do_not_speak_for_a_class_of_particles_that_are_hardly_bright() -> None:
    doubts = Doubts(faint=True, looked=True, stood=(1,))
    assert doubts.which(3) == (True, False, True)
    assert Doubts(faint=True, looked=True).which(1) == (False,)  # four starts were raced for it


@pytest.mark.parametrize(
    ("doubt", "told"), [({}, True), ({"stretch": 2.0}, False), ({"unsettled": True}, False)]
)
def test_no_resolution_is_told_of_a_map_in_doubt(
    monkeypatch: pytest.MonkeyPatch, doubt: dict[str, Any], told: bool
) -> None:
    engine = finished_engine()
    for name, value in {"stretch": 1.0, "unsettled": False, "stood": (), **doubt}.items():
        monkeypatch.setattr(engine._life.doubts, name, value)
    assert (engine.snapshot().classes[0].resolution_angstrom is not None) is told


@pytest.mark.parametrize(
    ("agreed", "coverage", "stretch", "stands"),
    [
        (0.85, 0.3, 1.0, False),  # two half right maps
        (0.85, 0.6, 1.0, True),
        (0.95, 0.3, 1.0, True),
        (0.85, 0.3, 2.0, True),  # wrong maps of dim particles need not crowd their views
        (0.7, 0.9, 1.0, False),
    ],
)
def test_a_map_with_crowded_views_stands_only_where_a_start_found_just_the_same(
    monkeypatch: pytest.MonkeyPatch,
    session: Session,
    agreed: float,
    coverage: float,
    stretch: float,
    stands: bool,
) -> None:
    monkeypatch.setattr("reconstruct.doubts._coverage", lambda session, k: coverage)
    doubts = Doubts(stretch=stretch)
    tried = Challenge(make_learner(), 100.0, 99.0, stretch == 1.0, agreed)
    assert doubts._stands(session, 0, tried) is stands


def test_a_class_that_explains_little_of_its_particles_is_not_worth_a_start(
    session: Session,
) -> None:
    session.learner.evidence = 1.0
    assert not _holds_little(session, 0)
    session.learner.evidence = 1e4
    assert _holds_little(session, 0)


def test_a_session_challenges_by_itself_and_says_how_it_went() -> None:
    settings = replace(SETTINGS, start_stretch=1.05, race_particles=200, replay_passes=1)
    engine = Engine(settings, GEOMETRY)
    engine.add(simulated(PARTICLES).particle_images().span(slice(0, 600)))
    events = [event for report in engine.finish() for event in report.events]
    told = next(e for e in events if e.kind in CHALLENGED)
    compared = set() if told.kind == "class_restarted" else {"agreement"}
    assert set(told.values) == {"start", "map"} | compared
    assert engine._life.doubts.challenges >= 1


def test_a_class_that_holds_another_map_is_doubted_until_it_was_looked_at() -> None:
    doubts = Doubts(looked=True, stood=(1,))
    assert doubts.which(2) == (False, False)
    doubts.begin(1)
    assert doubts.which(2) == (False, True)
    assert doubts.stood == ()


@pytest.mark.parametrize("of_first", [{"stood": (0,)}, {"uneven": (0,)}, {}])
def test_a_class_with_the_map_of_another_is_doubted_as_that_one_is(
    of_first: dict[str, Any],
) -> None:
    doubts = Doubts(looked=True, **of_first)
    doubts.inherit(1, 0)
    first, second = doubts.which(2)
    assert first == second


def test_a_near_ball_stays_in_doubt_beside_a_class_that_was_born() -> None:
    doubts = Doubts(unsettled=True, looked=True)
    assert doubts.which(1) == (True,)
    assert doubts.which(2) == (True, False)
    doubts.stood = (0,)
    assert doubts.which(1) == (False,)


@pytest.mark.parametrize(
    ("junk", "guided", "group"), [({0}, False, "C1"), ((), True, "C1"), ((), False, "C2")]
)
def test_maps_that_a_start_cannot_judge_are_not_tried(
    session: Session, junk: set[int], guided: bool, group: str
) -> None:
    doubts = Doubts(stretch=2.0, guided=guided)
    assert doubts.which(1) == (True,)
    session.learner.group = group
    assert doubts.try_maps(session, junk=junk) == []
    assert doubts.challenges == 0


def test_a_map_in_doubt_is_tried(session: Session) -> None:
    doubts = Doubts(stretch=0.5)  # a short start
    (told,) = doubts.try_maps(session, junk=())
    assert told.kind in CHALLENGED
    assert doubts.challenges == 1
    assert doubts.which(1) == (told.kind != "map_confirmed",)


@pytest.mark.parametrize(
    ("guided", "group", "why"),
    [
        (False, "C1", "starts_disagree"),
        (False, "D7", "starts_disagree"),  # any axes seem to fit a ball
        (True, "C1", "near_ball"),
    ],
)
def test_a_near_ball_without_its_group_is_told_without_a_resolution(
    session: Session, guided: bool, group: str, why: str
) -> None:
    doubts = Doubts(unsettled=True, guided=guided)
    learner = session.learner
    learner.group = group
    (told,) = resolutions_told(
        learner, particles=700, racing=False, doubts=doubts.words(1), box_angstrom=320.0
    )
    assert told == Resolution(None, why)


def test_other_doubts_end_with_a_group_that_was_taken_up(session: Session) -> None:
    learner = session.learner
    for group, why in (("C1", "in_doubt"), ("D7", None)):
        learner.group = group
        (told,) = resolutions_told(
            learner, particles=700, racing=False, doubts=("in_doubt",), box_angstrom=320.0
        )
        assert told.why_none == why
