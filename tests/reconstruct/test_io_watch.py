"""A live STAR file is read only when it is whole, and brings each particle once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from reconstruct.io.errors import InputFileError
from reconstruct.io.star import read_star
from reconstruct.io.table import ParticleTable
from reconstruct.io.watch import StarUpdate, StarWatcher

HEAD = """data_optics
loop_
_rlnOpticsGroup
_rlnVoltage
_rlnSphericalAberration
_rlnAmplitudeContrast
_rlnImagePixelSize
_rlnImageSize
1 300 2.7 0.1 2.0 8

data_particles
loop_
_rlnImageName
_rlnOpticsGroup
_rlnDefocusAngle
_rlnDefocusU
_rlnDefocusV
"""


def deferred(path: Path) -> ParticleTable:
    return read_star(path, stacks="defer")


def rewrite(path: Path, numbers: list[int], tail: str = "") -> None:
    """Rewrite the file whole, with a modification time of its own."""
    rows = "".join(f"{k}@a.mrcs 1 30 15000 14000.25\n" for k in numbers)
    before = path.stat().st_mtime_ns if path.exists() else 0
    path.write_text(HEAD + rows + tail)
    os.utime(path, ns=(before + 1_000_000_000, before + 1_000_000_000))


def names(update: StarUpdate) -> list[str]:
    assert update.table is not None
    return [update.table.image_names[row] for row in update.new_rows]


def settle(watcher: StarWatcher) -> StarUpdate:
    first = watcher.poll()
    assert first.table is None
    return watcher.poll()


def test_waits_for_the_file_to_appear_and_to_stand_still(tmp_path: Path) -> None:
    path = tmp_path / "live.star"
    watcher = StarWatcher(path, read=deferred)
    assert "appear" in watcher.poll().waiting_for
    rewrite(path, [1, 2])
    assert "stand still" in watcher.poll().waiting_for
    rewrite(path, [1, 2, 3])
    assert "stand still" in watcher.poll().waiting_for
    assert names(watcher.poll()) == ["1@a.mrcs", "2@a.mrcs", "3@a.mrcs"]
    again = watcher.poll()
    assert again.table is None
    assert again.waiting_for == ""


def test_new_particles_are_told_by_name_not_by_line_count(tmp_path: Path) -> None:
    path = tmp_path / "live.star"
    watcher = StarWatcher(path, read=deferred)
    rewrite(path, [1, 2, 3])
    settle(watcher)
    rewrite(path, [9, 3, 2])  # same length, other order, one gone, one new
    assert names(settle(watcher)) == ["9@a.mrcs"]
    rewrite(path, [2])
    assert names(settle(watcher)) == []
    rewrite(path, [2, 1, 3, 9, 4])
    assert names(settle(watcher)) == ["4@a.mrcs"]


def test_a_name_twice_in_one_file_counts_once(tmp_path: Path) -> None:
    path = tmp_path / "live.star"
    rewrite(path, [1, 1, 2])
    assert names(settle(StarWatcher(path, read=deferred))) == ["1@a.mrcs", "2@a.mrcs"]


@pytest.mark.parametrize("tail", ["4@a.mrcs 1 30", "4@a.mrcs 1 30 15000 140"])
def test_an_incomplete_last_row_is_waited_for(tmp_path: Path, tail: str) -> None:
    path = tmp_path / "live.star"
    watcher = StarWatcher(path, read=deferred)
    rewrite(path, [1], tail)
    update = settle(watcher)
    assert update.table is None
    assert "last line" in update.waiting_for
    rewrite(path, [1, 4])
    assert names(settle(watcher)) == ["1@a.mrcs", "4@a.mrcs"]


def test_a_row_that_is_short_but_has_its_line_end_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "live.star"
    rewrite(path, [1], "4@a.mrcs 1 30\n")
    update = settle(StarWatcher(path, read=deferred))
    assert update.table is None
    assert "incomplete row" in update.waiting_for


def test_an_empty_table_and_a_missing_stack_are_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "live.star"
    rewrite(path, [])
    assert "holds no particles" in settle(StarWatcher(path, read=deferred)).waiting_for
    rewrite(path, [1])
    assert "a.mrcs" in settle(StarWatcher(path)).waiting_for


def test_last_call_takes_the_file_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "live.star"
    watcher = StarWatcher(path, read=deferred)
    rewrite(path, [1], "2@a.mrcs 1 30 15000 14000")
    assert names(watcher.poll(last_call=True)) == ["1@a.mrcs", "2@a.mrcs"]
    assert watcher.poll(last_call=True).table is None


def test_last_call_on_a_broken_or_missing_file_says_so(tmp_path: Path) -> None:
    path = tmp_path / "live.star"
    with pytest.raises(InputFileError, match="cannot be read"):
        StarWatcher(path, read=deferred).poll(last_call=True)
    rewrite(path, [1], "2@a.mrcs 1\n")
    with pytest.raises(InputFileError, match="incomplete row"):
        StarWatcher(path, read=deferred).poll(last_call=True)


def test_what_waiting_cannot_mend_is_raised(tmp_path: Path) -> None:
    path = tmp_path / "live.star"
    path.write_text(HEAD.replace("300", "nonsense", 1).replace("2.0 8", "0 8") + "1@a 1 1 1 1\n")
    watcher = StarWatcher(path, read=deferred)
    assert "nonsense" in settle(watcher).waiting_for
    path.write_text(HEAD.replace("2.0 8", "0 8") + "1@a.mrcs 1 1 1 1\n")
    with pytest.raises(InputFileError, match="pixel size"):
        settle(watcher)
