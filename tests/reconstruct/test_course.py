"""What replay presents, and what it makes of what was learned before."""

from __future__ import annotations

import numpy as np

from reconstruct.course import KEPT, Course
from reconstruct.schedule import Schedule
from reconstruct.types import EngineSettings

PARTICLES = 500
SETTINGS = EngineSettings(minibatch_final=100)


def test_what_was_learned_fades_as_a_pass_begins_and_never_within_it() -> None:
    course = Course(SETTINGS, Schedule())
    kept = [course.replay(10, np.arange(PARTICLES)).kept for _ in range(15)]
    assert kept == 3 * [KEPT, 1.0, 1.0, 1.0, 1.0]


def test_a_pass_presents_each_particle_once_wherever_it_is_resumed() -> None:
    course = Course(SETTINGS, Schedule())
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
