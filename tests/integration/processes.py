"""Start the program as users do, in processes of its own, and read what is left behind."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from streamer.cli import main

ROOT = Path(__file__).resolve().parents[2]


def command(*arguments: str, fake: bool = True) -> list[str]:
    module = "tests.streamer.fake_cli" if fake else "streamer"
    return [sys.executable, "-m", module, *arguments]


def environment(**extra: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("ABINITIO_")}
    return {**kept, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **extra}


def run(
    *arguments: str, fake: bool = True, timeout_s: float = 120, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run to the end."""
    return subprocess.run(
        command(*arguments, fake=fake),
        cwd=ROOT,
        env=environment(**env),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


def inside(*arguments: str) -> Done:
    """Run a short command in this process: the same code without two seconds of imports."""
    out, errors = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(errors):
        try:
            main(arguments)
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return Done(code, out.getvalue(), errors.getvalue())


@contextmanager
def started(*arguments: str, fake: bool = True, **env: str) -> Iterator[subprocess.Popen[str]]:
    """Start, and see to it that nothing is left running."""
    process = subprocess.Popen(
        command(*arguments, fake=fake),
        cwd=ROOT,
        env=environment(**env),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=30)


def lines_until(process: subprocess.Popen[str], start: str, *, anywhere: bool = False) -> list[str]:
    """Read output lines up to one that starts with ``start``; blocks, so the order is proof.

    With ``anywhere`` it need not be at the line's beginning.
    """
    assert process.stdout is not None
    seen: list[str] = []
    for line in process.stdout:
        seen.append(line.rstrip("\n"))
        if line.startswith(start) or (anywhere and start in line):
            return seen
    raise AssertionError(f"the process ended before {start!r}: " + "\n".join(seen[-20:]))
