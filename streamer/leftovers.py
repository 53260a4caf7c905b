"""What an earlier run left in an output folder: told from a user's own files, and removed.

Promise: only what a run wrote is removed. A run lists what it wrote in `report.json`, and from its
start on what it may write beside its checkpoints, so that one that was killed is known as well. A
file that is on no list stays, and where it would be overwritten the run is refused at its start.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reconstruct.io.atomic import replace_atomically
from streamer.config import Settings
from streamer.errors import ConfigurationError
from streamer.series import class_files
from streamer.service import writable_folder

__all__ = ["begin_anew", "check_folder"]

_CLAIM = "begun_by_run.json"  # in the folder of checkpoints


def check_folder(settings: Settings, file: Path | None = None) -> tuple[str, ...]:
    """Refuse an output folder in which a run would lose or mix up what is there.

    Parameters
    ----------
    file
        The particles file of the run.

    Returns
    -------
    Names of the files that an earlier run wrote into the folder.

    Raises
    ------
    ConfigurationError
        The run would overwrite a file that no run wrote, or its own particles; or what is there
        belongs to another session.
    """
    out = settings.out
    names, earlier = _names(settings, file), _listed(settings)
    if file is not None:
        real = file.resolve()
        beside = real.parent == out.resolve() and real.name in {*names, *earlier}
        if beside or any(folder.resolve() in real.parents for folder in _folders(settings)):
            raise ConfigurationError(
                f"{file} would be overwritten: a run into {out} writes a file of that name, or "
                "removes what is there",
                "Give another folder with --out",
            )
    for name in names:
        if name not in earlier and (out / name).exists():
            raise ConfigurationError(
                f"{out / name} would be overwritten: no earlier run wrote it",
                "Give another folder with --out, or move the file",
            )
    return earlier


def begin_anew(settings: Settings, file: Path | None = None) -> str:
    """Remove what an earlier run left in the output folder, and note what this one may write.

    Parameters
    ----------
    file
        The particles file of the run.

    Returns
    -------
    What was done, in words; empty where there was nothing of a run.

    Raises
    ------
    ConfigurationError
        As `check_folder`.
    """
    earlier = [settings.out / name for name in check_folder(settings, file)]
    gone = [path for path in earlier if path.is_file()]
    gone += [folder for folder in _folders(settings) if _filled(folder)]
    for path in gone:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
    with replace_atomically(writable_folder(settings.state_folder) / _CLAIM) as claim:
        claim.write_text(json.dumps(_names(settings, file), indent=1) + "\n")
    if not gone:
        return ""
    return f"the results of an earlier run in {settings.out} are removed for this one"


def _folders(settings: Settings) -> tuple[Path, ...]:
    """What a run makes beside the files of its list."""
    return settings.state_folder, settings.out / "series"


def _filled(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _names(settings: Settings, file: Path | None) -> list[str]:
    """Give the names of all files that a run may write."""
    from reconstruct.engine import MOST_BORN  # late, since it compiles kernels

    names = ["report.json", "particles.star", "particles_unused.star"]
    if file is not None and file.suffix == ".cs":
        names.append("particles.cs")
    if settings.snapshots.pictures:
        names += ["picture.png", "timeline.png"]
    for index in range(settings.engine.n_classes + MOST_BORN):
        names += class_files(index).values()
    return names


def _listed(settings: Settings) -> tuple[str, ...]:
    """Give the files of an earlier run: those it wrote, or if it was killed those it might have.

    Raises
    ------
    ConfigurationError
        Something that is no run's is there, where a run would put or remove things.
    """
    out = settings.out
    if (out / "report.json").exists():
        report = _read(out / "report.json")
        if not isinstance(report, Mapping) or not isinstance(report.get("files"), list):
            raise ConfigurationError(
                f"{out / 'report.json'} does not list the files of its session, as one of an "
                f"earlier version does not, so that they cannot be told from your own",
                "Give another folder with --out, or remove what you need no more",
            )
        bus = report.get("settings", {}).get("bus", "")
        if not bus.startswith("memory://"):
            raise ConfigurationError(
                f"{out} holds the results of session {report.get('session')}, which is of serve",
                "Give another folder with --out",
            )
        return _plain(report["files"])
    claim = settings.state_folder / _CLAIM
    if claim.exists():
        return _plain(_read(claim))
    for folder in _folders(settings):
        if _filled(folder):
            raise ConfigurationError(
                f"{folder} is there and not of an earlier run, perhaps of a session of serve",
                "Give another folder with --out",
            )
    return ()


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _plain(names: object) -> tuple[str, ...]:
    """Keep what is a name of a file in the folder itself."""
    listed = names if isinstance(names, list) else []
    return tuple(n for n in listed if isinstance(n, str) and n and Path(n).name == n)
