"""As many poses are kept as the posteriors of the particles need."""

from __future__ import annotations

import numpy as np
import pytest

from reconstruct.breadth import (
    EVEN_CELLS,
    FEWEST_CELLS,
    JUDGED_ON,
    MOST_CELLS,
    NARROW,
    Breadth,
)
from reconstruct.engine import Engine
from reconstruct.fourier import make_half_plane
from reconstruct.kernels_cuda import coarse_fits
from reconstruct.types import EngineSettings
from tests.reconstruct.small_sets import GEOMETRY, simulated

MANY = int(JUDGED_ON)


def best_weights(broad: int, narrow: int, others: int, cells: int) -> np.ndarray:
    """Weights of the best cells of particles that say more cells are needed, fewer, or as many."""
    middle = 0.5 * (EVEN_CELLS / cells + NARROW)
    said = [0.9 * EVEN_CELLS / cells] * broad + [1.1 * NARROW] * narrow + [middle] * others
    return np.array(said, np.float32)


@pytest.mark.parametrize(
    ("before", "broad", "narrow", "after"),
    [
        (40, MANY, 0, 80),
        (80, 0, MANY, 40),
        (40, 0, 0, 40),
        (80, 0, 0, 80),
        (80, MANY // 4, 3 * MANY // 4, 40),  # a quarter is junk
        (40, MANY // 2, MANY // 2, 40),
    ],
)
def test_most_particles_decide_how_many_cells_are_kept(
    before: int, broad: int, narrow: int, after: int
) -> None:
    breadth = Breadth(cells=before)
    breadth.note(best_weights(broad, narrow, MANY - broad - narrow, before))
    breadth.settle()
    assert breadth.cells == after
    assert breadth.seen == breadth.broad == breadth.narrow == 0


def test_a_few_particles_decide_nothing_until_there_are_more() -> None:
    breadth = Breadth()
    for expected in (FEWEST_CELLS, 2 * FEWEST_CELLS):
        breadth.note(best_weights(MANY // 2, 0, 0, FEWEST_CELLS))
        breadth.settle()
        assert breadth.cells == expected


def test_neither_end_is_passed() -> None:
    breadth = Breadth()
    for broad, narrow, end in ((MANY, 0, MOST_CELLS), (0, MANY, FEWEST_CELLS)):
        for _ in range(10):
            breadth.note(best_weights(broad, narrow, 0, breadth.cells))
            breadth.settle()
        assert breadth.cells == end


def test_a_device_can_do_what_is_asked_of_it() -> None:
    found = Breadth(cells=MOST_CELLS).search(cold=False, on_device=True)
    assert coarse_fits(make_half_plane(64, 12).count(found["coarse_radius"]))


def test_a_broad_search_keeps_more_and_begins_at_a_higher_resolution() -> None:
    usual, broad = Breadth(), Breadth(cells=MOST_CELLS)
    assert usual.search(cold=False, on_device=False) == {}
    found = broad.search(cold=False, on_device=False)
    assert found["keep"] == MOST_CELLS
    assert found["coarse_radius"] > 6
    assert broad.search(cold=True, on_device=False) == usual.search(
        cold=True, on_device=False
    )  # nothing is known of breadth yet


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
