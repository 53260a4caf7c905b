"""Near-spherical particles are told from others, and their course runs to its end."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
import pytest

from reconstruct import spherical
from reconstruct.agreement import without_ball
from reconstruct.backend import cpu_backend
from reconstruct.breadth import Width
from reconstruct.density import density_from_atoms
from reconstruct.engine import Engine
from reconstruct.fourier import centre_distance
from reconstruct.imposing import release
from reconstruct.io.atoms import read_atoms
from reconstruct.learner import Learner
from reconstruct.quality import fourier_shell_correlation
from reconstruct.rotations import angle_between
from reconstruct.schedule import Schedule
from reconstruct.search import Poses, join_poses, local_start, search_poses
from reconstruct.search_plan import make_plan
from reconstruct.search_wide import make_wide_plan, search_on_host
from reconstruct.simulate import Simulated, SimulationSettings, Species, simulate_set
from reconstruct.snapshot import class_volume
from reconstruct.symmetry import parse_group
from reconstruct.types import EngineSettings
from reconstruct.update import MapGrid
from tests.reconstruct.small_sets import GEOMETRY, demo_map, plane, weighted

RADIUS = 9
SETTINGS = EngineSettings(
    symmetry="O", race_starts=2, race_particles=150, race_epochs=2, replay_passes=1
)


@functools.cache
def shell_map() -> np.ndarray:
    """A hollow ball with 24 weak bumps that a turn of O takes to one another."""
    n = GEOMETRY.box
    axis = np.arange(n) - n // 2
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    volume = np.exp(-((centre_distance(n) - 8.0) ** 2) / 3.0)
    direction = np.array([0.35, 0.55, 0.76]) / np.linalg.norm([0.35, 0.55, 0.76])
    for operator in parse_group("O").operators:
        cx, cy, cz = 8.0 * operator @ direction
        volume += 0.9 * np.exp(-((x - cx) ** 2 + (y - cy) ** 2 + (z - cz) ** 2) / 3.0)
    return volume.astype(np.float32)


def images_of(volume: np.ndarray, count: int, *, snr: float) -> Simulated:
    settings = SimulationSettings(n_particles=count, snr=snr, max_shift_angstrom=15.0, seed=1)
    return simulate_set([Species(volume)], GEOMETRY, settings=settings)


@functools.cache
def shells(count: int, snr: float = 0.3) -> Simulated:
    return images_of(shell_map(), count, snr=snr)


@pytest.fixture(scope="module")
def workers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def true_poses(particles: Simulated) -> Poses:
    shifts = (particles.shifts_angstrom / GEOMETRY.pixel_size_angstrom).astype(np.float32)
    turns = particles.rotations.reshape(-1, 9).astype(np.float32)
    return local_start(turns, shifts, np.zeros(len(turns), np.int32), keep=1)


def converged(particles: Simulated, workers: ThreadPoolExecutor, *, group: str = "C1") -> Learner:
    """A learner that knows the true poses."""
    learner = Learner(
        plane=plane(),
        grid=MapGrid(GEOMETRY.box, 2.0, 13.0),
        n_classes=1,
        seed=(0, 0),
        max_shift_pixels=2.0,
        max_radius=11,
        schedule=Schedule(),
    )
    learner.group = group
    learner.hold_radius(RADIUS)
    batch, half = weighted(particles, plane()), halves(len(particles.images))
    learner.adopt(batch, half, true_poses(particles), workers=workers)
    return learner


def halves(count: int) -> np.ndarray:
    return (np.arange(count) >= count // 2).astype(np.intp)


def share(particles: Simulated, workers: ThreadPoolExecutor) -> float:
    learner = converged(particles, workers)
    batch = weighted(particles, plane()).span(slice(0, 100))
    found = spherical.sphericity(learner, batch, halves(100), workers=workers)
    assert found.evidence > 0
    return found.share


def test_a_hollow_shell_is_nearly_a_ball(workers: ThreadPoolExecutor) -> None:
    assert share(shells(400), workers) < spherical.SPHERICAL_SHARE


def test_an_asymmetric_particle_is_none(workers: ThreadPoolExecutor) -> None:
    assert share(images_of(demo_map(), 400, snr=0.1), workers) > spherical.SPHERICAL_SHARE


def test_a_barrel_is_none(data_dir: Path, workers: ThreadPoolExecutor) -> None:
    atoms = read_atoms(data_dir / "models" / "eman2_1MNF_GroEL.pdb.gz", assembly=None, chains=())
    volume = density_from_atoms(
        atoms.positions_angstrom, atoms.weights, geometry=GEOMETRY, resolution_angstrom=22.0
    )
    assert share(images_of(volume, 400, snr=0.05), workers) > spherical.SPHERICAL_SHARE


def test_a_ball_has_no_share_of_views() -> None:
    assert spherical.Sphericity(evidence=50.0, of_a_ball=50.0).share == 0
    assert not spherical.Sphericity(evidence=-1.0, of_a_ball=-2.0).near_ball


def pose_errors(found: Poses, particles: Simulated) -> np.ndarray:
    """Angles in degrees to the nearest of the 24 equal true poses."""
    turns = particles.rotations[: len(found.count)]
    equal = np.einsum("nij,gjk->ngik", turns, parse_group("O").operators)
    best = found.rotation[:, 0].reshape(-1, 1, 3, 3).astype(np.float64)
    return np.degrees(angle_between(np.broadcast_to(best, equal.shape), equal).min(axis=1))


def test_a_wide_coarse_pass_finds_the_poses_of_a_shell(workers: ThreadPoolExecutor) -> None:
    particles = shells(400, snr=1.0)
    learner = converged(particles, workers, group="O")
    assert learner.cubes is not None
    wide = make_wide_plan(RADIUS, RADIUS, 2.0)
    few = make_plan(RADIUS, box=GEOMETRY.box, max_shift_pixels=2.0, width=Width(coarse_radius=3))
    medians = []
    for plan in (wide, few):
        found = search_poses(
            weighted(particles, plane()).span(slice(0, 60)),
            learner.cubes,
            plane(),
            plan,
            scale=2.0,
            log_class_weights=np.zeros(1, np.float32),
            turn=np.eye(3),
            group="O",
            workers=workers,
        )
        medians.append(np.median(pose_errors(found, particles)))
    assert medians[0] < 6.0
    assert medians[0] < medians[1]


def test_a_search_on_the_host_is_that_of_each_half_set(workers: ThreadPoolExecutor) -> None:
    particles = shells(400, snr=1.0)
    learner = converged(particles, workers, group="O")
    assert learner.cubes is not None
    cubes = np.concatenate([learner.cubes, 0.5 * learner.cubes])
    batch = weighted(particles, plane()).span(slice(0, 12))
    plan = make_wide_plan(RADIUS, RADIUS, 2.0)
    shared = {
        "scale": 2.0,
        "log_class_weights": np.zeros(1, np.float32),
        "turn": np.eye(3),
        "group": "O",
        "workers": workers,
    }
    found = search_on_host(batch, cubes, 5, plane(), plan, **shared, backend=cpu_backend())
    expected = join_poses(
        [
            search_poses(batch.span(span), cubes[k : k + 1], plane(), plan, **shared)
            for k, span in enumerate((slice(0, 5), slice(5, 12)))
        ]
    )
    np.testing.assert_array_equal(found.rotation[:, 0], expected.rotation[:, 0])
    np.testing.assert_array_equal(found.evidence, expected.evidence)


def test_the_opposite_of_a_start_has_hollows_for_bumps(workers: ThreadPoolExecutor) -> None:
    start = converged(shells(400), workers, group="O")
    fresh = replace(start, seed=(0, 1), statistics=start.statistics[:, :0])
    made = spherical.make_opposite(start, fresh)
    maps = [class_volume(one, 0, radius=RADIUS) for one in (start, made)]
    bumps, hollows = (without_ball(volume) for volume in maps)
    assert fourier_shell_correlation(bumps, hollows)[2:RADIUS].max() < -0.9
    balls = [volume - without_ball(volume) for volume in maps]
    assert np.corrcoef(balls[0].ravel(), balls[1].ravel())[0, 1] > 0.99
    again = spherical.make_opposite(made, replace(start, seed=(0, 2)))
    twice = without_ball(class_volume(again, 0, radius=RADIUS))
    assert fourier_shell_correlation(bumps, twice)[2:RADIUS].min() > 0.99


def test_marches_begin_low_and_end_at_the_highest_radius(workers: ThreadPoolExecutor) -> None:
    learner = converged(shells(400), workers)
    radii = []
    for presented in (0, 1200, 1300, 2550, 3700, 3800, 6200):
        learner.presented = presented
        spherical.steer(learner)
        radii.append(learner.radius)
    raced, still, lowest, middle, top, again, last = radii
    assert raced == still > lowest == again
    assert learner.max_radius - 1 <= top == last <= learner.max_radius
    assert lowest < middle < top


def test_fewer_starts_go_on_after_each_march() -> None:
    field = [SimpleNamespace(presented=0.0, evidence=float(k), group="O") for k in range(8)]
    left = []
    for march in range(4):
        for one in field:
            one.presented = spherical.RACED + spherical.MARCHED * march
        field = spherical.keep_best(field, 0.0)  # type: ignore[arg-type]
        left.append(len(field))
    assert left == [8, 5, 3, 2]
    assert [one.evidence for one in field] == [7.0, 6.0]


def test_a_group_far_behind_keeps_one_start_after_the_first_march() -> None:
    starts = [("O", 60.0), ("I", 50.0), ("O", 55.0), ("I", 51.0)]
    field = [SimpleNamespace(presented=0.0, evidence=e, group=group) for group, e in starts]
    for marches, left in (
        (0.0, {"O": 2, "I": 2}),
        (0.9, {"O": 2, "I": 2}),  # it may be behind for a while
        (1.0, {"O": 2, "I": 1}),
    ):
        before = field[0].presented
        for one in field:
            one.presented = spherical.RACED + spherical.MARCHED * marches
        field = spherical.keep_best(field, before)  # type: ignore[arg-type]
        assert {g: sum(one.group == g for one in field) for g in left} == left
    assert max(one.evidence for one in field if one.group == "I") == 51.0


@pytest.mark.parametrize(
    ("best", "marches"),
    [({"O": 60.0}, 4), ({"O": 60.0, "I": 56.0}, 4), ({"O": 60.0, "I": 59.0}, 6)],
)
def test_groups_too_close_to_tell_march_on(best: dict[str, float], marches: int) -> None:
    step = 100.0
    ends = [
        after
        for after in np.arange(step, 30_000.0, step)
        if spherical.is_over(after - step, after, best)
    ]
    assert ends[0] == spherical.RACED + marches * spherical.MARCHED


def test_marches_go_no_further_than_tells_groups_apart(workers: ThreadPoolExecutor) -> None:
    learner = replace(converged(shells(400), workers), max_radius=10_000)
    learner.presented = spherical.RACED + spherical.MARCHED - 1
    asked: list[int] = []
    learner.hold_radius = asked.append  # type: ignore[method-assign]
    spherical.steer(learner)
    diameter = 2 * float(learner.mask_radius.max())
    assert asked == [round(spherical.MARCH_TO * learner.grid.box / diameter)]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = {"RACED": 200, "MARCHED": 300, "STARTS": 2, "FIELD": (4, 2)}
    for name, value in lengths.items():
        monkeypatch.setattr(spherical, name, value)


def through_a_dump(engine: Engine) -> Engine:
    meta, arrays = engine.dump()
    saved = engine.dump_store(0)
    return Engine.load(engine.settings, GEOMETRY, json.loads(json.dumps(meta)), arrays, saved)


def kinds_of(engine: Engine, *, every: int = 0) -> tuple[list[str], Engine]:
    """Run to the end, passing through a dump after every ``every`` updates; kinds of events."""
    kinds: list[str] = []
    steps = 0
    while engine.ready:
        kinds += [event.kind for event in engine.step().events]
        steps += 1
        if every and steps % every == 0:
            engine = through_a_dump(engine)
    for report in engine.finish():
        kinds += [event.kind for event in report.events]
    return kinds, engine


def started(particles: Simulated, settings: EngineSettings = SETTINGS) -> Engine:
    engine = Engine(settings, GEOMETRY)
    engine.add(particles.particle_images().span(slice(0, 300)))
    return engine


@pytest.mark.usefixtures("short")
def test_a_shell_with_a_cubic_group_is_raced_again_and_ends_in_that_group() -> None:
    kinds, engine = kinds_of(started(shells(400)))
    assert kinds.count("near_spherical") == 1
    assert kinds.count("race") == 2
    assert "symmetry" not in kinds  # imposed from the first batch, so never found
    fit = engine.snapshot().classes[0].volume
    turned = np.rot90(fit[1:, 1:, 1:], axes=(1, 2))
    assert np.corrcoef(turned.ravel(), fit[1:, 1:, 1:].ravel())[0, 1] > 0.98


@pytest.mark.parametrize(("particles", "raced"), [(spherical.BATCH - 1, 0), (spherical.BATCH, 1)])
def test_a_handful_of_particles_is_not_raced_again(particles: int, raced: int) -> None:
    """Whose starts would take as many updates of them as thousands of presentations are."""
    engine = Engine(replace(SETTINGS, replay_passes=0), GEOMETRY)
    engine.add(shells(400).particle_images().span(slice(0, particles)))
    kinds: list[str] = []
    for report in engine.finish():
        kinds += [event.kind for event in report.events]
        if "near_spherical" in kinds:
            break
    assert kinds.count("near_spherical") == raced


@pytest.mark.usefixtures("short")
def test_opposites_join_after_the_race_and_the_best_are_kept() -> None:
    engine = started(shells(400))
    seeds: list[tuple[tuple[int, int], ...]] = []
    while engine.ready:
        engine.step()
        if engine._course.spherical_cursor > 0:
            seeds.append(tuple(learner.seed for learner in engine._learners))
            if len(seeds) > 1 and len(seeds[-1]) > len(seeds[-2]):
                engine = through_a_dump(engine)
    counts = [len(set(one)) for one in seeds]
    assert counts[0] == spherical.STARTS
    assert max(counts) == 2 * spherical.STARTS
    assert spherical.FIELD[1] in counts[counts.index(max(counts)) :]
    assert counts[-1] == 1


@pytest.mark.usefixtures("short")
def test_starts_are_as_many_as_there_is_memory_for() -> None:
    engine = started(shells(400))
    engine.backend = replace(engine.backend, memory=lambda: (1, 1))
    while engine._course.spherical_cursor < 0:
        engine.step()
    assert len(engine._learners) == 1


@pytest.mark.usefixtures("short")
def test_a_course_in_pieces_gives_the_same_bits() -> None:
    _, whole = kinds_of(started(shells(400)))
    _, pieces = kinds_of(started(shells(400)), every=3)
    for name, array in whole.dump()[1].items():
        np.testing.assert_array_equal(pieces.dump()[1][name], array, err_msg=name)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("symmetry", ["C1", "D4"])
def test_other_groups_take_the_usual_course(symmetry: str) -> None:
    settings = EngineSettings(**{**vars(SETTINGS), "symmetry": symmetry, "replay_passes": 0})
    kinds, engine = kinds_of(started(shells(400), settings))
    assert kinds.count("race") == 1
    if "near_spherical" in kinds:  # then two starts found different maps
        assert engine.snapshot().classes[0].resolution_angstrom is None


@pytest.mark.usefixtures("short")
def test_an_asymmetric_particle_takes_the_usual_course() -> None:
    settings = EngineSettings(**{**vars(SETTINGS), "race_particles": 300, "race_epochs": 5})
    particles = images_of(demo_map(), 400, snr=0.3)
    assert "near_spherical" not in kinds_of(started(particles, settings))[0]


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("telling", [1.0, 9.9])
def test_a_ball_without_a_named_group_is_raced_with_several(
    monkeypatch: pytest.MonkeyPatch, telling: float
) -> None:
    """The one that explains more is taken up, or none if they explain the same."""
    monkeypatch.setattr(spherical, "TELLING", telling)
    monkeypatch.setattr("reconstruct.races.AGREED", 1.1)  # as if two starts disagreed
    settings = replace(SETTINGS, symmetry="auto")
    kinds, engine = kinds_of(started(shells(400), settings), every=5)
    assert kinds.count("near_spherical") == 2  # what it is, and what came of it
    assert kinds.count("race") == 1
    leader = engine._leader
    assert not leader.aside
    if telling > 2:
        assert leader.group == "C1"
        assert engine.snapshot().classes[0].resolution_angstrom is None
    else:
        assert leader.group in spherical.TRIED
        _, whole = kinds_of(started(shells(400), settings))
        for name, array in whole.dump()[1].items():
            np.testing.assert_array_equal(engine.dump()[1][name], array, err_msg=name)


@pytest.mark.usefixtures("short")
def test_with_c1_the_group_of_a_ball_is_named_and_its_map_goes_on_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(spherical, "TELLING", 1.0)
    monkeypatch.setattr("reconstruct.races.AGREED", 1.1)  # as if two starts disagreed
    released: list[npt.NDArray[np.float32]] = []

    def released_with_maps(learner: Learner) -> None:
        released.append(class_volume(learner, 0))
        release(learner)
        released.append(class_volume(learner, 0))

    monkeypatch.setattr("reconstruct.races.release", released_with_maps)
    settings = replace(SETTINGS, symmetry="C1", replay_passes=1, initial_presentations=300)
    engine = started(shells(400), settings)
    messages = []
    while engine.ready:
        messages += [event.message for event in engine.step().events]
    for report in engine.finish():
        messages += [event.message for event in report.events]
    (told,) = [words for words in messages if "not imposed" in words]
    assert any(f"it has {group} symmetry" in told for group in spherical.TRIED)
    assert engine._leader.group == "C1"
    with_group, without = released
    assert np.corrcoef(with_group.ravel(), without.ravel())[0, 1] > 0.99
    assert engine.snapshot().classes[0].resolution_angstrom is None
    assert not any("fresh start" in words for words in messages)


def test_a_group_is_told_by_how_much_more_it_explains() -> None:
    def best(octahedral: float, icosahedral: float) -> dict[str, float]:
        starts = [("O", 50.0), ("I", icosahedral), ("O", octahedral)]
        found = [SimpleNamespace(group=group, evidence=nats) for group, nats in starts]
        return spherical.best_of_groups(found)  # type: ignore[arg-type]

    assert best(60.0, 56.0) == {"O": 60.0, "I": 56.0}
    assert spherical.told_apart(best(60.0, 56.0))
    assert spherical.told_apart(best(56.0, 60.0))
    assert not spherical.told_apart(best(60.0, 59.0))


@pytest.mark.usefixtures("short")
def test_one_start_on_a_ball_cannot_be_told_from_a_wrong_one() -> None:
    settings = replace(SETTINGS, symmetry="C1", race_starts=1, replay_passes=1)
    engine = started(shells(400), settings)
    events = []
    while engine.ready:
        events += engine.step().events
    for report in engine.finish():
        events += report.events
    (told,) = [one for one in events if one.kind == "near_spherical"]
    assert "one random start cannot be told from a wrong one" in told.message
    assert "name it" in told.message  # no race of groups was asked for
    assert engine._life.doubts.words(1) == ("starts_disagree",)
