"""What is said of a session's course: the right words with their numbers, or nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from reconstruct.quality import resolution_at
from reconstruct.session_verdicts import class_overlap, converged, enough_data, imposed_symmetry
from reconstruct.types import ClassSnapshot, Geometry, Snapshot
from tests.reconstruct.test_forecast import EDGE, half_maps


def item(particles: int, fsc: np.ndarray) -> ClassSnapshot:
    nothing = np.zeros((4, 4, 4), np.float32)
    resolution = resolution_at(fsc, EDGE, 0.143)
    views = np.zeros((18, 36))
    return ClassSnapshot(nothing, nothing, nothing, fsc, resolution, particles, 1.0, 1.0, views)


def snapshot(**more: object) -> Snapshot:
    whole = Snapshot(1, "final", 9000, 18_000, Geometry(64, 5.0), (item(3000, half_maps(3000)),))
    return replace(whole, **more)


def test_how_many_particles_the_next_detail_needs_is_said_with_its_uncertainty() -> None:
    found = enough_data(item(3000, half_maps(3000, scatter=0.005)), snapshot())
    assert found is not None
    assert found.kind == "enough_data"
    assert found.message.startswith("3000 particles give ")
    assert " A needs about " in found.message
    low, best, high = (found.values[f"particles_1{end}"] for end in ("_low", "", "_high"))
    assert 3000 <= low <= best <= high


def test_that_the_settings_are_the_limit_is_said_with_the_remedy() -> None:
    found = enough_data(item(5000, half_maps(1e6, b=0.005)), snapshot())
    assert found is not None
    assert "max_resolution_angstrom" in found.message


def test_nothing_is_forecast_for_a_map_that_is_not_known() -> None:
    assert (
        enough_data(replace(item(3000, half_maps(3000)), resolution_angstrom=None), snapshot())
        is None
    )
    assert enough_data(item(500, half_maps(500)), snapshot()) is None


def test_a_map_that_training_still_improves_gets_no_forecast() -> None:
    known = item(3000, half_maps(3000))
    once = snapshot(particles_presented=12_000)
    assert enough_data(known, once) is None
    assert enough_data(replace(known, phase="final"), once) is not None


def test_classes_that_share_their_particles_overlap() -> None:
    found = class_overlap((0.0, 0.38, 0.02), 0, particles=[900, 800, 1000])
    assert found is not None
    assert "38 %" in found.message
    assert "class 2" in found.message
    assert found.values == {"share": 0.38, "other_class": 2.0}


@pytest.mark.parametrize(
    ("overlap", "particles"),
    [
        ((0.0, 0.09), [900, 800]),  # told apart
        ((0.0, 0.5), [900, 100]),  # too few to say
        ((0.0,), [900]),  # no other
        ((), [900, 800]),  # not measured yet
    ],
)
def test_classes_that_are_told_apart_do_not(
    overlap: tuple[float, ...], particles: list[int]
) -> None:
    assert class_overlap(overlap, 0, particles=particles) is None


def test_convergence_is_said_with_its_measure_and_only_when_it_holds() -> None:
    found = converged(snapshot(converged=True, held_out_gain=(0.003, 0.004)))
    assert found is not None
    assert "+0.3 +- 0.4 %" in found.message
    assert converged(snapshot(converged=False, held_out_gain=(0.05, 0.004))) is None
    assert converged(snapshot()) is None


def test_a_resolution_under_an_imposed_group_is_not_to_be_relied_on() -> None:
    known = item(3000, half_maps(3000))
    found = imposed_symmetry(known, "O")
    assert found is not None
    assert "two runs" in found.message
    assert found.values["resolution_angstrom"] == known.resolution_angstrom
    assert imposed_symmetry(known, "C1") is None
    assert imposed_symmetry(replace(known, resolution_angstrom=None), "O") is None
