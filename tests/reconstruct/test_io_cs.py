""".cs files are read right, joined on uid, or refused in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reconstruct.io.cs import read_cs
from reconstruct.io.errors import InputFileError
from reconstruct.types import Optics

N = 4
BLOB: dict[str, Any] = {
    "blob/path": [b">J1/a.mrc", b">J1/b.mrc", b">J1/a.mrc", b"J1/a.mrc"],
    "blob/idx": np.arange(N, dtype=np.uint32),
    "blob/shape": np.full((N, 2), 8, dtype=np.uint32),
    "blob/psize_A": np.full(N, 2.0, dtype=np.float32),
    "blob/sign": np.full(N, -1.0, dtype=np.float32),
}
CTF: dict[str, Any] = {
    "ctf/accel_kv": np.full(N, 300.0, dtype=np.float32),
    "ctf/cs_mm": np.full(N, 2.7, dtype=np.float32),
    "ctf/amp_contrast": np.full(N, 0.1, dtype=np.float32),
    "ctf/df1_A": np.linspace(1e4, 2e4, N, dtype=np.float32),
    "ctf/df2_A": np.linspace(1e4, 2e4, N, dtype=np.float32) - 500,
    "ctf/df_angle_rad": np.full(N, 0.3, dtype=np.float32),
    "ctf/phase_shift_rad": np.full(N, 0.1, dtype=np.float32),
    "ctf/tilt_A": np.zeros((N, 2), dtype=np.float32),
    "ctf/anisomag": np.zeros((N, 4), dtype=np.float32),
}
# a header whose text breaks off inside a bracket
BROKEN = b"\x93NUMPY\x01\x00\x10\x00{'descr': [('a', \n"
UIDS = np.array([4, 3, 2, 1], dtype=np.uint64)


def write_fields(path: Path, fields: dict[str, Any], uids: np.ndarray = UIDS) -> Path:
    arrays = {"uid": uids} | {name: np.asarray(values) for name, values in fields.items()}
    records = np.zeros(
        len(uids), dtype=[(name, a.dtype, a.shape[1:]) for name, a in arrays.items()]
    )
    for name, values in arrays.items():
        records[name] = values
    with open(path, "wb") as out:
        np.save(out, records, allow_pickle=False)
    return path


def test_fields_become_a_table(tmp_path: Path) -> None:
    table = read_cs(write_fields(tmp_path / "particles.cs", BLOB | CTF), stacks="defer")
    assert table.layout == "cryosparc"
    assert [table.stacks[k].name for k in table.stack_index] == ["a.mrc", "b.mrc", "a.mrc", "a.mrc"]
    assert len(set(table.stacks)) == 2
    np.testing.assert_array_equal(table.frame, [0, 1, 2, 3])
    assert table.image_names[1] == "000002@J1/b.mrc"
    assert table.optics[0].voltage_kv == 300.0
    assert table.optics == (Optics(300.0, 2.7, 0.1),)
    np.testing.assert_allclose(table.defocus_angle_rad, 0.3)
    np.testing.assert_allclose(table.phase_shift_rad, 0.1)
    assert (table.box, table.pixel_size_angstrom, table.contrast_sign) == (8, 2.0, -1)
    np.testing.assert_array_equal(table.uid, UIDS)


def test_passthrough_is_joined_on_uid_not_on_row_order(tmp_path: Path) -> None:
    main = write_fields(tmp_path / "J5_particles.cs", BLOB)
    order = [2, 0, 3, 1]
    shuffled = {name: np.asarray(values)[order] for name, values in CTF.items()}
    extra = write_fields(tmp_path / "J5_passthrough_particles.cs", shuffled, UIDS[order])
    for table in (
        read_cs(main, passthrough=[extra], stacks="defer"),
        read_cs(main, stacks="defer"),
    ):
        np.testing.assert_allclose(table.defocus_u_angstrom, CTF["ctf/df1_A"])
    assert any("J5_passthrough_particles.cs" in note for note in table.notes)


def test_passthrough_of_another_job_is_refused(tmp_path: Path) -> None:
    main = write_fields(tmp_path / "J5_particles.cs", BLOB)
    extra = write_fields(tmp_path / "J6_passthrough_particles.cs", CTF, UIDS + 1)
    with pytest.raises(InputFileError, match="lacks 1 of the 4 particles"):
        read_cs(main, passthrough=[extra], stacks="defer")
    with pytest.raises(InputFileError, match="ctf/accel_kv is missing"):
        read_cs(main, stacks="defer")


def test_poses_of_the_likeliest_class_are_taken(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    poses = random.normal(size=(N, 2, 3)).astype(np.float32)
    multi = {
        "alignments3D_multi/pose": poses,
        "alignments3D_multi/shift": random.normal(size=(N, 2, 2)).astype(np.float32),
        "alignments3D_multi/psize_A": np.full((N, 2), 4.0, dtype=np.float32),
        "alignments3D_multi/class": np.tile(np.arange(2, dtype=np.uint32), (N, 1)),
        "alignments3D_multi/class_posterior": np.array(
            [[0.9, 0.1], [0.2, 0.8], [1, 0], [0, 1]], dtype=np.float32
        ),
        "alignments3D_multi/split": np.tile([[0, 0], [1, 1]], (2, 1)).astype(np.uint32),
    }
    single = {
        "alignments3D/pose": poses[np.arange(N), [0, 1, 0, 1]],
        "alignments3D/shift": multi["alignments3D_multi/shift"][np.arange(N), [0, 1, 0, 1]],
        "alignments3D/psize_A": np.full(N, 4.0, dtype=np.float32),
    }
    several = read_cs(write_fields(tmp_path / "m.cs", BLOB | CTF | multi), stacks="defer")
    one = read_cs(write_fields(tmp_path / "s.cs", BLOB | CTF | single), stacks="defer")
    np.testing.assert_array_equal(several.class_index, [0, 1, 0, 1])
    np.testing.assert_array_equal(several.half, [1, 2, 1, 2])
    assert several.rotations is not None
    assert one.rotations is not None
    assert one.shifts_angstrom is not None
    np.testing.assert_array_equal(several.rotations, one.rotations)
    np.testing.assert_allclose(one.shifts_angstrom, single["alignments3D/shift"] * 4.0, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "reason", "words"),
    [
        ({"ctf/tilt_A": np.full((N, 2), 0.1)}, "aberrations", "ctf/tilt_A"),
        ({"ctf/anisomag": np.full((N, 4), 1e-3)}, "aberrations", "ctf/anisomag"),
        ({"blob/psize_A": np.array([1.0, 1, 1, 2])}, "mixed_pixel_size", "from 1 to 2"),
        ({"blob/shape": np.tile([8, 10], (N, 1))}, "box", "8, 10"),
        ({"blob/shape": np.full((N, 3), 8)}, "subtomograms", "subtomograms"),
        ({"blob/idx": np.array(["a", "b", "c", "d"])}, "malformed", "blob/idx"),
        ({"ctf/df1_A": np.zeros((N, 2))}, "malformed", "ctf/df1_A"),
        ({"blob/sign": np.array([1.0, -1, 1, 1])}, "mixed_contrast", "blob/sign"),
    ],
)
def test_what_cannot_be_honoured_is_refused(
    tmp_path: Path, change: dict[str, Any], reason: str, words: str
) -> None:
    with pytest.raises(InputFileError, match=words) as error:
        read_cs(write_fields(tmp_path / "x.cs", BLOB | CTF | change), stacks="defer")
    assert error.value.reason == reason


def test_compressed_files_are_recognised_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "new.cs"
    path.write_bytes(b"\x95CSDAT" + bytes(100))
    with pytest.raises(InputFileError, match=r"CSDAT.*cryosparc-tools"):
        read_cs(path)


def test_pickled_content_is_never_loaded(tmp_path: Path) -> None:
    path = tmp_path / "evil.cs"
    with open(path, "wb") as out:
        np.save(out, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(InputFileError, match="Object arrays cannot be loaded"):
        read_cs(path)


@pytest.mark.parametrize("content", [b"", b"data_optics\n", b"\x93NUMPY\x01\x00", BROKEN])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.cs"
    path.write_bytes(content)
    with pytest.raises(InputFileError, match=r"x\.cs"):
        read_cs(path)


def test_truncated_file_may_become_whole_later(tmp_path: Path) -> None:
    path = write_fields(tmp_path / "x.cs", BLOB | CTF)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InputFileError, match="not a complete") as error:
        read_cs(path)
    assert error.value.may_pass
