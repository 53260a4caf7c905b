"""One snapshot as files: maps, half-maps, manifest and picture in a folder that appears whole.

The folder is written under a hidden name and renamed, so whoever sees ``series/step-00000040``
sees all of it. Paths in the manifest are relative to the output folder. The link ``latest`` beside
the series leads to the newest snapshot that was announced.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from reconstruct.io.atomic import replace_atomically, sha256_file
from reconstruct.io.mrc import write_volume
from reconstruct.quality import RESOLUTION_KIND
from reconstruct.types import ClassSnapshot, Snapshot
from schemas.volumes import ClassManifest
from streamer.arrayfile import sync_folder

__all__ = [
    "LATEST",
    "LATEST_NAMES",
    "class_files",
    "point_latest",
    "write_class_maps",
    "write_series_folder",
]

LATEST = "latest"  # in the output folder
LATEST_NAMES = (LATEST, f".{LATEST}.tmp")  # the latter of a session that was killed meanwhile


def class_files(index: int) -> dict[str, str]:
    """Give the file names of a class by kind (map, half1, half2); people count from 1."""
    stem = f"class_{index + 1:03d}"
    return {"map": f"{stem}.mrc", "half1": f"{stem}_half1.mrc", "half2": f"{stem}_half2.mrc"}


def write_class_maps(
    folder: Path,
    item: ClassSnapshot,
    *,
    index: int,
    snapshot: Snapshot,
    session_id: str,
    over: bool,
) -> dict[str, Path]:
    """Write a class's map and half-maps; return their paths by kind (map, half1, half2).

    Parameters
    ----------
    over
        No more particles come: what is not known stays so.
    """
    if item.resolution_angstrom is not None:
        resolution = f"resolution {item.resolution_angstrom:.2f} A ({RESOLUTION_KIND})"
    elif not np.any(item.volume):
        resolution = "no map" if over else "no map yet"
    else:
        resolution = "no resolution" if over else "resolution not measured yet"
    labels = (
        "abinitio-live",
        f"session {session_id}",
        f"step {snapshot.step} class {index + 1} of {len(snapshot.classes)}",
        f"{item.particles} particles, {resolution}",
    )
    paths = {kind: folder / file for kind, file in class_files(index).items()}
    for kind, volume in zip(paths, (item.volume, item.half1, item.half2), strict=True):
        write_volume(
            paths[kind],
            volume,
            pixel_size_angstrom=snapshot.geometry.pixel_size_angstrom,
            labels=labels,
        )
    return paths


def write_series_folder(
    out: Path,
    snapshot: Snapshot,
    *,
    name: str,
    session_id: str,
    manifest: dict[str, object],
    picture: bytes | None,
    over: bool = False,
    before_rename: Callable[[], None] = lambda: None,
) -> tuple[ClassManifest, ...]:
    """Write ``out/series/name``, replacing what a crash may have left of it.

    Parameters
    ----------
    manifest
        What the manifest file says beside the classes.
    picture
        PNG of the snapshot.
    over
        They are the last maps of the session.
    """
    target = out / "series" / name
    temporary = target.with_name(f".{name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    classes = tuple(
        _manifest(
            item,
            index=index,
            snapshot=snapshot,
            folder=f"series/{name}",
            paths=write_class_maps(
                temporary, item, index=index, snapshot=snapshot, session_id=session_id, over=over
            ),
        )
        for index, item in enumerate(snapshot.classes)
    )
    if picture is not None:
        with replace_atomically(temporary / "picture.png") as path:
            path.write_bytes(picture)
    content = manifest | {"classes": [entry.model_dump() for entry in classes]}
    with replace_atomically(temporary / "manifest.json") as path:
        path.write_text(json.dumps(content, indent=1) + "\n")
    before_rename()
    if target.exists():  # renamed before a crash, not announced: the same step again
        shutil.rmtree(target)
    temporary.rename(target)
    sync_folder(target.parent)
    return classes


def point_latest(out: Path, name: str) -> bool:
    """Let ``out/latest`` lead to ``out/series/name``, in one step for those who look.

    Returns
    -------
    Whether it does: a file or folder of that name that is no such link stays as it is, and some
    file systems have no links. The snapshot itself is in place either way.
    """
    link, temporary = (out / each for each in LATEST_NAMES)
    try:
        if not all(_is_ours(path) for path in (link, temporary)):
            return False
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(Path("series") / name, target_is_directory=True)
        os.replace(temporary, link)
    except OSError:
        return False
    return True


def _is_ours(path: Path) -> bool:
    """Whether there is nothing, or a link to a snapshot."""
    if path.is_symlink():
        return os.readlink(path).startswith(os.path.join("series", "step-"))
    return not path.exists()


def _manifest(
    item: ClassSnapshot, *, index: int, snapshot: Snapshot, folder: str, paths: dict[str, Path]
) -> ClassManifest:
    digests = {kind: sha256_file(path) for kind, path in paths.items()}
    return ClassManifest(
        class_index=index,
        path=f"{folder}/{paths['map'].name}",
        sha256=digests["map"],
        half1_path=f"{folder}/{paths['half1'].name}",
        half1_sha256=digests["half1"],
        half2_path=f"{folder}/{paths['half2'].name}",
        half2_sha256=digests["half2"],
        box=snapshot.geometry.box,
        pixel_size_angstrom=snapshot.geometry.pixel_size_angstrom,
        particles=int(item.particles),
        resolution_angstrom=item.resolution_angstrom and float(item.resolution_angstrom),
        resolution_kind=RESOLUTION_KIND,
        occupancy=float(np.clip(item.occupancy, 0.0, 1.0)),
        effective_particles=float(item.effective_particles),
    )
