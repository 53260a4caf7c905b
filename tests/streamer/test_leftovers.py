"""A run removes what an earlier run wrote, and nothing else."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from streamer.config import Settings, load_settings
from streamer.errors import ConfigurationError
from streamer.leftovers import begin_anew, check_folder
from streamer.series_pack import pack_series

REMOVED = "are removed for this one"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(overrides={"session": "one", "out": tmp_path / "out"})


def finish(settings: Settings, *files: str, bus: str = "memory://x") -> None:
    """Leave what a run leaves at its end."""
    for name in ("report.json", *files):
        (settings.out / name).write_text("result")
    links = [path.name for path in settings.out.iterdir() if path.is_symlink()]
    report = {"files": ["report.json", *links, *files], "settings": {"bus": bus}}
    (settings.out / "report.json").write_text(json.dumps(report))


def fill(settings: Settings) -> None:
    """Leave what a run leaves on its way."""
    assert begin_anew(settings) == ""
    (settings.state_folder / "checkpoint-000000001.ckpt").write_text("state")
    (settings.out / "series" / "step-00000001").mkdir(parents=True)
    (settings.out / "series" / "step-00000001" / "manifest.json").write_text("{}")
    (settings.out / "series" / ".step-00000002.tmp").mkdir()
    (settings.out / "series" / ".step-00000002.tmp" / "class_001.mrc").write_text("half")
    (settings.out / "latest").symlink_to("series/step-00000001")
    (settings.out / ".latest.tmp").symlink_to("series/step-00000002")


def everything(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_what_a_run_wrote_goes_and_what_lies_beside_it_stays(settings: Settings) -> None:
    fill(settings)
    finish(settings, "class_001.mrc")
    mine = {"class_009.mrc", "state/notes.txt", "series/mine.png"}
    for name in mine:
        (settings.out / name).write_text("mine")
    assert REMOVED in begin_anew(settings)
    assert everything(settings.out) == {*mine, "state/begun_by_run.json"}


def test_what_was_packed_of_the_series_goes_with_it_and_another_archive_stays(
    settings: Settings,
) -> None:
    pack = settings.out / "series.zip"
    manifest = {"step": 1, "is_final": True, "classes": []}
    for mine in (False, True):
        begin_anew(settings)
        place = settings.out / "series" / "step-00000001"
        place.mkdir(parents=True)
        (place / "manifest.json").write_text(json.dumps(manifest))
        pack_series(settings.out)
        if mine:
            with zipfile.ZipFile(pack, "a") as archive:
                archive.writestr("notes.txt", "mine")
        begin_anew(settings)
        assert pack.exists() == mine


def test_the_link_to_the_newest_maps_of_a_killed_run_goes_with_them(settings: Settings) -> None:
    fill(settings)
    assert REMOVED in begin_anew(settings)
    assert not [path.name for path in settings.out.iterdir() if "latest" in path.name]


def test_a_folder_that_took_the_place_of_a_result_is_left(settings: Settings) -> None:
    fill(settings)
    (settings.out / "latest").unlink()
    (settings.out / "latest").mkdir()
    (settings.out / "latest" / "notes.txt").write_text("mine")
    begin_anew(settings)
    assert (settings.out / "latest" / "notes.txt").read_text() == "mine"


def test_a_run_that_was_killed_at_its_beginning_is_known(settings: Settings) -> None:
    assert begin_anew(settings) == ""
    assert REMOVED in begin_anew(settings)


@pytest.mark.parametrize("claimed", [None, "elsewhere"])
def test_checkpoints_that_are_not_of_a_run_into_this_folder_are_left(
    settings: Settings, tmp_path: Path, claimed: str | None
) -> None:
    settings.state_folder.mkdir(parents=True)
    (settings.state_folder / "checkpoint-000000001.ckpt").write_text("of a session")
    if claimed is not None:
        claim = {"out": str(tmp_path / claimed), "files": []}
        (settings.state_folder / "begun_by_run.json").write_text(json.dumps(claim))
    finish(settings, "class_001.mrc")  # of a run, whose checkpoints were removed since
    before = everything(tmp_path)
    with pytest.raises(ConfigurationError, match="was not made by a run into"):
        begin_anew(settings)
    assert everything(tmp_path) == before


@pytest.mark.parametrize("state", ["out", "."])
def test_checkpoints_must_not_hold_the_results(
    settings: Settings, tmp_path: Path, state: str
) -> None:
    with pytest.raises(ConfigurationError, match="holds the output folder"):
        check_folder(settings.model_copy(update={"state": tmp_path / state}))


def test_links_are_followed_to_the_folder_and_no_further(
    settings: Settings, tmp_path: Path
) -> None:
    real, outside = tmp_path / "disk", tmp_path / "outside"
    real.mkdir()
    outside.mkdir()
    (outside / "kept.txt").write_text("mine")
    settings.out.mkdir()
    settings.state_folder.symlink_to(real)
    fill(settings)
    (settings.out / "series" / "step-00000002").symlink_to(outside)
    assert REMOVED in begin_anew(settings)
    assert everything(tmp_path) == {"disk/begun_by_run.json", "outside/kept.txt"}
    assert settings.state_folder.is_symlink()


def test_a_list_cannot_name_what_lies_elsewhere(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    fill(settings)
    finish(settings)
    report = json.loads((settings.out / "report.json").read_text())
    report["files"] += ["../mine.txt", str(tmp_path / "mine.txt"), "", 7, ".."]
    (settings.out / "report.json").write_text(json.dumps(report))
    begin_anew(settings)
    assert (tmp_path / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("report", ["", "[]", '{"files": []}', '{"files": [], "settings": 3}'])
def test_a_report_that_is_not_of_a_run_is_refused(settings: Settings, report: str) -> None:
    settings.out.mkdir()
    (settings.out / "report.json").write_text(report)
    with pytest.raises(ConfigurationError, match=r"report\.json|of serve"):
        begin_anew(settings)
    assert (settings.out / "report.json").read_text() == report
