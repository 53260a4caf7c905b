"""Hostile bytes: each defect has its own reason, found before anything is allocated for it."""

from __future__ import annotations

import contextlib
import json
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_samples import SAMPLES

from schemas.codec import REASONS, CodecError, Limits, decode, encode
from schemas.framing import ALIGNMENT_BYTES, CODEC_VERSION, MAGIC, PREFIX

Header = dict[str, Any]
GOOD = encode(*SAMPLES["inline"])
HEADER_BYTES = PREFIX.unpack_from(GOOD)[3]


def frame(header: bytes, body: bytes = b"", /, **prefix: int | bytes) -> bytes:
    """Put a header and array bytes into a frame; ``prefix`` lies about its fields."""
    told: dict[str, Any] = {
        "magic": MAGIC,
        "version": CODEC_VERSION,
        "flags": 0,
        "header": len(header),
        "total": PREFIX.size + len(header) + len(body),
    }
    return PREFIX.pack(*(told | prefix).values()) + header + body


def edited(change: Callable[[Header], None]) -> bytes:
    """Give the good record with its JSON edited and its arrays moved behind the new header."""
    content = json.loads(GOOD[PREFIX.size : PREFIX.size + HEADER_BYTES])
    first = min(entry["offset"] for entry in content["arrays"])
    room = first + 16 * ALIGNMENT_BYTES
    for entry in content["arrays"]:
        entry["offset"] += room - first
    change(content)
    header = json.dumps(content).encode()
    assert len(header) <= room - PREFIX.size
    return frame(header.ljust(room - PREFIX.size), GOOD[first:])


def entry(content: Header, name: str = "images") -> Header:
    found: Header = next(one for one in content["arrays"] if one["name"] == name)
    return found


def array_change(**changes: Any) -> Callable[[Header], None]:
    return lambda content: entry(content).update(changes)


def envelope_change(**changes: Any) -> Callable[[Header], None]:
    return lambda content: content["record"]["envelope"].update(changes)


def record_change(**changes: Any) -> Callable[[Header], None]:
    return lambda content: content["record"].update(changes)


def geometry_change(**changes: Any) -> Callable[[Header], None]:
    return lambda content: content["record"]["geometry"].update(changes)


def shift_offset(by: int) -> Callable[[Header], None]:
    return lambda content: entry(content).update(offset=entry(content)["offset"] + by)


def swap_offset(content: Header) -> None:
    entry(content, "particle_id")["offset"] = entry(content)["offset"]


def duplicate_name(content: Header) -> None:
    entry(content)["name"] = "particle_id"


def stray_array(content: Header) -> None:
    last = content["arrays"][-1]
    table = {"name": "stray", "dtype": "u1", "shape": [0], "nbytes": 0}
    content["arrays"].append(table | {"offset": last["offset"]})


def reason_of(data: bytes, **limits: int) -> str:
    with pytest.raises(CodecError) as caught:
        decode(data, limits=Limits(**limits))
    assert caught.value.detail
    assert caught.value.reason in REASONS
    return caught.value.reason


def test_the_editing_itself_keeps_a_good_record_good() -> None:
    decode(edited(lambda content: None))


BIG = 2**31 - 1
HUGE_DIGITS = int("9" * 400)

EDITS: list[tuple[str, str, Callable[[Header], None]]] = [
    ("shape and size disagree", "size_mismatch", array_change(shape=[5, 16, 17])),
    ("size too small", "size_mismatch", array_change(nbytes=64)),
    ("product wraps round 64 bits", "size_mismatch", array_change(shape=[2**30, 2**30, 16])),
    ("product wraps to zero", "size_mismatch", array_change(shape=[2**30] * 8, nbytes=0)),
    ("zero hides a huge axis", "size_mismatch", array_change(shape=[0, BIG, BIG, BIG], nbytes=0)),
    ("negative length", "bad_array_table", array_change(shape=[-5, -16, 16])),
    ("axis beyond 31 bits", "bad_array_table", array_change(shape=[2**31])),
    ("fractional length", "bad_array_table", array_change(shape=[5.5, 16, 16])),
    ("boolean length", "bad_array_table", array_change(shape=[True, 16, 16])),
    ("length as text", "bad_array_table", array_change(shape=["5", "16", "16"])),
    ("too many axes", "bad_array_table", array_change(shape=[1] * 9)),
    ("no shape", "bad_array_table", lambda content: entry(content).pop("shape")),
    ("integer of 400 digits", "bad_array_table", array_change(offset=HUGE_DIGITS)),
    ("object dtype", "bad_dtype", array_change(dtype="O")),
    ("big-endian dtype", "bad_dtype", array_change(dtype=">f4")),
    ("structured dtype", "bad_dtype", array_change(dtype="f4,f4")),
    ("text dtype", "bad_dtype", array_change(dtype="S8")),
    ("dtype not text", "bad_array_table", array_change(dtype=["f4"])),
    ("allowed dtype, wrong size", "size_mismatch", array_change(dtype="f4")),
    ("offset not aligned", "misaligned", shift_offset(2)),
    ("offset inside the header", "out_of_bounds", array_change(offset=0)),
    ("offset beyond the end", "out_of_bounds", array_change(offset=2**31)),
    ("end beyond the end", "out_of_bounds", shift_offset(64 * 1024)),
    ("negative offset", "bad_array_table", array_change(offset=-64)),
    ("two arrays in one place", "overlapping", swap_offset),
    ("arrays half over each other", "overlapping", shift_offset(64)),
    ("same name twice", "bad_array_table", duplicate_name),
    ("illegal array name", "bad_array_table", array_change(name="../images")),
    ("array renamed", "array_missing", array_change(name="photos")),
    ("array unknown to the record", "array_unexpected", stray_array),
    ("array table is no list", "bad_array_table", lambda content: content.update(arrays={})),
    ("unknown key beside the table", "bad_array_table", lambda content: content.update(more=1)),
    ("array left out", "trailing_bytes", lambda content: content["arrays"].pop()),
    ("unknown schema id", "unknown_schema", envelope_change(schema_id="WHAT")),
    ("schema id of another kind", "invalid_record", envelope_change(schema_id="VOLS")),
    ("schema id not text", "unknown_schema", envelope_change(schema_id=["PART"])),
    ("newer major", "unknown_schema", envelope_change(major=2)),
    ("major zero", "unknown_schema", envelope_change(major=0)),
    ("major as text", "unknown_schema", envelope_change(major="1")),
    ("major true", "unknown_schema", envelope_change(major=True)),
    ("minor missing", "invalid_record", lambda content: content["record"]["envelope"].pop("minor")),
    ("minor negative", "invalid_record", envelope_change(minor=-1)),
    ("session id with a slash", "invalid_record", envelope_change(session_id="../../etc")),
    ("empty record id", "invalid_record", envelope_change(record_id="")),
    ("time before 1970", "invalid_record", envelope_change(created_at_ns=-1)),
    ("no envelope", "bad_header", lambda content: content["record"].pop("envelope")),
    ("record is a list", "bad_header", lambda content: content.update(record=[])),
    ("box too small", "invalid_record", geometry_change(box=8)),
    ("box true", "invalid_record", geometry_change(box=True)),
    ("pixel size 0", "invalid_record", geometry_change(pixel_size_angstrom=0)),
    ("pixel size NaN", "bad_header", geometry_change(pixel_size_angstrom=float("nan"))),
    ("pixel size infinite", "bad_header", geometry_change(pixel_size_angstrom=float("inf"))),
    ("box other than the images", "array_mismatch", geometry_change(box=32)),
    ("no particles", "invalid_record", record_change(image_names=[])),
    ("a name too few", "invalid_record", lambda content: content["record"]["image_names"].pop()),
    ("a name with a newline", "invalid_record", record_change(image_names=["1@a\n"] * 5)),
    ("a name with a NUL", "invalid_record", record_change(image_names=["1@a\0b"] * 5)),
    ("no optics groups", "invalid_record", record_change(optics_groups=[])),
    ("unknown payload", "invalid_record", record_change(payload={"kind": "smoke"})),
    ("reference without stacks", "invalid_record", record_change(payload={"kind": "reference"})),
    ("inline told as reference", "array_missing", record_change(
        payload={"kind": "reference", "stacks": [{"path": "a.mrcs", "size_bytes": 1}]})),
]  # fmt: skip


@pytest.mark.parametrize(("what", "reason", "change"), EDITS, ids=[what for what, _, _ in EDITS])
def test_a_lying_header_is_refused(
    what: str, reason: str, change: Callable[[Header], None]
) -> None:
    assert reason_of(edited(change)) == reason


HEADERS: list[tuple[str, str, bytes]] = [
    ("empty", "bad_header", b""),
    ("not JSON", "bad_header", b"hello"),
    ("a number", "bad_header", b"42"),
    ("a list", "bad_header", b"[]"),
    ("null", "bad_header", b"null"),
    ("cut JSON", "bad_header", b'{"arrays": ['),
    ("invalid UTF-8", "bad_header", b'{"record": "\xff\xfe"}'),
    ("lone surrogate", "bad_header", b'{"record": "\\ud800"}'),
    ("NaN literal", "bad_header", b'{"record": NaN}'),
    ("Infinity literal", "bad_header", b'{"record": Infinity}'),
    ("ten thousand digits", "bad_header", b'{"record": ' + b"9" * 10_000 + b"}"),
    ("depth 13", "header_too_deep", b'{"a":' + b"[" * 13 + b"]" * 13 + b"}"),
    ("depth 100", "header_too_deep", b'{"a":' * 100 + b"1" + b"}" * 100),
    ("depth 100,000", "header_too_deep", b"[" * 100_000 + b"]" * 100_000),
    ("unclosed depth", "header_too_deep", b"[" * 1_000_000),
]


@pytest.mark.parametrize(
    ("what", "reason", "header"), HEADERS, ids=[what for what, _, _ in HEADERS]
)
def test_a_header_that_is_no_header_is_refused(what: str, reason: str, header: bytes) -> None:
    assert reason_of(frame(header)) == reason


@pytest.mark.parametrize(
    ("reason", "data"),
    [
        ("truncated", b""),
        ("truncated", b"ABIL"),
        ("bad_magic", b"JUNK" + GOOD[4:]),
        ("bad_magic", b"\x00" * 64),
        ("bad_magic", b'{"schema": "json was sent here"}'),
        ("unknown_codec_version", frame(b"{}", version=2)),
        ("unknown_codec_version", frame(b"{}", flags=1)),
        ("header_too_large", frame(b"{}", header=2**32 - 1)),
        ("truncated", frame(b"{}", header=100, total=PREFIX.size + 2)),
        ("truncated", frame(b"{}", total=2**32 - 1)),
        ("trailing_bytes", GOOD + b"\x00"),
        ("trailing_bytes", GOOD + GOOD),
        ("trailing_bytes", frame(GOOD[PREFIX.size : PREFIX.size + HEADER_BYTES],
                                 GOOD[PREFIX.size + HEADER_BYTES :] + b"\x00" * 64)),
    ],
)  # fmt: skip
def test_a_broken_frame_is_refused(reason: str, data: bytes) -> None:
    assert reason_of(data) == reason


def test_a_record_cut_anywhere_is_truncated() -> None:
    edges = {0, 1, 4, PREFIX.size - 1, PREFIX.size, PREFIX.size + HEADER_BYTES, len(GOOD) - 1}
    for length in sorted(edges | set(range(0, len(GOOD), 7))):
        assert reason_of(GOOD[:length]) == "truncated", length


def test_a_cut_record_with_an_honest_total_is_still_refused() -> None:
    magic, version, flags, header, _ = PREFIX.unpack_from(GOOD)
    for length in range(PREFIX.size, len(GOOD), 11):
        lying = PREFIX.pack(magic, version, flags, header, length) + GOOD[PREFIX.size : length]
        assert reason_of(lying) in {"truncated", "out_of_bounds"}, length


def test_limits_are_the_readers() -> None:
    assert reason_of(GOOD, total_bytes=len(GOOD) - 1) == "too_large"
    assert reason_of(GOOD, header_bytes=HEADER_BYTES - 1) == "header_too_large"
    decode(GOOD, limits=Limits(total_bytes=len(GOOD), header_bytes=HEADER_BYTES))


def test_lying_sizes_allocate_nothing() -> None:
    lies = [
        frame(b"{}", header=2**23, total=2**32 - 1),
        edited(array_change(shape=[2**20, 64, 64], nbytes=2**32 - 64)),
        edited(array_change(shape=[BIG, 1, 1], nbytes=2 * BIG)),
    ]
    tracemalloc.start()
    try:
        for lie in lies:
            reason_of(lie)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 2**20


@given(data=st.binary(max_size=200))
def test_random_bytes_are_refused_with_a_reason(data: bytes) -> None:
    reason_of(data)
    reason_of(frame(data))


@settings(max_examples=300)
@given(flips=st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(1, 255)), max_size=4))
def test_flipped_bytes_are_decoded_or_refused_but_never_crash(
    flips: list[tuple[int, int]],
) -> None:
    data = bytearray(GOOD)
    for place, mask in flips:
        data[place % (HEADER_BYTES + PREFIX.size)] ^= mask
    with contextlib.suppress(CodecError):  # anything else is a crash of the reader
        decoded = decode(bytes(data))
        assert all(not array.flags.writeable for array in decoded.arrays.values())


def test_values_that_only_a_consumer_can_judge_pass_the_codec() -> None:
    record, arrays = SAMPLES["inline"]
    images = np.full_like(arrays["images"], np.nan)
    assert np.isnan(decode(encode(record, arrays | {"images": images})).arrays["images"]).all()
