"""Dim particles stretch the start by how dim they are; bright ones do not."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from reconstruct.course import DIM_EPOCHS, Course
from reconstruct.engine import Engine
from reconstruct.engine_events import pace_event
from reconstruct.learner import EVIDENCE_MEMORY
from reconstruct.pace import LONGEST, mean_evidence, stretch_for, stretched
from reconstruct.schedule import Schedule
from reconstruct.types import EngineSettings, ParticleImages
from tests.reconstruct.small_sets import GEOMETRY, simulated
from tests.reconstruct.test_engine import SETTINGS
from tests.reconstruct.test_learner import make_learner

BRIGHT_SNR, DIM_SNR = 0.3, 0.01
AUTO = replace(SETTINGS, replay_passes=0)


def images(snr: float, count: int = 260) -> ParticleImages:
    return simulated(260, snr=snr).particle_images().span(slice(0, count))


def test_a_start_is_stretched_between_1_and_a_limit() -> None:
    assert stretch_for(500.0) == stretch_for(21.0) == 1.0
    assert 1.0 < stretch_for(14.0) < stretch_for(8.0) < LONGEST
    assert stretch_for(0.0) == stretch_for(-4.0) == LONGEST


def test_everything_that_counts_particles_is_stretched() -> None:
    plain, slow = Schedule(), stretched(Schedule(), 3.0)
    for name in ("grow_every", "cold_presented", "cold_window", "warm_window", "mask_from"):
        assert getattr(slow, name) == 3 * getattr(plain, name)
    assert slow.start_radius == plain.start_radius
    assert stretched(plain, 1.0) == plain


def test_a_race_of_dim_particles_goes_on_until_a_start_finds_them() -> None:
    course = Course(replace(AUTO, race_particles=100, race_epochs=3), Schedule())
    course.race_cursor = 200
    assert course.race_over(100, evidence=16.0)  # bright: by its epochs alone
    course.race_goal = 22.0
    assert not course.race_over(100, evidence=16.0)
    assert course.race_over(100, evidence=35.0)
    course.race_cursor = 100 * (DIM_EPOCHS - 1)
    assert course.race_over(100, evidence=16.0)


@pytest.mark.parametrize(
    ("evidence", "agreed", "classes", "trusted"),
    [
        ((35.0, 34.0), 0.95, 1, True),
        ((35.0, 34.0), 0.6, 1, False),
        ((35.0, 16.0), 0.95, 1, False),  # one start alone found something
        ((22.0, 17.0), 0.95, 1, True),
        ((21.0, 21.0), 0.95, 1, False),  # neither got there
        ((35.0, 34.0), 0.95, 2, False),  # class 1 of one start may be class 2 of the other
    ],
)
def test_a_map_that_two_starts_found_in_dim_particles_is_in_no_doubt(
    evidence: tuple[float, float],
    agreed: float,
    classes: int,
    trusted: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("reconstruct.races.agreement", lambda *_: agreed)
    engine = Engine(replace(AUTO, n_classes=classes, race_starts=2), GEOMETRY)
    engine._course.race_goal = 22.0
    for learner, explained in zip(engine._learners, evidence, strict=True):
        learner.presented, learner.evidence = 1e6, explained
    engine._settle_dim()
    assert (engine._life.doubts.stood == (0,)) is trusted


def test_a_race_of_dim_particles_has_more_of_them() -> None:
    course = Course(replace(AUTO, race_particles=100), Schedule())
    assert course.race_particles == 100
    course.stretch = 3.0
    assert course.race_particles == 600


def told(settings: EngineSettings, particles: ParticleImages) -> tuple[Engine, list[str]]:
    engine = Engine(settings, GEOMETRY)
    engine.add(particles)
    kinds = []
    while engine.ready:
        kinds += [event.kind for event in engine.step().events]
    return engine, kinds


def test_a_session_of_dim_particles_says_so_and_races_longer() -> None:
    engine, kinds = told(AUTO, images(DIM_SNR, 150))
    assert kinds == ["low_signal"]  # 120 particles would have been raced
    assert engine.phase == "initial"


def test_an_event_names_the_pace_where_there_is_a_difference() -> None:
    assert (
        "begins anew 1.6 times as slowly" in pace_event(13.0, 1.6, looked_at=1, particles=9).message
    )
    assert "begins anew, with about" in pace_event(20.6, 1.02, looked_at=1, particles=9).message


def test_a_session_of_bright_particles_says_nothing() -> None:
    engine, kinds = told(AUTO, images(BRIGHT_SNR, 150))
    assert "low_signal" not in kinds
    assert engine.phase != "initial"


def test_a_user_may_set_the_pace() -> None:
    engine, kinds = told(replace(AUTO, start_stretch=1.0), images(DIM_SNR, 150))
    assert "low_signal" not in kinds
    assert engine.phase != "initial"
    with pytest.raises(ValueError, match="start_stretch must be 1 or more"):
        replace(AUTO, start_stretch=0.5)


def test_the_pace_survives_a_restart() -> None:
    engine, _ = told(AUTO, images(DIM_SNR, 150))
    meta, arrays = engine.dump()
    again = Engine.load(AUTO, GEOMETRY, json.loads(json.dumps(meta)), arrays, engine.dump_store(0))
    for one in (engine, again):
        one.add(images(DIM_SNR).span(slice(150, 260)))
        for _ in one.finish():
            pass
    mine, other = (one.snapshot().classes[0].volume for one in (engine, again))
    assert np.array_equal(mine, other)


def test_the_first_look_is_a_mean_without_the_zero_it_began_with() -> None:
    learner = make_learner()
    for presented in (100, 500, 3000):
        learner.presented = presented
        learner.evidence = 25.0 * (1 - np.exp(-presented / EVIDENCE_MEMORY))
        assert mean_evidence(learner) == pytest.approx(25.0)
