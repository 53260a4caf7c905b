"""The newest maps are under one name while a session goes on."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconstruct.types import Snapshot
from streamer.observe import Observer
from streamer.series import LATEST, point_latest
from streamer.series_pack import pack_series
from streamer.state import SessionState
from tests.streamer.bench import Bench, Crash, crash_at

_numbers = itertools.count()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path, f"memory://latest-{next(_numbers)}")
    yield bench
    bench.close()


def test_the_newest_snapshot_is_under_one_name_when_it_is_announced(bench: Bench) -> None:
    out = bench.settings.out
    seen: list[str] = []

    class Looks(Observer):
        def published(
            self, name: str, snapshot: Snapshot, state: SessionState, delays_s: object
        ) -> None:
            assert os.readlink(out / LATEST).startswith(f"series/step-{snapshot.step:08d}")
            assert (out / LATEST / "manifest.json").is_file()
            seen.append(os.readlink(out / LATEST))

    bench.send_batches(*range(10))
    bench.control("end")
    bench.run(observer=Looks())
    assert len(seen) == len(set(seen)) >= 3
    assert seen[-1].endswith("-final")
    packed = pack_series(out)  # the link is no snapshot more
    assert packed.snapshots == len(seen)


@pytest.mark.parametrize("nth", [1, 2])
@pytest.mark.parametrize("point", ["renamed", "announced"])
def test_a_session_that_was_killed_points_at_its_newest_snapshot_again(
    bench: Bench, point: str, nth: int
) -> None:
    bench.send_batches(*range(10))
    with pytest.raises(Crash):
        bench.run(crash_at(point, nth))
    bench.run_until_idle()
    newest = max(path.name for path in (bench.settings.out / "series").iterdir())
    assert os.readlink(bench.settings.out / LATEST) == f"series/{newest}"


def test_what_was_killed_while_it_was_made_is_in_no_ones_way(tmp_path: Path) -> None:
    (tmp_path / ".latest.tmp").symlink_to("series/step-00000001")
    assert point_latest(tmp_path, "step-00000002")
    assert os.readlink(tmp_path / LATEST) == "series/step-00000002"
    assert [path.name for path in tmp_path.iterdir()] == [LATEST]


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_is_called_so_and_is_no_link_of_ours_stays(tmp_path: Path, kind: str) -> None:
    mine = tmp_path / LATEST
    if kind == "file":
        mine.write_text("mine")
    elif kind == "folder":
        mine.mkdir()
    else:
        mine.symlink_to("elsewhere")
    before = mine.lstat()
    assert not point_latest(tmp_path, "step-00000002")
    assert mine.lstat() == before
    assert [path.name for path in tmp_path.iterdir()] == [LATEST]


def test_a_session_goes_on_where_there_are_no_links(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("not supported")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    bench.send_batches(*range(10))
    bench.control("end")
    assert bench.run().outcome == "ended"
    assert not (bench.settings.out / LATEST).is_symlink()
