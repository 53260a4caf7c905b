"""A search is as wide as the particles' posteriors need."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from reconstruct.breadth import (
    BRIGHT,
    BROAD,
    COLD,
    COMPARED_AGAIN,
    COMPARED_ON,
    FEWEST,
    USUAL,
    Breadth,
)
from reconstruct.class_actions import alone, score
from reconstruct.engine import Engine
from reconstruct.fourier import make_half_plane
from reconstruct.kernels_cuda import coarse_fits
from reconstruct.learned import Start
from reconstruct.search import search_poses
from reconstruct.search_plan import make_plan
from reconstruct.types import EngineSettings
from tests.reconstruct.known_session import known_session
from tests.reconstruct.small_sets import GEOMETRY, cube_of, plane, simulated, weighted
from tests.reconstruct.test_learner import make_learner

DIM = 0.5 * BRIGHT  # nats per particle
EVIDENCE = np.full(COMPARED_ON, 50.0, np.float32)
NOISE = np.resize(np.float32([-1.0, 1.0]), COMPARED_ON)  # its mean is 0


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize(
    ("gain", "scatter", "after"),
    [
        (2.0, 1.0, True),
        (-2.0, 1.0, False),
        (0.6, 4.0, None),  # too little for so few particles: as it was
        (-0.6, 4.0, None),
        (0.6, 0.1, True),
        (0.0, 0.0, None),
    ],
)
def test_a_broad_search_is_gone_on_with_where_it_explains_more(
    before: bool, gain: float, scatter: float, after: bool | None
) -> None:
    breadth = Breadth(is_broad=before, wanted=before)
    usual, broad = EVIDENCE, EVIDENCE + np.float32(gain) + np.float32(scatter) * NOISE
    breadth.compare(*((broad, usual) if before else (usual, broad)), presented=900.0)
    assert breadth.is_broad is before  # until there are new references
    breadth.settle(950.0)
    expected = before if after is None else after
    changed_at = 950.0 if before != expected else 0.0
    assert breadth == Breadth(expected, expected, changed_at, compared_at=900.0)


def test_it_is_compared_at_growing_distances() -> None:
    breadth = Breadth()
    assert breadth.due(10.0, DIM)
    breadth.compare(EVIDENCE, EVIDENCE, presented=1000.0)
    assert not breadth.due(COMPARED_AGAIN * 999.0, DIM)
    assert breadth.due(COMPARED_AGAIN * 1000.0, DIM)


def test_bright_particles_are_not_compared_but_to_come_back() -> None:
    assert not Breadth().due(10.0, BRIGHT)
    assert Breadth(is_broad=True).due(10.0, BRIGHT)


def test_too_few_particles_decide_nothing() -> None:
    breadth = Breadth()
    few = EVIDENCE[: FEWEST - 1]
    breadth.compare(few, few + 9.0, presented=900.0)
    assert breadth == Breadth()
    assert breadth.due(901.0, DIM)


def test_a_broad_search_keeps_more_and_begins_at_a_higher_resolution() -> None:
    assert Breadth().width == USUAL
    wide, usual = (
        make_plan(16, box=64, max_shift_pixels=4.0, width=Breadth(is_broad).width)
        for is_broad in (True, False)
    )
    assert wide.keep > usual.keep
    assert wide.coarse_radius > usual.coarse_radius
    assert wide.share > usual.share
    assert len(wide.level_radii) < len(usual.level_radii)  # its cells are as broad as posteriors


def test_the_host_searches_what_the_coarse_pass_of_a_device_cannot_hold() -> None:
    counts = [make_half_plane(64, 12).count(width.coarse_radius) for width in (USUAL, BROAD)]
    assert [coarse_fits(count) for count in counts] == [True, False]


def test_a_cold_search_cuts_less() -> None:
    assert COLD.share > USUAL.share
    assert all(a <= b for a, b in zip(COLD.sharpness, USUAL.sharpness, strict=True))


@pytest.fixture
def workers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.mark.parametrize(
    ("cold", "known", "wide", "compared"),
    [
        (False, False, False, True),
        (True, False, False, False),
        (False, True, False, False),
        (False, False, True, False),  # the course of near-balls has a width of its own
    ],
)
def test_usual_searches_are_compared_and_no_others(
    workers: ThreadPoolExecutor, cold: bool, known: bool, wide: bool, compared: bool
) -> None:
    learner = make_learner()
    batch, half = weighted(simulated(40), learner.plane), np.repeat([0, 1], 20)
    learner.learn(batch, half, window=100.0, cold=True, workers=workers)  # random poses
    learner.coarse_radius = 4 if wide else 0
    start = None
    if known:
        turns = np.tile(np.eye(3, dtype=np.float32).reshape(9), (40, 1))
        start = Start(turns, np.zeros((40, 2), np.float32), np.zeros(40, np.int32))
    learner.learn(batch, half, window=100.0, cold=cold, workers=workers, start=start)
    assert (learner.breadth.compared_at > 0) is compared
    learner.breadth.compared_at = 100.0
    learner.learn(batch, half, window=100.0, cold=cold, workers=workers, start=start)
    assert learner.breadth.compared_at == 100.0  # not again so soon


def test_what_is_compared_is_searched_as_wide_as_the_session() -> None:
    with known_session() as session:
        session.learner.breadth = Breadth(is_broad=True, changed_at=7.0)
        copy = alone(session, 0, 5)
        assert copy.breadth.is_broad
        assert not copy.breadth.due(1e9, DIM)  # what a trial learns from may be junk
        fresh = session.new_learner(6)
        assert not fresh.breadth.is_broad
        fresh.statistics, fresh.growth = copy.statistics, copy.growth
        fresh.fsc, fresh.split, fresh.mask_radius = copy.fsc, copy.split, copy.mask_radius
        fresh.make_references()
        rows = np.arange(60)
        (_, own), (_, others) = (score(session, one, rows, 0) for one in (copy, fresh))
        assert own.weights.shape == others.weights.shape
        assert others.weights.shape[1] > USUAL.keep
        assert not fresh.breadth.is_broad  # only what it is asked is wide


def test_a_wide_search_loses_less_of_what_dim_particles_may_be(
    workers: ThreadPoolExecutor,
) -> None:
    """What a search finds of the posterior is the evidence; it can only miss some."""
    batch, layout = weighted(simulated(60, snr=0.03), plane()), plane()
    usual, broad = (
        search_poses(
            batch,
            cube_of("whole", snr=0.03)[None],
            layout,
            make_plan(layout.max_radius, box=GEOMETRY.box, max_shift_pixels=2.0, width=width),
            scale=2.0,
            log_class_weights=np.zeros(1, np.float32),
            turn=np.eye(3),
            workers=workers,
        ).evidence
        for width in (USUAL, BROAD)
    )
    assert broad.mean() > usual.mean() + 0.3


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
