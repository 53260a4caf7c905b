"""The first signal asks, the second forces, even while the main thread is busy."""

from __future__ import annotations

import subprocess
import sys

import pytest

BUSY = """
import os, signal, sys, time
from streamer.parts import StopRequest
from streamer.signals import stop_on_signals
stop = StopRequest()
with stop_on_signals(stop, budget_s={budget}):
    for number in {numbers}:
        os.kill(os.getpid(), number)
    {wait}
print("clean end")
"""


def run(numbers: str, wait: str, budget: float = 60) -> subprocess.CompletedProcess[str]:
    code = BUSY.format(numbers=numbers, wait=wait, budget=budget)
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False
    )


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_one_signal_ends_cleanly(name: str) -> None:
    done = run(f"[signal.{name}]", "while not stop.requested: time.sleep(0.01)")
    assert done.returncode == 0, done.stderr
    assert "clean end" in done.stdout
    assert done.stderr.count("stopping after the step under way") == 1


def test_the_same_signal_twice_at_once_is_one() -> None:
    done = run("[signal.SIGTERM, signal.SIGTERM]", "time.sleep(0.5)")
    assert done.returncode == 0, done.stderr
    assert "clean end" in done.stdout


def test_a_second_signal_forces_even_when_nobody_reads() -> None:
    """As when a pipe's reader was stopped by the same key."""
    wait = "os.close(2); os.kill(os.getpid(), signal.SIGINT); time.sleep(0.5)\n    "
    done = run("[]", wait + "os.kill(os.getpid(), signal.SIGINT); time.sleep(25)")
    assert done.returncode == 75


def test_two_signals_force_the_process_out() -> None:
    done = run("[signal.SIGTERM, signal.SIGINT]", "time.sleep(25)")
    assert done.returncode == 75
    assert "the last checkpoint is whole" in done.stderr


def test_a_stop_that_takes_too_long_is_forced() -> None:
    done = run("[signal.SIGTERM]", "time.sleep(25)", budget=0.1)
    assert done.returncode == 75
    assert "no clean end" in done.stderr
