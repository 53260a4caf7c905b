"""Negative density is cut where it was asked for, or where particles are better explained so."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from reconstruct.positivity import Positivity
from reconstruct.search import WeightedBatch
from reconstruct.types import EngineSettings
from reconstruct.update import box_volume, reference_cube
from tests.reconstruct.test_engine import SETTINGS, differing, particles, plain, reloaded, run
from tests.reconstruct.test_learner import advance, batches, copy_of, make_learner, workers

__all__ = ["batches", "workers"]  # fixtures


def test_a_reference_that_is_cut_has_no_negative_density() -> None:
    """Up to what the cube's band limit brings back."""
    learner = make_learner()
    rng = np.random.default_rng(0)
    learner.statistics[..., :2] = rng.standard_normal(learner.statistics[..., :2].shape)
    learner.statistics[..., 2] = 1.0
    half = learner.map_spectrum(0, learner.fsc[0], radius=5)
    reach = half.shape[2] - 1
    lowest = []
    for negative in ("keep", "cut"):
        cube = reference_cube(half, learner.grid, negative=negative)  # type: ignore[arg-type]
        whole = cube.view(np.complex64)[..., 0]
        centre = (whole.shape[0] - 1) // 2
        span = slice(centre - reach, centre + reach + 1)
        centred = whole[span, span, centre : centre + reach + 1]
        volume = box_volume(centred, learner.grid, windowed=False)
        lowest.append(float(volume.min() / volume.max()))
    assert lowest[0] < -0.5
    assert lowest[1] > -0.35


def scripted(kept: np.ndarray, cut: np.ndarray, classes: np.ndarray) -> list[bool]:
    positivity = Positivity("auto")
    n_classes = int(classes.max()) + 1
    positivity.judge(
        lambda: np.where(positivity.flags(n_classes)[classes], cut, kept), classes, n_classes
    )
    return positivity.flags(n_classes).tolist()


def test_each_class_goes_on_with_what_explains_its_particles_better() -> None:
    rng = np.random.default_rng(0)
    classes = np.arange(300) % 3
    kept = 50 + rng.standard_normal(300)
    cut = kept + np.array([3.0, -3.0, 0.0])[classes] + rng.standard_normal(300)
    assert scripted(kept, cut, classes)[:2] == [True, False]


def test_an_unclear_difference_and_few_particles_change_nothing() -> None:
    rng = np.random.default_rng(1)
    kept = 50 + rng.standard_normal(19)
    assert scripted(kept, kept + 5, np.zeros(19, int)) == [False]
    same = 50 + rng.standard_normal(200)
    swing = np.tile([4.0, -4.0], 100)
    assert scripted(same, same + swing, np.zeros(200, int)) == [False]


def test_it_compares_only_when_asked_and_only_once_there_is_a_map() -> None:
    assert Positivity("auto").due(20, cold=False)
    assert not Positivity("auto").due(20, cold=True)
    assert not Positivity("auto").due(21, cold=False)
    for mode in ("on", "off"):
        assert not Positivity(mode).due(20, cold=False)  # type: ignore[arg-type]
        assert Positivity(mode).flags(2).tolist() == [mode == "on"] * 2  # type: ignore[arg-type]


def test_flags_come_back_and_new_classes_begin_as_set() -> None:
    positivity = Positivity("auto")
    positivity.judge(lambda: positivity.flags(1) * np.ones(50), np.zeros(50, int), 1)
    assert positivity.dump() == [True]
    again = Positivity("auto")
    again.restore({"cut": positivity.dump()})
    assert again.flags(1).tolist() == [True]
    again.grow(1)
    assert again.flags(2).tolist() == [True, False]
    alone = Positivity("auto")
    alone.take(again, (0,), 2)
    assert alone.flags(1).tolist() == [True]


def test_a_comparison_leaves_the_learner_as_it_was_but_for_its_decision(
    workers: ThreadPoolExecutor, batches: list[WeightedBatch]
) -> None:
    """One that judges and keeps its maps goes on with the bits of one that never did."""
    learners = [make_learner(), make_learner()]
    learners[1].positivity = Positivity("auto")
    for batch in batches[:9]:
        for learner in learners:
            advance(learner, batch, workers)
    for learner in learners:
        learner.updates = 10
    found = [advance(learner, batches[9], workers, cold=False) for learner in learners]
    assert np.array_equal(found[0].poses.evidence, found[1].poses.evidence)
    assert np.array_equal(learners[0].statistics, learners[1].statistics)
    again = copy_of(learners[1])
    assert again.positivity.dump() == learners[1].positivity.dump() != []


@pytest.mark.parametrize("mode", ["on", "auto"])
def test_a_session_goes_on_with_the_same_bits(mode: str) -> None:
    settings = replace(SETTINGS, nonnegativity=mode, replay_passes=3)
    engine = run(settings, particles()).engine
    assert differing(reloaded(engine, settings), engine) == []
    if mode == "on":
        volumes = [one.snapshot().classes[0].volume for one in (engine, plain().engine)]
        assert not np.array_equal(*volumes)
        assert np.all(np.isfinite(volumes[0]))


def test_another_word_is_refused() -> None:
    with pytest.raises(ValueError, match="nonnegativity must be auto or on or off"):
        EngineSettings(nonnegativity="maybe")  # type: ignore[arg-type]
