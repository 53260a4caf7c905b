"""A wrong map gives way to a fresh start, a right one stands, and what is in doubt is not told."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from reconstruct.challenge import (
    PRESENTED,
    RACED_WINDOW,
    TRIED,
    Challenge,
    _learn_anew,
    challenge,
    challenge_by_two,
)
from reconstruct.class_actions import Session, replace_map, share_out
from reconstruct.engine import Engine
from reconstruct.learner import Learner
from reconstruct.learner_state import new_learner
from reconstruct.lifecycle import Lifecycle
from reconstruct.quality import align_to_truth
from reconstruct.search import local_start
from reconstruct.simulate import Simulated
from reconstruct.snapshot import class_volume
from reconstruct.types import EngineSettings
from tests.reconstruct.small_sets import GEOMETRY, demo_map, simulated
from tests.reconstruct.test_learner import make_learner

SETTINGS = EngineSettings(
    max_resolution_angstrom=32.0, race_starts=2, race_particles=300, replay_passes=1
)
PARTICLES = 700
Rows = npt.NDArray[np.intp]
CHALLENGED = {"map_confirmed", "map_in_doubt", "class_restarted"}


@pytest.fixture(scope="module")
def engine() -> Engine:
    """A session with a map of its own."""
    found = Engine(SETTINGS, GEOMETRY)
    found.add(simulated(PARTICLES).particle_images())
    for _ in found.finish():
        pass
    return found


@pytest.fixture
def session(engine: Engine) -> Iterator[Session]:
    with ThreadPoolExecutor(2) as workers:
        meta, arrays = engine.dump()
        copied = {name: array.copy() for name, array in arrays.items()}
        again = Engine.load(SETTINGS, GEOMETRY, meta, copied, engine.dump_store(0))
        found = session_of(again, workers)
        know_the_poses(found, simulated(PARTICLES))
        yield found


def session_of(engine: Engine, workers: ThreadPoolExecutor) -> Session:
    return Session(
        learner=engine._leader,
        store=engine._store,
        trained=PARTICLES,
        weigh=engine._weighted,
        shell_sums=partial(engine._sums.of, noise=engine._noise.variance(), weigh=engine._weighted),
        workers=workers,
        new_learner=partial(new_learner, SETTINGS, engine._layout, backend=engine.backend),
    )


def know_the_poses(session: Session, particles: Simulated) -> None:
    """Make the map from the true poses."""
    learner = session.learner
    rows = np.arange(PARTICLES)
    half = session.store.half_of(rows)
    order = np.argsort(half, kind="stable")
    poses = local_start(
        particles.rotations[order].reshape(-1, 9).astype(np.float32),
        (particles.shifts_angstrom[order] / GEOMETRY.pixel_size_angstrom).astype(np.float32),
        np.zeros(PARTICLES, np.int32),
        keep=1,
    )
    learner.statistics[:] = 0
    batch = session.weigh(rows[order], learner.insert_radius)
    learner.adopt(batch, half[order], poses, workers=session.workers)


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


def test_one_bright_species_is_not_doubted_and_dim_ones_are_until_a_map_stood() -> None:
    assert Lifecycle(most_classes=3).doubted(1) == (False,)
    assert Lifecycle(most_classes=3, stretch=2.0).doubted(1) == (True,)
    assert Lifecycle(most_classes=3, stretch=2.0, stood=(0,)).doubted(1) == (False,)


def test_of_several_classes_those_with_uneven_views_are_doubted_until_they_stood() -> None:
    life = Lifecycle(most_classes=5)
    assert life.doubted(3) == (True, True, True)  # nobody has looked at their views yet
    life.next_review, life.uneven = 4000.0, (1,)
    assert life.doubted(3) == (False, True, False)
    life.stood = (1,)
    assert life.doubted(3) == (False, False, False)


@pytest.mark.parametrize(
    ("doubt", "told"), [({}, True), ({"stretch": 2.0}, False), ({"unsettled": True}, False)]
)
def test_no_resolution_is_told_of_a_map_in_doubt(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, doubt: dict[str, Any], told: bool
) -> None:
    for name, value in {"stretch": 1.0, "unsettled": False, "stood": (), **doubt}.items():
        monkeypatch.setattr(engine._life, name, value)
    assert (engine.snapshot().classes[0].resolution_angstrom is not None) is told


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
    monkeypatch.setattr("reconstruct.lifecycle._coverage", lambda session, k: coverage)
    life = Lifecycle(most_classes=5, stretch=stretch)
    tried = Challenge(make_learner(), 100.0, 99.0, stretch == 1.0, agreed)
    assert life._stands(session, 0, tried) is stands


def test_a_class_that_explains_little_of_its_particles_is_not_worth_a_start(
    session: Session,
) -> None:
    session.learner.evidence = 1.0
    assert not Lifecycle._holds_little(session, 0)
    session.learner.evidence = 1e4
    assert Lifecycle._holds_little(session, 0)


@pytest.mark.parametrize(
    ("agreed", "evidence", "may"), [(0.5, 120.0, True), (0.75, 120.0, False), (0.5, 400.0, False)]
)
def test_maps_that_agree_and_junk_are_no_blends(agreed: float, evidence: float, may: bool) -> None:
    found = Challenge(make_learner(), 100.0, 101.0, True, agreed)
    assert found.may_blend(evidence) is may


def test_a_session_challenges_by_itself_and_says_how_it_went() -> None:
    settings = replace(SETTINGS, start_stretch=1.05, race_particles=200, replay_passes=1)
    engine = Engine(settings, GEOMETRY)
    engine.add(simulated(PARTICLES).particle_images().span(slice(0, 600)))
    events = [event for report in engine.finish() for event in report.events]
    told = next(e for e in events if e.kind in CHALLENGED)
    compared = set() if told.kind == "class_restarted" else {"agreement"}
    assert set(told.values) == {"start", "map"} | compared
    assert engine._life.challenges >= 1


def test_a_class_that_a_bounded_store_has_let_go_of_is_not_challenged(session: Session) -> None:
    with pytest.raises(ValueError, match="class 1 has too few particles"):
        challenge(replace(session, trained=200), 0, number=5, stretch=0.1)


def test_a_class_that_holds_another_map_is_doubted_until_it_was_looked_at() -> None:
    life = Lifecycle(most_classes=5, next_review=4000.0, stood=(1,), junk=(1,))
    assert life.doubted(2) == (False, False)
    life._doubt(1)
    assert life.doubted(2) == (False, True)
    assert life.junk == life.stood == ()


def test_a_near_ball_stays_in_doubt_beside_a_class_that_was_born() -> None:
    life = Lifecycle(most_classes=5, unsettled=True, next_review=4000.0)
    assert life.doubted(1) == (True,)
    assert life.doubted(2) == (True, False)
    life.stood = (0,)
    assert life.doubted(1) == (False,)
