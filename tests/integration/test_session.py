"""Whole sessions in processes of their own, on each bus, killed half-way, with a subscriber."""

from __future__ import annotations

import itertools
import json
import random
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from schemas.codec import decode
from schemas.topics import Topics
from schemas.volumes import VolumeSnapshot
from streamer.transports import open_transport
from tests.integration.processes import inside, lines_until, run, started

PARTICLES = 600
STOP_BUDGET_S = 20.0
_numbers = itertools.count()


@pytest.fixture(params=["sqlite", pytest.param("kafka", marks=pytest.mark.kafka)])
def bus(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "kafka":
        return f"kafka://{request.getfixturevalue('kafka_bootstrap')}"
    return new_bus(tmp_path)


def new_bus(folder: Path) -> str:
    """Make a bus of one file: who asks before ``serve`` is up would be told that there is none."""
    url = f"sqlite:///{folder}/bus.db"
    open_transport(url).close()
    return url


@pytest.fixture
def prefix() -> str:
    """Topics of this test alone, on a broker that tests share."""
    return f"session{time.time_ns()}x{next(_numbers)}"


def serve_arguments(bus: str, prefix: str, out: Path, *extra: str) -> list[str]:
    settings = {
        "engine.minibatch_initial": 50,
        "engine.replay_passes": 1,
        "checkpoint.every_particles": 120,
        "snapshots.first_particles": 100,
        "snapshots.every_particles": 200,
        "snapshots.pictures": "false",
        "batch.max_records": 2,
        "metrics.enabled": "false",
        "limits.stop_budget_s": STOP_BUDGET_S,
        "limits.crashes_per_record": 1000,
    }
    given = [f"--set={name}={value}" for name, value in settings.items()]
    return ["serve", "--bus", bus, "--prefix", prefix, "--session", "grid1", f"--out={out}",
            *given, *extra]  # fmt: skip


def record_particles(bus: str, prefix: str, *extra: str) -> None:
    done = inside(
        "microscope", "--bus", bus, "--prefix", prefix, "--session", "grid1",
        f"--particles={PARTICLES}", "--box=16", "--pixel-size=12", "--end", *extra,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def announced(bus: str, prefix: str) -> Counter[str]:
    topic = Topics(prefix).volumes
    names: Counter[str] = Counter()
    with open_transport(bus) as transport, transport.consumer([topic]) as consumer:
        consumer.seek_to_beginning()
        end = consumer.end_offset(topic)
        while consumer.position(topic) < end:
            for raw in consumer.poll(100, 1.0):
                record = decode(raw.value).record
                assert isinstance(record, VolumeSnapshot)
                names[record.snapshot_id] += 1
    return names


def maps(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.mrc"))}


def test_kill_9_half_way_counts_every_particle_once_and_ends_with_the_same_bytes(
    bus: str, prefix: str, tmp_path: Path
) -> None:
    calm = tmp_path / "calm"
    record_particles(bus, prefix)
    ended = run(*serve_arguments(bus, prefix, calm))
    assert ended.returncode == 0, ended.stdout + ended.stderr

    again = f"{prefix}again"
    out = tmp_path / "killed"
    record_particles(bus, again)
    with started(
        "subscribe", "--bus", bus, "--prefix", again, "--session", "grid1",
        f"--to={tmp_path / 'mirror'}",
    ) as subscriber:  # fmt: skip
        with started(*serve_arguments(bus, again, out), FAKE_STEP_S="0.01") as process:
            lines_until(process, "step step=6 ")
            process.send_signal(signal.SIGKILL)
            assert process.wait(30) == -signal.SIGKILL
        final = run(*serve_arguments(bus, again, out))
        assert final.returncode == 0, final.stdout + final.stderr
        assert "resumed step=" in final.stdout
        seen, _ = subscriber.communicate(timeout=60)
    assert subscriber.returncode == 0

    report = json.loads((out / "report.json").read_text())
    assert report["particles"]["received"] == PARTICLES
    assert report["particles"]["trained"] == PARTICLES
    assert report["particles"]["duplicate"] == 0
    assert maps(out) == maps(calm)
    snapshots = announced(bus, again)
    assert set(snapshots.values()) == {1}
    assert list(snapshots) == list(announced(bus, prefix))
    mirrored = sorted(path.name for path in (tmp_path / "mirror").iterdir())
    assert mirrored == sorted(snapshots)
    last = tmp_path / "mirror" / report["last_snapshot"]
    assert (last / "class_001.mrc").read_bytes() == (out / "class_001.mrc").read_bytes()
    stars = (last / "particles.star").read_text()
    assert sum("@Particles/" in line for line in stars.splitlines()) == PARTICLES
    with mrcfile.open(last / "class_001.mrc") as file:
        assert file.voxel_size.x == pytest.approx(12.0)
        assert np.isfinite(file.data).all()
    assert f"{PARTICLES} poses" in seen


def test_kill_9_at_random_moments_ends_with_the_same_bytes(tmp_path: Path) -> None:
    bus = f"sqlite:///{tmp_path}/bus.db"
    record_particles(bus, "calm")
    assert run(*serve_arguments(bus, "calm", tmp_path / "calm")).returncode == 0
    record_particles(bus, "stormy")
    out = tmp_path / "stormy"
    moments = random.Random(5)
    kills = 0
    for _ in range(4):
        with started(*serve_arguments(bus, "stormy", out), FAKE_STEP_S="0.05") as process:
            try:
                lines_until(process, "step step=")
                # A real delay on purpose: the kill must not follow the program's order.
                process.wait(moments.uniform(0.0, 0.3))
            except AssertionError:
                break  # it came to its end before
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                kills += process.wait(30) == -signal.SIGKILL
    assert kills >= 2
    assert run(*serve_arguments(bus, "stormy", out)).returncode == 0
    assert maps(out) == maps(tmp_path / "calm")
    assert set(announced(bus, "stormy").values()) == {1}
    assert announced(bus, "stormy") == announced(bus, "calm")


def test_kill_9_of_the_real_engine_ends_with_the_same_bytes(tmp_path: Path) -> None:
    bus = f"sqlite:///{tmp_path}/bus.db"
    small = ("--set=engine.race_starts=2", "--set=engine.race_particles=200",
             "--set=engine.max_resolution_angstrom=40")  # fmt: skip
    for prefix in ("calm", "killed"):
        record_particles(bus, prefix, "--box=32", "--pixel-size=8")
    calm = run(*serve_arguments(bus, "calm", tmp_path / "calm", *small), fake=False)
    assert calm.returncode == 0, calm.stderr
    for step in ("step step=5 ", "step step=15 "):
        arguments = serve_arguments(bus, "killed", tmp_path / "killed", *small)
        with started(*arguments, fake=False) as process:
            lines_until(process, step)
            process.send_signal(signal.SIGKILL)
            process.wait(30)
    again = run(*serve_arguments(bus, "killed", tmp_path / "killed", *small), fake=False)
    assert again.returncode == 0, again.stderr
    assert maps(tmp_path / "killed") == maps(tmp_path / "calm")
    stars = [(tmp_path / name / "particles.star").read_bytes() for name in ("calm", "killed")]
    assert stars[0] == stars[1]
    assert announced(bus, "killed") == announced(bus, "calm")


def test_sigterm_saves_publishes_and_exits_0_within_the_budget(
    bus: str, prefix: str, tmp_path: Path
) -> None:
    record_particles(bus, prefix)
    out = tmp_path / "out"
    with started(*serve_arguments(bus, prefix, out), FAKE_STEP_S="0.05") as process:
        lines_until(process, "step step=5 ")
        began_s = time.monotonic()
        process.send_signal(signal.SIGTERM)
        rest = process.communicate(timeout=STOP_BUDGET_S)[0]
        assert process.returncode == 0, rest
        assert time.monotonic() - began_s < STOP_BUDGET_S
    assert "particles learned from so far" in rest
    last = rest[rest.rindex("snapshot id=") :].split()[1].removeprefix("id=")
    assert announced(bus, prefix)[last] == 1
    assert any((out / "state").glob("checkpoint-*.ckpt"))


def test_a_second_signal_forces_the_process_out(tmp_path: Path) -> None:
    bus = f"sqlite:///{tmp_path}/bus.db"
    record_particles(bus, "forced")
    with started(*serve_arguments(bus, "forced", tmp_path / "o"), FAKE_STEP_S="20") as process:
        deadline_s = time.monotonic() + 60
        while not (tmp_path / "o" / "state" / "crashes.json").exists():
            assert time.monotonic() < deadline_s
        crash_notes = tmp_path / "o" / "state" / "crashes.json"
        while json.loads(crash_notes.read_text())["current"] is None:
            assert time.monotonic() < deadline_s
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        output = process.communicate(timeout=15)[0]
        assert process.returncode == 75
        assert "last checkpoint is whole" in output


def test_a_running_session_answers_requests(bus: str, prefix: str, tmp_path: Path) -> None:
    where = ("--bus", bus, "--prefix", prefix, "--session", "grid1")
    with started(*serve_arguments(bus, prefix, tmp_path / "out")) as process:
        status = inside("control", "status", *where)
        assert status.returncode == 0, status.stderr
        assert "particles_received = 0" in status.stdout
        assert "last_snapshot_id = none yet" in status.stdout
        assert "state = paused" in inside("control", "pause", *where).stdout
        refused = inside("control", "snapshot", *where)
        assert refused.returncode == 1
        assert "no maps yet" in refused.stdout
        assert "state = waiting" in inside("control", "resume", *where).stdout
        assert inside("control", "end", *where).returncode == 0
        assert process.wait(60) == 0


def test_a_twin_takes_over_and_the_older_says_why_it_stops(
    bus: str, prefix: str, tmp_path: Path
) -> None:
    arguments = serve_arguments(bus, prefix, tmp_path / "out")
    where = ("--bus", bus, "--prefix", prefix, "--session", "grid1")
    with started(*arguments) as older:
        assert inside("control", "status", *where).returncode == 0  # it is up
        with started(*arguments) as newer:
            output = older.communicate(timeout=60)[0]
            assert older.returncode == 5
            assert "error: a newer process has taken over this session" in output
            assert inside("control", "end", *where).returncode == 0
            assert newer.wait(60) == 0


def test_dead_letters_are_listed_shown_and_replayed(tmp_path: Path) -> None:
    bus = new_bus(tmp_path)
    where = ("--bus", bus, "--prefix", "dead", "--session", "grid1")
    topics = Topics("dead")
    assert inside("dead-letter", "list", *where).stdout.strip() == "no dead letters"
    with open_transport(bus) as transport, transport.producer() as producer:
        producer.send(topics.particles, b"rubbish", key=b"grid1")
        producer.flush()
    record_particles(bus, "dead")
    assert run(*serve_arguments(bus, "dead", tmp_path / "out")).returncode == 0
    listed = inside("dead-letter", "list", *where)
    assert "bad_magic" in listed.stdout or "truncated" in listed.stdout
    number = next(line.split()[0] for line in listed.stdout.splitlines() if "record" in line)
    shown = inside("dead-letter", "show", number, f"--save={tmp_path / 'bytes'}", *where)
    assert shown.returncode == 0
    assert (tmp_path / "bytes").read_bytes() == b"rubbish"
    assert inside("dead-letter", "replay", number, *where).returncode == 0
    with open_transport(bus) as transport, transport.consumer([topics.particles]) as consumer:
        consumer.seek_to_beginning()
        values = [record.value for record in consumer.poll(1000, 1.0)]
    assert values.count(b"rubbish") == 2
    missing = inside("dead-letter", "show", "999", *where)
    assert missing.returncode == 2
    assert "there is no letter 999" in missing.stderr
