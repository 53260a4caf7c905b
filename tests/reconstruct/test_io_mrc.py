"""MRC stacks and maps: every mode, byte order and defect."""

from __future__ import annotations

import struct
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from reconstruct.io.atomic import replace_atomically, sha256_file
from reconstruct.io.errors import InputFileError
from reconstruct.io.mrc import read_header, read_stack, read_volume, write_volume

RANDOM = np.random.default_rng(5)


def stack_file(folder: Path, data: np.ndarray, name: str = "stack.mrcs") -> Path:
    path = folder / name
    with mrcfile.new(path) as out:
        out.set_data(data)
        out.set_image_stack()
        out.voxel_size = 2.5
    return path


@pytest.mark.parametrize(
    ("mode", "dtype"), [(0, "i1"), (1, "i2"), (2, "f4"), (6, "u2"), (12, "f2")]
)
def test_reads_each_mode_in_the_order_asked_for(tmp_path: Path, mode: int, dtype: str) -> None:
    data = RANDOM.integers(0, 100, (5, 8, 8)).astype(dtype)
    path = stack_file(tmp_path, data)
    with mrcfile.open(path, header_only=True) as opened:
        assert int(opened.header.mode) == mode
    images = read_stack(path, [4, 0, 4])
    assert images.dtype == np.float32
    np.testing.assert_array_equal(images, data[[4, 0, 4]].astype(np.float32))


def test_reads_big_endian_files(tmp_path: Path) -> None:
    data = RANDOM.normal(size=(3, 8, 8)).astype(">f4")
    path = tmp_path / "big.mrcs"
    with mrcfile.new(path) as out:
        out.set_data(data)
        out.set_image_stack()
        assert out.header.mode.dtype.byteorder == ">"
    np.testing.assert_array_equal(read_stack(path, [2]), data[[2]].astype(np.float32))


def test_reads_old_unsigned_bytes_that_imod_marked(tmp_path: Path) -> None:
    path = stack_file(tmp_path, np.full((1, 8, 8), -1, dtype=np.int8))
    with open(path, "r+b") as stream:
        stream.seek(152)
        stream.write(struct.pack("<ii", 1146047817, 0))
    assert read_stack(path, [0]).max() == 255.0


def test_skips_the_extended_header(tmp_path: Path) -> None:
    data = RANDOM.normal(size=(2, 8, 8)).astype(np.float32)
    path = stack_file(tmp_path, data)
    with mrcfile.open(path, "r+") as out:
        out.set_extended_header(np.zeros(100, dtype=np.uint8))
    np.testing.assert_array_equal(read_stack(path, [1]), data[[1]])


def test_truncated_stack_says_what_is_missing(tmp_path: Path) -> None:
    path = stack_file(tmp_path, np.zeros((5, 8, 8), dtype=np.float32))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputFileError, match=r"truncated: the header promises 5 sections") as error:
        read_stack(path, [0])
    assert error.value.reason == "truncated"
    assert error.value.may_pass


def test_image_beyond_the_stack_is_named(tmp_path: Path) -> None:
    path = stack_file(tmp_path, np.zeros((5, 8, 8), dtype=np.float32))
    with pytest.raises(InputFileError, match="image 6 is asked for, the stack has 5"):
        read_stack(path, [0, 5])
    with pytest.raises(InputFileError, match="image 0 is asked for"):
        read_stack(path, [-1])


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 2000, bytes(1024)])
def test_other_files_are_refused_in_words(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "not.mrc"
    path.write_bytes(content)
    with pytest.raises(InputFileError) as error:
        read_header(path)
    assert str(path) in str(error.value)
    assert error.value.remedy in str(error.value)


def test_missing_file_and_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="does not exist"):
        read_stack(tmp_path / "none.mrcs", [0])
    with pytest.raises(InputFileError, match="is a folder"):
        read_stack(tmp_path, [0])


def test_complex_modes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "complex.mrc"
    with mrcfile.new(path) as out:
        out.set_data(np.zeros((2, 4, 4), dtype=np.complex64))
    with pytest.raises(InputFileError, match="MRC mode 4"):
        read_header(path)


def test_written_map_is_valid_and_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "class_001.mrc"
    volume = RANDOM.normal(size=(6, 6, 6)).astype(np.float32)
    write_volume(path, volume, pixel_size_angstrom=3.25, labels=["session s1 step 7", "é" * 100])
    assert mrcfile.validate(path)
    with mrcfile.open(path) as opened:
        header = opened.header
        assert (int(header.mode), int(header.ispg), int(header.nlabl)) == (2, 1, 2)
        assert [float(header.origin[axis]) for axis in "xyz"] == [0.0, 0.0, 0.0]
        assert (int(header.nxstart), int(header.nystart), int(header.nzstart)) == (0, 0, 0)
        assert opened.get_labels()[0] == "session s1 step 7"
    read = read_volume(path)
    np.testing.assert_array_equal(read.data, volume)
    assert read.pixel_size_angstrom == pytest.approx(3.25)
    assert [entry.name for entry in path.parent.iterdir()] == ["class_001.mrc"]


def test_same_volume_gives_the_same_bytes(tmp_path: Path) -> None:
    volume = RANDOM.normal(size=(6, 6, 6))
    for name in ("a.mrc", "b.mrc"):
        write_volume(tmp_path / name, volume, pixel_size_angstrom=2.0, labels=["x"])
    assert sha256_file(tmp_path / "a.mrc") == sha256_file(tmp_path / "b.mrc")


def test_maps_must_be_cubic_with_few_labels(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cubic"):
        write_volume(tmp_path / "a.mrc", np.zeros((4, 4, 5)), pixel_size_angstrom=1.0)
    with pytest.raises(ValueError, match="room for 10"):
        write_volume(
            tmp_path / "a.mrc", np.zeros((4, 4, 4)), pixel_size_angstrom=1, labels=["l"] * 11
        )
    assert list(tmp_path.iterdir()) == []


def test_axis_order_of_the_file_is_undone(tmp_path: Path) -> None:
    volume = RANDOM.normal(size=(4, 5, 6)).astype(np.float32)  # z, y, x
    path = tmp_path / "turned.mrc"
    with mrcfile.new(path) as out:
        out.set_data(np.ascontiguousarray(np.transpose(volume, (2, 0, 1))))  # x, z, y as stored
        out.voxel_size = 1.0
        out.header.mapc, out.header.mapr, out.header.maps = 2, 3, 1
    np.testing.assert_array_equal(read_volume(path).data, volume)


def test_map_without_pixel_size_needs_one(tmp_path: Path) -> None:
    path = tmp_path / "map.mrc"
    with mrcfile.new(path) as out:
        out.set_data(np.zeros((4, 4, 4), dtype=np.float32))
        out.header.cella = (0.0, 0.0, 0.0)
    with pytest.raises(InputFileError, match="no pixel size"):
        read_volume(path)
    assert read_volume(path, 4.9).pixel_size_angstrom == 4.9


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def spoil() -> None:
        with replace_atomically(path) as temporary:
            temporary.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        spoil()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
