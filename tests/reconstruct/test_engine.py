"""An engine finds the map, and gives the same bits however its particles and its life are cut."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from reconstruct.course import FADES
from reconstruct.engine import Engine
from reconstruct.engine_state import VERSION
from reconstruct.quality import align_to_truth
from reconstruct.types import EngineSettings, Geometry, Optics, ParticleImages, StepReport
from tests.reconstruct.small_sets import GEOMETRY, demo_map, simulated

SETTINGS = EngineSettings(
    max_resolution_angstrom=32.0,
    race_starts=3,
    race_particles=120,
    race_epochs=3,
    minibatch_initial=50,
    minibatch_final=90,
    replay_passes=2,
)
PARTICLES = 260  # neither the minibatches nor the race divide it
PRINTED = ("statistics", "fsc", "rotation", "shift", "evidence", "noise_sum")


@dataclass(frozen=True)
class Run:
    """An engine at its end, and what it reported on the way."""

    engine: Engine
    reports: tuple[StepReport, ...]


def particles(count: int = PARTICLES, *, kinds: tuple[str, ...] = ("whole",)) -> ParticleImages:
    return simulated(PARTICLES, kinds=kinds).particle_images().span(slice(0, count))


def run(settings: EngineSettings, images: ParticleImages, *, cut: int = 1000) -> Run:
    engine = Engine(settings, GEOMETRY)
    reports = []
    for start in range(0, len(images), cut):
        engine.add(images.span(slice(start, start + cut)))
        while engine.ready:
            reports.append(engine.step())
    reports.extend(engine.finish())
    return Run(engine, tuple(reports))


@functools.cache
def plain() -> Run:
    return run(SETTINGS, particles())


@functools.cache
def two_species() -> Run:
    kinds = ("whole", "large_subunit")
    return run(replace(SETTINGS, n_classes=2), particles(kinds=kinds))


def state(engine: Engine) -> dict[str, Any]:
    """Everything that a later update could depend on, copied."""
    meta, arrays = engine.dump()
    state = {name: array.copy() for name, array in arrays.items()}
    return {**state, **engine.dump_store(0), "meta": json.loads(json.dumps(meta))}


def differing(a: Engine, b: Engine) -> list[str]:
    """Names of what is not bit-identical in two engines."""
    one, other = state(a), state(b)
    assert one.keys() == other.keys()
    assert all(any(part in name for name in one) for part in PRINTED)
    return [name for name in one if not np.array_equal(one[name], other[name])]


def reloaded(engine: Engine, settings: EngineSettings = SETTINGS) -> Engine:
    """The engine that a fresh process would load from files."""
    everything = state(engine)
    meta = everything.pop("meta")
    stored = {name: everything.pop(name) for name in engine.dump_store(0)}
    for array in (*everything.values(), *stored.values()):
        array.flags.writeable = False
    return Engine.load(settings, GEOMETRY, meta, everything, stored)


# ---- the same bits


@pytest.mark.parametrize("cut", [1, 7, 100])
def test_however_the_particles_come_the_bits_are_the_same(cut: int) -> None:
    assert differing(run(SETTINGS, particles(), cut=cut).engine, plain().engine) == []


@pytest.mark.parametrize("box", [26, 30])
def test_images_that_do_not_fill_vector_registers_are_stored_the_same(box: int) -> None:
    images = np.random.default_rng(0).standard_normal((9, box, box)).astype(np.float32)
    some = replace(particles(9), images=images)
    geometry = Geometry(box, GEOMETRY.box_angstrom / box)
    whole, cut = Engine(SETTINGS, geometry), Engine(SETTINGS, geometry)
    whole.add(some)
    for i in range(9):
        cut.add(some.span(slice(i, i + 1)))
    assert differing(whole, cut) == []


@pytest.mark.parametrize("every", [1, 4])
def test_a_life_in_pieces_gives_the_same_bits(every: int) -> None:
    """Loaded again every few steps: in the race, in the pass, among the left-overs, in replay."""
    engine = Engine(SETTINGS, GEOMETRY)
    steps, phases = 0, set()

    def next_life() -> Engine:
        phases.add((engine.phase, engine.ready))
        return reloaded(engine) if steps % every == 0 else engine

    for start in (0, 100, 200):
        engine.add(particles().span(slice(start, start + 100)))
        while engine.ready:
            engine.step()
            steps += 1
            engine = next_life()
    while next(engine.finish(), None) is not None:
        steps += 1
        assert steps <= plain().reports[-1].step  # a counter that is not kept would go on for ever
        engine = next_life()
    assert steps == plain().reports[-1].step
    assert {phase for phase, _ in phases} >= {"initial", "intermediate"}
    assert differing(engine, plain().engine) == []


def test_a_life_in_pieces_takes_up_the_same_symmetry() -> None:
    settings = replace(SETTINGS, symmetry="C2", race_starts=2, race_epochs=2, replay_passes=3)
    engines, told = [], []
    for every in (1000, 2):
        engine = Engine(settings, GEOMETRY)
        engine.add(particles(150))
        steps = 0
        while (
            report := engine.step() if engine.ready else next(engine.finish(), None)
        ) is not None:
            steps += 1
            told += [(every, event.message) for event in report.events if event.kind == "symmetry"]
            engine = reloaded(engine, settings) if steps % every == 0 else engine
        engines.append(engine)
    assert differing(*engines) == []
    assert [every for every, _ in told] == [1000, 2]
    assert told[0][1] == told[1][1]


@functools.cache
def with_spare_time() -> Run:
    return run(replace(SETTINGS, stream_replays=2.0), particles())


def test_spare_time_of_the_stream_goes_to_earlier_particles() -> None:
    settings = replace(SETTINGS, stream_replays=2.0)
    reports = with_spare_time().reports
    streaming = [
        one for one in reports if one.particles_seen < PARTICLES and one.phase != "initial"
    ]
    assert sum(one.replayed_particles for one in streaming) >= 90
    for cut in (7, 100):  # whenever particles come
        assert differing(run(settings, particles(), cut=cut).engine, with_spare_time().engine) == []
    engine, steps = Engine(settings, GEOMETRY), 0
    engine.add(particles())
    while (engine.step() if engine.ready else next(engine.finish(), None)) is not None:
        engine, steps = reloaded(engine, settings), steps + 1
    assert steps == reports[-1].step
    assert differing(engine, with_spare_time().engine) == []


def test_a_sample_is_shown_again_in_the_stream_and_comes_back_with_the_same_bits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("reconstruct.store.RECENT", 30)  # with the sample all that the race shows
    settings = replace(SETTINGS, stream_replays=6.0, store_particles=120)
    whole = run(settings, particles())
    again = [one for one in whole.reports if one.replayed_particles and one.phase != "initial"]
    assert any(one.particles_seen < PARTICLES for one in again)
    engine = Engine(settings, GEOMETRY)
    engine.add(particles())
    while (engine.step() if engine.ready else next(engine.finish(), None)) is not None:
        engine = reloaded(engine, settings)
    assert differing(engine, whole.engine) == []


@pytest.mark.parametrize("wrong", [-1.0, 11.0, float("nan")])
def test_replays_in_the_stream_have_a_range(wrong: float) -> None:
    with pytest.raises(ValueError, match="stream_replays must be from 0 to 10"):
        EngineSettings(stream_replays=wrong)


def test_a_crowd_of_threads_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    plain()  # with as many threads as this machine has cores
    for count in (1, 7):
        monkeypatch.setattr("reconstruct.engine.usable_cores", lambda count=count: count)
        assert differing(run(SETTINGS, particles()).engine, plain().engine) == []


def test_the_seed_decides() -> None:
    engines = [Engine(replace(SETTINGS, seed=seed), GEOMETRY) for seed in (0, 0, 1)]
    for engine in engines:
        engine.add(particles(150))
        for _ in range(3):
            engine.step()
    assert differing(engines[0], engines[1]) == []
    assert any("statistics" in name for name in differing(engines[0], engines[2]))


def test_looking_does_not_change_anything() -> None:
    watched, alone = Engine(SETTINGS, GEOMETRY), Engine(SETTINGS, GEOMETRY)
    for engine in (watched, alone):
        engine.add(particles(200))
        for _ in range(6):
            engine.step()
            if engine is watched:
                engine.snapshot()
                engine.assignments()
                engine.dump()
    assert differing(watched, alone) == []


def test_two_dumps_of_the_store_join_to_one() -> None:
    engine = plain().engine
    whole, tail = engine.dump_store(0), engine.dump_store(200)
    for name, column in whole.items():
        assert np.array_equal(column[200:], tail[name])
        assert len(column) == engine.particles_stored == PARTICLES


@pytest.mark.parametrize("version", [0, 2])
def test_a_state_of_another_version_is_refused(version: int) -> None:
    engine = Engine(SETTINGS, GEOMETRY)
    meta, arrays = engine.dump()
    meta = {"version": version, **{k: v for k, v in meta.items() if k in ("learners", "optics")}}
    with pytest.raises(ValueError, match=f"version {version}, this program reads {VERSION}"):
        Engine.load(SETTINGS, GEOMETRY, meta, arrays, engine.dump_store(0))


# ---- the physics


def test_the_particle_is_found() -> None:
    images = simulated(600).particle_images()
    engine = run(replace(SETTINGS, race_particles=200), images).engine
    engine._life.doubts.unsettled = False  # test_doubts has what is told of a map in doubt
    snapshot = engine.snapshot()
    found = align_to_truth(
        snapshot.classes[0].volume, demo_map(), GEOMETRY.pixel_size_angstrom,
        search_radius=5, refine_radius=9, grid=1152,
    )  # fmt: skip
    assert found.resolution_angstrom < 50.0  # of 32 that were asked for
    assert found.correlation > 0.9
    assert snapshot.phase in ("intermediate", "final")
    assert snapshot.classes[0].resolution_angstrom is not None


def test_half_maps_are_two_maps_of_one_particle() -> None:
    found = plain().engine.snapshot().classes[0]
    assert found.volume.shape == found.half1.shape == (GEOMETRY.box,) * 3
    assert found.volume.dtype == found.half1.dtype == found.half2.dtype == np.float32
    assert not np.array_equal(found.half1, found.half2)
    assert found.fsc[0] == 1
    assert found.fsc[1:4].min() > 0.5
    assert found.view_histogram.sum() == found.particles == PARTICLES


def test_evidence_grows_as_the_map_gets_better() -> None:
    reports = plain().reports
    assert reports[-1].evidence_per_particle > reports[3].evidence_per_particle + 5


def test_every_particle_is_counted_once() -> None:
    reports = plain().reports
    assert [report.step for report in reports] == list(range(1, len(reports) + 1))
    assert sum(report.new_particles for report in reports) == PARTICLES
    assert reports[-1].particles_seen == PARTICLES
    presented = sum(report.new_particles + report.replayed_particles for report in reports)
    assert reports[-1].particles_presented == presented
    # the race presents its particles twice more, replay presents all of them twice
    assert presented == PARTICLES + 2 * SETTINGS.race_particles + 2 * PARTICLES
    assert set(plain().engine.dump()[1]["store.visits"].tolist()) == {3, 5}


def test_within_a_pass_of_replay_all_particles_count_alike() -> None:
    engine = Engine(SETTINGS, GEOMETRY)
    engine.add(particles())
    while engine.ready:
        engine.step()
    masses = [
        float(engine._leader.mass.sum()) for report in engine.finish() if not report.new_particles
    ]
    first, second = masses[-2 * 3 :][2], masses[-1]  # three minibatches are a pass
    assert second == pytest.approx((1 - FADES) * first + PARTICLES, rel=1e-4)


def test_phases_come_in_order_and_the_race_is_told() -> None:
    reports = plain().reports
    order = ["waiting", "initial", "intermediate", "final"]
    phases = [order.index(report.phase) for report in reports]
    assert phases == sorted(phases)
    races = [event for report in reports for event in report.events if event.kind == "race"]
    assert len(races) == 1
    assert races[0].values["best"] >= races[0].values["second"]
    radii = [report.radius_shells[0] for report in reports if report.phase != "initial"]
    assert radii == sorted(radii)
    assert max(radii) <= plain().engine.max_radius


def test_pure_noise_gets_no_resolution() -> None:
    images = simulated(360).particle_images()
    noise = np.random.default_rng(0).standard_normal(images.images.shape).astype(np.float32)
    done = run(SETTINGS, replace(images, images=noise))
    assert all(report.resolution_angstrom == (None,) for report in done.reports)
    assert done.engine.snapshot().classes[0].resolution_angstrom is None


def test_no_resolution_is_claimed_during_the_race() -> None:
    for report in plain().reports:
        if report.phase == "initial":
            assert report.resolution_angstrom == (None,)


def test_a_map_that_was_chosen_just_now_has_no_resolution_yet() -> None:
    """Its half-sets have learned from one reference so far."""
    done = run(replace(SETTINGS, replay_passes=0), particles(SETTINGS.race_particles))
    assert any(event.kind == "race" for event in done.reports[-1].events)
    (item,) = done.engine.snapshot().classes
    assert (item.resolution_angstrom, item.why_none) == (None, "sharing")
    (told,) = plain().engine.snapshot().classes
    assert (told.resolution_angstrom, told.why_none) == (None, "few_particles")


def test_assignments_are_of_every_particle_in_order() -> None:
    found, truth = plain().engine.assignments(), simulated(PARTICLES)
    assert np.array_equal(found.particle_ids, truth.particle_ids)
    assert np.all(found.class_index == 0)
    assert set(found.half.tolist()) == {1, 2}
    assert np.all((found.max_probability > 0) & (found.max_probability <= 1))
    reach = GEOMETRY.box_angstrom / 16 + GEOMETRY.pixel_size_angstrom
    assert np.abs(found.shifts_angstrom).max() <= reach


# ---- several classes


def test_class_shares_sum_to_one() -> None:
    run = two_species()
    for report in run.reports:
        assert len(report.occupancy) == len(report.radius_shells) == 2
        assert sum(report.occupancy) == pytest.approx(1, abs=1e-5)
    snapshot = run.engine.snapshot()
    assert sum(one.occupancy for one in snapshot.classes) == pytest.approx(1, abs=1e-5)
    assert sum(one.particles for one in snapshot.classes) == PARTICLES
    assert set(run.engine.assignments().class_index.tolist()) <= {0, 1}


def test_classes_come_back_from_a_dump() -> None:
    settings = replace(SETTINGS, n_classes=2)
    again = reloaded(two_species().engine, settings)
    assert differing(again, two_species().engine) == []
    for mine, other in zip(
        again.snapshot().classes, two_species().engine.snapshot().classes, strict=True
    ):
        assert np.array_equal(mine.volume, other.volume)


def test_more_classes_than_the_particles_can_fill_give_no_nan() -> None:
    settings = replace(SETTINGS, n_classes=6, minibatch_initial=10, race_starts=2)
    run_ = run(settings, particles(20))
    for one in run_.engine.snapshot().classes:
        assert np.all(np.isfinite(one.volume))
        assert np.all(np.isfinite(one.fsc))
    _, arrays = run_.engine.dump()
    assert all(np.all(np.isfinite(a)) for a in arrays.values() if a.dtype.kind == "f")
    assert np.isfinite([report.evidence_per_particle for report in run_.reports]).all()


# ---- the edges of a session


def test_only_as_many_particles_as_wanted_are_used() -> None:
    done = run(replace(SETTINGS, particles_to_use=110, replay_passes=1), particles())
    found = done.engine.assignments()
    assert done.reports[-1].particles_seen == 110
    assert len(found.class_index) == PARTICLES
    assert np.all(found.class_index[:110] == 0)
    assert np.all(found.class_index[110:] == -1)
    assert not done.engine.ready
    only = run(replace(SETTINGS, replay_passes=1), particles(110)).engine
    snapshots = [engine.snapshot().classes[0].volume for engine in (done.engine, only)]
    assert np.array_equal(*snapshots)  # the others left no trace


def test_a_step_waits_for_a_full_minibatch() -> None:
    engine = Engine(SETTINGS, GEOMETRY)
    assert engine.phase == "waiting"
    engine.add(particles(SETTINGS.minibatch_initial - 1))
    assert not engine.ready
    engine.add(particles().span(slice(49, 50)))
    assert engine.ready
    assert engine.step().new_particles == 50
    assert not engine.ready


def test_a_session_without_particles_ends() -> None:
    engine = Engine(SETTINGS, GEOMETRY)
    engine.add(particles(0))
    assert not engine.ready
    assert list(engine.finish()) == []
    assert len(engine.assignments().particle_ids) == 0
    assert not np.any(engine.snapshot().classes[0].volume)


def test_one_particle_alone_is_a_session() -> None:
    done = run(SETTINGS, particles(1))
    assert done.reports[-1].particles_seen == 1
    assert np.all(np.isfinite(done.engine.snapshot().classes[0].volume))


def test_one_start_has_no_rivals_and_claims_nothing_before_its_halves_part() -> None:
    done = run(replace(SETTINGS, race_starts=1, replay_passes=0), particles(200))
    found = [i for i, r in enumerate(done.reports) for event in r.events if event.kind == "race"]
    assert len(found) == 1
    assert all(r.resolution_angstrom == (None,) for r in done.reports[: found[0]])


def test_optics_groups_are_told_apart_by_their_constants() -> None:
    other = Optics(200.0, 2.0, 0.07)
    images = particles(40)
    mixed = replace(
        images,
        optics=(images.optics[0], other),
        optics_group=np.arange(40, dtype=np.int32) // 20,
    )
    whole, apart = Engine(SETTINGS, GEOMETRY), Engine(SETTINGS, GEOMETRY)
    whole.add(mixed)
    first, second = images.span(slice(0, 20)), images.span(slice(20, 40))
    apart.add(first)
    apart.add(replace(second, optics=(other,)))
    assert differing(whole, apart) == []
    meta, _ = whole.dump()
    assert meta["optics"] == [[300.0, 2.7, 0.1], [200.0, 2.0, 0.07]]
    for engine in (whole, apart):
        list(engine.finish())
    assert differing(whole, apart) == []


def test_half_precision_images_are_welcome() -> None:
    half = replace(particles(60), images=particles(60).images.astype(np.float16))
    engine = run(replace(SETTINGS, replay_passes=0), half).engine
    assert np.any(engine.snapshot().classes[0].volume)


def test_images_of_another_box_are_refused() -> None:
    small = replace(particles(2), images=np.zeros((2, 30, 30), np.float32))
    with pytest.raises(ValueError, match=r"\(30, 30\) in a session with box 32"):
        Engine(SETTINGS, GEOMETRY).add(small)


def test_an_odd_box_is_refused_with_a_remedy() -> None:
    with pytest.raises(ValueError, match="even, not 33: crop or pad"):
        Engine(SETTINGS, Geometry(33, 10.0))


def test_a_resolution_that_leaves_no_shells_is_refused_with_what_to_ask_for() -> None:
    with pytest.raises(ValueError, match="ask for at most 53 A"):
        Engine(replace(SETTINGS, max_resolution_angstrom=80.0), GEOMETRY)


def test_the_schedule_is_what_was_set() -> None:
    slow = replace(SETTINGS, presentations_per_shell=600, initial_presentations=100)
    done = run(slow, particles())
    races = [[r for r in one.reports if r.phase == "initial"] for one in (done, plain())]
    assert races[0][-1].radius_shells < races[1][-1].radius_shells
    # past the race the minibatches are the final ones, where by default they are still small
    sizes = [[r.new_particles for r in one.reports if r.new_particles] for one in (done, plain())]
    assert max(sizes[0]) == SETTINGS.minibatch_final
    assert max(sizes[1]) == SETTINGS.minibatch_initial


# ---- a bounded store


BOUNDED = replace(SETTINGS, store_particles=130)


@pytest.fixture
def few_recent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reconstruct.store.RECENT", 20)


def test_a_store_with_room_for_all_changes_nothing() -> None:
    roomy = run(replace(SETTINGS, store_particles=PARTICLES), particles()).engine
    mine, other = state(roomy), state(plain().engine)
    assert [n for n in other if n != "meta" and not np.array_equal(mine[n], other[n])] == []


def test_a_full_store_trains_everything_and_replays_a_sample_and_says_so(
    few_recent: None,
) -> None:
    done = run(BOUNDED, particles())
    told = [e for r in done.reports for e in r.events if e.kind == "store_full"]
    assert len(told) == 1
    assert "130 particles" in told[0].message
    visits = done.engine.dump()[1]["store.visits"]
    assert visits.min() == 1  # each was trained
    assert (visits >= 3).sum() >= 150  # the race and two replays
    assert sum(r.replayed_particles for r in done.reports) == 2 * 120 + 2 * 150
    assert np.all(done.engine.assignments().class_index == 0)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_full_store_gives_the_same_bits_however_it_lives(
    precision: str, few_recent: None
) -> None:
    settings = replace(BOUNDED, store_precision=precision)
    whole = run(settings, particles()).engine
    assert differing(run(settings, particles(), cut=7).engine, whole) == []
    engine = Engine(settings, GEOMETRY)
    for start in (0, 100, 200):
        engine.add(particles().span(slice(start, start + 100)))
        while engine.ready:
            engine.step()
            engine = reloaded(engine, settings)
    while next(engine.finish(), None) is not None:
        engine = reloaded(engine, settings)
    assert differing(engine, whole) == []


def test_half_precision_gives_the_same_map() -> None:
    half = run(replace(SETTINGS, store_precision="float16"), particles()).engine
    one, other = (e.snapshot().classes[0].volume.ravel() for e in (half, plain().engine))
    assert np.corrcoef(one, other)[0, 1] > 0.999
    assert not np.array_equal(one, other)


def test_a_store_smaller_than_the_race_is_refused() -> None:
    with pytest.raises(ValueError, match="store_particles must be at least race_particles"):
        replace(SETTINGS, store_particles=100)
