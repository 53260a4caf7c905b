"""A wrong map gives way to a fresh start, and a right one stands."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from reconstruct.challenge import (
    FEWEST,
    LONGER,
    PRESENTED,
    RACED_WINDOW,
    TRIED,
    Challenge,
    _learn_anew,
    challenge,
    challenge_by_two,
    explained,
)
from reconstruct.class_actions import Session, replace_map, share_out
from reconstruct.engine import Engine
from reconstruct.learner import Learner
from reconstruct.quality import align_to_truth
from reconstruct.snapshot import class_volume
from tests.reconstruct.known_session import (
    PARTICLES,
    SETTINGS,
    know_the_poses,
    known_session,
    session_of,
)
from tests.reconstruct.small_sets import GEOMETRY, demo_map, simulated
from tests.reconstruct.test_learner import make_learner

Rows = npt.NDArray[np.intp]


@pytest.fixture
def session() -> Iterator[Session]:
    with known_session() as found:
        yield found


def correlation(session: Session) -> float:
    learner = session.learner
    volume = class_volume(learner, 0)
    return align_to_truth(volume, demo_map(), GEOMETRY.pixel_size_angstrom).correlation


def spoil(session: Session) -> None:
    """Make the map a wrong one of the same power."""
    statistics = session.learner.statistics
    statistics[..., :2] = np.roll(statistics, 2, axis=2)[..., :2]
    session.learner.make_references()


def test_a_right_map_stands(session: Session) -> None:
    tried = challenge(session, 0, number=5, stretch=0.5)
    assert not tried.won
    assert tried.start_evidence > 0.8 * tried.map_evidence  # it found the map too


def test_a_wrong_map_gives_way(session: Session) -> None:
    right = correlation(session)
    spoil(session)
    wrong = correlation(session)
    tried = challenge(session, 0, number=5, stretch=0.5)
    assert tried.won
    assert not tried.confirms
    assert replace_map(session, 0, tried.source) == PARTICLES
    assert wrong < 0.9 * right
    assert correlation(session) > 0.9 * right


def test_the_challenged_map_is_left_as_it_was(session: Session) -> None:
    before = session.learner.statistics.copy()
    challenge(session, 0, number=5, stretch=0.1)
    assert np.array_equal(session.learner.statistics, before)


def test_a_class_of_one_species_stays_one(session: Session) -> None:
    pair = challenge_by_two(session, 0, number=5, stretch=0.5)
    assert not pair.won
    assert pair.pair_evidence > 0.7 * pair.map_evidence  # the starts found something too


def test_a_class_of_two_species_becomes_two() -> None:
    particles = simulated(PARTICLES, kinds=("whole", "ring"))
    engine = Engine(SETTINGS, GEOMETRY)
    engine.add(particles.particle_images())
    while engine.ready:
        engine.step()
    with ThreadPoolExecutor(2) as workers:
        session = session_of(engine, workers)
        know_the_poses(session, particles)  # the map is a blend
        session.store["class_index"][:] = 0
        pair = challenge_by_two(session, 0, number=5, stretch=0.5)
        assert pair.won
        moved = share_out(session, 0, 1, pair.sources)
        assert moved == np.count_nonzero(session.classes == 1)
        assert session.learner.n_classes == 2
        same = np.mean(session.classes == particles.species)
        assert max(same, 1 - same) > 0.9


@pytest.mark.parametrize(
    ("start", "agreed", "raced", "won", "confirms"),
    [
        (120.0, 0.9, True, True, False),
        (101.0, 0.9, True, False, True),
        (101.0, 0.3, False, False, False),
        (101.0, 0.3, True, True, False),  # the better of two different maps
        (99.0, 0.3, True, False, False),
    ],
)
def test_a_start_wins_confirms_or_leaves_the_map_in_doubt(
    start: float, agreed: float, raced: bool, won: bool, confirms: bool
) -> None:
    found = Challenge(make_learner(), 100.0, start, raced, agreed)
    assert (found.won, found.confirms) == (won, confirms)


def test_of_several_starts_the_one_that_explains_the_judges_best_goes_on(
    monkeypatch: pytest.MonkeyPatch, session: Session
) -> None:
    starts = [session.new_learner(number) for number in range(3)]
    judged: list[tuple[int, ...]] = []

    def learn(session: Session, start: Learner, rows: Rows) -> None:
        assert not set(rows.tolist()) & {0, PARTICLES - 1}  # they are judges
        start.presented += len(rows)

    def explain(session: Session, start: Learner, rows: Rows, k: int) -> tuple[Rows, Any]:
        judged.append(tuple(rows))
        evidence = np.full(len(rows), (10.0, 30.0, 20.0)[start.seed[1]], np.float32)
        return rows, SimpleNamespace(poses=SimpleNamespace(evidence=evidence))

    monkeypatch.setattr("reconstruct.challenge.learn_cold", learn)
    monkeypatch.setattr("reconstruct.challenge.score", explain)
    judges, best = _learn_anew(session, np.arange(PARTICLES), starts, stretch=1.0, batch=50)
    assert best is starts[1]
    assert judged == [tuple(judges)] * 3
    presented = [start.presented for start in starts]
    assert presented[1] >= PRESENTED > 2 * max(presented[0], presented[2]) > TRIED


@pytest.mark.parametrize(
    ("stretch", "explains", "presented"),
    [
        (2.0, 80.0, LONGER * PRESENTED * 2),
        (2.0, 90.0, PRESENTED * 2),
        (1.0, 80.0, PRESENTED),  # bright: its start is over when it is over
    ],
)
def test_a_start_on_dim_particles_goes_on_until_it_gets_there(
    monkeypatch: pytest.MonkeyPatch,
    session: Session,
    stretch: float,
    explains: float,
    presented: float,
) -> None:
    def learn(session: Session, start: Learner, rows: Rows) -> None:
        start.presented += len(rows)
        start.evidence = explains  # the mean's first zero is long past

    monkeypatch.setattr("reconstruct.challenge.learn_cold", learn)
    session.store["evidence"][:] = 100.0
    start = session.new_learner(0)
    own = np.arange(PARTICLES)
    _learn_anew(session, own, [start], stretch=stretch, batch=50)
    assert presented <= start.presented < presented + PRESENTED


@pytest.mark.parametrize(("stretch", "raced"), [(1.0, True), (2.0, False)])
def test_only_starts_on_bright_particles_are_raced(
    monkeypatch: pytest.MonkeyPatch, session: Session, stretch: float, raced: bool
) -> None:
    monkeypatch.setattr("reconstruct.challenge.TRIED", 100)
    monkeypatch.setattr("reconstruct.challenge.PRESENTED", 150)
    tried = challenge(session, 0, number=5, stretch=stretch)
    assert tried.raced is raced
    assert (tried.source.schedule.cold_window == RACED_WINDOW) is raced


@pytest.mark.parametrize(
    ("agreed", "evidence", "may"), [(0.5, 120.0, True), (0.75, 120.0, False), (0.5, 400.0, False)]
)
def test_maps_that_agree_and_junk_are_no_blends(agreed: float, evidence: float, may: bool) -> None:
    found = Challenge(make_learner(), 100.0, 101.0, True, agreed)
    assert found.may_blend(evidence) is may


def test_a_class_that_a_bounded_store_has_let_go_of_is_not_challenged(session: Session) -> None:
    with pytest.raises(ValueError, match="class 1 has too few particles"):
        challenge(replace(session, trained=200), 0, number=5, stretch=0.1)


@pytest.mark.parametrize(
    ("junk", "usual", "kept"),
    [
        (100, 50.0, PARTICLES - 100),
        (0, 50.0, PARTICLES),
        (PARTICLES // 2 - 1, 50.0, PARTICLES - PARTICLES // 2 + 1),
        (100, -3.0, PARTICLES),  # a map of nothing tells nobody apart
    ],
)
def test_a_start_does_not_learn_from_junk(
    session: Session, junk: int, usual: float, kept: int
) -> None:
    evidence = np.full(PARTICLES, usual, np.float32)
    evidence[7 : 7 + junk] = 0.2 * usual
    session.store["evidence"][:] = evidence
    own = explained(session, 0)
    assert len(own) == kept
    assert np.array_equal(own, np.sort(own))
    if kept < PARTICLES:
        assert not set(range(7, 7 + junk)) & set(own.tolist())


def test_where_too_few_are_explained_all_are_taken(session: Session) -> None:
    session.store["class_index"][500:] = 1
    session.store["evidence"][:] = 50.0
    session.store["evidence"][: 500 - FEWEST + 1] = 10.0
    assert len(explained(session, 0)) == 500
    session.store["evidence"][500 - FEWEST] = 50.0
    assert len(explained(session, 0)) == FEWEST
    session.store["class_index"][:] = 1
    assert len(explained(session, 0)) == 0
