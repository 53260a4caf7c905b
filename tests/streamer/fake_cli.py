"""The command line with the engine of sums: `python -m tests.streamer.fake_cli serve ...`."""

from __future__ import annotations

import os
import sys
import time

import streamer.host
import streamer.run
from reconstruct.types import StepReport
from streamer.cli import main
from tests.streamer.fake_engine import FakeEngine


class SlowEngine(FakeEngine):
    """Takes its time per step, so that a kill finds it at work."""

    def step(self) -> StepReport:
        time.sleep(float(os.environ.get("FAKE_STEP_S", "0")))
        return super().step()


def run() -> None:
    streamer.host.engine_factory = lambda backend: SlowEngine  # type: ignore[assignment]
    streamer.run.check_geometry = lambda *_: ""  # sums take any box
    sys.argv[0] = "abinitio-live"
    main()


if __name__ == "__main__":
    run()
