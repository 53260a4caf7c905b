"""The packed series has every volume, in order, whole, and is the same each time."""

from __future__ import annotations

import csv
import io
import zipfile
from dataclasses import replace
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from reconstruct.types import ClassSnapshot, Geometry, Snapshot
from streamer.errors import ConfigurationError
from streamer.series import write_series_folder
from streamer.series_pack import is_pack_of, pack_series
from tests.integration.processes import inside


def snapshot(step: int, *, classes: int = 2) -> Snapshot:
    volume = np.full((16, 16, 16), step, np.float32)
    item = ClassSnapshot(
        volume, volume + 1, volume + 2, np.ones(5), None, 90, 0.5, 30.0, np.ones((18, 36))
    )
    items = tuple(replace(item, resolution_angstrom=20.0 + k) for k in range(classes))
    return Snapshot(step, "final", 10 * step, 12 * step, Geometry(16, 4.0), items)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A session's folder with steps 300, 9 and 300-final, written in that order."""
    for step, final in ((300, False), (9, False), (300, True)):
        shown = snapshot(step)
        write_series_folder(
            tmp_path,
            shown,
            name=f"step-{step:08d}" + ("-final" if final else ""),
            session_id="s",
            manifest={
                "step": step,
                "phase": "final",
                "is_final": final,
                "particles_seen": shown.particles_seen,
                "particles_presented": shown.particles_presented,
            },
            picture=b"png",
        )
    return tmp_path


def lines(archive: zipfile.ZipFile) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(archive.read("series.csv").decode())))


def test_every_volume_is_there_in_the_order_in_which_they_were_made(out: Path) -> None:
    packed = pack_series(out)
    assert packed.path == out / "series.zip"
    assert (packed.snapshots, packed.volumes) == (3, 6)
    with zipfile.ZipFile(packed.path) as archive:
        assert archive.testzip() is None
        table = lines(archive)
        assert [(line["number"], line["step"], line["class"]) for line in table[::2]] == [
            ("1", "9", "1"),
            ("2", "300", "1"),
            ("3", "300", "1"),
        ]
        assert [line["is_final"] for line in table[::2]] == ["False", "False", "True"]
        assert table[1]["resolution_angstrom"] == "21.0"
        for line in table:
            original = out / "series" / line["file"].split("_", 1)[1]
            assert archive.read(line["file"]) == original.read_bytes()
        assert sum("_half" in name for name in archive.namelist()) == 12
        assert "0001_step-00000009/manifest.json" in archive.namelist()


def test_a_map_from_the_archive_can_be_read(out: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(pack_series(out).path) as archive:
        archive.extractall(tmp_path / "unpacked")
        place = lines(archive)[0]["file"]
    with mrcfile.open(tmp_path / "unpacked" / place) as file:
        assert np.all(file.data == 9)


def test_half_maps_may_be_left_out(out: Path) -> None:
    with zipfile.ZipFile(pack_series(out, out / "small.zip", half_maps="leave").path) as archive:
        assert not [name for name in archive.namelist() if "_half" in name]
        assert len(lines(archive)) == 6


def test_the_same_series_gives_the_same_bytes(out: Path) -> None:
    first = pack_series(out, out / "a.zip").path.read_bytes()
    assert pack_series(out / "series", out / "b.zip").path.read_bytes() == first


def test_a_snapshot_that_is_still_being_written_is_left_out(out: Path) -> None:
    (out / "series" / ".step-00000400.tmp").mkdir()
    (out / "series" / "step-00000400").mkdir()
    assert pack_series(out).snapshots == 3


@pytest.mark.parametrize("half_maps", ["keep", "leave"])
def test_a_pack_is_known_again_while_its_series_is_there(out: Path, half_maps: str) -> None:
    pack = pack_series(out, half_maps=half_maps).path
    assert is_pack_of(pack, out / "series")
    write_series_folder(  # it goes on, after it was packed
        out, snapshot(400), name="step-00000400", session_id="s", manifest={}, picture=None
    )
    assert is_pack_of(pack, out / "series")
    (out / "series" / "step-00000009" / "manifest.json").write_text("{}")  # of another session
    assert not is_pack_of(pack, out / "series")


@pytest.mark.parametrize(
    "names", [[], ["series.csv"], ["0001_step-00000009/manifest.json"], ["../a", "series.csv"]]
)
def test_any_other_archive_is_not_taken_for_a_pack(out: Path, names: list[str]) -> None:
    other = out / "other.zip"
    with zipfile.ZipFile(other, "w") as archive:
        for name in names:
            archive.writestr(zipfile.ZipInfo(name), "mine")
    assert not is_pack_of(other, out / "series")
    other.write_text("no archive")
    assert not is_pack_of(other, out / "series")
    assert not is_pack_of(out / "none.zip", out / "series")


def test_a_pack_that_was_packed_anew_by_others_is_theirs(out: Path) -> None:
    pack = pack_series(out).path
    with zipfile.ZipFile(pack) as archive, zipfile.ZipFile(out / "b.zip", "w") as theirs:
        for entry in archive.infolist():
            theirs.writestr(entry.filename, archive.read(entry))  # dated today
    assert not is_pack_of(out / "b.zip", out / "series")


def test_a_folder_without_a_series_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no series of snapshots"):
        pack_series(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_command_packs_and_says_what(out: Path) -> None:
    done = inside("series", "pack", str(out))
    assert done.returncode == 0, done.stderr
    assert "3 snapshots, 6 volumes" in done.stdout
    assert (out / "series.zip").exists()
    wrong = inside("series", "pack", str(out / "nowhere"))
    assert wrong.returncode == 2
    assert "Give the output folder" in wrong.stderr
