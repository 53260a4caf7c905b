"""As many poses are kept as the posteriors of the particles need."""

from __future__ import annotations

import numpy as np
import pytest

from reconstruct.breadth import BROAD, JUDGED_ON, NARROW, SHARE, SHARPNESS, Breadth
from reconstruct.engine import Engine
from reconstruct.fourier import make_half_plane
from reconstruct.kernels_cuda import coarse_fits
from reconstruct.search_plan import make_plan
from reconstruct.types import EngineSettings
from tests.reconstruct.small_sets import GEOMETRY, simulated

MANY = int(JUDGED_ON)


def best_weights(broad: int, narrow: int, others: int = 0) -> np.ndarray:
    """Weights of the best cells of particles whose posteriors are broad, narrow, or neither."""
    middle = 0.5 * (BROAD + NARROW)
    return np.array([0.9 * BROAD] * broad + [1.1 * NARROW] * narrow + [middle] * others, np.float32)


@pytest.mark.parametrize(
    ("before", "broad", "narrow", "after"),
    [
        (False, MANY, 0, True),
        (True, 0, MANY, False),
        (False, 0, 0, False),
        (True, 0, 0, True),
        (True, MANY // 4, 3 * MANY // 4, False),  # a quarter is junk
        (False, MANY // 4, 3 * MANY // 4, False),
    ],
)
def test_most_particles_decide_how_wide_to_search(
    before: bool, broad: int, narrow: int, after: bool
) -> None:
    breadth = Breadth(is_broad=before)
    breadth.note(best_weights(broad, narrow, MANY - broad - narrow))
    breadth.settle()
    assert breadth == Breadth(is_broad=after)  # and counting begins anew


def test_a_few_particles_decide_nothing_until_there_are_more() -> None:
    breadth = Breadth()
    for expected in (False, True):
        breadth.note(best_weights(MANY // 2, 0))
        breadth.settle()
        assert breadth.is_broad is expected


def test_a_device_can_do_what_is_asked_of_it() -> None:
    found = Breadth(is_broad=True).search(cold=False, on_device=True)
    assert coarse_fits(make_half_plane(64, 12).count(found["coarse_radius"]))


def test_a_broad_search_keeps_more_and_begins_at_a_higher_resolution() -> None:
    wide, usual = (
        make_plan(16, box=64, max_shift_pixels=4.0, **one.search(cold=False, on_device=False))
        for one in (Breadth(is_broad=True), Breadth())
    )
    assert wide.keep > usual.keep
    assert wide.coarse_radius > usual.coarse_radius
    assert wide.share > usual.share
    assert len(wide.level_radii) < len(usual.level_radii)  # its cells are as broad as posteriors


def test_a_cold_search_cuts_less_whatever_posteriors_are() -> None:
    cold = Breadth().search(cold=True, on_device=False)
    assert cold == Breadth(is_broad=True).search(cold=True, on_device=False)
    assert cold["share"] > SHARE
    assert all(a <= b for a, b in zip(cold["sharpness"], SHARPNESS, strict=True))


@pytest.mark.parametrize(("snr", "is_broad"), [(2.0, False), (0.03, True)])
def test_a_session_finds_out_how_broad_its_posteriors_are(snr: float, is_broad: bool) -> None:
    settings = EngineSettings(
        max_resolution_angstrom=32.0, race_starts=1, race_particles=300, start_stretch=1.0
    )
    engine = Engine(settings, GEOMETRY)
    engine.add(simulated(1200, snr=snr).particle_images())
    while engine.ready:
        engine.step()
    assert engine._leader.breadth.is_broad is is_broad
    meta, arrays = engine.dump()
    again = Engine.load(settings, GEOMETRY, meta, arrays, engine.dump_store(0))
    assert again._leader.breadth == engine._leader.breadth
