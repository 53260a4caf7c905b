"""A growing file is followed: every particle once, in order of appearance, the last ones too."""

from __future__ import annotations

from pathlib import Path

import pytest

import streamer.host
from reconstruct.io.simulated import write_live
from reconstruct.io.star import read_star
from schemas.particles import ReferencePayload
from streamer.attach import Following, follow_file
from tests.integration.processes import inside
from tests.streamer.fake_engine import FakeEngine
from tests.streamer.small_star import small_chunks


def test_every_particle_comes_once_as_the_file_grows(tmp_path: Path) -> None:
    growing = write_live(tmp_path, small_chunks(240, per_micrograph=80))
    said: list[str] = []
    looks = 0

    def wait(seconds: float) -> bool:
        nonlocal looks
        looks += 1
        if looks % 3 == 0:  # the file stands still for two looks between two rewrites
            return next(growing, None) is None
        return False

    batches = list(
        follow_file(
            tmp_path / "particles.star",
            Following("s", reference_root=tmp_path),
            read=read_star,
            wait=wait,
            say=said.append,
        )
    )
    names = [name for batch, _ in batches for name in batch.image_names]
    assert len(names) == len(set(names)) == 240
    assert [batch.count for batch, _ in batches] == [80, 80, 80]
    assert all(isinstance(batch.payload, ReferencePayload) for batch, _ in batches)
    assert any("to appear" in words for words in said)


def test_a_quiet_time_ends_it_after_one_more_look(tmp_path: Path) -> None:
    list(write_live(tmp_path, small_chunks(80, per_micrograph=80)))
    now = [0.0]

    def wait(seconds: float) -> bool:
        now[0] += seconds
        return False

    batches = list(
        follow_file(
            tmp_path / "particles.star",
            Following("s", every_s=5.0, idle_end_s=30.0),
            read=read_star,
            wait=wait,
            clock_s=lambda: now[0],
        )
    )
    assert sum(batch.count for batch, _ in batches) == 80
    assert 30 <= now[0] <= 45


def test_run_follow_ends_with_maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamer.host, "engine_factory", lambda backend: FakeEngine)
    list(write_live(tmp_path / "live", small_chunks(240, per_micrograph=80)))
    out = tmp_path / "out"
    done = inside(
        "run", str(tmp_path / "live" / "particles.star"), f"--out={out}", "--follow",
        "--idle-end=0.1", "--set=snapshots.pictures=false",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "240 particles trained of 240" in done.stdout
    assert (out / "class_001.mrc").exists()


def test_attach_sends_the_particles_and_ends_the_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streamer.host, "engine_factory", lambda backend: FakeEngine)
    list(write_live(tmp_path / "live", small_chunks(240, per_micrograph=80)))
    where = (f"--bus=sqlite:///{tmp_path}/bus.db", "--session=grid1")
    sent = inside(
        "attach", "relion", str(tmp_path / "live" / "particles.star"), *where,
        f"--root={tmp_path / 'live'}", "--every=0.1", "--idle-end=0.1",
    )  # fmt: skip
    assert sent.returncode == 0, sent.stderr
    served = inside(
        "serve", *where, f"--out={tmp_path / 'out'}", f"--root={tmp_path / 'live'}",
        "--metrics-port=0", "--set=snapshots.pictures=false",
    )  # fmt: skip
    assert served.returncode == 0, served.stderr
    assert "240 particles trained of 240" in served.stdout
