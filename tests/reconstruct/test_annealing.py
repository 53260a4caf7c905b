"""The temperature is what makes a wanted share of poses count, and it is told as it is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from reconstruct.annealing import HOTTEST, annealed, effective_poses, temperature_for
from reconstruct.backend import cpu_backend
from reconstruct.engine import Engine
from reconstruct.search import Poses, local_start
from tests.reconstruct.small_sets import GEOMETRY
from tests.reconstruct.test_engine import SETTINGS, particles, plain, run

CPU = cpu_backend()


def poses(scores: np.ndarray, count: int | None = None) -> Poses:
    b, keep = scores.shape
    cells = local_start(
        np.zeros((b, 9), np.float32), np.zeros((b, 2), np.float32), np.zeros(b, np.int32), keep
    )
    valid = np.full(b, keep if count is None else count, np.int32)
    return replace(cells, score=scores.astype(np.float32), count=valid)


def falling(nats: float) -> Poses:
    return poses(np.broadcast_to(-nats * np.arange(40.0), (5, 40)))


def test_at_the_temperature_found_the_wanted_poses_carry_weight() -> None:
    found = temperature_for(falling(3.0), 0.2, CPU)
    assert found > 3
    assert effective_poses(falling(3.0), found, CPU) == pytest.approx(8.0, rel=0.01)
    assert effective_poses(falling(3.0), 1.0, CPU) < 1.2


def test_it_never_sharpens_and_never_exceeds_the_hottest() -> None:
    assert temperature_for(falling(0.01), 0.2, CPU) == 1.0  # more poses count already
    assert temperature_for(falling(3.0), 0.0, CPU) == 1.0
    assert temperature_for(falling(1e5), 0.5, CPU) == HOTTEST
    only_two = poses(np.broadcast_to([0.0, -1.0] + [0.0] * 38, (3, 40)), count=2)
    assert temperature_for(only_two, 0.5, CPU) == HOTTEST


def test_the_share_is_annealed_away_over_the_cold_phase() -> None:
    shares = [annealed(0.4, at, cold_presented=1000) for at in (0, 500, 1000, 5000)]
    assert shares == [0.4, 0.2, 0.0, 0.0]


def test_an_engine_starts_hot_says_so_and_ends_at_one() -> None:
    hot = run(replace(SETTINGS, initial_ess_fraction=0.5), particles())
    told = [report.temperature for report in hot.reports]
    assert max(told[1:3]) > 1.5
    assert told[-1] == 1.0
    assert [report.temperature for report in plain().reports] == [1.0] * len(plain().reports)


def test_a_hot_engine_goes_on_from_a_dump_with_the_same_bits() -> None:
    settings = replace(SETTINGS, initial_ess_fraction=0.5)
    engine = Engine(settings, GEOMETRY)
    engine.add(particles(150))
    engine.step(), engine.step()
    meta, arrays = engine.dump()
    again = Engine.load(settings, GEOMETRY, meta, arrays, engine.dump_store(0))
    one, other = engine.step(), again.step()
    assert one.temperature == other.temperature > 1
    assert np.array_equal(
        engine.dump()[1]["learner0.statistics"], again.dump()[1]["learner0.statistics"]
    )


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_is_0_to_1(share: float) -> None:
    with pytest.raises(ValueError, match="initial_ess_fraction must be 0 to 1"):
        replace(SETTINGS, initial_ess_fraction=share)
