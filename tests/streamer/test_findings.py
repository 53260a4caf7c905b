"""What is wrong with the particles or the maps is told once, in words and numbers."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import mrcfile
import numpy as np
import pytest

import streamer.host
from reconstruct.engine_events import spherical_event
from reconstruct.io.simulated import write_set
from reconstruct.simulate import Simulated, SimulationSettings, Species, simulate
from reconstruct.snapshot import view_histogram
from reconstruct.structures import demo_particle
from reconstruct.symmetry import parse_group
from reconstruct.types import (
    Assignments,
    ClassSnapshot,
    EngineEvent,
    Geometry,
    Snapshot,
    StepReport,
)
from reconstruct.verdicts import preferred_orientation
from schemas.events import SessionEvent
from streamer.findings import find, news, with_all_views
from streamer.microscope import play
from streamer.microscope_sources import Batch, batches_from_simulated
from streamer.observe import Observer
from tests.integration.processes import inside
from tests.streamer.bench import Bench, Crash, crash_at
from tests.streamer.fake_engine import FakeEngine

GEOMETRY = Geometry(32, 10.0)
_numbers = itertools.count()


@pytest.fixture(autouse=True)
def _no_power_cuts_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda handle: None)


def rotations(n: int, seed: int = 0) -> np.ndarray:
    """Even rotations."""
    q = np.random.default_rng(seed).standard_normal((n, 4))
    w, x, y, z = (q / np.linalg.norm(q, axis=1, keepdims=True)).T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(rows), -1, 0)


def one_class(volume: np.ndarray, poses: np.ndarray, **more: object) -> Snapshot:
    item = ClassSnapshot(
        volume, volume, volume, np.ones(9), 20.0, len(poses), 1.0, 1.0, view_histogram(poses)
    )
    snapshot = Snapshot(3, "final", len(poses), len(poses), Geometry(32, 5.0), (item,))
    return replace(snapshot, **more)


def assigned(poses: np.ndarray) -> Assignments:
    n = len(poses)
    ones = np.ones(n)
    return Assignments(
        np.arange(n, dtype=np.uint64), np.zeros(n, int), poses, np.zeros((n, 2)), ones, ones,
        np.ones(n, int),
    )  # fmt: skip


def ring(fold: int) -> np.ndarray:
    """Blobs that have a Cn axis along z and nothing more."""
    z, y, x = np.mgrid[-16:16, -16:16, -16:16].astype(float)
    volume = np.zeros((32, 32, 32))
    for height, radius, angle in ((-4.0, 7.0, 0.0), (3.0, 5.0, 0.7), (0.0, 8.0, 1.1)):
        for turn in 2 * np.pi * np.arange(fold) / fold + angle:
            dx, dy = x - radius * np.cos(turn), y - radius * np.sin(turn)
            volume += np.exp(-(dx**2 + dy**2 + (z - height) ** 2) / 4.5)
    return volume.astype(np.float32)


def test_views_of_one_asymmetric_unit_are_not_preferred_ones() -> None:
    operators = parse_group("D7").operators
    copies = np.einsum("nij,mjk->nmik", rotations(2_000), operators)
    nearest = np.argmax(copies[:, :, 2] @ np.array([1.0, 0.2, 0.5]), axis=1)
    unit = copies[np.arange(2_000), nearest]  # of each particle's equal views, one and the same
    snapshot = one_class(np.zeros((32, 32, 32)), unit)
    assert preferred_orientation(snapshot.classes[0].view_histogram) is not None
    whole, views = with_all_views(snapshot, assigned(unit), group="D7")
    assert preferred_orientation(whole.classes[0].view_histogram) is None
    assert views[0].shape == (14 * len(unit), 3)
    assert whole.classes[0].view_histogram.sum() == 14 * len(unit)


def test_one_of_several_equal_sides_is_no_preferred_one() -> None:
    poses = rotations(4000)
    quarter = np.abs(np.arctan2(poses[:, 2, 1], poses[:, 2, 0])) < np.pi / 4
    poses = poses[quarter]  # of a particle that looks the same from four sides
    for volume, told in ((ring(4), False), (demo_particle(GEOMETRY), True)):
        plain = one_class(volume, poses)
        (item,) = plain.classes
        snapshot = replace(plain, classes=(replace(item, resolution_angstrom=15.0),))
        _, views = with_all_views(snapshot, assigned(poses), group="C1")
        found = find(snapshot, views, group="C1", is_final=False)
        assert ("preferred_orientation/0" in found) is told


def test_the_symmetry_of_a_c1_map_is_named_at_the_end_only() -> None:
    poses = rotations(500)
    snapshot = one_class(ring(4), poses, geometry=Geometry(32, 8.0))
    snapshot, views = with_all_views(snapshot, assigned(poses), group="C1")
    found = find(snapshot, views, group="C1", is_final=True)
    (named,) = [entry for entry in found.values() if entry["kind"] == "symmetry_named"]
    assert "C4" in named["message"]
    assert named["values"]["score"] > 0.4
    for more in ({"is_final": False, "group": "C1"}, {"is_final": True, "group": "C4"}):
        assert "symmetry_named/0" not in find(snapshot, views, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(("particles", "phase"), [(299, "final"), (400, "initial")])
def test_nothing_is_said_too_early(particles: int, phase: str) -> None:
    poses = np.broadcast_to(np.eye(3), (particles, 3, 3))
    snapshot = one_class(ring(1), poses, phase=phase)
    assert find(snapshot, (poses[:, 2],), group="C1", is_final=True) == {}


def test_news_are_changes() -> None:
    entry = {"class": 1, "kind": "flattened_disc", "message": "words", "values": {"a": 1.0}}
    now = {"flattened_disc/0": entry}
    assert [event.kind for event in news({}, now)] == ["flattened_disc"]
    assert list(news(now, now)) == []
    (gone,) = news(now, {})
    assert gone.kind == "verdict_withdrawn"
    assert "flattened disc" in gone.message


def test_how_a_session_goes_is_told_when_it_changes() -> None:
    poses = rotations(400)
    views = (poses[:, 2], poses[:, 2])
    item = one_class(ring(1), poses).classes[0]
    apart = (replace(item, overlap=(0.0, 0.1)), replace(item, overlap=(0.1, 0.0)))
    alike = (replace(item, overlap=(0.0, 0.4)), replace(item, overlap=(0.1, 0.0)))
    course = [
        one_class(ring(1), poses, classes=apart),
        one_class(ring(1), poses, classes=alike),
        one_class(ring(1), poses, classes=apart, converged=True, held_out_gain=(0.0, 0.005)),
        one_class(ring(1), poses, classes=apart),
    ]
    told, before = [], {}
    for snapshot in course:
        now = find(snapshot, views, group="C1", is_final=False)
        told.append([(event.kind, event.class_index) for event in news(before, now)])
        before = now
    assert told == [
        [],
        [("class_overlap", 0)],
        [("converged", 0), ("verdict_withdrawn", 0)],
        [("verdict_withdrawn", 0)],
    ]


class OneView(FakeEngine):
    """Sees every particle from the same side."""

    def snapshot(self) -> Snapshot:
        found = super().snapshot()
        views = view_histogram(np.broadcast_to(np.eye(3), (1000, 3, 3)))
        return replace(
            found,
            phase="final",
            classes=tuple(replace(item, view_histogram=views) for item in found.classes),
        )


@pytest.mark.parametrize("crash", [None, ("announced", 2), ("announced", 3), ("written", 3)])
def test_preferred_views_are_told_once_however_often_the_process_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash: tuple[str, int] | None
) -> None:
    monkeypatch.setattr("tests.streamer.bench.FakeEngine", OneView)
    told: list[str] = []

    class Ears(Observer):
        def found(self, event: EngineEvent) -> None:
            told.append(event.kind)

    bench = Bench(
        tmp_path, f"memory://findings-{next(_numbers)}",
        {"engine.n_classes": 1, "snapshots.every_particles": 100},
    )  # fmt: skip
    bench.send_batches(*range(20))
    bench.control("end")
    if crash is not None:
        with pytest.raises(Crash):
            bench.run(crash_at(*crash), observer=Ears())
    finished = bench.run(observer=Ears())
    events = [each for each in bench.read(bench.topics.events) if isinstance(each, SessionEvent)]
    bench.close()
    assert Counter(event.kind for event in events)["preferred_orientation"] == 1
    (event,) = [event for event in events if event.kind == "preferred_orientation"]
    assert event.severity == "warning"
    assert event.class_index == 0
    assert event.values["orientation_coverage"] < 0.1
    assert event.snapshot_id is not None
    assert set(finished.state.verdicts) == {"preferred_orientation/0"}
    if crash is None:
        assert told == ["preferred_orientation"]


class NearlyABall(FakeEngine):
    """Says in its third step that its particles are nearly balls."""

    def _update(self, start: int, stop: int) -> StepReport:
        report = super()._update(start, stop)
        return replace(report, events=(BALL,)) if report.step == 3 else report


BALL = spherical_event(0.2, "O", starts=6)


@pytest.mark.parametrize("crash", [None, ("trained", 3), ("announced", 1), ("saving", 4)])
def test_a_particle_that_is_nearly_a_ball_stays_among_the_verdicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash: tuple[str, int] | None
) -> None:
    monkeypatch.setattr("tests.streamer.bench.FakeEngine", NearlyABall)
    bench = Bench(tmp_path, f"memory://ball-{next(_numbers)}", {"snapshots.every_particles": 100})
    bench.send_batches(*range(10))
    bench.control("end")
    if crash is not None:
        with pytest.raises(Crash):
            bench.run(crash_at(*crash))
    finished = bench.run()
    events = [each for each in bench.read(bench.topics.events) if isinstance(each, SessionEvent)]
    bench.close()
    kinds = Counter(event.kind for event in events)
    assert kinds["near_spherical"] == 1
    assert kinds["verdict_withdrawn"] == 0
    assert kinds["snapshot"] > 2
    verdict = finished.state.verdicts["near_spherical/0"]
    assert "the opposite of each" in verdict["message"]
    assert verdict["values"] == {"view_share": 0.2}


def test_the_report_of_a_run_says_that_the_particle_is_nearly_a_ball(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streamer.host, "engine_factory", lambda backend: NearlyABall)
    star = write_set(tmp_path / "set", simulated(400))
    assert inside("run", str(star), f"--out={tmp_path / 'out'}").returncode == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    (verdict,) = report["verdicts"]
    assert (verdict["kind"], verdict["message"]) == ("near_spherical", BALL.message)


def simulated(n: int) -> Iterator[Simulated]:
    settings = SimulationSettings(n_particles=n, snr=0.3, particles_per_micrograph=100)
    return simulate([Species(demo_particle(GEOMETRY))], GEOMETRY, settings=settings)


def inverted(batches: Iterator[Batch]) -> Iterator[Batch]:
    for record, arrays in batches:
        yield record, {**arrays, "images": -arrays["images"]}


@pytest.mark.parametrize("n", [300, 1200])
@pytest.mark.parametrize(("change", "expected"), [(inverted, 1), (iter, 0)])
def test_dark_particles_are_told_loudly_once_and_bright_ones_are_not(
    tmp_path: Path, n: int, change: Callable[[Iterator[Batch]], Iterator[Batch]], expected: int
) -> None:
    bench = Bench(tmp_path, f"memory://contrast-{next(_numbers)}")
    batches = change(batches_from_simulated(simulated(n), session_id="s"))
    for _ in play(bench.transport, batches, session_id="s", topics=bench.topics, end_session=True):
        pass
    if n == 1200:  # in the middle of the stream, and not again after a crash
        with pytest.raises(Crash):
            bench.run(crash_at("trained", 27))
    bench.run()
    events = [each for each in bench.read(bench.topics.events) if isinstance(each, SessionEvent)]
    bench.close()
    found = [event for event in events if event.kind == "contrast_inverted"]
    assert len(found) == expected
    for event in found:
        assert event.severity == "warning"
        assert "CONTRAST INVERTED" in event.message
        assert event.values["difference"] < 0
        assert event.values["images"] == min(n, 1000)


@pytest.mark.parametrize("dark", [True, False])
def test_run_inverts_dark_particles_of_a_file_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dark: bool
) -> None:
    monkeypatch.setattr(streamer.host, "engine_factory", lambda backend: FakeEngine)
    star = write_set(tmp_path / "set", simulated(400))
    for stack in (tmp_path / "set").rglob("*.mrcs") if dark else ():
        with mrcfile.open(stack, mode="r+") as file:
            file.set_data(-file.data)
    done = inside("run", str(star), f"--out={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    assert ("protein is dark in the images, which are inverted" in done.stderr) == dark
    assert "contrast_inverted" not in done.stdout  # the engine gets them bright either way
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["verdicts"] == []
