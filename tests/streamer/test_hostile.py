"""Whatever bytes arrive, the session goes on, and every refusal is explained."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas.codec import decode
from schemas.dead_letter import DeadLetter
from schemas.envelope import Envelope
from schemas.particles import ParticleBatch
from streamer.intake import Refused, Skipped, Taken, take
from streamer.ledger import RecentRecords
from streamer.roster import Roster
from streamer.transports.base import Record
from tests.streamer.bench import Bench, batch_bytes

_numbers = itertools.count()
GOOD = batch_bytes(0, particles=4)


@pytest.fixture(autouse=True)
def _no_power_cuts_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda handle: None)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path, f"memory://hostile-{next(_numbers)}")
    yield made
    made.close()


def look(value: bytes, key: bytes | None = b"s") -> Taken | Refused | Skipped:
    from schemas.codec import Limits

    return take(
        Record("t", 0, 0, key, value, (), 0),
        session_id="s",
        geometry=None,
        roster=Roster(),
        recent=RecentRecords(10),
        allowed_roots=(),
        limits=Limits(total_bytes=1 << 20),
    )


@given(st.binary(max_size=2000))
@settings(max_examples=200, deadline=None)
def test_any_bytes_get_a_verdict(value: bytes) -> None:
    assert isinstance(look(value), Refused)


@given(
    st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=8)
)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_damaged_record_gets_a_verdict_and_its_rows_add_up(damage: list[tuple[int, int]]) -> None:
    value = bytearray(GOOD)
    for at, byte in damage:
        value[at] = byte
    verdict = look(bytes(value))
    if isinstance(verdict, Taken):
        fit = 0 if verdict.particles is None else len(verdict.particles)
        assert verdict.received == fit + verdict.duplicates + len(verdict.problems)
    else:
        assert isinstance(verdict, Refused | Skipped)


def test_a_record_above_the_limit_is_refused() -> None:
    verdict = look(b"\0" * (2 << 20))
    assert isinstance(verdict, Refused)
    assert verdict.reason == "too_large"


def test_a_batch_of_nothing_but_bad_rows_fits_into_letters(bench: Bench) -> None:
    def spoil(images: np.ndarray, rows: dict[str, np.ndarray]) -> None:
        rows["defocus_u_angstrom"][:] = 0

    names = [f"{i + 1:06d}@{'long/' * 20}stack.mrcs" for i in range(1500)]
    value = batch_bytes(0, particles=1500, names=names, change=spoil)
    bench.send(value)
    bench.send_batches(1)
    bench.control("end")
    finished = bench.run()
    assert finished.state.balance().quarantined == 1500
    assert finished.state.balance().trained == 30
    letters = [r for r in bench.read(bench.topics.dead_letter) if isinstance(r, DeadLetter)]
    rows = [particle.row for letter in letters for particle in letter.particles]
    assert rows == list(range(1500))
    assert not letters[0].payload_truncated
    (raw, *_rest) = bench.read_raw(bench.topics.dead_letter)
    assert bytes(decode(raw.value).arrays["payload"]) == value


def test_references_that_lead_out_of_the_roots_cost_only_their_rows(
    bench: Bench, tmp_path: Path
) -> None:
    from schemas.codec import encode
    from schemas.envelope import new_envelope
    from schemas.particles import ParticleGeometry, StackReference, reference_batch
    from tests.streamer.bench import OPTICS

    envelope: Envelope = new_envelope(ParticleBatch, "s", producer="test", record_id="out")
    batch, arrays = reference_batch(
        envelope,
        [StackReference(path="../../etc/passwd", size_bytes=10)],
        geometry=ParticleGeometry(box=16, pixel_size_angstrom=3.0),
        optics_groups=OPTICS,
        image_names=["000001@x.mrcs"],
        rows={
            "defocus_u_angstrom": np.array([1e4]),
            "defocus_v_angstrom": np.array([1e4]),
            "stack": np.array([0]),
            "frame": np.array([0]),
        },
    )
    bench.send(encode(batch, arrays))
    bench.send_batches(1)
    bench.control("end")
    finished = bench.run()
    assert finished.state.ledger.quarantined == {"path_outside_roots": 1}
    assert finished.state.balance().trained == 30


def test_a_burst_is_caught_up_with_and_nothing_is_lost(bench: Bench) -> None:
    bench.send_batches(0)
    bench.run_until_idle()
    bench.send_batches(*range(1, 41))
    bench.control("end")
    finished = bench.run()
    assert finished.state.balance().trained == 41 * 30
