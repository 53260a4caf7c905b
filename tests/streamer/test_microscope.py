"""The fake microscope sends every particle once, in order, when it is due, within the limit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from reconstruct.density import density_from_atoms
from reconstruct.io.simulated import write_set
from reconstruct.io.star import read_star
from reconstruct.simulate import Simulated, SimulationSettings, Species, simulate, simulate_set
from reconstruct.types import Geometry, ParticleImages
from schemas.codec import decode
from schemas.control import ControlRequest
from schemas.particles import ParticleBatch, ReferencePayload, particle_ids
from schemas.topics import Topics
from streamer.microscope import Burst, Clock, Pace, play
from streamer.microscope_sources import (
    batches_from_simulated,
    demo_chunks,
    references_from_simulated,
)
from streamer.references import particles_from_batch
from streamer.transports import open_transport
from streamer.transports.base import Record, Transport

GEOMETRY = Geometry(box=16, pixel_size_angstrom=8.0)
SETTINGS = SimulationSettings(
    n_particles=70, particles_per_micrograph=30, astigmatism_angstrom=500, seed=2
)
SESSION = "grid-7"


def chunks(settings: SimulationSettings = SETTINGS) -> Iterator[Simulated]:
    rng = np.random.default_rng(0)
    volume = density_from_atoms(
        rng.normal(scale=18.0, size=(30, 3)),
        np.ones(30),
        geometry=GEOMETRY,
        resolution_angstrom=20.0,
    )
    return simulate((Species(volume),), GEOMETRY, settings=settings)


def collected(settings: SimulationSettings = SETTINGS) -> list[Simulated]:
    return list(chunks(settings))


class FakeTime:
    """Time that only waiting moves; remembers how long each wait was."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.s = 100.0
        self.waits: list[float] = []
        self._stop_after = stop_after

    def wait(self, seconds: float) -> bool:
        self.waits.append(seconds)
        self.s += seconds
        return self._stop_after is not None and len(self.waits) >= self._stop_after

    def clock(self) -> Clock:
        return Clock(lambda: self.s, lambda: int(self.s * 1e9), self.wait)


@pytest.fixture
def bus(request: pytest.FixtureRequest) -> Iterator[Transport]:
    with open_transport(f"memory://{request.node.name}") as transport:
        yield transport


def records(bus: Transport, topic: str) -> list[Record]:
    with bus.consumer([topic]) as consumer:
        consumer.seek_to_beginning()
        return consumer.poll(1000, 0.0)


def batches(bus: Transport) -> list[tuple[ParticleBatch, dict[str, np.ndarray]]]:
    found = []
    for record in records(bus, Topics().particles):
        decoded = decode(record.value)
        assert isinstance(decoded.record, ParticleBatch)
        assert record.key == SESSION.encode()
        found.append((decoded.record, dict(decoded.arrays)))
    return found


def simulated_batches() -> Iterator:
    return batches_from_simulated(chunks(), session_id=SESSION)


def test_every_particle_arrives_once_in_order_with_its_pixels_and_ctf(bus: Transport) -> None:
    reports = list(play(bus, simulated_batches(), session_id=SESSION))
    truth = collected()
    assert [report.particles for report in reports] == [30, 30, 10]
    assert reports[-1].total_particles == 70
    sent = batches(bus)
    ids = np.concatenate([arrays["particle_id"] for _, arrays in sent])
    assert np.array_equal(ids, np.concatenate([part.particle_ids for part in truth]))
    for (record, arrays), part in zip(sent, truth, strict=True):
        np.testing.assert_allclose(arrays["images"], part.images, atol=5e-3)  # float16
        np.testing.assert_array_equal(arrays["defocus_u_angstrom"], part.defocus_u_angstrom)
        np.testing.assert_array_equal(arrays["defocus_angle_rad"], part.defocus_angle_rad)
        assert record.geometry.pixel_size_angstrom == 8.0
        assert record.optics_groups[0].amplitude_contrast == 0.1
        assert np.array_equal(arrays["particle_id"], particle_ids(record.image_names))


def test_a_pace_lets_no_micrograph_out_before_it_is_due(bus: Transport) -> None:
    time = FakeTime()
    pace = Pace(particles_per_second=10.0)
    elapsed = [
        report.elapsed_s
        for report in play(
            bus, simulated_batches(), session_id=SESSION, pace=pace, clock=time.clock()
        )
    ]
    assert elapsed == pytest.approx([3.0, 6.0, 7.0])
    assert time.waits == pytest.approx([3.0, 3.0, 1.0])
    assert [record.acquired_at_ns for record, _ in batches(bus)] == [
        103_000_000_000,
        106_000_000_000,
        107_000_000_000,
    ]


def test_a_late_microscope_does_not_wait_and_says_how_late_it_is(bus: Transport) -> None:
    time = FakeTime()
    playing = play(
        bus,
        simulated_batches(),
        session_id=SESSION,
        pace=Pace(particles_per_second=10.0),
        clock=time.clock(),
    )
    assert next(playing).late_s == 0
    time.s += 5.0
    assert next(playing).late_s == pytest.approx(2.0)
    assert len(time.waits) == 1


def test_without_a_rate_nothing_waits(bus: Transport) -> None:
    time = FakeTime()
    list(play(bus, simulated_batches(), session_id=SESSION, clock=time.clock()))
    assert time.waits == []


def test_a_burst_comes_ten_times_faster_and_only_where_asked() -> None:
    pace = Pace(particles_per_second=10.0, burst=Burst(after_particles=100, particles=200))
    assert pace.due_s(100) == pytest.approx(10.0)
    assert pace.due_s(300) == pytest.approx(12.0)
    assert pace.due_s(400) == pytest.approx(22.0)


def test_it_stops_when_waiting_is_interrupted(bus: Transport) -> None:
    time = FakeTime(stop_after=2)
    reports = list(
        play(
            bus,
            simulated_batches(),
            session_id=SESSION,
            pace=Pace(particles_per_second=10.0),
            clock=time.clock(),
            end_session=True,
        )
    )
    assert [report.particles for report in reports] == [30]
    assert records(bus, Topics().control) == []


def test_the_end_is_asked_for_after_the_last_particle(bus: Transport) -> None:
    kinds = []
    for report in play(bus, simulated_batches(), session_id=SESSION, end_session=True):
        kinds.append(report.kind)
        assert len(records(bus, Topics().control)) == (report.kind == "end")
    assert kinds == ["particles"] * 3 + ["end"]
    request = decode(records(bus, Topics().control)[0].value).record
    assert isinstance(request, ControlRequest)
    assert request.action == "end"
    assert request.envelope.session_id == SESSION


def test_nothing_is_sent_before_it_is_iterated(bus: Transport) -> None:
    play(bus, simulated_batches(), session_id=SESSION)
    playing = play(bus, simulated_batches(), session_id=SESSION)
    next(playing)
    assert len(batches(bus)) == 1


def test_playing_again_repeats_the_record_ids(bus: Transport) -> None:
    for _ in range(2):
        list(play(bus, simulated_batches(), session_id=SESSION))
    ids = [record.envelope.record_id for record, _ in batches(bus)]
    assert ids[:3] == ids[3:]
    assert len(set(ids)) == 3


def test_a_micrograph_beyond_the_limit_is_split_into_whole_records() -> None:
    settings = replace(SETTINGS, n_particles=200, particles_per_micrograph=200)
    with open_transport("memory://narrow", max_record_bytes=80_000) as bus:
        source = batches_from_simulated(chunks(settings), session_id=SESSION)
        reports = list(play(bus, source, session_id=SESSION))
        sent = batches(bus)
        assert reports[0].records == len(sent) > 1
        assert all(record.size_bytes <= 80_000 for record in records(bus, Topics().particles))
        names = [name for record, _ in sent for name in record.image_names]
        assert len(names) == len(set(names)) == 200


def test_references_point_at_stacks_that_hold_the_same_pixels(
    bus: Transport, tmp_path: Path
) -> None:
    source = references_from_simulated(tmp_path, chunks(), session_id=SESSION)
    list(play(bus, source, session_id=SESSION))
    sent = batches(bus)
    assert [record.count for record, _ in sent] == [30, 30, 10]
    for (record, arrays), part in zip(sent, collected(), strict=True):
        assert isinstance(record.payload, ReferencePayload)
        fetched = particles_from_batch(record, arrays, allowed_roots=[tmp_path])
        assert isinstance(fetched, ParticleImages)
        np.testing.assert_array_equal(fetched.images, part.images)
        np.testing.assert_array_equal(fetched.particle_ids, part.particle_ids)


def test_a_star_file_is_played_micrograph_by_micrograph(bus: Transport, tmp_path: Path) -> None:
    table = read_star(write_set(tmp_path, chunks()))
    reports = list(play(bus, table, session_id=SESSION, payload="inline"))
    assert sum(report.particles for report in reports) == 70
    images = np.concatenate([arrays["images"] for _, arrays in batches(bus)])
    np.testing.assert_allclose(
        images, np.concatenate([part.images for part in collected()]), atol=5e-3
    )


@pytest.mark.data
def test_a_real_star_file_is_played_whole(bus: Transport, data_dir: Path) -> None:
    table = read_star(data_dir / "real_apoferritin" / "Particles_64px.star")
    reports = list(play(bus, table, session_id=SESSION, payload="reference"))
    assert reports[-1].total_particles == 1306
    assert len(reports) == 10  # one batch per micrograph


def test_a_written_set_reads_back_as_it_was_simulated(tmp_path: Path) -> None:
    write_set(tmp_path, chunks())
    made = simulate_set(
        (Species(np.ones((16, 16, 16))),), GEOMETRY, settings=SETTINGS
    )  # only its truth is used, which does not depend on the volume
    table = read_star(tmp_path / "truth.star")
    assert table.rotations is not None
    assert table.shifts_angstrom is not None
    np.testing.assert_allclose(table.rotations, made.rotations, atol=1e-6)
    np.testing.assert_allclose(table.shifts_angstrom, made.shifts_angstrom, atol=1e-5)
    np.testing.assert_allclose(table.defocus_u_angstrom, made.defocus_u_angstrom, atol=1e-3)
    np.testing.assert_allclose(table.defocus_angle_rad, made.defocus_angle_rad, atol=1e-6)
    assert np.array_equal(particle_ids(table.image_names), made.particle_ids)
    assert read_star(tmp_path / "particles.star").rotations is None


@pytest.mark.parametrize("rate", [0.0, -1.0])
def test_a_pace_that_never_ends_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="particles_per_second"):
        Pace(particles_per_second=rate)


def test_the_demo_has_its_species_and_junk() -> None:
    small = Geometry(box=24, pixel_size_angstrom=12.0)
    chunk = next(demo_chunks(100, n_species=3, junk_fraction=0.2, seed=1, geometry=small))
    assert set(chunk.species.tolist()) == {-1, 0, 1, 2}
    with pytest.raises(ValueError, match="n_species"):
        demo_chunks(10, n_species=4)
