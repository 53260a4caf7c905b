"""However a session ends, its last words and its exit status say what came of it."""

from __future__ import annotations

import json
import signal
from pathlib import Path

from streamer import cli
from tests.integration.processes import lines_until, started


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
