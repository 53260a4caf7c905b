"""Classes are merged, rested, named and born where that is right, and left alone elsewhere."""

from __future__ import annotations

import functools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from reconstruct.doubts import Doubts
from reconstruct.engine import Engine
from reconstruct.lifecycle import MORE_SIGMAS, MOST_SIGMAS, SIGMAS, Lifecycle
from reconstruct.merging import candidates
from reconstruct.outliers import TAIL, contrast, newcomers, outlying
from reconstruct.simulate import Simulated, SimulationSettings, Species, simulate_set
from reconstruct.types import EngineSettings, StepReport
from tests.reconstruct.small_sets import GEOMETRY, demo_map

NAN = np.nan
SETTINGS = EngineSettings(
    max_resolution_angstrom=32.0, race_starts=2, race_particles=200, race_epochs=2, replay_passes=1
)
LIFE = {
    *("class_born", "class_emptied", "class_recycled", "class_split", "classes_merged"),
    "junk_class",
}


@pytest.fixture(autouse=True)
def _no_challenges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh starts have tests of their own, and take most of a small session's time."""
    monkeypatch.setattr(Doubts, "try_maps", lambda self, session, junk: [])


def ball() -> np.ndarray:
    """A hollow ball: nothing like the demo's particle."""
    axis = (np.arange(GEOMETRY.box) - GEOMETRY.box // 2).astype(np.float32)
    radius = np.sqrt(axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis[None, None, :] ** 2)
    return np.exp(-((radius - 6.0) ** 2) / 2.0).astype(np.float32)


@functools.cache
def stream(n_particles: int, *, late: bool, first: int = 0) -> Simulated:
    whole = demo_map()
    species = [Species(whole)]
    if late:
        other = ball()
        species.append(Species(0.6 * other * whole.std() / other.std(), appears_at=0.65))
    settings = SimulationSettings(n_particles=n_particles, snr=0.3, seed=first)
    return simulate_set(species, GEOMETRY, settings=settings)


def step_through(engine: Engine, particles: Simulated) -> list[StepReport]:
    images = particles.particle_images()
    reports = []
    for start in range(0, len(images), 500):
        engine.add(images.span(slice(start, start + 500)))
        while engine.ready:
            reports.append(engine.step())
    reports.extend(engine.finish())
    return reports


def kinds(reports: list[StepReport]) -> list[str]:
    return [event.kind for report in reports for event in report.events if event.kind in LIFE]


# ---- what the numbers say


def test_the_worse_of_two_maps_of_one_species_would_go() -> None:
    evidence = np.array([[100.0, 70.0, 10.0], [90.0, 150.0, 5.0], [8.0, 9.0, 120.0]])
    assert candidates(evidence) == ((0, 1),)


def test_different_species_are_not_even_tried() -> None:
    evidence = np.array([[100.0, 20.0], [15.0, 150.0]])
    assert candidates(evidence) == ()


def test_junk_that_fits_nowhere_well_is_no_duplicate() -> None:
    evidence = np.array([[20.0, 12.0], [60.0, 250.0]])  # 12 of 250 nats is a poor fit
    assert candidates(evidence) == ()


def test_classes_that_cannot_be_judged_are_left_alone() -> None:
    evidence = np.array([[100.0, NAN], [NAN, NAN]])
    assert candidates(evidence) == ()
    assert candidates(np.array([[-3.0, -2.0], [-5.0, -1.0]])) == ()


def test_outliers_are_those_in_the_tails_of_the_ones_before() -> None:
    power, evidence = np.arange(100.0), np.full(100, 50.0)
    latest = np.array([500.0, 50.0, -300.0, 50.0])
    found = outlying(
        np.concatenate([power, latest]),
        np.concatenate([evidence, [50.0, 50.0, 50.0, 1.0]]),
        before=100,
    )
    assert found[100:].tolist() == [True, False, True, True]
    assert found[:100].mean() == pytest.approx(2 * TAIL)


def test_latest_particles_stand_out_only_against_blocks_that_are_alike() -> None:
    rng = np.random.default_rng(5)
    latest = np.arange(200) < 80
    alike = rng.random(2000) < 0.1
    micrographs = np.repeat(rng.choice([0.0, 0.4], size=20, p=[0.75, 0.25]), 100)
    uneven = rng.random(2000) < micrographs
    assert contrast(alike, latest) > 8
    assert contrast(alike, rng.random(200) < 0.1) < 3
    assert contrast(uneven, latest) < SIGMAS


def test_what_was_decided_comes_back_from_a_dump() -> None:
    life = Lifecycle(
        most_classes=3,
        next_review=900.0,
        alarm_at=7,
        births=2,
        junk=(1,),
        sigmas=6.5,
        sign=7.0,
        fruitless=3,
        doubts=Doubts(2.0, True, True, True, uneven=(0, 2), stood=(1,), challenges=4),
    )
    again = Lifecycle(most_classes=3)
    again.restore(life.dump())
    assert again == life


def test_a_sign_that_came_to_nothing_raises_the_bar_further_the_more_there_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("reconstruct.lifecycle.attempt_birth", lambda *_, **__: None)
    engine = Engine(SETTINGS, GEOMETRY)
    session = SimpleNamespace(trained=5000, learner=engine._leader)
    life = Lifecycle(most_classes=3)
    more = MOST_SIGMAS + MORE_SIGMAS
    for sign, bar in ((6.0, 6.0), (5.9, 6.0), (30.0, more), (30.0, more + MORE_SIGMAS)):
        life.sign = sign
        assert life._birth(session, 1, kind="born") == []
        assert life.sigmas == bar


# ---- sessions


def test_a_species_that_appears_late_is_born_without_a_spare_class() -> None:
    particles = stream(2600, late=True)
    engine = Engine(SETTINGS, GEOMETRY)
    reports = step_through(engine, particles)
    born = [(r, e) for r in reports for e in r.events if e.kind == "class_born"]
    assert len(born) == 1
    report, event = born[0]
    assert event.class_index == 1
    assert event.values["gain"] > 0.3
    assert len(report.occupancy) == len(report.radius_shells) == 2
    assert sum(report.occupancy) == pytest.approx(1, abs=1e-5)
    newcomers = (particles.species[: report.particles_seen] == 1).sum()
    assert newcomers < 500
    found = engine.assignments().class_index
    assert np.mean(found == particles.species) > 0.95
    assert len(engine.snapshot().classes) == 2


def test_one_species_alone_bears_none() -> None:
    assert kinds(step_through(Engine(SETTINGS, GEOMETRY), stream(2200, late=False, first=1))) == []


def test_two_classes_of_one_species_become_one_and_a_class_at_rest() -> None:
    engine = Engine(replace(SETTINGS, n_classes=2), GEOMETRY)
    reports = step_through(engine, stream(900, late=False))
    assert set(kinds(reports)) <= {"classes_merged", "class_emptied"}
    found = engine.assignments()
    assert np.bincount(found.class_index, minlength=2).max() > 890
    resting = int(np.argmin(np.bincount(found.class_index, minlength=2)))
    one = engine.snapshot().classes[resting]
    assert not np.any(one.volume)
    assert one.resolution_angstrom is None
    assert one.view_histogram.sum() == 0


def test_a_birth_survives_a_restart() -> None:
    particles = stream(2600, late=True)
    engine = Engine(replace(SETTINGS, replay_passes=0), GEOMETRY)
    told = [e.message for r in step_through(engine, particles) for e in r.events]
    again = Engine(replace(SETTINGS, replay_passes=0), GEOMETRY)
    heard = []
    images = particles.particle_images()
    for start in range(0, len(images), 500):
        again.add(images.span(slice(start, start + 500)))
        while again.ready:
            heard += [event.message for event in again.step().events]
        meta, arrays = again.dump()
        again = Engine.load(again.settings, GEOMETRY, meta, arrays, again.dump_store(0))
    heard += [event.message for report in again.finish() for event in report.events]
    assert heard == told
    for mine, other in zip(again.snapshot().classes, engine.snapshot().classes, strict=True):
        assert np.array_equal(mine.volume, other.volume)


def test_a_class_that_got_another_map_is_no_junk_until_it_is_named_again() -> None:
    life = Lifecycle(most_classes=3, junk=(0, 2))
    life._forget_junk(2, None)
    assert life.junk == (0,)


@pytest.mark.parametrize(("changed_at", "tried"), [(0.0, 1), (4000.0, 0), (2000.0, 1)])
def test_no_class_is_born_while_particles_were_searched_in_two_ways(
    monkeypatch: pytest.MonkeyPatch, changed_at: float, tried: int
) -> None:
    monkeypatch.setattr("reconstruct.lifecycle.attempt_birth", lambda *_, **__: None)
    learner = Engine(SETTINGS, GEOMETRY)._leader
    learner.presented, learner.breadth.changed_at = 5000.0, changed_at
    life = Lifecycle(most_classes=3)
    assert life._birth(SimpleNamespace(trained=5000, learner=learner), 1, kind="born") == []
    assert life.births == tried


class FakeStore(dict[str, np.ndarray]):
    """As much of a store as is asked of it."""

    def holds(self, rows: np.ndarray) -> np.ndarray:
        return np.ones(len(rows), np.bool_)


@pytest.mark.parametrize(("foreign", "least", "most"), [(0, -3.0, 3.0), (60, 5.5, np.inf)])
def test_what_the_ctf_accounts_for_is_no_sign_of_newcomers(
    foreign: int, least: float, most: float
) -> None:
    """Evidence goes with the defocus, which a micrograph's particles share."""
    rng = np.random.default_rng(1)
    total, shells = 2600, 4
    c2 = np.repeat(rng.uniform(0.1, 1.0, (total // 100, shells)), 100, axis=0)  # by micrograph
    power = (c2**2) @ np.array([4.0, 3.0, 2.0, 1.0]) + c2.sum(axis=1)
    power *= rng.normal(1.0, 0.05, total)
    sums = np.stack([c2, c2**2, power[:, None] / shells * np.ones(shells)], axis=1)
    evidence = 50.0 * (c2**2).sum(axis=1) * rng.normal(1.0, 0.1, total)
    evidence[total - foreign :] *= 0.3
    store = FakeStore(visits=np.ones(total), evidence=evidence)
    found = newcomers(store, total, lambda rows: sums[rows])  # type: ignore[arg-type]
    assert least < found < most
