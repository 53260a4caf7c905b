"""Speed of the buses on records of 1 MiB: write them, then read them back, one after the other.

Run from the repository root, with a broker's address for the Kafka rows:

    python -m benchmarks.transport --kafka 127.0.0.1:9092 --save benchmarks/results

MB/s is 10^6 bytes of record values per second of wall clock, in a fresh process per row; writing
ends when every record is acknowledged. Kafka without its ``crc32c`` extra is shown because the
pure-Python checksum is what an incomplete install would use. The raw file row (written, synced,
read) shows what the disk does at that moment.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

from streamer.transports import open_transport
from streamer.transports.base import DEFAULT_MAX_RECORD_BYTES, TopicSpec

__all__ = ["main", "measure"]

RECORDS = 256
RECORDS_WITHOUT_CRC32C = 16  # seconds, not minutes


def measure(url: str, *, records: int, transactional: bool) -> tuple[float, float]:
    """Write and read ``records`` records.

    Returns
    -------
    seconds
        For writing and for reading.
    """
    topic = f"benchmark.{uuid.uuid4().hex}"
    value = os.urandom(DEFAULT_MAX_RECORD_BYTES)
    with open_transport(url) as transport:
        transport.ensure_topics([TopicSpec(topic)])
        producer = transport.producer(topic if transactional else None)
        start_s = time.perf_counter()
        if transactional:
            for _ in range(0, records, 8):
                with producer.transaction():
                    for _ in range(8):
                        producer.send(topic, value)
        else:
            for _ in range(records):
                producer.send(topic, value)
            producer.flush()
        written_s = time.perf_counter() - start_s
        consumer = transport.consumer([topic])
        consumer.seek_to_beginning()
        start_s = time.perf_counter()
        read = 0
        while read < records:
            read += len(consumer.poll(8, 10.0))
        return written_s, time.perf_counter() - start_s


def measure_file(folder: str, *, records: int) -> tuple[float, float]:
    """Write and sync a plain file record by record, then read it."""
    value = os.urandom(DEFAULT_MAX_RECORD_BYTES)
    path = Path(folder) / "plain"
    start_s = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for _ in range(records):
            file.write(value)
            os.fsync(file.fileno())
    written_s = time.perf_counter() - start_s
    start_s = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while file.read(len(value)):
            pass
    return written_s, time.perf_counter() - start_s


def _row(options: argparse.Namespace) -> None:
    if options.without_crc32c:
        sys.modules["crc32c"] = None  # type: ignore[assignment]  # as if it were not installed
    if options.row.startswith("file:"):
        seconds = measure_file(options.row.removeprefix("file:"), records=options.records)
    else:
        seconds = measure(options.row, records=options.records, transactional=options.transactional)
    print(*seconds)


def _ask(url: str, *flags: str, records: int = RECORDS) -> str:
    command = [
        sys.executable,
        "-m",
        "benchmarks.transport",
        "--row",
        url,
        "--records",
        str(records),
    ]
    done = subprocess.run([*command, *flags], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return done.stderr.strip().splitlines()[-1]
    megabytes = records * DEFAULT_MAX_RECORD_BYTES / 1e6
    return "".join(f"{megabytes / float(seconds):12.0f}" for seconds in done.stdout.split())


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


def main() -> None:
    """Print the table and save it when asked."""
    parser = argparse.ArgumentParser(description="Speed of the buses.")
    parser.add_argument("--kafka", help="host:port of a broker; without it the rows are left out")
    parser.add_argument("--save", type=Path, help="folder for transport-<cpu>.txt")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    parser.add_argument("--records", type=int, default=RECORDS, help=argparse.SUPPRESS)
    parser.add_argument("--transactional", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--without-crc32c", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        _row(options)
        return
    lines = [
        f"{RECORDS} records of {DEFAULT_MAX_RECORD_BYTES:,} bytes, random",
        f"{_cpu()}, {os.cpu_count()} cores; Python {platform.python_version()}; "
        f"load {os.getloadavg()[0]:.1f}",
        "",
        f"{'bus':44}{'write MB/s':>12}{'read MB/s':>12}",
    ]
    with tempfile.TemporaryDirectory() as folder:
        file, memory = f"sqlite:///{folder}/bus.db", "memory://benchmark"
        rows = [
            ("plain file, synced per record", _ask(f"file:{folder}")),
            ("memory", _ask(memory)),
            ("memory, transactions of 8 records", _ask(memory, "--transactional")),
            ("sqlite", _ask(file)),
            ("sqlite, transactions of 8 records", _ask(file, "--transactional")),
        ]
    if options.kafka:
        url = f"kafka://{options.kafka}"
        slow = _ask(url, "--without-crc32c", records=RECORDS_WITHOUT_CRC32C)
        rows += [
            ("kafka", _ask(url)),
            ("kafka, transactions of 8 records", _ask(url, "--transactional")),
            ("kafka without the crc32c extra", slow),
        ]
    lines += [f"{what:44}{numbers}" for what, numbers in rows]
    text = "\n".join(lines) + "\n"
    print(text, end="")
    if options.save is not None:
        options.save.mkdir(parents=True, exist_ok=True)
        slug = re.sub(r"[^a-z0-9]+", "-", _cpu().lower()).strip("-")
        (options.save / f"transport-{slug}.txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
