"""Two states of one structure are told apart by what one map leaves; one state is left alone."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from reconstruct.engine import Engine
from reconstruct.fourier import fourier_cube
from reconstruct.heterogeneity import (
    Residuals,
    leading_scores,
    make_residuals,
    random_scores,
)
from reconstruct.learner_state import dump_learner, restore_learner
from reconstruct.siblings import Siblings
from reconstruct.simulate import Simulated, SimulationSettings, Species, simulate_set
from reconstruct.types import EngineSettings, StepReport
from reconstruct.update import MapGrid
from tests.reconstruct.small_sets import (
    GEOMETRY,
    demo_map,
    plane,
    shift_phases,
    simulated,
    slices_of,
    true_ctf,
    weighted,
)
from tests.reconstruct.test_learner import advance, make_learner
from tests.reconstruct.test_lifecycle import kinds, step_through

N = 1200
M = 2000  # particles of a session
SETTINGS = EngineSettings(
    n_classes=2,
    max_resolution_angstrom=30.0,
    race_starts=2,
    race_particles=200,
    race_epochs=2,
    replay_passes=1,
)


@functools.cache
def factor() -> np.ndarray:
    """A ball in a corner of the demo's particle."""
    z, y, x = (np.arange(GEOMETRY.box) - GEOMETRY.box // 2 for _ in range(3))
    away = (z[:, None, None] - 5) ** 2 + (y[None, :, None] + 4) ** 2 + (x[None, None, :] - 5) ** 2
    return (demo_map().max() * np.exp(-away / 6.0)).astype(np.float32)


@functools.cache
def states(n_particles: int, *, two: bool, snr: float = 1.0, seed: int = 0) -> Simulated:
    species = [Species(demo_map())]
    if two:
        species.append(Species(demo_map() + factor()))
    settings = SimulationSettings(n_particles=n_particles, snr=snr, seed=seed)
    return simulate_set(species, GEOMETRY, settings=settings)


def residuals(some: Simulated, *, turned_by: float = 0.0) -> Residuals:
    """Residuals against the map of both states, at poses that are wrong by ``turned_by`` rad."""
    layout = plane()
    mixed = demo_map() + some.species.mean() * factor()
    cube = fourier_cube(mixed, 13)
    flat = cube.view(np.float32).reshape(*cube.shape, 2)
    shifts = -some.shifts_angstrom / GEOMETRY.pixel_size_angstrom
    batch = weighted(some, layout)
    found = slices_of(flat, some.rotations, layout) * true_ctf(some, layout)
    found *= shift_phases(shifts, layout)
    images = (batch.a_re + 1j * batch.a_im) / 2  # C X: the noise's variance is 1/2
    gain = np.vdot(found * true_ctf(some, layout), images).real
    gain /= np.linalg.norm(found * true_ctf(some, layout)) ** 2
    angle = np.random.default_rng(3).normal(0.0, turned_by, len(some.rotations))
    turn = np.zeros((len(angle), 3, 3))
    turn[:, 0, 0] = turn[:, 2, 2] = np.cos(angle)
    turn[:, 0, 2], turn[:, 2, 0], turn[:, 1, 1] = np.sin(angle), -np.sin(angle), 1.0
    return make_residuals(
        batch,
        np.arange(len(some.rotations)) % 2,
        rotation=(turn @ some.rotations).reshape(-1, 9).astype(np.float32),
        shift=-shifts.astype(np.float32),
        reference=(flat * gain).astype(np.float32),
        plane=layout,
        grid=MapGrid(GEOMETRY.box, 2.0, 13.0),
        radius=8,
    )


def both_halves(left: Residuals) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [leading_scores(left, np.flatnonzero(left.half == h), rng) for h in (0, 1)]


@pytest.mark.parametrize("turned_by", [0.0, 0.05])
def test_each_half_set_finds_what_two_states_differ_by(turned_by: float) -> None:
    some = states(N, two=True)
    left = residuals(some, turned_by=turned_by)
    first, second = both_halves(left)
    assert abs(np.corrcoef(first, second)[0, 1]) > 0.6
    others = left.half == 1
    told = (first[others] > 0) == (some.species[others] == 1)
    assert abs(told.mean() - 0.5) > 0.3


@pytest.mark.parametrize("turned_by", [0.0, 0.05])
def test_half_sets_of_one_state_agree_about_nothing(turned_by: float) -> None:
    first, second = both_halves(residuals(states(N, two=False), turned_by=turned_by))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.25


def test_scores_along_a_direction_made_by_chance_have_the_variance_of_noise() -> None:
    left = residuals(states(N, two=False))
    scores = random_scores(left, np.flatnonzero(left.half == 0), np.random.default_rng(1))
    assert 0.7 < scores[left.half == 1].var() < 1.5


@functools.cache
def split_session() -> tuple[Engine, list[StepReport]]:
    engine = Engine(SETTINGS, GEOMETRY)
    return engine, step_through(engine, states(M, two=True))


def test_a_session_splits_a_class_that_holds_two_states() -> None:
    engine, reports = split_session()
    split = [e for r in reports for e in r.events if e.kind == "class_split"]
    assert len(split) == 1
    assert split[0].values["agreement"] > 0.3
    found = engine.assignments().class_index
    assert abs(np.mean(found == states(M, two=True).species) - 0.5) > 0.35
    classes = engine.snapshot().classes
    assert np.any(classes[0].volume != classes[1].volume)


def test_a_split_survives_a_restart() -> None:
    engine, reports = split_session()
    again, heard, images = Engine(SETTINGS, GEOMETRY), [], states(M, two=True).particle_images()
    for start in range(0, len(images), 500):
        again.add(images.span(slice(start, start + 500)))
        while again.ready:
            heard += [event.message for event in again.step().events]
        meta, arrays = again.dump()
        again = Engine.load(SETTINGS, GEOMETRY, meta, arrays, again.dump_store(0))
    heard += [event.message for report in again.finish() for event in report.events]
    assert heard == [e.message for r in reports for e in r.events]
    for mine, other in zip(again.snapshot().classes, engine.snapshot().classes, strict=True):
        assert np.array_equal(mine.volume, other.volume)


def test_a_session_splits_no_class_of_one_state() -> None:
    engine = Engine(replace(SETTINGS, replay_passes=0), GEOMETRY)
    reports = step_through(engine, states(M, two=False, seed=2))
    looked = engine.dump()[0]["lifecycle"]["splits"]
    assert looked > 0
    assert set(kinds(reports)) <= {"classes_merged", "class_emptied"}


def test_siblings_have_the_map_of_both_and_their_differences() -> None:
    learner = make_learner(n_classes=2, start_radius=6)
    batch = weighted(simulated(400, snr=0.3), plane()).span(slice(0, 40))
    with ThreadPoolExecutor(1) as workers:
        advance(learner, batch, workers)
    reach = learner.grid.reach(learner.radius)
    shape = (2, 2 * reach + 1, 2 * reach + 1, reach + 1)
    differences = np.zeros(shape, np.complex64)
    differences[:, reach, reach, 4] = [0.5, -0.5]
    learner.siblings = Siblings((0, 1), differences)
    fsc = np.ones(learner.max_radius + 1)
    first, second = (learner.map_spectrum(k, fsc, radius=learner.radius) for k in (0, 1))
    learner.siblings = Siblings((0, 1), np.zeros(shape, np.complex64))
    both = learner.map_spectrum(0, fsc, radius=learner.radius)
    assert np.allclose((first + second) / 2, both, atol=1e-5 * float(abs(both).max()))
    assert not np.allclose(first, both)
    learner.siblings = Siblings((0, 1), differences)
    meta, arrays = dump_learner(learner)
    other = make_learner(n_classes=2, start_radius=6)
    restore_learner(other, meta, arrays)
    assert other.siblings is not None
    assert other.siblings.classes == (0, 1)
    assert np.array_equal(other.siblings.differences, differences)
