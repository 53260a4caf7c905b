"""Tables become batches and batches become what the engine takes."""

from __future__ import annotations

from pathlib import Path

import mrcfile
import numpy as np
import pytest

from reconstruct.io.star import read_star
from reconstruct.io.table import ParticleTable
from schemas.codec import decode, encode
from schemas.particles import particle_ids
from streamer.adapt import (
    batches_from_table,
    images_from_table,
    particle_images,
    particles_from_table,
    row_ids,
    rows_by_micrograph,
)
from streamer.contrast import Contrast, decide_sign, measure_contrast
from streamer.references import fetch_images

BOX = 16
HEAD = """data_optics
loop_
_rlnOpticsGroup
_rlnVoltage
_rlnSphericalAberration
_rlnAmplitudeContrast
_rlnImagePixelSize
_rlnImageSize
1 300 2.7 0.1 2.0 16
2 200 1.4 0.07 2.0 16

data_particles
loop_
_rlnImageName
_rlnMicrographName
_rlnOpticsGroup
_rlnDefocusU
_rlnDefocusV
_rlnDefocusAngle
_rlnPhaseShift
"""


@pytest.fixture
def table(tmp_path: Path) -> ParticleTable:
    """Ten particles of three micrographs, in stacks whose order is not the table's."""
    random = np.random.default_rng(8)
    rows = []
    for stack, frames in (("a", 4), ("b", 5), ("c", 1)):
        with mrcfile.new(tmp_path / f"{stack}.mrcs") as out:
            out.set_data(random.normal(size=(frames, BOX, BOX)).astype(np.float32))
        rows += [
            f"{k:06d}@{stack}.mrcs {stack}.mrc {1 + k % 2} {15000 + k} {14000 + k} {k} 90"
            for k in reversed(range(1, frames + 1))
        ]
    path = tmp_path / "particles.star"
    path.write_text(HEAD + "\n".join(rows) + "\n")
    return read_star(path)


def stored(table: ParticleTable, row: int) -> np.ndarray:
    with mrcfile.open(table.stacks[table.stack_index[row]]) as opened:
        return np.array(opened.data.reshape(-1, BOX, BOX)[table.frame[row]])


def test_pixels_come_in_the_order_of_the_rows(table: ParticleTable) -> None:
    rows = np.array([9, 0, 5, 3, 0])
    images = images_from_table(table, rows)
    assert images.dtype == np.float32
    for image, row in zip(images, rows, strict=True):
        np.testing.assert_array_equal(image, stored(table, int(row)))
    assert images_from_table(table, rows[:0]).shape == (0, BOX, BOX)


def test_micrographs_stay_whole_unless_they_are_too_large(table: ParticleTable) -> None:
    def cut(batch_size: int) -> list[list[int]]:
        rows = np.arange(len(table))
        return [c.tolist() for c in rows_by_micrograph(table, rows, batch_size=batch_size)]

    assert cut(100) == [list(range(10))]
    assert cut(6) == [[0, 1, 2, 3], [4, 5, 6, 7, 8, 9]]
    assert cut(5) == [[0, 1, 2, 3], [4, 5, 6, 7, 8], [9]]
    assert cut(3) == [[0, 1, 2], [3], [4, 5, 6], [7, 8, 9]]
    with pytest.raises(ValueError, match="batch_size"):
        cut(0)


@pytest.mark.parametrize("payload", ["inline", "reference"])
def test_a_table_survives_the_wire(table: ParticleTable, tmp_path: Path, payload: str) -> None:
    batches = batches_from_table(
        table,
        6,
        session_id="s1",
        producer="test",
        payload=payload,  # type: ignore[arg-type]
        reference_root=tmp_path,
    )
    parts = []
    for record, arrays in batches:
        got = decode(encode(record, arrays))
        fetched = fetch_images(got.record, got.arrays, allowed_roots=[tmp_path])
        assert not fetched.problems
        rows = np.arange(got.record.count)
        parts.append(particle_images(got.record, got.arrays, images=fetched.images, rows=rows))
    whole = particles_from_table(table, np.arange(len(table)))
    tolerance = 2e-3 if payload == "inline" else 0.0  # float16 on the wire
    np.testing.assert_allclose(
        np.concatenate([p.images for p in parts]).astype(np.float32), whole.images, atol=tolerance
    )
    for field in (
        "particle_ids",
        "defocus_u_angstrom",
        "defocus_v_angstrom",
        "defocus_angle_rad",
        "phase_shift_rad",
        "optics_group",
    ):
        joined = np.concatenate([getattr(p, field) for p in parts])
        np.testing.assert_array_equal(joined, getattr(whole, field))
    assert parts[0].optics == whole.optics == table.optics


def test_identity_follows_from_the_image_name(table: ParticleTable) -> None:
    np.testing.assert_array_equal(row_ids(table), particle_ids(table.image_names))
    chosen = particles_from_table(table, np.array([7, 2]))
    np.testing.assert_array_equal(chosen.particle_ids, row_ids(table)[[7, 2]])


def test_attaching_again_repeats_the_record_ids(table: ParticleTable) -> None:
    def ids() -> list[str]:
        batches = batches_from_table(
            table, 4, session_id="s", producer="p", payload="reference", created_at_ns=1
        )
        return [record.envelope.record_id for record, _ in batches]

    assert ids() == ids()
    assert len(set(ids())) == len(ids())


def test_only_the_rows_asked_for_are_sent(table: ParticleTable) -> None:
    rows = np.array([8, 1])
    ((record, arrays),) = batches_from_table(
        table, 10, session_id="s", producer="p", payload="reference", rows=rows
    )
    assert list(record.image_names) == [table.image_names[8], table.image_names[1]]
    np.testing.assert_array_equal(arrays["frame"], table.frame[rows])


def test_dark_particles_are_inverted_once(table: ParticleTable) -> None:
    ((record, arrays),) = batches_from_table(
        table, 10, session_id="s", producer="p", payload="inline", contrast="dark"
    )
    np.testing.assert_allclose(arrays["images"], images_from_table(table, np.arange(10)), atol=2e-3)
    taken = particle_images(record, arrays, images=arrays["images"], rows=np.array([3]))
    np.testing.assert_array_equal(taken.images, -arrays["images"][[3]])
    inverted = particles_from_table(table, np.array([3]), sign=-1)
    np.testing.assert_array_equal(inverted.images[0], -stored(table, 3))


@pytest.mark.parametrize(
    ("scale", "offset", "expected"),
    [(1.0, 0.0, "float16"), (1e6, 0.0, "float32"), (1.0, 5000.0, "float32"), (1e-5, 0, "float32")],
)
def test_pixels_travel_in_float32_where_float16_would_spoil_them(
    tmp_path: Path, table: ParticleTable, scale: float, offset: float, expected: str
) -> None:
    with mrcfile.open(tmp_path / "c.mrcs", "r+") as out:
        out.set_data(out.data * np.float32(scale) + np.float32(offset))
    ((_, arrays),) = batches_from_table(
        table, 10, session_id="s", producer="p", payload="inline", rows=np.array([9])
    )
    assert arrays["images"].dtype == expected


def disc_images(n: int, amplitude: float) -> np.ndarray:
    box = 32
    axis = np.arange(box) - box // 2
    disc = np.hypot(axis[:, None], axis[None, :]) < 0.3 * box
    noise = np.random.default_rng(2).normal(size=(n, box, box))
    return (noise + amplitude * disc).astype(np.float32)


def test_contrast_is_told_from_noise() -> None:
    assert measure_contrast(disc_images(500, 0.1)).sign == 1
    assert measure_contrast(disc_images(500, -0.1)).sign == -1
    assert measure_contrast(disc_images(500, 0.0)).sign == 0
    assert measure_contrast(disc_images(1, 5.0)).sign == 0


def test_one_broken_image_does_not_spoil_the_contrast() -> None:
    images = disc_images(500, 0.1)
    images[3] = np.nan
    images[4] = 7.0
    contrast = measure_contrast(images)
    assert (contrast.sign, contrast.images) == (1, 498)


@pytest.mark.parametrize(
    ("difference", "declared", "sign", "words"),
    [
        (0.2, None, 1, ""),
        (0.2, 1, 1, ""),
        (0.2, -1, 1, "although the metadata say dark"),
        (-0.2, None, -1, "inverted"),
        (-0.2, -1, -1, "inverted"),
        (-0.2, 1, -1, "although the metadata say bright"),
        (0.01, None, 1, "taken as bright"),
        (0.01, -1, -1, "the metadata say dark"),
    ],
)
def test_what_the_images_show_beats_what_the_metadata_say(
    difference: float, declared: int | None, sign: int, words: str
) -> None:
    decided, said = decide_sign(Contrast(difference, 0.01, 500), declared)
    assert decided == sign
    assert (words in said) if words else (said == "")
