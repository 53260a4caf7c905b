"""However a session ends, its last words and its exit status say what came of it."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

import streamer.host
from reconstruct.io.simulated import write_set
from streamer import cli
from streamer.ending import refuse_unused
from streamer.errors import ConfigurationError
from streamer.service import Finished
from streamer.state import SessionState
from streamer.transports import open_transport
from tests.integration.processes import inside, lines_until, started
from tests.streamer.fake_engine import FakeEngine
from tests.streamer.small_star import small_chunks

N = 100


@pytest.fixture
def sums(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamer.host, "engine_factory", lambda backend: FakeEngine)


@pytest.fixture(scope="module")
def star(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("set"), small_chunks(N, per_micrograph=N))


def test_a_demo_that_is_stopped_leaves_results_that_say_so(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    arguments = ("demo", f"--out={out}", "--particles=600", "--metrics-port=0",
                 "--set=engine.minibatch_initial=10")  # fmt: skip
    with started(*arguments, FAKE_STEP_S="0.2") as process:
        lines_until(process, " particles, initial phase", anywhere=True)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[0]
    assert process.returncode == cli.EXIT_INTERRUPTED, said
    report = json.loads((out / "report.json").read_text())
    assert report["outcome"] == "stopped_early"
    assert " of 600 particles learned from" in report["message"]
    assert {"class_001.mrc", "particles.star", "picture.png"} <= set(report["files"])
    assert {file.name for file in out.iterdir()} == {*report["files"], "series", "state"}
    assert str(out / "picture.png") in said


def by_reference(star: Path, bus: str) -> None:
    """Send a file's particles as paths, and ask the session to end."""
    done = inside("attach", "relion", str(star), bus, "--idle-end=0", "--every=0.01")
    assert done.returncode == 0, done.stderr


def test_a_session_without_roots_says_what_is_missing_and_what_it_says_helps(
    star: Path, tmp_path: Path, sums: None
) -> None:
    bus = f"--bus=sqlite:///{tmp_path}/bus.db"
    by_reference(star, bus)
    serve = ("serve", bus, "--metrics-port=0")
    (stack,) = star.parent.glob("**/*.mrcs")
    first = inside(*serve, f"--out={tmp_path / 'one'}")
    assert first.returncode == 2
    assert "0 particles trained of 100 received, 100 quarantined" in first.stdout
    (error,) = [line for line in first.stderr.splitlines() if line.startswith("error: ")]
    assert "no particle of session default could be used" in error
    assert f"--root {stack.parent}" in error
    assert "another --out" in error
    again = inside(*serve, f"--out={tmp_path / 'one'}")  # a session that has ended stays so
    assert again.returncode == 2
    assert "another --out" in again.stderr
    listed = inside("dead-letter", "list", bus).stdout
    assert "--root" in listed
    assert "dead-letter replay" in " ".join(listed.split())
    helped = inside(*serve, f"--out={tmp_path / 'two'}", f"--root={stack.parent}")
    assert helped.returncode == 0, helped.stderr
    assert "100 particles trained of 100 received" in helped.stdout


def test_a_session_that_goes_on_learns_from_what_is_replayed(
    star: Path, tmp_path: Path, sums: None
) -> None:
    bus = f"--bus=sqlite:///{tmp_path}/bus.db"
    assert inside("microscope", str(star), "--reference", bus).returncode == 0
    serve = ("serve", bus, f"--out={tmp_path / 'one'}", "--metrics-port=0")
    with started(*serve) as process:
        (line,) = lines_until(process, "quarantined ")[-1:]
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode == 0  # more may come
    root = line.split("--root ")[1].split(",")[0]
    assert inside("dead-letter", "replay", "0", bus).returncode == 0
    assert inside("control", "end", "--wait=0", bus).returncode in (0, 1)
    done = inside(*serve, f"--root={root}")
    assert done.returncode == 0, done.stderr
    assert "100 particles trained of 200 received, 100 quarantined" in done.stdout


def test_a_session_to_which_nothing_comes_says_that_it_waits(tmp_path: Path) -> None:
    bus = f"--bus=sqlite:///{tmp_path}/bus.db"
    with started("serve", bus, f"--out={tmp_path / 'o'}", "--metrics-port=0") as process:
        lines_until(process, 'waiting message="waiting for particles"')
    (tmp_path / "none.star").write_text("")
    follow = ("run", str(tmp_path / "none.star"), f"--out={tmp_path / 'r'}", "--follow")
    with started(*follow) as process:
        lines_until(process, " s  waiting for particles", anywhere=True)


def test_a_session_to_which_nothing_came_ends_well(tmp_path: Path, sums: None) -> None:
    bus = f"--bus=sqlite:///{tmp_path}/bus.db"
    open_transport(bus.removeprefix("--bus=")).close()
    inside("control", "end", "--wait=0", bus)
    assert inside("serve", bus, f"--out={tmp_path / 'o'}", "--metrics-port=0").returncode == 0


def test_a_session_of_broken_particles_names_what_is_wrong_with_them(tmp_path: Path) -> None:
    finished = Finished("ended", SessionState())
    finished.state.ledger.received = finished.state.ledger.quarantined["constant_image"] = 3
    with pytest.raises(ConfigurationError, match=r"every pixel has the same value\. Mend"):
        refuse_unused(finished, "s")
