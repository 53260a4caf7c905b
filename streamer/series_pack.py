"""All volumes of a session in one file: the numbered series, packed.

The archive is a ZIP that any system opens: one folder per snapshot, numbered in the order in which
they were made, the manifests as they were, and ``series.csv`` with one line per volume. The same
series gives the same bytes.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reconstruct.io.atomic import replace_atomically
from streamer.errors import ConfigurationError

__all__ = ["PACK", "Packed", "is_pack_of", "pack_series"]

PACK = "series.zip"  # beside the series, where nothing else was asked for
_TABLE = "series.csv"
_MANIFEST = "manifest.json"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the oldest time that a ZIP can hold
_COLUMNS = (
    "number",
    "step",
    "phase",
    "is_final",
    "particles_seen",
    "particles_presented",
    "class",
    "particles",
    "occupancy",
    "resolution_angstrom",
    "file",
)


@dataclass(frozen=True)
class Packed:
    """What was packed."""

    path: Path
    snapshots: int
    volumes: int
    size_bytes: int


def pack_series(folder: Path, target: Path | None = None, *, half_maps: str = "keep") -> Packed:
    """Pack the series of an output folder.

    Parameters
    ----------
    folder
        A session's output folder, or its ``series`` folder.
    target
        The archive; by default ``series.zip`` beside the series.
    half_maps
        ``keep`` or ``leave`` them out.

    Raises
    ------
    ConfigurationError
        There is no series in the folder.
    """
    series = folder / "series" if (folder / "series").is_dir() else folder
    snapshots = list(_snapshots(series))
    if not snapshots:
        raise ConfigurationError(
            f"there is no series of snapshots in {folder}",
            "Give the output folder of a session that has published maps",
        )
    target = series.parent / PACK if target is None else target
    lines: list[dict[str, Any]] = []
    with (
        replace_atomically(target) as path,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
    ):
        for number, (place, manifest) in enumerate(snapshots, 1):
            name = f"{number:04d}_{place.name}"
            for file in sorted(place.iterdir()):
                if half_maps == "keep" or "_half" not in file.name:
                    _add(archive, f"{name}/{file.name}", file)
            lines += _lines(number, name, manifest)
        _write(archive, _TABLE, _table(lines))
    return Packed(target, len(snapshots), len(lines), target.stat().st_size)


def is_pack_of(path: Path, series: Path) -> bool:
    """Whether a file is certain to be what `pack_series` made of snapshots that ``series`` holds.

    Every entry is dated as only it dates them, has a file of the series of its size, and the
    manifests, which hold the digests of the maps, are the same.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            *entries, table = archive.infolist()
            return (
                table.filename == _TABLE
                and any(entry.filename.endswith(f"/{_MANIFEST}") for entry in entries)
                and all(entry.date_time == _EPOCH for entry in (*entries, table))
                and all(_is_packed(archive, entry, series) for entry in entries)
            )
    except (OSError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, ValueError):
        return False  # no archive, a damaged one, or one with what this program never writes


def _is_packed(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, series: Path) -> bool:
    folder, _, name = entry.filename.partition("/")
    place = folder.partition("_")[2]
    if not place.startswith("step-") or Path(name).name != name:
        return False
    original = series / place / name
    same = original.is_file() and original.stat().st_size == entry.file_size
    return same and (name != _MANIFEST or archive.read(entry) == original.read_bytes())


def _snapshots(series: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Snapshots that are whole, in the order in which they were made."""
    if not series.is_dir():
        return
    found = []
    for place in series.iterdir():
        manifest = place / _MANIFEST
        if place.name.startswith(".") or not manifest.is_file():
            continue  # still being written, or not a snapshot
        content = json.loads(manifest.read_text(encoding="utf-8"))
        found.append((int(content["step"]), bool(content["is_final"]), place, content))
    for _, _, place, content in sorted(found, key=lambda one: one[:2]):
        yield place, content


def _lines(number: int, name: str, manifest: dict[str, Any]) -> list[dict[str, Any]]:
    shared = {key: manifest[key] for key in _COLUMNS if key in manifest}
    return [
        {
            **shared,
            "number": number,
            "class": one["class_index"] + 1,
            "particles": one["particles"],
            "occupancy": round(one["occupancy"], 6),
            "resolution_angstrom": one["resolution_angstrom"],
            "file": f"{name}/{Path(one['path']).name}",
        }
        for one in manifest["classes"]
    ]


def _table(lines: list[dict[str, Any]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, _COLUMNS)
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue().encode("utf-8")


def _add(archive: zipfile.ZipFile, name: str, file: Path) -> None:
    entry = _entry(name)
    entry.file_size = file.stat().st_size  # so that large maps get a large entry
    with file.open("rb") as source, archive.open(entry, "w") as sink:
        shutil.copyfileobj(source, sink, 1 << 20)


def _write(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    archive.writestr(_entry(name), content, compresslevel=1)


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = 0o644 << 16
    return entry
