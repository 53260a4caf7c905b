"""The radius grows only on evidence, and the memory never counts a particle twice."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconstruct.schedule import (
    Schedule,
    ShellGrowth,
    grow_radius,
    growth_due,
    memory_window,
    particles_to_renewal,
)

SCHEDULE = Schedule()
AGREE = np.ones(21)


def _grow(growth: ShellGrowth, fsc: np.ndarray, presented: float) -> ShellGrowth:
    return grow_radius(growth, fsc, presented, schedule=SCHEDULE, max_radius=20)


def test_growth_is_looked_for_when_it_may_come_and_then_ever_less_often() -> None:
    growth = ShellGrowth(9, 1000.0)
    looks = [
        presented - 1000
        for presented in range(1050, 3051, 50)
        if growth_due(growth, presented, 50, SCHEDULE)
    ]
    assert looks == [300, 450, 700, 1050, 1550]


def test_one_shell_per_so_many_presentations() -> None:
    growth = ShellGrowth(5, 0)
    radii = []
    for presented in range(50, 3001, 50):
        growth = _grow(growth, AGREE, presented)
        radii.append(growth.radius)
    assert np.all(np.diff(radii) <= 1)
    assert radii[-1] == 5 + 3000 // SCHEDULE.grow_every
    assert radii[SCHEDULE.grow_every // 50 - 2] == 5


def test_no_growth_while_the_halves_disagree_at_the_edge() -> None:
    fsc = AGREE.copy()
    fsc[8:] = SCHEDULE.fsc_to_grow
    assert _grow(ShellGrowth(7, 0), fsc, 1e6).radius == 8
    stuck = ShellGrowth(8, 0)
    assert _grow(stuck, fsc, 1e6) is stuck


def test_the_radius_stops_at_its_end() -> None:
    end = ShellGrowth(20, 0)
    assert _grow(end, AGREE, 1e6) is end


def test_the_memory_is_short_while_nothing_is_known() -> None:
    assert memory_window(400, 400, cold=True, schedule=SCHEDULE) == SCHEDULE.cold_window
    assert memory_window(1000, 9000, cold=True, schedule=SCHEDULE) == SCHEDULE.warm_window


def test_the_class_that_changes_most_decides_when_maps_are_made_anew() -> None:
    mass, share = np.array([1000.0, 100.0, 50.0]), np.array([0.8, 0.2, 0.0])
    assert particles_to_renewal(share, mass, SCHEDULE) == pytest.approx(0.03 * 100 / 0.2)
    assert particles_to_renewal(np.zeros(3), mass, SCHEDULE) == np.inf


@given(st.integers(0, 1_000_000), st.integers(1, 1_000_000))
def test_the_memory_grows_with_what_was_seen_and_always_fades(seen: int, more: int) -> None:
    window = memory_window(seen, seen, cold=False, schedule=SCHEDULE)
    assert SCHEDULE.warm_window <= window <= max(SCHEDULE.warm_window, 2 * seen)
    assert memory_window(seen + more, seen, cold=False, schedule=SCHEDULE) >= window


@pytest.mark.parametrize(
    ("seen", "share"), [(3000, 0.12), (8000, 0.5), (12_000, 1.0), (18_000, 1.5), (50_000, 2.0)]
)
def test_the_share_that_is_remembered(seen: int, share: float) -> None:
    window = memory_window(seen, seen, cold=False, schedule=SCHEDULE)
    assert window == pytest.approx(share * seen)
