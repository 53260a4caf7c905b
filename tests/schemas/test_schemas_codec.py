"""The codec gives back what it was given, as read-only aligned views, within its limits."""

from __future__ import annotations

import json
import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_samples import SAMPLES, Sample, envelope, inline, names

from schemas.arrays import ArrayMismatchError
from schemas.assignments import AssignmentBatch
from schemas.codec import RECORD_TYPES, CodecError, decode, encode, encoded_size
from schemas.dead_letter import DeadLetter, dead_letter
from schemas.events import SessionEvent
from schemas.framing import ALIGNMENT_BYTES, PREFIX
from schemas.volumes import VolumeSnapshot

finite = st.floats(allow_nan=False, allow_infinity=False)


@pytest.mark.parametrize("name", SAMPLES)
def test_every_record_survives_the_round_trip(name: str) -> None:
    record, arrays = SAMPLES[name]
    decoded = decode(encode(record, arrays))
    assert decoded.record == record
    assert type(decoded.record) is type(record)
    assert set(decoded.arrays) == set(arrays)
    for key, array in arrays.items():
        np.testing.assert_array_equal(decoded.arrays[key], array, strict=True)


def test_every_record_type_has_a_sample() -> None:
    assert {record.SCHEMA_ID for record, _ in SAMPLES.values()} == set(RECORD_TYPES)


@pytest.mark.parametrize("name", SAMPLES)
def test_encoding_is_deterministic_and_its_size_is_foretold(name: str) -> None:
    record, arrays = SAMPLES[name]
    data = encode(record, arrays)
    assert data == encode(record, arrays)
    assert len(data) == encoded_size(record, arrays)


def test_arrays_are_views_of_the_bytes_that_came_in() -> None:
    record, arrays = SAMPLES["inline"]
    data = encode(record, arrays)
    whole = np.frombuffer(data, dtype=np.uint8)
    start = whole.__array_interface__["data"][0]
    for array in decode(data).arrays.values():
        offset = array.__array_interface__["data"][0] - start
        assert 0 < offset < len(data)
        assert offset % ALIGNMENT_BYTES == 0
        assert np.shares_memory(array, whole)


def test_arrays_are_read_only_even_when_the_buffer_is_not() -> None:
    record, arrays = SAMPLES["inline"]
    decoded = decode(memoryview(bytearray(encode(record, arrays))))
    with pytest.raises(ValueError, match="read-only"):
        decoded.arrays["images"][0, 0, 0] = 1
    with pytest.raises(TypeError):
        decoded.arrays["images"] = decoded.arrays["images"]  # type: ignore[index]


def test_big_endian_and_strided_arrays_are_written_little_endian() -> None:
    record, arrays = inline()
    odd = {
        name: np.repeat(array, 2, axis=0)[::2].astype(array.dtype.newbyteorder(">"))
        for name, array in arrays.items()
    }
    assert encode(record, odd) == encode(record, arrays)


def test_an_empty_array_travels() -> None:
    record, arrays = dead_letter(
        envelope(DeadLetter),
        b"",
        reason="truncated",
        detail="nothing there",
        source_topic="t",
        source_partition=0,
        source_offset=0,
        max_payload_bytes=10,
    )
    assert decode(encode(record, arrays)).arrays["payload"].shape == (0,)


@given(
    seed=st.integers(0, 2**32 - 1),
    data=st.data(),
    kind=st.sampled_from(["euler", "matrix"]),
    real=st.sampled_from([np.float32, np.float64]),
)
def test_any_assignments_survive_the_round_trip(
    seed: int, data: st.DataObject, kind: str, real: type
) -> None:
    text = st.text(min_size=1, max_size=20).filter(
        lambda value: not any(ord(letter) < 32 or ord(letter) == 127 for letter in value)
    )
    image_names = data.draw(st.lists(text, min_size=1, max_size=5))
    rows = len(image_names)
    record = AssignmentBatch.model_validate(
        {
            "envelope": envelope(AssignmentBatch),
            "snapshot_id": "s-1",
            "step": 1,
            "rotation_kind": kind,
            "total_rows": rows,
            "image_names": image_names,
        }
    )
    rng = np.random.default_rng(seed)

    def bits(dtype: type, *shape: int) -> np.ndarray:  # any bits at all: NaN payloads survive too
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return np.frombuffer(rng.bytes(size), dtype=dtype).reshape(shape)

    arrays = {
        "particle_id": bits(np.uint64, rows),
        "class_index": bits(np.int32, rows),
        "rotation": bits(real, rows, 3) if kind == "euler" else bits(real, rows, 3, 3),
        "shift_angstrom": bits(np.float32, rows, 2),
        "max_probability": bits(np.float32, rows),
        "log_likelihood": bits(real, rows),
        "half": bits(np.uint8, rows),
    }
    decoded = decode(encode(record, arrays))
    assert decoded.record == record
    for name, array in arrays.items():
        assert decoded.arrays[name].tobytes() == array.tobytes()


@given(
    values=st.dictionaries(st.text(string.ascii_letters, min_size=1), finite, max_size=5),
    message=st.text(st.characters(codec="utf-8"), max_size=200),
)
def test_any_event_survives_the_round_trip(values: dict[str, float], message: str) -> None:
    record = SessionEvent(
        envelope=envelope(SessionEvent), kind="phase", message=message, values=values
    )
    assert decode(encode(record)).record == record


def _with_header(sample: Sample, change: object) -> bytes:
    """Encode a sample, let ``change`` edit the header's JSON, and keep the arrays in place."""
    data = encode(*sample)
    length = PREFIX.unpack_from(data)[3]
    content = json.loads(data[PREFIX.size : PREFIX.size + length])
    first = min((entry["offset"] for entry in content["arrays"]), default=len(data))
    shift = 8 * ALIGNMENT_BYTES  # room for what is added
    for entry in content["arrays"]:
        entry["offset"] += shift
    assert callable(change)
    change(content)
    body = data[first:]
    room = (first + shift if body else PREFIX.size + length + shift) - PREFIX.size
    header = json.dumps(content).encode().ljust(room)
    total = PREFIX.size + len(header) + len(body)
    return PREFIX.pack(*PREFIX.unpack_from(data)[:3], len(header), total) + header + body


@pytest.mark.parametrize("name", ["inline", "reference", "volumes", "reply", "event"])
def test_a_newer_minor_with_unknown_fields_is_accepted(name: str) -> None:
    def newer(content: dict) -> None:
        content["record"]["envelope"]["minor"] = 7
        content["record"]["envelope"]["colour"] = "green"
        content["record"]["flavour"] = {"nested": [1, 2]}
        for part in ("geometry", "payload", "status"):
            if part in content["record"]:
                content["record"][part]["future"] = 1
        for entry in content["arrays"]:
            entry["note"] = "unknown"

    decoded = decode(_with_header(SAMPLES[name], newer))
    record, arrays = SAMPLES[name]
    assert decoded.record.envelope.minor == 7
    assert decoded.record.model_dump(exclude={"envelope"}) == record.model_dump(
        exclude={"envelope"}
    )
    assert set(decoded.arrays) == set(arrays)


def test_unknown_fields_in_our_own_minor_are_refused() -> None:
    def stray(content: dict) -> None:
        content["record"]["flavour"] = 1

    with pytest.raises(CodecError) as caught:
        decode(_with_header(SAMPLES["inline"], stray))
    assert caught.value.reason == "invalid_record"
    assert "flavour" in caught.value.detail


def test_a_snapshot_of_the_first_minor_is_still_read() -> None:
    def older(content: dict) -> None:
        content["record"]["envelope"]["minor"] = 0
        del content["record"]["output_folder"]

    record = decode(_with_header(SAMPLES["volumes"], older)).record
    assert isinstance(record, VolumeSnapshot)
    assert record.output_folder is None


def test_a_newer_minor_may_add_an_array() -> None:
    def newer(content: dict) -> None:
        content["record"]["envelope"]["minor"] = 7
        for entry in content["arrays"]:
            if entry["name"] == "fsc":
                entry["name"] = "radial_weights"

    assert "radial_weights" in decode(_with_header(SAMPLES["volumes"], newer)).arrays


@pytest.mark.parametrize(
    ("name", "array", "reason"),
    [
        ("images", None, "array_missing"),
        ("stack", np.zeros(5, np.int32), "array_unexpected"),
        ("images", np.zeros((5, 16, 17), np.float16), "array_mismatch"),
        ("images", np.zeros((4, 16, 16), np.float16), "array_mismatch"),
        ("images", np.zeros((5, 16, 16), np.uint8), "array_mismatch"),
        ("optics_group", np.zeros((5, 1), np.int32), "array_mismatch"),
    ],
)
def test_the_encoder_refuses_arrays_that_do_not_fit(
    name: str, array: np.ndarray | None, reason: str
) -> None:
    record, arrays = inline()
    if array is None:
        del arrays[name]
    else:
        arrays[name] = array
    with pytest.raises(ArrayMismatchError) as caught:
        encode(record, arrays)
    assert caught.value.reason == reason
    assert name in caught.value.detail


def test_symbols_of_a_shape_must_agree_between_arrays() -> None:
    record, arrays = SAMPLES["volumes"]
    with pytest.raises(ArrayMismatchError, match="p = 8"):
        encode(record, arrays | {"slices": np.zeros((2, 3, 9, 9), np.uint8)})


def test_names_are_not_cut() -> None:
    record, arrays = inline(count=7)
    assert decode(encode(record, arrays)).record.image_names == tuple(names(7))  # type: ignore[attr-defined]
