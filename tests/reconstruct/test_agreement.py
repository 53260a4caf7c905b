"""Two maps of one particle agree however they lie; a wrong one does not, even if it is a ball."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from reconstruct.agreement import AGREED, agreement, without_ball
from reconstruct.learner import Learner
from reconstruct.simulate import Simulated, SimulationSettings, Species, simulate_set
from tests.reconstruct.small_sets import GEOMETRY, demo_map
from tests.reconstruct.test_spherical import converged, shell_map


@pytest.fixture(scope="module")
def workers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def images_of(volume: np.ndarray, *, seed: int) -> Simulated:
    settings = SimulationSettings(n_particles=500, snr=0.5, max_shift_angstrom=15.0, seed=seed)
    return simulate_set([Species(volume)], GEOMETRY, settings=settings)


def learner_of(volume: np.ndarray, workers: ThreadPoolExecutor, *, seed: int) -> Learner:
    learner = converged(images_of(volume, seed=seed), workers)
    learner.fsc = learner.compare_halves()
    return learner


def turned(volume: np.ndarray) -> np.ndarray:
    """Another view of the same map, in the other hand."""
    swapped = np.transpose(volume, (1, 2, 0))
    return np.ascontiguousarray(np.roll(swapped[::-1], 1, axis=0))


@pytest.mark.parametrize("make", [demo_map, shell_map])
def test_two_maps_of_one_particle_agree_in_any_frame_and_hand(
    workers: ThreadPoolExecutor, make: object
) -> None:
    volume = make()  # type: ignore[operator]
    one = learner_of(volume, workers, seed=1)
    assert agreement(one, learner_of(turned(volume), workers, seed=2)) > AGREED


def test_a_map_of_something_else_does_not(workers: ThreadPoolExecutor) -> None:
    maps = (demo_map(), shell_map())
    one, other = (learner_of(maps[i], workers, seed=i) for i in (0, 1))
    assert agreement(one, other) < AGREED


def test_maps_that_are_sure_of_nothing_say_nothing(workers: ThreadPoolExecutor) -> None:
    one, other = (learner_of(demo_map(), workers, seed=seed) for seed in (1, 2))
    other.fsc = [np.eye(1, len(other.fsc[0]))[0]]
    assert agreement(one, other) == 0.0


def test_nothing_is_left_of_a_ball_wherever_it_lies() -> None:
    axis = np.arange(32) - 16
    z, y, x = np.meshgrid(axis - 2, axis + 1, axis, indexing="ij")
    ball = np.exp(-((np.sqrt(x**2 + y**2 + z**2) - 7) ** 2) / 8).astype(np.float32)
    assert np.abs(without_ball(ball)).max() < 0.1 * ball.max()
