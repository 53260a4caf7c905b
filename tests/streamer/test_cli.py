"""What is wrong is one line with the remedy; what is right leaves its results where it says."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
import typer

import streamer.host
import streamer.run
from reconstruct.io.simulated import write_set
from reconstruct.io.star import read_star
from reconstruct.types import EngineSettings, Geometry
from streamer import cli
from streamer.config import Settings
from streamer.demo import DemoSet
from streamer.engines import check_geometry
from streamer.transports import open_transport
from tests.integration.processes import ROOT, inside, lines_until, run, started
from tests.streamer.fake_engine import FakeEngine
from tests.streamer.small_star import small_chunks

N = 260


@pytest.fixture
def sums(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamer.host, "engine_factory", lambda backend: FakeEngine)
    monkeypatch.setattr(streamer.run, "check_geometry", lambda *_: None)  # sums take any box


@pytest.fixture(scope="module")
def star(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("set"), small_chunks(N, per_micrograph=100))


def one_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, text
    return lines[0]


def test_run_leaves_what_it_promises(star: Path, tmp_path: Path, sums: None) -> None:
    out = tmp_path / "out"
    done = inside("run", str(star), f"--out={out}", "--classes=2", "--seed=3")
    assert done.returncode == 0, done.stderr
    report = json.loads((out / "report.json").read_text())
    assert report["particles"]["trained"] == N
    assert report["settings"]["engine"]["n_classes"] == 2
    assert report["settings"]["engine"]["seed"] == 3
    assert {"wall_seconds", "cpu_seconds", "peak_memory_bytes", "versions"} <= set(report)
    assert sum(entry["particles"] for entry in report["classes"]) == N
    for entry in report["classes"]:
        for name in (entry["file"], *entry["half_maps"]):
            with mrcfile.open(out / name) as file:
                assert file.data.shape == (16, 16, 16)
    table = read_star(out / "particles.star", stacks="defer")
    assert sorted(table.image_names) == sorted(read_star(star).image_names)
    assert "rlnCoordinateX" in table.columns  # an incoming column
    assert not (out / "particles_unused.star").exists()
    assert (out / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "timeline.png").exists()
    (last,) = (out / "series").glob("step-*-final/manifest.json")
    assert (out / "latest").resolve() == last.parent
    assert (out / "latest" / "picture.png").is_file()
    assert str(out / "report.json") in done.stdout


def test_run_begins_anew_and_gives_the_same_bits(star: Path, tmp_path: Path, sums: None) -> None:
    out = tmp_path / "out"
    assert inside("run", str(star), f"--out={out}").returncode == 0
    first = (out / "class_001.mrc").read_bytes()
    assert inside("run", str(star), f"--out={out}").returncode == 0
    assert (out / "class_001.mrc").read_bytes() == first


def test_a_run_does_not_write_over_its_own_particles(
    star: Path, tmp_path: Path, sums: None
) -> None:
    own = tmp_path / "mine" / "particles.star"
    own.parent.mkdir()
    own.write_bytes(star.read_bytes())
    refused = inside("run", str(own), f"--out={own.parent}", f"--data-root={star.parent}")
    assert refused.returncode == 2
    assert "would be overwritten" in refused.stderr
    assert "--out" in refused.stderr
    assert own.read_bytes() == star.read_bytes()
    assert [file.name for file in own.parent.iterdir()] == ["particles.star"]


def test_plain_lines_of_a_service_are_one_per_step(star: Path, tmp_path: Path, sums: None) -> None:
    bus = f"--bus=sqlite:///{tmp_path}/bus.db"
    assert inside("microscope", str(star), bus, "--end").returncode == 0
    done = inside("serve", bus, f"--out={tmp_path / 'o'}", "--metrics-port=0",
                  "--set=engine.minibatch_initial=100", "--set=engine.replay_passes=0")  # fmt: skip
    steps = re.findall(r"^step step=(\d+) phase=\w+ particles=\d+", done.stdout, re.MULTILINE)
    assert steps == ["1", "2", "3"]


def test_plain_lines_of_a_run_are_few(star: Path, tmp_path: Path, sums: None) -> None:
    done = inside("run", str(star), f"--out={tmp_path / 'o'}", "--set=engine.minibatch_initial=10")
    assert done.stdout.count(f" s  maps of {N} particles written") == 1
    assert re.match(rf"\d+ s  10 of {N} particles, initial phase, ", done.stdout)
    assert re.search(r"^\d+ s  event: The first update\.$", done.stdout, re.MULTILINE)
    assert done.stdout.count(" particles, initial phase") < 5  # of 28, far less than 5 s each


def test_a_run_that_is_stopped_says_so_everywhere_and_how_to_go_on(
    star: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ("run", str(star), f"--out={out}", "--set=engine.minibatch_initial=10")
    with started(*arguments, FAKE_STEP_S="0.2") as process:
        lines_until(process, " particles, initial phase", anywhere=True)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[0]
    assert process.returncode == cli.EXIT_INTERRUPTED, said
    report = json.loads((out / "report.json").read_text())
    learned = report["particles"]["trained"]
    words = f"stopped early: {learned} of {N} particles learned from"
    assert 0 < learned < N
    assert (report["outcome"], report["message"]) == ("stopped_early", words)
    assert words in said
    assert "the same command starts over" in said
    assert report["phase"] == "initial"
    assert {one["warning"] for one in report["classes"]} == {
        f"{learned} particles: too few to trust"
    }


def test_a_missing_file_is_one_line_and_leaves_no_folder(tmp_path: Path) -> None:
    done = inside("run", str(tmp_path / "none.star"), f"--out={tmp_path / 'o'}")
    assert done.returncode == 2
    assert "none.star" in one_line(done.stderr)
    assert list(tmp_path.iterdir()) == []


def test_a_malformed_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.star"
    path.write_text("data_particles\n\nloop_\n_rlnImageName #1\n")
    done = inside("run", str(path), f"--out={tmp_path / 'o'}")
    assert done.returncode == 2
    assert "bad.star" in one_line(done.stderr)
    path.write_bytes(b"\x00\x01 not a star file")
    assert "bad.star" in one_line(inside("run", str(path), f"--out={tmp_path / 'o'}").stderr)
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_stack_is_one_line(star: Path, tmp_path: Path) -> None:
    lonely = tmp_path / "particles.star"
    lonely.write_text(star.read_text())
    done = inside("run", str(lonely), f"--out={tmp_path / 'o'}")
    assert done.returncode == 2
    assert "--data-root" in one_line(done.stderr)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("x.txt", "neither a STAR nor a .cs"),
        ("x.start", "does not exist"),
        ("folder", "is a folder"),
    ],
)
def test_an_unknown_kind_of_file_is_one_line(tmp_path: Path, name: str, wrong: str) -> None:
    (tmp_path / "x.txt").write_text("particles")
    (tmp_path / "folder").mkdir()
    before = set(tmp_path.iterdir())
    for command in (
        ("run", str(tmp_path / name), f"--out={tmp_path / 'o'}"),
        ("run", str(tmp_path / name), f"--out={tmp_path / 'o'}", "--follow"),
        ("attach", "relion", str(tmp_path / name), f"--bus=sqlite:///{tmp_path}/bus.db"),
    ):
        done = inside(*command)
        assert done.returncode == 2
        assert wrong in one_line(done.stderr)
        assert set(tmp_path.iterdir()) == before


def test_an_output_folder_that_cannot_be_written_is_one_line(
    star: Path, tmp_path: Path, sums: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streamer.run, "check_geometry", lambda *_: "a note")
    (tmp_path / "file").write_text("")
    done = inside("run", str(star), f"--out={tmp_path / 'file' / 'o'}")
    assert done.returncode == 2
    assert "cannot write into" in one_line(done.stderr)
    assert "--out" in done.stderr
    assert "a note" not in done.stderr  # what concerns the run is said once it begins


def test_an_unreachable_broker_is_one_line(tmp_path: Path) -> None:
    # In a process of its own: kafka-python leaves sockets behind when nothing answers.
    done = run("serve", "--bus=kafka://127.0.0.1:9", f"--out={tmp_path / 'o'}", "--metrics-port=0")
    assert done.returncode == 6
    assert "127.0.0.1:9" in one_line(done.stderr)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_setting_is_one_line(star: Path, tmp_path: Path) -> None:
    done = inside("run", str(star), f"--out={tmp_path / 'o'}", "--classes=0")
    assert done.returncode == 2
    assert "--classes (setting engine.n_classes) must be above 0" in one_line(done.stderr)
    done = inside("run", str(star), f"--out={tmp_path / 'o'}", "--set=nonsense")
    assert "--set name=value" in one_line(done.stderr)
    done = inside("run", str(star), f"--out={tmp_path / 'o'}", "--set=engine.noise_sourc=1")
    assert "did you mean engine.noise_source? Correct the flag" in one_line(done.stderr)


def test_a_metrics_port_in_use_is_one_line(star: Path, tmp_path: Path, sums: None) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = inside("run", str(star), f"--out={tmp_path / 'o'}", f"--metrics-port={port}")
    assert done.returncode == 2
    assert str(port) in one_line(done.stderr)
    assert not (tmp_path / "o").exists()


def test_the_demo_runs_from_the_first_particle_to_the_report(tmp_path: Path, sums: None) -> None:
    out = tmp_path / "demo"
    done = inside("demo", f"--out={out}", "--particles=300", "--metrics-port=0", "--set",
                  "engine.replay_passes=0")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads((out / "report.json").read_text())["particles"]["trained"] == 300
    assert "metrics at http://127.0.0.1:" in done.stdout


def test_doctor_says_what_is_wrong_and_changes_nothing(tmp_path: Path) -> None:
    bus = f"sqlite:///{tmp_path}/bus.db"
    arguments = ("doctor", f"--bus={bus}", f"--out={tmp_path / 'o'}")
    done = inside(*arguments)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("is not there yet: it will be made") == 3
    assert list(tmp_path.iterdir()) == []
    open_transport(bus).close()
    (tmp_path / "o").mkdir()
    done = inside(*arguments)
    assert done.returncode == 0, done.stdout
    assert "answers" in done.stdout
    assert list((tmp_path / "o").iterdir()) == []
    (tmp_path / "file").write_text("")
    bad = inside("doctor", f"--bus={bus}", f"--out={tmp_path / 'file' / 'o'}")
    assert bad.returncode == 1
    assert "cannot be made" in bad.stdout
    bad = inside("doctor", "--bus=sqlite:////nowhere/bus.db", f"--out={tmp_path / 'o'}")
    assert bad.returncode == 1
    assert "BAD" in bad.stdout


def test_doctor_looks_at_no_folder_that_was_not_named(
    star: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sums: None
) -> None:
    monkeypatch.chdir(tmp_path)
    assert inside("run", str(star)).returncode == 0  # leaves ./out, of a session named as the file
    done = inside("doctor")
    assert done.returncode == 0, done.stdout
    assert "output: give --out DIR to have a folder checked" in done.stdout
    assert "bus: run and demo need none" in done.stdout
    assert "serve would" not in done.stdout
    assert "checkpoint" not in done.stdout
    done = inside("doctor", "--out=out", "--session=particles")
    assert done.returncode == 0, done.stdout
    assert f"checkpoint: session particles, step 8, {N} particles trained" in done.stdout
    done = inside("doctor", "--out=out")
    assert done.returncode == 1
    assert "out/state holds session particles, not default: give --session particles" in done.stdout


def test_doctor_tells_how_to_add_a_gpu_where_it_runs_from_a_clone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)  # as if it were not installed
    monkeypatch.chdir(tmp_path)
    remedy = f"{sys.executable} -m pip install -e '{ROOT}[gpu]'"
    said = inside("doctor").stdout
    assert "GPU: none can be used: CuPy cannot be imported (" in said
    assert remedy in said
    assert "abinitio-live[gpu]" not in said
    assert remedy in inside("doctor", "--device=cuda").stdout


def test_help_is_quick_and_names_every_command() -> None:
    code = (
        "import sys; from streamer.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'numba', 'matplotlib', 'kafka', 'pydantic'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in ("demo", "run", "serve", "subscribe", "microscope", "control", "dead-letter"):
        assert name in done.stdout


def every_command() -> dict[str, Any]:
    for module in cli.MODULES:
        importlib.import_module(module)
    found: dict[str, Any] = {}

    def walk(command: Any, name: str) -> None:
        if not command.hidden:
            found[name] = command
        for more, inner in getattr(command, "commands", {}).items():
            walk(inner, f"{name} {more}".strip())

    walk(typer.main.get_command(cli.app), "")
    return found


def test_help_speaks_of_files_and_numbers_not_of_types(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    for name in every_command():
        done = inside(*name.split(), "--help")
        assert done.returncode == 0
        wrong = re.findall(r"<[^>]*>|x>=\S*|TEXT\b(?! +Why)|INTEGER|FLOAT|BOOLEAN", done.stdout)
        assert wrong == [], f"{name}: {done.stdout}"


def test_the_defaults_that_help_tells_are_those_of_the_settings() -> None:
    settings = Settings()
    engine = settings.engine
    expected = {
        "--bus": settings.bus,
        "--session": settings.session,
        "--prefix": settings.topics_prefix,
        "--classes": engine.n_classes,
        "--symmetry": engine.symmetry,
        "--max-resolution": f"{engine.finest_angstrom:g}, or 9.6 with T, O or I",
        "--pose-search": engine.pose_search,
        "--device": settings.device,
    }
    told = 0
    for name, command in every_command().items():
        more = {"--seed": engine.seed} if name != "microscope" else {}
        more |= {"--out": settings.out} if name in ("run", "serve") else {}
        more |= {"--particles": DemoSet().particles} if name == "demo" else {}
        more |= {"--metrics-port": settings.metrics.port} if name in ("serve", "doctor") else {}
        more |= {"--session": "the file's"} if name == "run" else {}
        for parameter in command.params:
            for flag in {*parameter.opts} & {*expected, *more}:
                (default,) = re.findall(r"\[default: (.*?)\]", parameter.help)
                assert default == str({**expected, **more}[flag]), f"{name} {flag}"
                told += 1
    assert told > 40


@pytest.mark.parametrize(
    ("command", "flag", "least"),
    [(("demo",), "--particles", 200), (("microscope",), "--box", 16)],
)
def test_a_number_that_is_too_small_is_told_the_least(
    command: tuple[str, ...], flag: str, least: int
) -> None:
    done = inside(*command, f"{flag}={least - 1}")
    assert done.returncode == 2
    assert f"{least - 1} is not at least {least}" in done.stderr


def test_a_real_session_of_files_gives_every_particle(
    data_dir: Path, tmp_path: Path, sums: None
) -> None:
    (star,) = (data_dir / "real_apoferritin").glob("*.star")
    out = tmp_path / "out"
    done = inside("run", str(star), f"--out={out}", "--passes=0", "--set=snapshots.pictures=false")
    assert done.returncode == 0, done.stderr
    report = json.loads((out / "report.json").read_text())
    assert report["particles"]["trained"] == 1306
    with mrcfile.open(out / "class_001.mrc") as file:
        assert file.voxel_size.x == pytest.approx(3.0)
        assert np.isfinite(file.data).all()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--symmetry=D100",), "symmetry must be C1 to C99"),
        (("--symmetry=Auto5",), "or auto, which finds the group out"),
        (("--symmetry=I1",), "Give --symmetry I"),
        (("--classes=0",), "--classes (setting engine.n_classes) must be above 0"),
        (("--seed=-1",), "seed must be 0 or more"),
        (("--set=engine.particles_to_use=0",), "engine.particles_to_use) must be above 0"),
        (("--max-resolution=100",), "ask for at most"),
        (("--pose-search=guess",), "'exhaustive' or 'branch_and_bound'"),
        (("--device=tpu",), "setting device"),
        (("--device=cuda:99",), "--device cpu or auto"),
    ],
)
def test_what_the_engine_cannot_honour_stops_a_run_at_its_start(
    star: Path, tmp_path: Path, flags: tuple[str, ...], expected: str
) -> None:
    out = tmp_path / "out"
    (out / "series").mkdir(parents=True)
    done = inside("run", str(star), f"--out={out}", *flags)
    assert done.returncode == 2
    assert expected in one_line(done.stderr)
    assert (out / "series").exists()  # nothing was removed


def test_a_symmetry_that_is_none_stops_serve_at_its_start(tmp_path: Path) -> None:
    bus = f"--bus=sqlite:///{tmp_path}/bus.db"
    done = inside("serve", bus, f"--out={tmp_path / 'o'}", "--symmetry=Q5", "--metrics-port=0")
    assert done.returncode == 2
    assert "symmetry must be C1 to C99" in one_line(done.stderr)


def test_the_report_and_the_doctor_name_the_device(star: Path, tmp_path: Path, sums: None) -> None:
    out = tmp_path / "out"
    assert inside("run", str(star), f"--out={out}", "--device=cpu").returncode == 0
    report = json.loads((out / "report.json").read_text())
    assert report["device"] == {"asked": "cpu", "used": "cpu", "name": "CPU"}
    assert report["settings"]["device"] == "cpu"
    done = inside("doctor", f"--bus=sqlite:///{tmp_path}/b.db", f"--out={out}", "--device=cpu")
    assert "would run on cpu" in done.stdout


def test_aberrations_are_refused_with_the_flag_that_neglects_them(
    star: Path, tmp_path: Path, sums: None
) -> None:
    lines = star.read_text().splitlines()
    tilted = star.with_name("tilted.star")
    last = max(i for i, line in enumerate(lines) if line.startswith("_rlnAmplitudeContrast"))
    last = next(i for i in range(last, len(lines)) if not lines[i + 1].startswith("_"))
    number = int(lines[last].split("#")[1])
    rows = [
        f"{line} 0.4" if i > last and line.strip() and "data_particles" not in "".join(
            lines[last:i]
        ) and not line.startswith(("data_", "#", "loop_", "_")) else line
        for i, line in enumerate(lines)
    ]  # fmt: skip
    rows.insert(last + 1, f"_rlnBeamTiltX #{number + 1}")
    tilted.write_text("\n".join(rows) + "\n")
    out = tmp_path / "out"
    done = inside("run", str(tilted), f"--out={out}")
    assert done.returncode == 2
    assert "--neglect-aberrations" in one_line(done.stderr)
    done = inside("run", str(tilted), f"--out={out}", "--neglect-aberrations")
    assert done.returncode == 0, done.stderr
    assert "neglected, as asked: aberrations in rlnBeamTiltX" in done.stderr
    bus = f"--bus=sqlite:///{tmp_path}/bus.db"
    for command in (("microscope",), ("attach", "relion")):
        more = ("--idle-end=0", "--every=0.01") if command[0] == "attach" else ()
        done = inside(*command, str(tilted), bus, *more)
        assert "--neglect-aberrations" in one_line(done.stderr)
        done = inside(*command, str(tilted), bus, "--neglect-aberrations", *more)
        assert done.returncode == 0, done.stderr


def test_the_microscope_sends_no_more_of_a_file_than_asked(star: Path, tmp_path: Path) -> None:
    bus = f"--bus=sqlite:///{tmp_path}/bus.db"
    done = inside("microscope", str(star), bus, "--particles=150")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("sent particles=50 total=150 ")


def test_no_particles_at_all_is_refused_where_it_is_typed(star: Path, tmp_path: Path) -> None:
    done = inside("run", str(star), f"--out={tmp_path / 'o'}", "--particles=0")
    assert done.returncode == 2
    assert "'--particles'" in done.stderr
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    "command",
    [
        ("control", "status"),
        ("subscribe", "--to=maps"),
        ("dead-letter", "list"),
        ("dead-letter", "show", "1"),
        ("dead-letter", "replay", "1"),
    ],
)
def test_a_bus_that_is_not_there_is_not_made_by_those_who_ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    done = inside(*command, "--bus=sqlite:///none.db")
    assert done.returncode == 6
    assert "no such bus sqlite:///none.db: start serve first" in one_line(done.stderr)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bus", ["nonsense", "sqlite://bus.db", "kafka://", "http://host"])
def test_a_bus_of_no_known_kind_is_told_the_three_there_are(bus: str) -> None:
    done = inside("control", "status", f"--bus={bus}")
    assert done.returncode == 2
    forms = "must be kafka://host:port, sqlite:///path/to/bus.db or memory://name"
    assert forms in one_line(done.stderr)


def test_the_version_is_one_line() -> None:
    done = inside("--version")
    assert done.returncode == 0
    assert re.fullmatch(r"abinitio-live \d\S*\n", done.stdout)


def test_finer_detail_than_the_box_has_is_said_to_be_clamped() -> None:
    geometry = Geometry(64, 3.0)  # 32 - 3 shells of 192 A
    words = check_geometry(EngineSettings(max_resolution_angstrom=4.0), geometry)
    assert words.endswith("; 6.6 A is used")
    assert check_geometry(EngineSettings(max_resolution_angstrom=7.0), geometry) == ""


def test_a_run_of_some_particles_says_so_at_its_end(star: Path, tmp_path: Path, sums: None) -> None:
    arguments = ("run", str(star), f"--out={tmp_path / 'o'}", "--passes=0",
                 "--set=engine.minibatch_initial=50")  # fmt: skip
    assert "(--particles)" not in inside(*arguments).stdout
    assert f"; 50 of {N} used (--particles)" in inside(*arguments, "--particles=50").stdout
    books = json.loads((tmp_path / "o" / "report.json").read_text())["particles"]
    assert (books["trained"], books["left_out"], books["in_flight"]) == (50, N - 50, 0)


def test_a_run_says_that_it_replaces_an_earlier_one_and_leaves_other_files(
    star: Path, tmp_path: Path, sums: None
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "class_notes.txt").write_text("mine")
    first = inside("run", str(star), f"--out={out}")
    assert "are removed" not in first.stdout + first.stderr
    (out / "class_007.mrc").write_bytes(b"mine")
    more = inside("run", str(star), f"--out={out}", "--classes=2", "--particles=200")
    assert "the results of an earlier run in" in more.stderr
    assert {"class_002.mrc", "particles_unused.star"} <= {file.name for file in out.iterdir()}
    again = inside("run", str(star), f"--out={out}")
    assert again.returncode == 0, again.stderr
    left = {file.name for file in out.iterdir() if file.is_file() or file.is_symlink()}
    listed = json.loads((out / "report.json").read_text())["files"]
    assert left == {*listed, "class_007.mrc", "class_notes.txt"}
    assert not {"class_002.mrc", "particles_unused.star"} & left
    assert (out / "class_007.mrc").read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["class_002_half1.mrc", "particles_unused.star", "report.json"])
def test_a_run_refuses_to_write_over_a_file_that_no_run_wrote(
    star: Path, tmp_path: Path, sums: None, name: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("mine")
    done = inside("run", str(star), f"--out={out}")
    assert done.returncode == 2
    assert str(out / name) in one_line(done.stderr)
    assert "--out" in done.stderr
    assert [(file.name, file.read_text()) for file in out.iterdir()] == [(name, "mine")]


def test_a_run_takes_the_place_of_one_that_was_killed_but_not_of_a_session(
    star: Path, tmp_path: Path, sums: None
) -> None:
    out = tmp_path / "out"
    arguments = ("run", str(star), f"--out={out}")
    assert inside(*arguments).returncode == 0
    (out / "report.json").unlink()  # as when it was killed while it wrote its results
    again = inside(*arguments)
    assert again.returncode == 0, again.stderr
    assert "the results of an earlier run in" in again.stderr
    shutil.rmtree(out)
    bus = f"--bus=sqlite:///{tmp_path}/bus.db"
    assert inside("microscope", str(star), bus).returncode == 0
    stops = ("serve", bus, f"--out={out}", "--metrics-port=0")
    with started(*stops) as process:
        lines_until(process, "step ")
        process.terminate()
        process.wait(30)
    before = sorted(out.rglob("*"))
    refused = inside(*arguments)
    assert refused.returncode == 2
    assert "perhaps a session of serve is in it" in one_line(refused.stderr)
    assert sorted(out.rglob("*")) == before


def test_results_of_an_earlier_version_are_not_guessed_at(
    star: Path, tmp_path: Path, sums: None
) -> None:
    out = tmp_path / "out"
    arguments = ("run", str(star), f"--out={out}")
    assert inside(*arguments).returncode == 0
    report = json.loads((out / "report.json").read_text())
    del report["files"]
    (out / "report.json").write_text(json.dumps(report))
    before = sorted(out.rglob("*"))
    refused = inside(*arguments)
    assert refused.returncode == 2
    assert "does not list the files" in one_line(refused.stderr)
    assert sorted(out.rglob("*")) == before


def test_a_run_is_named_after_its_file_or_as_asked(star: Path, tmp_path: Path, sums: None) -> None:
    out = tmp_path / "out"
    for more, expected in (((), "particles"), (("--session=grid4",), "grid4")):
        done = inside("run", str(star), f"--out={out}", *more)
        assert f"session {expected} ended" in done.stdout
        assert json.loads((out / "report.json").read_text())["session"] == expected
    assert streamer.run.session_of(Path("/data/job 12/_my set (2).star")) == "my-set-2-"
    assert streamer.run.session_of(Path("°.star")) == "run"


def test_a_file_in_place_of_the_output_folder_is_called_one(
    star: Path, tmp_path: Path, sums: None
) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    done = inside("run", str(star), f"--out={file}")
    assert done.returncode != 0
    assert "notes.txt is a file, not a folder" in " ".join((done.stdout + done.stderr).split())
    assert file.read_text() == "mine"
