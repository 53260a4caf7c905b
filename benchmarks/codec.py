"""Speed of the wire codec on 256 particles of 128 x 128 float16, beside a plain copy and NPZ.

Run from the repository root; the table is printed and saved beside the other results:

    python -m benchmarks.codec --save benchmarks/results

GB/s is the size of the encoded record (10^9 bytes) over the median of the repeats; the best and
the machine's load stand beside it, because other work on the machine shows in the median.
Decoding makes views, so its time does not grow with the pixels; "decode and read every pixel"
sums them as integers, as a first reader would.
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import re
import statistics
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydantic

from schemas.arrays import Array
from schemas.codec import decode, encode
from schemas.envelope import new_envelope
from schemas.particles import OpticsGroup, ParticleBatch, ParticleGeometry, inline_batch
from schemas.split import split_batch

__all__ = ["main", "measure", "sample"]

PARTICLES, BOX = 256, 128


def sample() -> tuple[ParticleBatch, dict[str, Array]]:
    """Make the batch that is measured: noise, since particles are mostly noise."""
    pixels = np.random.default_rng(0).standard_normal((PARTICLES, BOX, BOX), dtype=np.float32)
    optics = OpticsGroup(
        name="opticsGroup1", voltage_kv=300.0, spherical_aberration_mm=2.7, amplitude_contrast=0.1
    )
    return inline_batch(
        new_envelope(ParticleBatch, "bench", producer="benchmark", record_id="batch"),
        pixels,
        geometry=ParticleGeometry(box=BOX, pixel_size_angstrom=1.5),
        optics_groups=[optics],
        image_names=[f"{row + 1:06d}@Extract/job012/mic_1.mrcs" for row in range(PARTICLES)],
        rows={
            "defocus_u_angstrom": np.full(PARTICLES, 15_000),
            "defocus_v_angstrom": np.full(PARTICLES, 14_500),
        },
    )


def measure(repeats: int) -> list[tuple[str, tuple[float, ...]]]:
    """Time every row of the table.

    Returns
    -------
    rows
        What, and its median seconds, best seconds and GB/s of the encoded record.
    """
    record, arrays = sample()
    data = encode(record, arrays)
    packed = _write_npz(arrays)

    def read_all() -> int:
        images = decode(data).arrays["images"]
        return int(images.view(np.uint64).sum())

    def split_and_encode() -> None:
        for part, rows in split_batch(record, arrays):
            encode(part, rows)

    def npz_write() -> None:
        _write_npz(arrays)

    def npz_read() -> None:
        packed.seek(0)
        with np.load(packed) as content:
            for name in content.files:
                content[name]

    work: list[tuple[str, Callable[[], object]]] = [
        ("plain copy of the bytes", lambda: bytearray(data)),
        ("encode", lambda: encode(record, arrays)),
        ("decode (views)", lambda: decode(data)),
        ("decode and read every pixel", read_all),
        ("split into 1 MiB records, encoded", split_and_encode),
        ("NPZ write", npz_write),
        ("NPZ read", npz_read),
    ]
    return [(what, _timed(call, repeats, len(data))) for what, call in work]


def _write_npz(arrays: dict[str, Array]) -> io.BytesIO:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
    packed.seek(0)
    return packed


def _timed(call: Callable[[], object], repeats: int, size_bytes: int) -> tuple[float, ...]:
    """Give median seconds, best seconds and the median's GB/s."""
    call()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds)
    return median, min(seconds), size_bytes / median / 1e9


def _cpu() -> str:
    """Name the processor."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


def main() -> None:
    """Print the table and save it when asked."""
    parser = argparse.ArgumentParser(description="Speed of the wire codec.")
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--save", type=Path, help="folder for codec-<cpu>.txt")
    arguments = parser.parse_args()
    record, arrays = sample()
    lines = [
        f"{PARTICLES} particles, {BOX} x {BOX} float16: {len(encode(record, arrays)):,} bytes",
        f"{_cpu()}; Python {platform.python_version()}, NumPy {np.__version__}, "
        f"pydantic {pydantic.VERSION}; {arguments.repeats} repeats; load {os.getloadavg()[0]:.1f}",
        "",
        f"{'what':36}{'median ms':>11}{'best ms':>9}{'GB/s':>9}",
    ]
    for what, (median, best, rate) in measure(arguments.repeats):
        lines.append(f"{what:36}{median * 1e3:11.3f}{best * 1e3:9.3f}{rate:9.1f}")
    text = "\n".join(lines) + "\n"
    print(text, end="")
    if arguments.save is not None:
        arguments.save.mkdir(parents=True, exist_ok=True)
        slug = re.sub(r"[^a-z0-9]+", "-", _cpu().lower()).strip("-")
        (arguments.save / f"codec-{slug}.txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
