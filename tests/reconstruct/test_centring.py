"""A map that lies off its particles' centres is brought there, and one that is there stays."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from reconstruct.centring import displacement, gathered, recentre, turned
from reconstruct.class_actions import alone, fill, put_to_rest
from reconstruct.engine import Engine
from reconstruct.learned import LearnResult
from reconstruct.rotations import matrix_from_vector, random_rotations
from reconstruct.search import empty_poses
from reconstruct.siblings import Siblings
from reconstruct.symmetry import (
    rotate_poses,
    shift_poses,
    shift_statistics,
    storable_statistics,
)
from reconstruct.update import symmetric_plane
from tests.reconstruct.known_session import session_of
from tests.reconstruct.small_sets import GEOMETRY
from tests.reconstruct.test_engine import (
    SETTINGS,
    differing,
    particles,
    reloaded,
    run,
    two_species,
)

AWAY = np.array([1.5, -1.0, 0.5])


def found(
    away: np.ndarray, count: int = 600, *, views: np.ndarray | None = None, classes: int = 1
) -> LearnResult:
    """Poses of particles, each within 3 pixels of its box's centre, in maps displaced by ``away``.

    ``away`` is (3,), or (K, 3) for particles that belong to the classes in turn.
    """
    rng = np.random.default_rng(0)
    poses = empty_poses(count, 1)
    rotations = random_rotations(rng, count) if views is None else views
    own = np.arange(count) % classes
    poses.rotation[:, 0] = rotations.reshape(-1, 9)
    moved = np.einsum("nij,nj->ni", rotations, np.broadcast_to(away, (classes, 3))[own])[:, :2]
    poses.shift[:, 0] = rng.uniform(-3, 3, (count, 2)) + moved
    poses.class_index[:, 0] = own
    mass = np.eye(classes, dtype=np.float32)[own]
    return LearnResult(poses, np.ones((count, 1), np.float32), mass)


def test_shifts_tell_where_a_map_lies() -> None:
    sums = gathered(np.zeros((1, 4, 4)), found(AWAY))
    assert np.allclose(displacement(sums[0]), AWAY, atol=0.25)


@pytest.mark.parametrize("count", [0, 1, 20])
def test_too_few_particles_tell_nothing(count: int) -> None:
    sums = gathered(np.zeros((1, 4, 4)), found(0.4 * AWAY, count))
    assert not displacement(sums[0]).any()


def test_a_map_at_the_centre_stays() -> None:
    sums = gathered(np.zeros((1, 4, 4)), found(0.05 * AWAY, 3000))
    assert not displacement(sums[0]).any()


def test_views_along_an_axis_tell_nothing_of_what_lies_along_it() -> None:
    angles = np.random.default_rng(1).uniform(0, 2 * np.pi, 600)
    c, s, none = np.cos(angles), np.sin(angles), np.zeros(600)
    views = np.stack([c, -s, none, s, c, none, none, none, none + 1], axis=1).reshape(-1, 3, 3)
    sums = gathered(np.zeros((1, 4, 4)), found(AWAY, views=views))
    told = displacement(sums[0])
    assert np.allclose(told[:2], AWAY[:2], atol=0.25)
    assert abs(told[2]) < 1e-9


def test_what_an_earlier_map_showed_fades() -> None:
    sums = gathered(np.zeros((1, 4, 4)), found(AWAY, 3000))
    for _ in range(4):
        sums = gathered(sums, found(-AWAY, 3000))
    assert np.allclose(displacement(sums[0]), -AWAY, atol=0.2)


def test_each_class_has_its_own() -> None:
    both = np.stack([AWAY, -2 * AWAY])
    sums = gathered(np.zeros((2, 4, 4)), found(both, 2000, classes=2))
    for one, away in zip(sums, both, strict=True):
        assert np.allclose(displacement(one), away, atol=0.25)


@pytest.mark.parametrize("tilt", [1.0, 3.0])
def test_the_noise_of_views_near_an_axis_moves_nothing_along_it(tilt: float) -> None:
    rng = np.random.default_rng(2)
    views = matrix_from_vector(
        np.concatenate([rng.normal(0, np.radians(tilt), (900, 2)), np.zeros((900, 1))], axis=1)
    )
    sums = gathered(np.zeros((1, 4, 4)), found(np.zeros(3), 900, views=views))
    assert abs(displacement(sums[0])[2]) < 0.3


def test_what_may_be_an_error_is_none() -> None:
    """60 particles within 3 pixels know a place to 0.3 pixels, 6,000 to 0.03."""
    away = np.array([0.35, 0.0, 0.0])
    few = gathered(np.zeros((1, 4, 4)), found(away, 60))
    many = gathered(np.zeros((1, 4, 4)), found(away, 6000))
    assert not displacement(few[0]).any()
    assert displacement(many[0]).any()


def test_what_is_too_little_to_matter_is_none() -> None:
    sure = found(np.zeros(3), 600)
    sure.poses.shift[:, 0] *= 0.05
    for away, moves in ((0.15, False), (0.25, True)):
        near = replace(sure, poses=replace(sure.poses, shift=sure.poses.shift.copy()))
        near.poses.shift[:, 0] += away * sure.poses.rotation[:, 0, [0, 3]]
        sums = gathered(np.zeros((1, 4, 4)), near)
        assert displacement(sums[0]).any() == moves


def test_sums_turn_as_their_map_does() -> None:
    axes, move = random_rotations(np.random.default_rng(3), 1)[0], np.array([0.5, 2.0, -1.0])
    before = found(AWAY)
    old = before.poses.rotation[:, 0].reshape(-1, 3, 3)
    shift = shift_poses(old, before.poses.shift[:, 0], move)[:, None].astype(np.float32)
    rotation = rotate_poses(old, axes).reshape(-1, 1, 9).astype(np.float32)
    after = replace(before, poses=replace(before.poses, rotation=rotation, shift=shift))
    none = np.zeros((1, 4, 4))
    assert np.allclose(turned(gathered(none, before), axes, move), gathered(none, after), atol=1e-2)


def displaced(engine: Engine, away: np.ndarray) -> None:
    """Move the map of a session, its particles' shifts and its sums, and nothing else."""
    learner, store = engine._leader, engine._store
    reach = (learner.statistics.shape[2] - 1) // 2
    for h in (0, 1):
        crop = symmetric_plane(learner.statistics[h, 0], reach)
        crop = shift_statistics(crop, away, padded=learner.grid.padded)
        learner.statistics[h, 0] = storable_statistics(crop)
    rotations = np.asarray(store["rotation"], np.float64).reshape(-1, 3, 3)
    store["shift"][:] = shift_poses(rotations, store["shift"], away)
    learner.shift_sums[0] = gathered(np.zeros((1, 4, 4)), found(away, 3000))[0]
    learner.make_references()


def off_centre_session(**changes: Any) -> Engine:
    """A session whose map was moved off centre."""
    settings = replace(SETTINGS, **changes)
    engine = reloaded(run(settings, particles()).engine, settings)
    displaced(engine, AWAY)
    return engine


def test_map_and_shifts_move_together_to_where_they_were() -> None:
    before = run(SETTINGS, particles()).engine
    engine = off_centre_session()
    off = engine.snapshot().classes[0].volume
    assert recentre(engine._leader, engine._store).any()
    engine._leader.make_references()
    after, was = engine.snapshot().classes[0].volume, before.snapshot().classes[0].volume
    assert np.corrcoef(after.ravel(), was.ravel())[0, 1] > 0.99
    assert np.corrcoef(off.ravel(), was.ravel())[0, 1] < 0.9
    shifts = engine.assignments().shifts_angstrom, before.assignments().shifts_angstrom
    assert np.abs(shifts[0] - shifts[1]).max() < 0.25 * GEOMETRY.pixel_size_angstrom
    assert not recentre(engine._leader, engine._store).any()  # once is enough


@pytest.mark.parametrize("why", ["off", "group", "rest", "siblings"])
def test_some_maps_stay_where_they_are(why: str) -> None:
    engine = off_centre_session()
    learner, statistics = engine._leader, engine._leader.statistics.copy()
    if why == "off":
        learner.centring = "off"
    elif why == "group":
        learner.group = "D2"
    elif why == "rest":
        learner.resting[0] = True
    else:
        learner.siblings = Siblings((0, 1), np.zeros((2, 1, 1, 1), np.complex64))
    assert not recentre(learner, engine._store).any()
    assert np.array_equal(learner.statistics, statistics)


def test_a_map_with_an_axis_moves_along_it() -> None:
    engine = off_centre_session()
    engine._leader.group = "C3"
    (moves,) = recentre(engine._leader, engine._store)
    assert np.allclose(moves, [0.0, 0.0, AWAY[2]], atol=0.3)
    assert moves[2]


def test_one_of_two_classes_leaves_the_other_as_it_is() -> None:
    settings = replace(SETTINGS, n_classes=2)
    engine = reloaded(two_species().engine, settings)
    learner, store = engine._leader, engine._store
    held = np.flatnonzero(store["class_index"] == 1)
    assert not learner.resting.any()
    assert len(held)
    learner.shift_sums[0] = gathered(np.zeros((1, 4, 4)), found(AWAY, 3000))[0]
    learner.shift_sums[1] = 0.0
    other, shifts = learner.statistics[:, 1].copy(), store["shift"][held].copy()
    before = learner.statistics[:, 0].copy()
    assert recentre(learner, store).any(axis=1).tolist() == [True, False]
    assert np.array_equal(learner.statistics[:, 1], other)
    assert np.array_equal(store["shift"][held], shifts)
    assert not np.array_equal(learner.statistics[:, 0], before)


def test_sums_go_with_the_map_of_their_class() -> None:
    engine = reloaded(two_species().engine, replace(SETTINGS, n_classes=2))
    learner = engine._leader
    first, second = learner.shift_sums.copy()
    assert first[3, 3] > 0
    assert second[3, 3] > 0
    with ThreadPoolExecutor(1) as workers:
        source = alone(session_of(engine, workers), 0, 7)
    assert np.array_equal(source.shift_sums[0], first)
    put_to_rest(learner, 0)
    assert not learner.shift_sums[0].any()
    assert np.array_equal(learner.shift_sums[1], second)
    fill(learner, 2, source, share=0.3)
    assert np.array_equal(learner.shift_sums, [np.zeros((4, 4)), second, first])


def test_a_mask_has_room_for_a_map_that_was_moved() -> None:
    engine = off_centre_session()
    learner = engine._leader
    learner.mask_radius[0] = 5.0
    moved = np.linalg.norm(recentre(learner, engine._store))
    assert np.isclose(learner.mask_radius[0], 5.0 + moved)


def test_sessions_that_move_maps_go_on_with_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reconstruct.centring.LEAST_PIXELS", 0.0)
    monkeypatch.setattr("reconstruct.centring.ERRORS", 0.5)
    whole = run(SETTINGS, particles())
    pieces = Engine(SETTINGS, GEOMETRY)
    pieces.add(particles())
    told = [one for report in whole.reports for one in report.events if one.kind == "map_centred"]
    while pieces.ready:
        pieces.step()
        pieces = reloaded(pieces)
    for _ in pieces.finish():
        pass
    assert len(told) >= 2
    assert all(one.values["off_angstrom"] > 0 for one in told)
    assert differing(pieces, whole.engine) == []


def test_without_centring_nothing_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[float] = []

    def look(*_: np.ndarray) -> np.ndarray:
        looked.append(1.0)
        return np.zeros(3)

    monkeypatch.setattr("reconstruct.centring.displacement", look)
    run(replace(SETTINGS, centring="off"), particles())
    assert not looked
    run(SETTINGS, particles())
    assert looked
