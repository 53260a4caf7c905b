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


def in_the_stream(course: Course, new: int) -> list[int]:
    """Rows that are shown again between ``new`` particles, 50 at a time, and those before them."""
    shown: list[int] = []
    for _ in range(0, new, 50):
        course.train(50, held=course.trained + 50)
        while course.owed and not course.new_before_again(course.trained):
            again = course.again(np.arange(course.trained))
            assert again.kept == 1.0
            shown += again.rows.tolist()
    return shown


def test_each_new_particle_calls_for_some_earlier_ones_once_there_is_a_map() -> None:
    course = Course(EngineSettings(minibatch_final=100, stream_replays=1.5), Schedule())
    assert in_the_stream(course, 200) == []  # the race shows its own again
    course.racing = False
    assert len(in_the_stream(course, 400)) == 600
    assert course.trained == 600


def test_a_round_shows_each_earlier_particle_once_wherever_it_is_resumed() -> None:
    settings = EngineSettings(minibatch_final=100, stream_replays=1.0)
    course = Course(settings, Schedule(), trained=PARTICLES, racing=False)
    shown: list[int] = []
    for _ in range(5):
        shown += in_the_stream(course, 100)
        resumed = Course(settings, Schedule())
        resumed.restore(course.dump())
        course = resumed
    first = PARTICLES + 100  # those that were there as the round began
    assert len(shown) == len(set(shown)) == 500
    assert max(shown) < first
    shown += in_the_stream(course, 100)
    assert sorted(shown) == list(range(first))


def test_particles_that_were_shown_again_are_sought_near_their_poses() -> None:
    settings = EngineSettings(minibatch_final=100, stream_replays=1.0)
    course = Course(settings, Schedule(), trained=PARTICLES, racing=False)
    everywhere = []
    for _ in range(30):
        course.train(100, held=course.trained + 100)
        everywhere.append((course.again_cycle, course.again(np.arange(course.trained)).everywhere))
    assert all(all_over for _, all_over in everywhere[1:6])  # the first round
    later = [all_over for cycle, all_over in everywhere if cycle > 1]
    assert 0 < sum(later) < 0.3 * len(later)


def test_without_replays_in_the_stream_none_is_due() -> None:
    course = Course(SETTINGS, Schedule(), racing=False)
    assert in_the_stream(course, 1000) == []
    assert course.new_before_again(1000) > 10**9


def test_a_sample_is_shown_again_by_its_share() -> None:
    settings = EngineSettings(minibatch_final=100, stream_replays=2.0)
    course = Course(settings, Schedule(), trained=9 * PARTICLES, racing=False)
    course.train(PARTICLES, held=PARTICLES)
    assert np.isclose(course.owed, 0.2 * PARTICLES)
    assert course.again_each(PARTICLES) == 0.2
