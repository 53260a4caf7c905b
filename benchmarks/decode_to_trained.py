"""What transport and codec cost beside the training they feed: CPU-seconds per particle by stage.

Promise: particles of the demo travel as inline records over a real bus and are polled, decoded and
judged exactly as the loop does it; training is the engine's own work on the same particles, in the
steady state after the race and without replay, which is when it is cheapest.

    python -m benchmarks.decode_to_trained
    python -m benchmarks.decode_to_trained --bus kafka://127.0.0.1:9092 --results benchmarks/results
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from reconstruct.engine import Engine
from reconstruct.types import EngineSettings
from schemas.codec import Limits, encode
from schemas.split import split_batch
from schemas.topics import Topics
from streamer.intake import Taken, take
from streamer.ledger import RecentRecords
from streamer.microscope_sources import batches_from_simulated, demo_chunks
from streamer.roster import Roster
from streamer.transports import open_transport
from streamer.transports.base import TopicSpec

__all__ = ["main", "measure"]

WARM_UP = 1500  # particles before the measurement: compilation, race, first growth


def measure(bus: str, particles: int) -> dict[str, float]:
    """CPU-seconds per particle of each stage; keys in order of the path."""
    session, topic = (
        f"bench-{uuid.uuid4().hex[:8]}",
        Topics(f"bench{uuid.uuid4().hex[:8]}").particles,
    )
    engine: Engine | None = None
    roster, recent = Roster(), RecentRecords(1000)
    seconds = {"poll": 0.0, "decode and judge": 0.0, "preprocess": 0.0, "update": 0.0}
    trained = taken_count = 0
    with open_transport(bus) as transport:
        transport.ensure_topics([TopicSpec(topic)])
        with transport.producer() as producer:
            chunks = demo_chunks(particles, seed=0)
            for record, arrays in batches_from_simulated(chunks, session_id=session):
                for part, rows in split_batch(record, arrays):
                    producer.send(topic, encode(part, rows), key=session.encode())
            producer.flush()
        with transport.consumer([topic]) as consumer:
            consumer.seek_to_beginning()
            while taken_count < particles:
                began = time.process_time()
                records = consumer.poll(4, 1.0)
                polled = time.process_time()
                for record in records:
                    start = time.process_time()
                    verdict = take(
                        record,
                        session_id=session,
                        geometry=None,
                        roster=roster,
                        recent=recent,
                        allowed_roots=(),
                        limits=Limits(),
                    )
                    judged = time.process_time()
                    if not isinstance(verdict, Taken) or verdict.particles is None:
                        raise RuntimeError(f"a record of the benchmark was refused: {verdict}")
                    roster.extend(verdict.roster_rows)
                    engine = engine or Engine(
                        EngineSettings(race_starts=1, replay_passes=0), verdict.geometry
                    )
                    added = time.process_time()
                    engine.add(verdict.particles)
                    stored = time.process_time()
                    while engine.ready:
                        engine.step()
                    done = time.process_time()
                    taken_count += len(verdict.particles)
                    if taken_count > WARM_UP:
                        seconds["poll"] += (polled - began) / len(records)
                        seconds["decode and judge"] += judged - start
                        seconds["preprocess"] += stored - added
                        seconds["update"] += done - stored
                        trained += len(verdict.particles)
    return {stage: spent / trained for stage, spent in seconds.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--bus", action="append", help="repeat for several; default memory, sqlite")
    parser.add_argument("--particles", type=int, default=6000)
    parser.add_argument("--results", type=Path, help="folder that the table is written to")
    options = parser.parse_args(arguments)
    lines = [
        f"64 px float16 particles, {options.particles} in all, the first {WARM_UP} not counted; "
        f"{platform.machine()}, {os.cpu_count()} cores; microseconds of CPU per particle",
        f"{'bus':<8} {'poll':>8} {'decode and judge':>17} {'preprocess':>11} {'update':>9} "
        f"{'bus + codec / all':>18}",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for bus in options.bus or ["memory://bench", f"sqlite:///{folder}/bus.sqlite"]:
            stages = measure(bus, options.particles)
            share = (stages["poll"] + stages["decode and judge"]) / sum(stages.values())
            micro = {name: value * 1e6 for name, value in stages.items()}
            lines.append(
                f"{bus.split(':')[0]:<8} {micro['poll']:>8.1f} {micro['decode and judge']:>17.1f} "
                f"{micro['preprocess']:>11.1f} {micro['update']:>9.1f} {share:>17.1%}"
            )
    print("\n".join(lines))
    if options.results:
        options.results.mkdir(parents=True, exist_ok=True)
        (options.results / "decode-to-trained.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
