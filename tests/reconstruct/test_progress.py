"""Phases and convergence follow from half-maps and held-out evidence, or wait for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from reconstruct.progress import Progress, supported_shells

MAX_RADIUS = 20
SPECTRUM = np.exp(-np.arange(MAX_RADIUS + 1) / 5.0)


def curve(shells: int) -> np.ndarray:
    """Half-map FSC that holds for so many shells."""
    return np.where(np.arange(MAX_RADIUS + 1) <= shells, 0.9, 0.0)


class Session:
    """Updates of 300 particles each."""

    def __init__(self, n_classes: int = 1) -> None:
        self.progress = Progress(MAX_RADIUS)
        self.presented = 3000.0
        self.n_classes = n_classes
        self.rng = np.random.default_rng(0)

    def update(
        self,
        *shells: int,
        evidence: float = 100.0,
        scatter: float = 1.0,
        **more: Any,
    ) -> None:
        self.presented += 300
        settings: dict[str, Any] = {
            "new_particles": 300,
            "transfer": np.ones(MAX_RADIUS + 1),
            **more,
        }
        self.progress.after_update(
            [curve(one) for one in shells],
            presented=self.presented,
            evidence=evidence + scatter * self.rng.standard_normal(),
            **settings,
        )

    @property
    def gain(self) -> tuple[float, float] | None:
        return self.progress.gain(SPECTRUM)

    @property
    def converged(self) -> bool:
        return self.progress.still(self.gain)

    @property
    def phases(self) -> tuple[str, ...]:
        return self.progress.phases(
            self.presented, session="intermediate", n_classes=self.n_classes
        )


def test_shells_are_counted_from_the_centre_to_the_first_that_fails() -> None:
    fsc = curve(12)
    fsc[15] = 0.9  # noise beyond the first crossing does not count
    assert supported_shells(fsc) == 12
    assert supported_shells(curve(MAX_RADIUS)) == MAX_RADIUS


# ---- phases


def test_a_class_is_final_when_its_detail_has_come_to_an_end_and_not_before() -> None:
    session = Session()
    for shells in range(8, 14):
        session.update(shells)
        assert session.phases == ("intermediate",)
    for _ in range(9):
        session.update(13)
    assert session.phases == ("intermediate",)  # 2,700 presentations without a new shell
    session.update(13)
    assert session.phases == ("final",)
    session.update(14)
    assert session.phases == ("intermediate",)
    session.update(MAX_RADIUS)
    assert session.phases == ("final",)


def test_classes_have_phases_of_their_own_and_a_new_one_begins_anew() -> None:
    session = Session(2)
    for step in range(14):
        session.update(12, min(8 + step, 18))
    assert session.phases == ("final", "intermediate")
    session.update(5, 18)  # the first class was given to another structure
    assert session.phases == ("intermediate", "intermediate")


def test_before_the_first_map_all_classes_are_where_the_session_is() -> None:
    progress = Progress(MAX_RADIUS)
    assert progress.phases(0, session="initial", n_classes=3) == ("initial",) * 3
    assert progress.phases(0, session="waiting", n_classes=1) == ("waiting",)


# ---- converged


def test_it_is_converged_when_new_particles_are_explained_no_better() -> None:
    session = Session()
    for step in range(25):
        session.update(12, evidence=100 * (1 - np.exp(-step / 5)))
    assert not session.converged
    for _ in range(20):
        session.update(12, evidence=100.0)
    assert session.converged
    gain, error = session.gain or (1.0, 1.0)
    assert abs(gain) < 0.02
    assert 0 < error < 0.02


@pytest.mark.parametrize(
    ("updates", "more"),
    [
        (19, {}),  # not two windows yet
        (40, {"evidence": -1.0}),  # nothing but noise is explained
        (40, {"scatter": 30.0}),  # too uncertain to say
        (40, {"new_particles": 0}),  # replayed: not held out
    ],
)
def test_it_is_not_called_converged_on_too_little(updates: int, more: dict[str, Any]) -> None:
    session = Session()
    for _ in range(updates):
        session.update(12, **more)
    assert not session.converged


def test_a_slow_gain_is_still_a_gain() -> None:
    session = Session()
    for step in range(40):
        session.update(12, evidence=100 + 0.4 * step, scatter=0.5)
    assert not session.converged


def test_what_the_defocus_explains_is_not_taken_for_a_gain() -> None:
    """Late particles pass a quarter more signal, and are not explained better."""
    better, same = Session(), Session()
    for step in range(30):
        passed = 1.0 + 0.15 * same.rng.standard_normal() + (0.25 if step >= 20 else 0.0)
        transfer = np.full(MAX_RADIUS + 1, passed)
        same.update(12, evidence=150 * passed - 50, transfer=transfer)
        better.update(12, evidence=(150 + (step >= 20) * 15) * passed - 50, transfer=transfer)
    assert same.converged
    assert not better.converged
    assert better.gain is not None
    assert better.gain[0] > 0.05


# ---- state


def test_a_restored_progress_says_the_same() -> None:
    session = Session(2)
    for step in range(30):
        session.update(12, 9 + step // 5)
    again = Progress(MAX_RADIUS)
    again.restore({name: array.copy() for name, array in session.progress.dump().items()})
    assert again.gain(SPECTRUM) == session.gain
    session.progress = again
    assert len(session.phases) == 2
