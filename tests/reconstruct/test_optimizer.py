"""Gradient descent on the same statistics: its step, its memory, and what it is not."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from reconstruct.backend import cpu_backend
from reconstruct.optimizer import Optimizer, gradient_step, learning_rate_at
from reconstruct.types import EngineSettings
from tests.reconstruct.test_learner import (
    advance,
    batches,
    copy_of,
    fingerprint,
    make_learner,
    same,
    workers,
)

__all__ = ["batches", "workers"]  # fixtures

REACH = 6
SHAPE = (2, 1, 2 * REACH + 1, 2 * REACH + 1, REACH + 2, 3)


def filled(value: complex, weight: float) -> np.ndarray:
    """Statistics that say ``value`` everywhere, with a weight."""
    statistics = np.empty(SHAPE, np.float32)
    statistics[...] = [weight * value.real, weight * value.imag, weight]
    return statistics


def step(
    statistics: np.ndarray,
    batch: np.ndarray,
    *,
    velocity: np.ndarray | None = None,
    momentum: float = 0.0,
    rate: float = 0.4,
    updates: int = 0,
) -> np.ndarray | None:
    return gradient_step(
        statistics,
        batch,
        velocity,
        decay=np.array([0.9]),
        optimizer=Optimizer("sgd", rate, momentum),
        updates=updates,
        scale=2.0,
        backend=cpu_backend(),
    )


def volume(statistics: np.ndarray) -> np.ndarray:
    return (statistics[..., 0] + 1j * statistics[..., 1]) / statistics[..., 2]


def test_an_even_minibatch_moves_the_map_by_half_the_rate() -> None:
    """Where D is its shell's mean, the step is rate / 2 of the way, however much is known."""
    for known in (1.0, 1000.0):
        statistics = filled(2 + 1j, known)
        step(statistics, filled(4 - 1j, 3.0), rate=0.4)
        assert np.allclose(volume(statistics), 2 + 1j + 0.2 * (2 - 2j), rtol=1e-4)
        assert np.allclose(statistics[..., 2], 0.9 * known + 3.0)


def test_a_map_that_explains_the_minibatch_stays() -> None:
    statistics = filled(2 + 1j, 5.0)
    step(statistics, filled(2 + 1j, 3.0))
    assert np.allclose(volume(statistics), 2 + 1j, rtol=1e-5)


def test_where_nothing_came_nothing_moves_and_where_nothing_is_known_it_begins() -> None:
    statistics, batch = filled(2 + 1j, 5.0), filled(4.0, 3.0)
    batch[:, :, :3] = 0
    statistics[:, :, -1] = 0
    step(statistics, batch)
    assert np.allclose(volume(statistics)[:, :, :3], 2 + 1j, rtol=1e-5)
    assert np.all(volume(statistics)[:, :, -1].real > 0)
    empty = np.zeros(SHAPE, np.float32)
    step(empty, np.zeros(SHAPE, np.float32))
    assert np.all(empty == 0)


def test_momentum_repeats_the_last_step() -> None:
    statistics = filled(0.0, 5.0)
    velocity = step(statistics, filled(1.0, 3.0), momentum=0.5)
    first = volume(statistics).real.mean()
    step(statistics, np.zeros(SHAPE, np.float32), velocity=velocity, momentum=0.5)
    assert volume(statistics).real.mean() == pytest.approx(first, rel=1e-5)  # nothing came
    same_map = filled(complex(first), 3.0)
    step(statistics, same_map, velocity=velocity, momentum=0.5)
    assert volume(statistics).real.mean() == pytest.approx(1.5 * first, rel=1e-3)


def test_a_velocity_of_another_extent_is_fitted() -> None:
    statistics = filled(0.0, 5.0)
    small = np.ones((2, 1, 2 * REACH - 1, 2 * REACH - 1, REACH + 1, 2), np.float32)
    fitted = step(statistics, filled(0.0, 3.0), velocity=small, momentum=0.5)
    assert fitted is not None
    assert fitted.shape == (*SHAPE[:-1], 2)
    assert fitted[0, 0, REACH, REACH, 0, 0] == pytest.approx(0.5)
    assert fitted[0, 0, 0, 0, 0, 0] == 0


def test_the_rate_is_held_for_a_hundred_updates_and_falls() -> None:
    assert [learning_rate_at(u, 0.4) for u in (0, 99, 199, 399)] == [0.4, 0.4, 0.2, 0.1]


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_a_restored_learner_descends_with_the_same_bits(
    workers: ThreadPoolExecutor,
    batches: list,  # type: ignore[type-arg]
    momentum: float,
) -> None:
    learner = make_learner()
    learner.optimizer = Optimizer("sgd", 0.4, momentum)
    for batch in batches[:5]:
        advance(learner, batch, workers)
    again = copy_of(learner)
    again.optimizer = learner.optimizer
    for batch in batches[5:8]:
        for one in (learner, again):
            advance(one, batch, workers)
        assert same(fingerprint(learner), fingerprint(again))
    assert learner.radius > 5  # the velocity has grown with it
    plain = make_learner()
    for batch in batches[:8]:
        advance(plain, batch, workers)
    assert not np.array_equal(plain.statistics, learner.statistics)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"optimizer": "adam"}, "optimizer must be em or sgd"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"learning_rate": 1.5}, "learning_rate must be at most 1"),
        ({"momentum": 1.0}, "momentum must be 0 to below 1"),
    ],
)
def test_rules_that_cannot_work_are_refused(wrong: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        EngineSettings(**wrong)  # type: ignore[arg-type]
