"""What replay presents, and what it makes of what was learned before."""

from __future__ import annotations

import numpy as np

from reconstruct.course import FADES, Course
from reconstruct.schedule import Schedule
from reconstruct.types import EngineSettings

PARTICLES = 500
KEPT = 1.0 - FADES
SETTINGS = EngineSettings(minibatch_final=100)


def test_what_was_learned_fades_as_a_pass_begins_and_never_within_it() -> None:
    course = Course(SETTINGS, Schedule(), trained=PARTICLES)
    kept = [course.replay(10, np.arange(PARTICLES)).kept for _ in range(15)]
    assert kept == 3 * [KEPT, 1.0, 1.0, 1.0, 1.0]


def test_a_pass_presents_each_particle_once_wherever_it_is_resumed() -> None:
    course = Course(SETTINGS, Schedule(), trained=PARTICLES)
    shown, kept = [], []
    for _ in range(5):
        again = course.replay(10, np.arange(PARTICLES))
        shown += again.rows.tolist()
        kept.append(again.kept)
        resumed = Course(SETTINGS, Schedule())
        resumed.restore(course.dump())
        course = resumed
    assert sorted(shown) == list(range(PARTICLES))
    assert kept == [KEPT, 1.0, 1.0, 1.0, 1.0]


def test_a_sample_fades_what_was_learned_by_its_share() -> None:
    course = Course(SETTINGS, Schedule(), trained=4 * PARTICLES)
    assert course.replay(10, np.arange(PARTICLES)).kept == 1.0 - FADES / 4


def passes(course: Course, held: int) -> int:
    shown = 0
    while not course.replayed_enough(10, held):
        shown += len(course.replay(10, np.arange(held)).rows)
    return shown // max(held, 1)


def test_a_sample_of_less_than_half_is_shown_once() -> None:
    assert passes(Course(SETTINGS, Schedule(), trained=2 * PARTICLES + 1), PARTICLES) == 1
    assert passes(Course(SETTINGS, Schedule(), trained=2 * PARTICLES), PARTICLES) == 2
    asked = EngineSettings(minibatch_final=100, replay_passes=3)
    assert passes(Course(asked, Schedule(), trained=9 * PARTICLES), PARTICLES) == 3
    assert passes(Course(SETTINGS, Schedule(), trained=9 * PARTICLES), 0) == 0


def test_a_third_pass_is_shown_to_its_end_and_ends_replay_if_it_adds_no_shell() -> None:
    course, held, radius, shown = Course(SETTINGS, Schedule(), trained=PARTICLES), PARTICLES, 10, 0
    while not course.replayed_enough(radius, held):
        shown += len(course.replay(radius, np.arange(held)).rows)
        radius += shown == 2 * PARTICLES - 100  # in the second pass, but not in the third
    assert shown == 3 * PARTICLES
