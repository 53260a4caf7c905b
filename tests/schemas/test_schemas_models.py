"""The models are immutable and bounded; headers, ids, constructors and splitting keep promises."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from wire_samples import (
    CREATED_AT_NS,
    OPTICS,
    SAMPLES,
    assignments,
    columns,
    envelope,
    inline,
    names,
    reference,
    volumes,
)

from schemas.assignments import AssignmentBatch
from schemas.codec import RECORD_TYPES, decode, encode
from schemas.control import ControlRequest
from schemas.dead_letter import DeadLetter, dead_letter
from schemas.envelope import HEADER_NAMES, Envelope, from_headers, new_envelope, to_headers
from schemas.events import SessionEvent
from schemas.particles import ParticleBatch, ParticleGeometry, inline_batch, particle_id
from schemas.split import DEFAULT_MAX_BYTES, split_batch
from schemas.topics import Topics
from schemas.volumes import VolumeSnapshot, snapshot_id


@pytest.mark.parametrize("name", SAMPLES)
def test_records_cannot_be_changed(name: str) -> None:
    record, _ = SAMPLES[name]
    with pytest.raises(ValidationError, match="frozen"):
        record.envelope = record.envelope  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        record.envelope.session_id = "other"  # type: ignore[misc]


def test_the_numbers_of_an_event_cannot_be_changed() -> None:
    record, _ = SAMPLES["event"]
    assert isinstance(record, SessionEvent)
    with pytest.raises(TypeError):
        record.values["occupancy"] = 1.0  # type: ignore[index]


@pytest.mark.parametrize("kind", RECORD_TYPES.values(), ids=lambda kind: kind.__name__)
def test_every_field_is_described(kind: type) -> None:
    def undescribed(schema: dict) -> list[str]:
        models = [schema, *schema.get("$defs", {}).values()]
        return [
            f"{model['title']}.{name}"
            for model in models
            for name, field in model["properties"].items()
            if "description" not in field
        ]

    assert undescribed(kind.model_json_schema()) == []  # type: ignore[attr-defined]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 0.0, 101.0, "3.0", True])
def test_a_pixel_size_is_a_bounded_number(value: object) -> None:
    with pytest.raises(ValidationError):
        ParticleGeometry.model_validate({"box": 64, "pixel_size_angstrom": value})


@pytest.mark.parametrize("value", [15, 1025, 64.0, "64", True])
def test_a_box_is_a_bounded_integer(value: object) -> None:
    with pytest.raises(ValidationError):
        ParticleGeometry.model_validate({"box": value, "pixel_size_angstrom": 3.0})


def test_an_envelope_of_another_kind_is_refused() -> None:
    with pytest.raises(ValidationError, match="this record is CTRL"):
        ControlRequest(envelope=envelope(ParticleBatch), action="pause")


def test_classes_must_be_in_order() -> None:
    record, _ = volumes()
    assert isinstance(record, VolumeSnapshot)
    content = record.model_dump()
    content["classes"] = content["classes"][::-1]
    with pytest.raises(ValidationError, match="in order"):
        VolumeSnapshot.model_validate(content)


def test_rows_beyond_the_table_are_refused() -> None:
    content = assignments(6)[0].model_dump() | {"first_row": 1}
    with pytest.raises(ValidationError, match="do not fit a table of 6"):
        AssignmentBatch.model_validate(content)


def test_a_particle_id_is_the_start_of_blake2b_and_never_changes() -> None:
    name = "000001@Extract/job012/mic_0.mrcs"
    digest = hashlib.blake2b(name.encode()).digest()
    assert particle_id(name) == int.from_bytes(digest[:8], "little")
    assert particle_id("abc") == 0x0D4D1C983FA580BA  # RFC 7693, appendix A: ba 80 a5 3f ...


def test_snapshot_ids_sort_by_step() -> None:
    ids = [snapshot_id("s", step) for step in (9, 10, 100_000)]
    assert ids == sorted(ids)


# Kafka headers


def test_headers_carry_the_envelope() -> None:
    made = envelope(ParticleBatch)
    headers = to_headers(made)
    assert tuple(name for name, _ in headers) == HEADER_NAMES
    assert dict(headers)["ce_type"] == b"abinitio-live.PART.1.0"
    assert dict(headers)["ce_time"] == b"2023-11-14T22:13:20.000000001Z"
    assert made.created_at_ns == CREATED_AT_NS
    assert from_headers(headers) == made


@given(
    created_at_ns=st.integers(0, 2**63 - 1),
    producer=st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1),
    minor=st.integers(0, 65_535),
)
def test_any_envelope_survives_the_headers(created_at_ns: int, producer: str, minor: int) -> None:
    made = envelope(SessionEvent, created_at_ns=created_at_ns, producer=producer, minor=minor)
    assert from_headers(to_headers(made)) == made


@pytest.mark.parametrize(
    "change",
    [
        {"ce_type": b"other.PART.1.0"},
        {"ce_type": b"abinitio-live.PART.1"},
        {"ce_type": b"abinitio-live.PART.99999.0"},
        {"ce_time": b"yesterday"},
        {"ce_time": b"2023-99-99T22:13:20.000000001Z"},
        {"ce_time": b"0001-01-01T00:00:00.000000000Z"},
        {"ce_subject": b"../x"},
        {"ce_id": b""},
        {"ce_source": b"\xff"},
        {"ce_time": None},
    ],
)
def test_foreign_headers_are_no_envelope(change: dict[str, bytes | None]) -> None:
    headers = dict(to_headers(envelope(ParticleBatch))) | change
    assert from_headers(headers.items()) is None  # type: ignore[arg-type]


def test_absent_headers_are_no_envelope() -> None:
    assert from_headers([]) is None


def test_new_envelopes_differ_unless_an_id_is_given() -> None:
    first, second = (new_envelope(ControlRequest, "s", producer="p") for _ in range(2))
    assert first.record_id != second.record_id
    assert isinstance(first, Envelope)


# constructors


def test_inline_pixels_become_float16_within_rounding() -> None:
    pixels = np.random.default_rng(1).standard_normal((5, 16, 16))
    _, arrays = make_inline(pixels)
    assert arrays["images"].dtype == np.float16
    # half of the last of float16's 11 bits, relative, and its smallest step, absolute
    np.testing.assert_allclose(arrays["images"], pixels, rtol=2**-11, atol=2**-24)


def make_inline(pixels: np.ndarray, **changes: object) -> tuple[ParticleBatch, dict]:
    arguments: dict = {
        "geometry": ParticleGeometry(box=16, pixel_size_angstrom=3.0),
        "optics_groups": [OPTICS],
        "image_names": names(5),
        "rows": columns(5),
    }
    return inline_batch(envelope(ParticleBatch), pixels, **(arguments | changes))


def test_pixels_beyond_float16_are_refused_with_a_remedy() -> None:
    with pytest.raises(ValueError, match="normalise the images or send float32"):
        make_inline(np.full((5, 16, 16), 1e6))
    _, arrays = make_inline(np.full((5, 16, 16), 1e6), pixel_type="float32")
    assert arrays["images"].max() == np.float32(1e6)


def test_bad_pixels_are_left_for_the_consumer_to_judge() -> None:
    _, arrays = make_inline(np.full((5, 16, 16), np.inf))
    assert np.isinf(arrays["images"]).all()


def test_a_misspelt_column_is_refused() -> None:
    with pytest.raises(ValueError, match="'defocus_u' is not a column"):
        make_inline(np.zeros((5, 16, 16)), rows={"defocus_u": np.zeros(5)})


def test_columns_left_out_are_zero_and_ids_follow_the_names() -> None:
    batch, arrays = inline()
    np.testing.assert_array_equal(arrays["phase_shift_rad"], np.zeros(5, np.float32), strict=True)
    assert [int(one) for one in arrays["particle_id"]] == [
        particle_id(name) for name in batch.image_names
    ]


def test_micrograph_names_go_with_the_rows() -> None:
    with pytest.raises(ValidationError, match="2 micrograph names for 5 particles"):
        make_inline(np.zeros((5, 16, 16)), micrograph_names=["a.mrc", "b.mrc"])


def test_a_dead_letter_cuts_its_payload_and_says_so() -> None:
    record, arrays = dead_letter(
        envelope(DeadLetter),
        b"x" * 100,
        reason="too_large",
        detail="d" * 10_000 + "\ud800",
        source_topic="t",
        source_partition=0,
        source_offset=1,
        max_payload_bytes=10,
    )
    assert record.payload_truncated
    assert (record.payload_bytes, len(arrays["payload"])) == (100, 10)
    assert record.payload_sha256 == hashlib.sha256(b"x" * 100).hexdigest()
    decode(encode(record, arrays))


# splitting


def test_a_batch_that_fits_is_left_alone() -> None:
    record, arrays = inline()
    assert split_batch(record, arrays) == [(record, arrays)]


@pytest.mark.parametrize("max_bytes", [4096, 5000, 20_000])
def test_parts_stay_within_the_budget_and_lose_nothing(max_bytes: int) -> None:
    record, arrays = inline(count=37)
    parts = split_batch(record, arrays, max_bytes)
    assert len(parts) > 1
    assert all(len(encode(*part)) <= max_bytes for part in parts)
    assert sum((part.image_names for part, _ in parts), ()) == record.image_names
    assert sum((part.micrograph_names for part, _ in parts), ()) == record.micrograph_names
    for name, array in arrays.items():
        np.testing.assert_array_equal(
            np.concatenate([rows[name] for _, rows in parts]), array, strict=True
        )
    assert len({part.envelope.record_id for part, _ in parts}) == len(parts)
    assert split_batch(record, arrays, max_bytes)[1][0].envelope == parts[1][0].envelope


def test_no_part_could_have_taken_one_row_more() -> None:
    record, arrays = inline(count=37)
    start = 0
    for part, _ in split_batch(record, arrays, 20_000)[:-1]:
        stop = start + part.count + 1
        longer = record.take_rows(start, stop, record_id=part.envelope.record_id)
        rows = {name: array[start:stop] for name, array in arrays.items()}
        assert len(encode(longer, rows)) > 20_000
        start += part.count


def test_references_and_assignments_split_too() -> None:
    for record, arrays in (reference(count=300), assignments(300)):
        parts = split_batch(record, arrays, 8192)  # type: ignore[type-var]
        assert sum(part.count for part, _ in parts) == 300
        assert all(len(encode(*part)) <= 8192 for part in parts)
    starts = [part.first_row for part, _ in split_batch(*assignments(300), 8192)]
    assert starts == sorted(set(starts))
    assert starts[0] == 0


def test_rows_of_uneven_size_are_split_well() -> None:
    record, arrays = inline(count=60)
    uneven = [f"{'x' * (3000 if row in (0, 30) else 5)}{row}" for row in range(60)]
    record = ParticleBatch.model_validate(record.model_dump() | {"image_names": uneven})
    parts = split_batch(record, arrays, 10_000)
    assert sum(part.count for part, _ in parts) == 60
    assert all(len(encode(*part)) <= 10_000 for part in parts)


def test_one_row_over_the_budget_is_an_error_in_words() -> None:
    record, arrays = inline(count=3, box=128)
    with pytest.raises(ValueError, match=r"one row of rec-1 .* takes \d+ bytes, over the budget"):
        split_batch(record, arrays, 16_384)


def test_part_ids_that_would_be_too_long_are_refused() -> None:
    record, arrays = inline(count=37)
    long = ParticleBatch.model_validate(
        record.model_dump() | {"envelope": envelope(ParticleBatch, record_id="r" * 200)}
    )
    with pytest.raises(ValidationError, match="record_id"):
        split_batch(long, arrays, 8192)


def test_a_full_part_fits_a_stock_broker_even_as_a_dead_letter() -> None:
    letter, arrays = dead_letter(
        envelope(DeadLetter, session_id="s" * 200, record_id="r" * 200),
        bytes(DEFAULT_MAX_BYTES),
        reason="bad_magic",
        detail="d" * 4096,
        source_topic="t" * 249,
        source_partition=0,
        source_offset=2**40,
        max_payload_bytes=DEFAULT_MAX_BYTES,
    )
    assert not letter.payload_truncated
    headers_bytes = sum(len(name) + len(value) for name, value in to_headers(letter.envelope))
    assert len(encode(letter, arrays)) + headers_bytes + 1024 < 2**20


# topics


def test_topics_are_distinct_and_share_the_prefix() -> None:
    topics = Topics("site-a")
    assert len(set(topics.all)) == 7
    assert all(topic.startswith("site-a.") for topic in topics.all)
    assert topics.dead_letter == "site-a.particles.dead-letter"


@pytest.mark.parametrize("prefix", ["", "a b", ".hidden", "x" * 201, "å", "a/b", "a\n"])
def test_an_illegal_prefix_is_refused(prefix: str) -> None:
    with pytest.raises(ValueError, match="is not legal"):
        Topics(prefix)
