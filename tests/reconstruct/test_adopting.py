"""With symmetry="auto" a group is taken up that all classes show twice, and no other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import reconstruct.adopting
import reconstruct.symmetry_course
from reconstruct.adopting import ClassNames, name_classes, next_search, wanted_group
from reconstruct.engine import Engine
from reconstruct.symmetry_course import SymmetryCourse
from reconstruct.types import EngineSettings, Geometry
from tests.reconstruct.test_learner import make_learner

EDGE = 256.0  # box in Angstrom of the maps below


def ring(fold: int) -> np.ndarray:
    """Blobs that have a Cn axis along z and nothing more."""
    z, y, x = np.mgrid[-16:16, -16:16, -16:16].astype(float)
    volume = np.zeros((32, 32, 32))
    for height, radius, angle in ((-4.0, 7.0, 0.0), (3.0, 5.0, 0.7), (0.0, 8.0, 1.1)):
        for turn in 2 * np.pi * np.arange(fold) / fold + angle:
            dx, dy = x - radius * np.cos(turn), y - radius * np.sin(turn)
            volume += np.exp(-(dx**2 + dy**2 + (z - height) ** 2) / 4.5)
    return volume.astype(np.float32)


def names(
    monkeypatch: pytest.MonkeyPatch,
    maps: list[np.ndarray],
    *,
    shares: list[float] | None = None,
    agree_to: int = 11,
    resting: list[bool] | None = None,
) -> ClassNames:
    """What classes say: those that do not rest have these maps."""
    asleep = resting or [False] * len(maps)
    learner = make_learner(n_classes=len(asleep), start_radius=11)
    fsc = np.where(np.arange(12) <= agree_to, 1.0, 0.0)
    learner.fsc = [fsc for _ in asleep]
    learner.class_share = np.array(shares or [1 / len(asleep)] * len(asleep))
    learner.resting = np.array(asleep)
    queue = iter(maps)
    monkeypatch.setattr(reconstruct.adopting, "class_volume", lambda *_, **__: next(queue))
    return name_classes(learner, box_angstrom=EDGE)


def test_the_group_of_a_class_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = names(monkeypatch, [ring(4)])
    assert found.group == "C4"
    assert found.score > 0.4
    assert len(found.axes) == 1


def test_nothing_is_named_beyond_what_the_half_maps_vouch_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert names(monkeypatch, [ring(4)], agree_to=7).group == "C1"


def test_classes_must_agree_and_junk_does_not_vote(monkeypatch: pytest.MonkeyPatch) -> None:
    assert names(monkeypatch, [ring(4), ring(4)]).group == "C4"
    assert names(monkeypatch, [ring(4), ring(3)]).group == "C1"
    assert names(monkeypatch, [ring(4), ring(1)]).group == "C1"
    found = names(monkeypatch, [ring(4), ring(1)], shares=[0.95, 0.05])
    assert found.group == "C4"
    assert len(found.axes) == 2  # the small class is turned too, as well as it can be


def test_a_class_at_rest_does_not_vote_and_stays_where_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = names(monkeypatch, [ring(4)], resting=[False, True])
    assert found.group == "C4"
    assert len(found.axes) == 2
    assert np.array_equal(found.axes[1].axes, np.eye(3))
    assert names(monkeypatch, [], resting=[True, True]).group == "C1"


class Script:
    """A course that is told what each search finds, and what it then does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, found: list[str]) -> None:
        self.imposed: list[str] = []
        self.course = self.new_course()
        self.learner = make_learner(start_radius=11)
        answers = iter(found)
        module = reconstruct.symmetry_course
        monkeypatch.setattr(
            module, "name_classes", lambda *_, **__: ClassNames(next(answers), (), 0.8)
        )
        monkeypatch.setattr(module, "impose", self._impose)

    @staticmethod
    def new_course() -> SymmetryCourse:
        return SymmetryCourse("auto", box_angstrom=EDGE, restart_radius=5)

    def _impose(self, learner: Any, store: Any, group: str, axes: Any, **_: Any) -> None:
        self.imposed.append(group)
        learner.group = group

    def play(self, searches: int) -> list[str]:
        """Messages of so many searches, the course being restored before each."""
        told = []
        for _ in range(searches):
            self.learner.presented += 10_000
            again = self.new_course()
            again.restore(self.course.dump())
            self.course = again
            event = self.course.after_update(self.learner, None, last_chance=False)  # type: ignore[arg-type]
            told += [] if event is None else [event.message]
        return told


@pytest.mark.parametrize(
    ("found", "imposed"),
    [
        (["C1", "C1", "C1"], []),
        (["D7", "C1", "D7"], []),
        (["D7", "C7", "D7"], []),
        (["C7", "D7", "D7", "D7"], ["D7"]),
        (["C7", "C7", "D7", "D7"], ["C7", "D7"]),  # a larger group that contains it
        (["D7", "D7", "C7", "C7"], ["D7"]),  # never back
        (["C2", "C2", "C3", "C3"], ["C2"]),  # nor to another
    ],
)
def test_a_group_is_taken_up_when_it_was_named_twice_running(
    monkeypatch: pytest.MonkeyPatch, found: list[str], imposed: list[str]
) -> None:
    script = Script(monkeypatch, found)
    told = script.play(len(found))
    assert script.imposed == imposed
    assert [message.split()[0] for message in told] == imposed
    assert all("named twice" in message for message in told)


def test_it_looks_soon_to_confirm_and_rarely_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    assert next_search(20_000, named="D7", held="C1") == 20_900
    assert next_search(20_000, named="C1", held="C1") == 30_000
    assert next_search(20_000, named="D7", held="D7") == 30_000
    script = Script(monkeypatch, ["C1"])
    script.play(1)
    script.learner.presented += 100  # not due: a search would find the script at its end
    assert script.course.after_update(script.learner, None, last_chance=True) is None  # type: ignore[arg-type]


def test_auto_begins_in_c1_and_is_a_word_that_settings_know() -> None:
    assert wanted_group("auto") == "C1"
    with pytest.raises(ValueError, match="give I, whose axes"):
        wanted_group("I2")
    engine = Engine(EngineSettings(symmetry="auto"), Geometry(32, 10.0))
    assert engine._leader.group == "C1"
