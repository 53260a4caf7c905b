"""Settings in Angstrom become pixels and shells, and what cannot be honoured is said in words."""

from __future__ import annotations

from typing import Any

import pytest

from reconstruct.layout import MOST_SHELLS, OVERSAMPLING, make_layout
from reconstruct.schedule import Schedule
from reconstruct.types import EngineSettings, Geometry
from reconstruct.update import MapGrid

GEOMETRY = Geometry(box=80, pixel_size_angstrom=4.0)  # 320 A


def test_the_defaults_follow_the_box() -> None:
    layout = make_layout(EngineSettings(), GEOMETRY)
    assert layout.max_radius == 320 // 12
    assert layout.max_shift_pixels == 5
    assert layout.grid.mask_radius_pixels == pytest.approx(0.85 * 40)
    assert layout.schedule.start_radius == 5
    assert layout.schedule.join_radius == 8  # 40 A
    assert len(layout.plane.kx) == layout.plane.count(layout.max_radius)


def test_lengths_are_given_in_angstrom() -> None:
    settings = EngineSettings(
        mask_diameter_angstrom=200.0, max_shift_angstrom=10.0, initial_resolution_angstrom=40.0
    )
    layout = make_layout(settings, GEOMETRY)
    assert layout.grid.mask_radius_pixels == 25
    assert layout.max_shift_pixels == 2.5
    assert layout.schedule.start_radius == 8


def test_a_resolution_beyond_the_pixels_stops_short_of_nyquist() -> None:
    layout = make_layout(EngineSettings(max_resolution_angstrom=2.0), GEOMETRY)
    assert layout.max_radius == 37


def test_the_samples_of_every_cube_have_a_32_bit_number() -> None:
    most, more = (
        (2 * MapGrid(1024, OVERSAMPLING, 400.0).reach(shells) + 1) ** 3
        for shells in (MOST_SHELLS, MOST_SHELLS + 3)
    )
    assert most < 2**31 <= more


@pytest.mark.parametrize("diameter", [None, 200.0, 320.0])
def test_some_background_is_always_left_for_the_noise(diameter: float | None) -> None:
    layout = make_layout(EngineSettings(mask_diameter_angstrom=diameter), GEOMETRY)
    assert (layout.window == 0).sum() > 0.1 * layout.window.size
    assert layout.grid.mask_radius_pixels + 3 <= 40


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"max_resolution_angstrom": 60.0},
            "leaves 5 shells in a box of 320 A: ask for at most 53",
        ),
        ({"max_resolution_angstrom": 0.0}, "max_resolution_angstrom must be above 0"),
        ({"class_similarity": 1.5}, "class_similarity must be 0 to 1"),
        ({"n_classes": 0}, "n_classes must be above 0"),
        ({"replay_passes": -1}, "replay_passes must be 0 or more"),
        ({"mask_diameter_angstrom": 321.0}, "is wider than the box of 320 A"),
    ],
)
def test_what_cannot_be_honoured_is_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_layout(EngineSettings(**change), GEOMETRY)  # type: ignore[arg-type]


def test_the_schedule_follows_what_was_set() -> None:
    settings = EngineSettings(initial_presentations=4000, presentations_per_shell=500)
    schedule = make_layout(settings, GEOMETRY).schedule
    assert (schedule.cold_presented, schedule.grow_every) == (4000, 500)
    assert make_layout(EngineSettings(), GEOMETRY).schedule == Schedule(join_radius=8)


@pytest.mark.parametrize(
    ("settings", "finest"),
    [
        ({}, 12.0),
        ({"symmetry": "D7"}, 12.0),
        ({"symmetry": "o"}, 9.6),
        ({"symmetry": "I"}, 9.6),
        ({"symmetry": "O", "max_resolution_angstrom": 15.0}, 15.0),
    ],
)
def test_the_finest_detail_follows_the_group_unless_given(
    settings: dict[str, Any], finest: float
) -> None:
    layout = make_layout(EngineSettings(**settings), GEOMETRY)
    assert layout.max_radius == int(GEOMETRY.box_angstrom / finest)
