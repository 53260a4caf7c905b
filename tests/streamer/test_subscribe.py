"""A subscriber has every snapshot once, verified, whether the maps travel or lie on a disk."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from reconstruct.types import Snapshot
from schemas.volumes import VolumeSnapshot
from streamer.maps import write_maps
from streamer.subscribe import Received, subscribe
from tests.streamer.bench import Bench
from tests.streamer.fake_engine import FakeEngine

_numbers = itertools.count()


@pytest.fixture(autouse=True)
def _no_power_cuts_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda handle: None)


@pytest.fixture
def ended(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path, f"memory://subscribe-{next(_numbers)}")
    bench.send_batches(*range(8))
    bench.control("end")
    bench.run()
    yield bench
    bench.close()


def listen(bench: Bench, to: Path, **more: object) -> list[Received]:
    return list(subscribe(bench.transport, bench.topics, to, session_id="s", **more))


def test_maps_are_copied_and_verified(ended: Bench, tmp_path: Path) -> None:
    out = ended.settings.out
    received = listen(ended, tmp_path / "to", source=out)
    assert len(received) >= 3
    assert [each.is_final for each in received] == [False] * (len(received) - 1) + [True]
    assert all(each.maps == 6 and each.problems == () for each in received)
    assert received[-1].poses == 240
    theirs = (received[-1].folder / "class_001_half1.mrc").read_bytes()
    (ours,) = (out / "series").glob("*-final/class_001_half1.mrc")
    assert theirs == ours.read_bytes()


def test_maps_that_travel_need_no_shared_disk(ended: Bench, tmp_path: Path) -> None:
    ended.settings.out.rename(tmp_path / "elsewhere")
    received = listen(ended, tmp_path / "to")
    assert all(each.maps == 2 and each.problems == () for each in received)
    assert mrcfile.validate(received[-1].folder / "class_002.mrc")
    with mrcfile.open(received[-1].folder / "class_002.mrc") as file:
        travelled = file.data.copy()
        assert file.voxel_size.x == pytest.approx(3.0)
    (original,) = (tmp_path / "elsewhere" / "series").glob("*-final/class_002.mrc")
    with mrcfile.open(original) as file:
        np.testing.assert_allclose(travelled, file.data, rtol=1e-3, atol=1e-3)


def test_a_changed_map_is_not_passed_on(ended: Bench, tmp_path: Path) -> None:
    (victim,) = (ended.settings.out / "series").glob("*-final/class_001.mrc")
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.write_bytes(data)
    received = listen(ended, tmp_path / "to", source=ended.settings.out)
    assert "another digest" in received[-1].problems[0]
    assert not (received[-1].folder / "class_001.mrc").exists()
    assert received[-1].maps == 5


def test_a_restarted_subscriber_repeats_nothing(ended: Bench, tmp_path: Path) -> None:
    first = listen(ended, tmp_path / "to")
    assert listen(ended, tmp_path / "to") == []
    assert len(list((tmp_path / "to").iterdir())) == len(first)


def test_poses_name_particles_and_classes(ended: Bench, tmp_path: Path) -> None:
    received = listen(ended, tmp_path / "to")
    lines = (received[-1].folder / "particles.star").read_text().splitlines()
    rows = [line.split() for line in lines if "@stack" in line]
    assert len(rows) == 240
    assert {row[6] for row in rows} == {"1", "2"}
    assert {row[8] for row in rows} == {"1", "2"}


@pytest.mark.parametrize("bus", ["memory", "sqlite"])
@pytest.mark.parametrize("inline", ["auto", "never"])
def test_on_one_machine_every_map_arrives_without_a_flag(
    tmp_path: Path, bus: str, inline: str
) -> None:
    name = f"memory://here-{next(_numbers)}" if bus == "memory" else f"sqlite:///{tmp_path}/b.db"
    bench = Bench(tmp_path, name, {"snapshots.inline_volumes": inline})
    bench.send_batches(*range(4))
    bench.control("end")
    bench.run()
    received = listen(bench, tmp_path / "to")
    bench.close()
    assert all(each.maps == 6 and each.problems == () for each in received)
    for theirs in received[-1].folder.glob("*.mrc"):
        assert mrcfile.validate(theirs)
        (ours,) = (bench.settings.out / "series").glob(f"*-final/{theirs.name}")
        assert theirs.read_bytes() == ours.read_bytes()


def test_maps_that_neither_travel_nor_lie_here_are_said_to_be_missing(tmp_path: Path) -> None:
    bus = f"memory://none-{next(_numbers)}"
    bench = Bench(tmp_path, bus, {"snapshots.inline_volumes": "never"})
    bench.send_batches(*range(4))
    bench.control("end")
    bench.run()
    bench.settings.out.rename(tmp_path / "elsewhere")
    received = listen(bench, tmp_path / "to")
    bench.close()
    assert received[-1].maps == 0
    assert "--source" in received[-1].problems[0]


def test_a_changed_file_here_gives_way_to_the_map_that_travelled(
    ended: Bench, tmp_path: Path
) -> None:
    (victim,) = (ended.settings.out / "series").glob("*-final/class_001.mrc")
    original = victim.read_bytes()
    victim.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    received = listen(ended, tmp_path / "to")
    with mrcfile.open(received[-1].folder / "class_001.mrc") as file:
        travelled = file.data.copy()
    np.testing.assert_allclose(
        travelled, np.frombuffer(original[-4 * travelled.size :], "<f4").reshape(travelled.shape),
        rtol=1e-3, atol=1e-3,
    )  # fmt: skip


@pytest.mark.parametrize(
    "path", ["../secret.mrc", "/etc/passwd", "link.mrc", "large.mrc", "notes.txt"]
)
def test_a_manifest_cannot_fetch_other_files(ended: Bench, tmp_path: Path, path: str) -> None:
    origin = tmp_path / "origin"
    origin.mkdir()
    secret = b"secret"
    (tmp_path / "secret.mrc").write_bytes(secret)
    (origin / "notes.txt").write_bytes(secret)
    (origin / "link.mrc").symlink_to(tmp_path / "secret.mrc")
    (origin / "large.mrc").write_bytes(bytes(1 << 20))
    data = bytes(1 << 20) if path == "large.mrc" else secret
    record = ended.read(ended.topics.volumes)[0]
    assert isinstance(record, VolumeSnapshot)
    digest = hashlib.sha256(data).hexdigest()
    entry = record.classes[0].model_copy(update={"path": path, "sha256": digest})
    record = record.model_copy(update={"classes": (entry,), "output_folder": str(origin)})
    to = tmp_path / "to"
    to.mkdir()
    written, problems = write_maps(to, record, {}, None)
    assert written == 0
    assert any(path in problem for problem in problems)
    assert list(to.iterdir()) == []


def test_maps_that_float16_cannot_hold_travel_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = FakeEngine.snapshot

    def bright(self: FakeEngine) -> Snapshot:
        found = snapshot(self)
        return replace(
            found, classes=tuple(replace(c, volume=c.volume * 1e6) for c in found.classes)
        )

    monkeypatch.setattr(FakeEngine, "snapshot", bright)
    bench = Bench(tmp_path, f"memory://bright-{next(_numbers)}")
    bench.send_batches(*range(4))
    bench.control("end")
    bench.run()
    bench.settings.out.rename(tmp_path / "elsewhere")
    received = listen(bench, tmp_path / "to")
    bench.close()
    (ours,) = (tmp_path / "elsewhere" / "series").glob("*-final/class_001.mrc")
    with mrcfile.open(ours) as a, mrcfile.open(received[-1].folder / "class_001.mrc") as b:
        np.testing.assert_array_equal(a.data, b.data)
