"""A subscriber has every snapshot once, verified, whether the maps travel or lie on a disk."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from streamer.subscribe import Received, subscribe
from tests.streamer.bench import Bench

_numbers = itertools.count()


@pytest.fixture(autouse=True)
def _no_power_cuts_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda handle: None)


@pytest.fixture
def ended(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(
        tmp_path,
        f"memory://subscribe-{next(_numbers)}",
        {"snapshots.inline_volumes": True},
    )
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
    received = listen(ended, tmp_path / "to")
    with mrcfile.open(received[-1].folder / "class_002.mrc") as file:
        travelled = file.data.copy()
        assert file.voxel_size.x == pytest.approx(3.0)
    (original,) = (ended.settings.out / "series").glob("*-final/class_002.mrc")
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
