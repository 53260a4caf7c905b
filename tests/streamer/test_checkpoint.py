"""A checkpoint comes back whole, or the one before it does; never a damaged one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from reconstruct.engine import Engine
from streamer.arrayfile import ArrayFileError, read_arrays, write_arrays
from streamer.checkpoint import CheckpointStore
from streamer.errors import CheckpointError
from tests.reconstruct.small_sets import GEOMETRY
from tests.reconstruct.test_engine import BOUNDED, differing, particles, run


def _rows(total: int):
    images = np.arange(total * 4, dtype=np.float16).reshape(total, 2, 2)
    names = np.array([f"{i}@s.mrcs".encode() for i in range(total)])
    return lambda start: {"images": images[start:], "names": names[start:]}


def _save(store: CheckpointStore, rows: int, **meta: object) -> Path:
    arrays = {"volume": np.full((3, 3), rows, np.complex64), "none": np.zeros((0, 4))}
    return store.save(meta, arrays, rows=rows, rows_from=_rows(rows)).path


def test_a_state_comes_back_bit_for_bit(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    _save(store, 5, offset=3)
    _save(store, 9, offset=7)
    found = CheckpointStore(tmp_path).load()
    assert found is not None
    assert found.meta == {"offset": 7}
    assert found.arrays["volume"].dtype == np.complex64
    assert found.arrays["none"].shape == (0, 4)
    for name, expected in _rows(9)(0).items():
        np.testing.assert_array_equal(found.rows[name], expected)
    assert found.notes == ()


def test_an_empty_folder_is_a_fresh_start(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path / "new").load() is None


def test_a_damaged_checkpoint_is_passed_over_and_said_so(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    _save(store, 5, offset=3)
    newest = _save(store, 9, offset=7)
    data = bytearray(newest.read_bytes())
    data[-50] ^= 1
    newest.write_bytes(data)
    again = CheckpointStore(tmp_path)
    found = again.load()
    assert found is not None
    assert found.meta == {"offset": 3}
    assert len(found.rows["images"]) == 5
    assert newest.name in found.notes[0]
    assert _save(again, 6, offset=4) != newest


@pytest.mark.parametrize("cut", [0, 7, 100])
def test_a_checkpoint_cut_short_is_passed_over(tmp_path: Path, cut: int) -> None:
    store = CheckpointStore(tmp_path)
    _save(store, 5, offset=3)
    newest = _save(store, 9, offset=7)
    newest.write_bytes(newest.read_bytes()[:cut])
    found = CheckpointStore(tmp_path).load()
    assert found is not None
    assert found.meta == {"offset": 3}


def test_a_damaged_segment_condemns_the_checkpoints_that_build_on_it(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    _save(store, 5, offset=3)
    (segment,) = tmp_path.glob("rows-*.seg")
    segment.write_bytes(segment.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="start a new session"):
        CheckpointStore(tmp_path).load()


def test_rows_are_written_once_or_merged_and_nothing_is_left_behind(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    written = [store.save({}, {}, rows=n, rows_from=_rows(n)).size_bytes for n in range(1, 200)]
    segments = sorted(tmp_path.glob("rows-*"))
    assert len(segments) <= 12
    assert len(list(tmp_path.glob("checkpoint-*"))) == 2
    assert sorted(written)[len(written) // 2] < max(written) / 2
    found = CheckpointStore(tmp_path).load()
    assert found is not None
    np.testing.assert_array_equal(found.rows["images"], _rows(199)(0)["images"])
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]


def test_a_full_disk_leaves_the_previous_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path)
    _save(store, 5, offset=3)

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("streamer.arrayfile.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        _save(store, 9, offset=7)
    monkeypatch.undo()
    assert _save(store, 9, offset=8).exists()
    found = CheckpointStore(tmp_path).load()
    assert found is not None
    assert found.meta == {"offset": 8}


def test_objects_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dtype object"):
        write_arrays(tmp_path / "a", {}, {"x": np.array([None])})


def test_a_file_with_another_digest_than_asked_for_is_refused(tmp_path: Path) -> None:
    write_arrays(tmp_path / "a", {}, {"x": np.arange(3)})
    with pytest.raises(ArrayFileError, match="digest"):
        read_arrays(tmp_path / "a", sha256="0" * 64)


def _capped_rows(total: int, cap: int):
    rows = _rows(total)
    return lambda start: {
        "images": rows(0)["images"][start : max(start, min(cap, total))],
        "names": rows(start)["names"],
    }


def test_a_column_may_end_before_the_others_where_that_is_said(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for total in (4, 9, 30, 31):
        store.save({}, {}, rows=total, rows_from=_capped_rows(total, 7), capped=("images",))
    found = CheckpointStore(tmp_path).load()
    assert found is not None
    np.testing.assert_array_equal(found.rows["images"], _rows(7)(0)["images"])
    assert len(found.rows["names"]) == 31
    with pytest.raises(ValueError, match="expected 10 rows"):
        store.save({}, {}, rows=40, rows_from=_capped_rows(40, 7))


def test_an_engine_with_a_bounded_store_survives_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saved after every few updates, small segments being merged, and loaded each time."""
    monkeypatch.setattr("reconstruct.store.RECENT", 20)
    settings = replace(BOUNDED, store_precision="float16")
    whole = run(settings, particles()).engine
    engine, disk = Engine(settings, GEOMETRY), CheckpointStore(tmp_path)

    def next_life(engine: Engine) -> Engine:
        meta, arrays = engine.dump()
        disk.save(
            meta,
            arrays,
            rows=engine.particles_stored,
            rows_from=engine.dump_store,
            capped=("spectra",),
        )
        found = CheckpointStore(tmp_path).load()
        assert found is not None
        return Engine.load(settings, GEOMETRY, found.meta, found.arrays, found.rows)

    for start in range(0, len(particles()), 40):
        engine.add(particles().span(slice(start, start + 40)))
        while engine.ready:
            engine.step()
        engine = next_life(engine)
    for number, _ in enumerate(engine.finish()):
        if number == 2:
            break
    engine = next_life(engine)
    list(engine.finish())
    assert differing(engine, whole) == []
    on_disk = sum(path.stat().st_size for path in tmp_path.glob("rows-*"))
    assert on_disk < 130 * 8 * len(engine.plane.kx) + 400 * len(particles())
