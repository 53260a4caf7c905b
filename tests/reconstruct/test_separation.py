"""Two classes of one structure explain each other's particles; two structures do not."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from reconstruct.fourier import image_spectra
from reconstruct.search import WeightedBatch
from reconstruct.separation import class_overlaps, little_remembered
from reconstruct.store import ParticleStore, ctf_parameters
from tests.reconstruct.small_sets import cube_of, plane, simulated, weighted
from tests.reconstruct.test_engine import SETTINGS, particles, run
from tests.reconstruct.test_learner import make_learner

SNR = 0.3
KINDS = ("whole", "large_subunit")
N = 120


@pytest.fixture(scope="module")
def workers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def overlap(
    maps: tuple[str, str],
    workers: ThreadPoolExecutor,
    *,
    split: bool,
    mine: int = N,
    rest: bool = False,
) -> np.ndarray:
    """Overlap of two classes with these maps that hold the particles of each species."""
    some = simulated(N, snr=SNR, kinds=KINDS)
    everything = weighted(some, plane())
    store = ParticleStore(len(plane().kx))
    images = some.particle_images()
    store.append(
        {
            "spectra": image_spectra(some.images, plane()),
            "particle_ids": some.particle_ids,
            "optics_group": np.zeros(N, np.int32),
            "ctf": ctf_parameters(images),
        }
    )
    store["class_index"][:] = some.species
    store["class_index"][mine:] = -1
    learner = make_learner(n_classes=2, start_radius=9)
    cubes = np.stack([cube_of(kind, snr=SNR, kinds=KINDS) for kind in maps])
    learner.cubes = np.concatenate([cubes, cubes]) if split else cubes
    learner.split = split
    learner.resting[1] = rest

    def weigh(rows: np.ndarray, radius: int) -> WeightedBatch:
        return WeightedBatch(everything.a_re[rows], everything.a_im[rows], everything.c2[rows])

    return class_overlaps(learner, store, weigh, workers, trained=N)


@pytest.mark.parametrize("split", [False, True])
def test_two_classes_with_one_map_explain_half_of_each_others_particles_better(
    workers: ThreadPoolExecutor, split: bool
) -> None:
    found = overlap(("whole", "whole"), workers, split=split)
    assert 0.25 < found[0, 1] < 0.75
    assert 0.25 < found[1, 0] < 0.75
    assert found[0, 0] == found[1, 1] == 0


def test_two_structures_are_told_apart(workers: ThreadPoolExecutor) -> None:
    found = overlap(KINDS, workers, split=False)
    assert found.max() < 0.15


def test_classes_with_few_particles_or_without_a_map_say_nothing(
    workers: ThreadPoolExecutor,
) -> None:
    assert np.all(overlap(("whole", "whole"), workers, split=False, mine=9) == 0)
    assert np.all(overlap(("whole", "whole"), workers, split=False, rest=True) == 0)


def test_one_class_overlaps_with_nothing() -> None:
    engine = run(replace(SETTINGS, replay_passes=0), particles(200)).engine
    assert engine.snapshot().classes[0].overlap == (0.0,)


@pytest.mark.parametrize(
    ("mass", "asked"),
    [
        (60.0, [30, 31, 32, 33, 34, 35, 36, 37, 38, 39]),  # the latest of those it has forgotten
        (95.0, [0, 11, 22, 33, 44, 55, 66, 77, 88, 99]),  # it remembers nearly all
        (250.0, [0, 11, 22, 33, 44, 55, 66, 77, 88, 99]),  # replay: more than there are
    ],
)
def test_particles_that_a_map_knows_little_of(mass: float, asked: list[int]) -> None:
    assert little_remembered(np.arange(100), mass, 10).tolist() == asked


def test_of_few_particles_all_are_asked() -> None:
    assert little_remembered(np.arange(4), 250.0, 10).tolist() == [0, 1, 2, 3]
    assert little_remembered(np.arange(0), 0.0, 10).tolist() == []
