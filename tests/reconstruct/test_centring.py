"""A map that lies off its particles' centres is brought there, and one that is there stays."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from reconstruct.centring import displacement, gathered, recentre
from reconstruct.engine import Engine
from reconstruct.learned import LearnResult
from reconstruct.quality import align_to_truth
from reconstruct.rotations import random_rotations
from reconstruct.search import empty_poses
from reconstruct.symmetry import shift_poses, shift_statistics, storable_statistics
from reconstruct.update import symmetric_plane
from tests.reconstruct.small_sets import GEOMETRY, demo_map
from tests.reconstruct.test_engine import SETTINGS, differing, particles, plain, reloaded, run

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


def centred_session(**changes: Any) -> Engine:
    """A session whose map was moved off centre."""
    settings = replace(SETTINGS, **changes)
    engine = reloaded(run(settings, particles()).engine, settings)
    displaced(engine, AWAY)
    return engine


def test_map_and_shifts_move_together_to_where_they_were() -> None:
    before = run(SETTINGS, particles()).engine
    engine = centred_session()
    off = engine.snapshot().classes[0].volume
    assert recentre(engine._leader, engine._store)
    engine._leader.make_references()
    after, was = engine.snapshot().classes[0].volume, before.snapshot().classes[0].volume
    assert np.corrcoef(after.ravel(), was.ravel())[0, 1] > 0.99
    assert np.corrcoef(off.ravel(), was.ravel())[0, 1] < 0.9
    shifts = engine.assignments().shifts_angstrom, before.assignments().shifts_angstrom
    assert np.abs(shifts[0] - shifts[1]).max() < 0.25 * GEOMETRY.pixel_size_angstrom
    assert not recentre(engine._leader, engine._store)  # once is enough


@pytest.mark.parametrize("why", ["off", "group", "rest"])
def test_some_maps_stay_where_they_are(why: str) -> None:
    engine = centred_session()
    learner, statistics = engine._leader, engine._leader.statistics.copy()
    if why == "off":
        learner.centring = "off"
    elif why == "group":
        learner.group = "C2"
    else:
        learner.resting[0] = True
    assert not recentre(learner, engine._store)
    assert np.array_equal(learner.statistics, statistics)


def test_a_session_brings_its_map_to_the_centre_and_goes_on_with_the_same_bits() -> None:
    engine = run(replace(SETTINGS, race_particles=200), particles()).engine
    assert differing(reloaded(engine, replace(SETTINGS, race_particles=200)), engine) == []
    told = engine.assignments()
    pixel = GEOMETRY.pixel_size_angstrom
    sums = gathered(
        np.zeros((1, 4, 4)),
        LearnResult(
            replace(
                empty_poses(len(told.rotations), 1),
                rotation=told.rotations.reshape(-1, 1, 9),
                shift=told.shifts_angstrom[:, None] / pixel,
            ),
            np.ones((len(told.rotations), 1), np.float32),
            np.ones((len(told.rotations), 1), np.float32),
        ),
    )
    assert np.linalg.norm(displacement(sums[0])) < 0.4
    aligned = align_to_truth(engine.snapshot().classes[0].volume, demo_map(), pixel)
    assert np.linalg.norm(aligned.shift_pixels) < 0.5


def test_without_centring_nothing_is_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reconstruct.centring.LEAST_PIXELS", 0.0)
    monkeypatch.setattr("reconstruct.centring.ERRORS", 0.0)
    moved = run(SETTINGS, particles()).engine
    still = run(replace(SETTINGS, centring="off"), particles()).engine
    assert "statistics" in " ".join(differing(moved, still))
    monkeypatch.undo()
    assert differing(plain().engine, run(SETTINGS, particles()).engine) == []
