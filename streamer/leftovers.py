"""What an earlier run left in an output folder: told from a user's own files, and removed.

Promise: only what a run wrote is removed. A run lists what it wrote in `report.json`, and from its
start on, beside its checkpoints, what it may write, so that one that was killed is known as well.
Of the folders of checkpoints and of the series only what bears their names goes, and with the
series the archive that was packed of it. Any other file stays, and where it would be overwritten
the run is refused at its start.
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
from streamer.series import LATEST_NAMES, class_files
from streamer.series_pack import PACK, is_pack_of
from streamer.service import writable_folder

__all__ = ["begin_anew", "check_folder"]

_CLAIM = "begun_by_run.json"  # in the folder of checkpoints: whose they are, and what it may write
_STATE = ("checkpoint-*.ckpt", "rows-*.seg", "lock", "owner", "crashes.json", _CLAIM)
_SERIES = ("step-*", ".step-*.tmp")  # the latter of a run that was killed while it wrote one
_ELSEWHERE = "Give another folder with --out"


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
    try:
        return _check(settings, file)
    except OSError as error:
        raise ConfigurationError(
            f"cannot look into {settings.out}: {error.strerror}", _ELSEWHERE
        ) from error


def _check(settings: Settings, file: Path | None) -> tuple[str, ...]:
    out = settings.out
    real_out, real_state = out.resolve(), settings.state_folder.resolve()
    if real_state == real_out or real_state in real_out.parents:
        raise ConfigurationError(
            f"the folder of checkpoints {settings.state_folder} holds the output folder {out}",
            "Give a folder of its own as `state`, or leave that setting out",
        )
    names, earlier = _names(settings, file), _listed(settings)
    if file is not None:
        real = file.resolve()
        beside = real.parent == real_out and real.name in {*names, *earlier}
        if beside or any(folder.resolve() in real.parents for folder, _ in _folders(settings)):
            raise ConfigurationError(
                f"{file} would be overwritten: a run into {out} writes a file of that name, or "
                "removes what is there",
                _ELSEWHERE,
            )
    for name in names:
        if name not in earlier and (out / name).exists():
            raise ConfigurationError(
                f"{out / name} would be overwritten: no earlier run wrote it",
                f"{_ELSEWHERE}, or move the file",
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
    gone = [settings.out / name for name in check_folder(settings, file)]
    gone = [
        path for path in gone if path.is_symlink() or not path.is_dir()
    ]  # a run lists no folder
    for folder, patterns in _folders(settings):
        gone += [path for pattern in patterns for path in folder.glob(pattern)]
    if is_pack_of(settings.out / PACK, settings.out / "series"):
        gone.append(settings.out / PACK)
    gone = [path for path in gone if path.exists() or path.is_symlink()]
    try:
        for path in gone:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    except OSError as error:
        raise ConfigurationError(
            f"cannot remove {path}, which an earlier run left: {error.strerror}", _ELSEWHERE
        ) from error
    claim = {"out": str(settings.out.resolve()), "files": _names(settings, file)}
    with replace_atomically(writable_folder(settings.state_folder) / _CLAIM) as note:
        note.write_text(json.dumps(claim, indent=1) + "\n")
    if not gone:
        return ""
    return f"the results of an earlier run in {settings.out} are removed for this one"


def _folders(settings: Settings) -> tuple[tuple[Path, tuple[str, ...]], ...]:
    """What a run makes beside the files of its list, and what it puts there."""
    return (settings.state_folder, _STATE), (settings.out / "series", _SERIES)


def _filled(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _names(settings: Settings, file: Path | None) -> list[str]:
    """Give the names of all files that a run may write."""
    from reconstruct.engine import MOST_BORN  # late, since it compiles kernels

    names = ["report.json", "particles.star", "particles_unused.star", *LATEST_NAMES]
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
    out, state = settings.out, settings.state_folder
    claim = _mapping(state / _CLAIM) if (state / _CLAIM).exists() else None
    if _filled(state) and (claim is None or claim.get("out") != str(out.resolve())):
        raise ConfigurationError(
            f"{state} exists and was not made by a run into {out}; perhaps a session of serve is "
            "in it",
            _ELSEWHERE,
        )
    if (out / "report.json").exists():
        report = _mapping(out / "report.json")
        if not isinstance(report.get("files"), list):
            raise ConfigurationError(
                f"{out / 'report.json'} was not written by a run of this version: it does not list "
                "the files of its session, so that they cannot be told from your own",
                f"{_ELSEWHERE}, or remove what you no longer need",
            )
        wanted = report.get("settings")
        bus = wanted.get("bus") if isinstance(wanted, Mapping) else None
        if not str(bus).startswith("memory://"):
            raise ConfigurationError(
                f"{out} holds the results of session {report.get('session')} of serve", _ELSEWHERE
            )
        return _plain(report["files"])
    if claim is not None:
        return _plain(claim.get("files"))
    if _filled(out / "series"):
        raise ConfigurationError(f"{out / 'series'} exists and was not made by a run", _ELSEWHERE)
    return ()


def _mapping(path: Path) -> Mapping[str, Any]:
    """What a JSON file holds; empty where it cannot be read or is no mapping."""
    try:
        found = json.loads(path.read_text())
    except ValueError:
        return {}
    return found if isinstance(found, Mapping) else {}


def _plain(names: object) -> tuple[str, ...]:
    """Keep what is a name of a file in the folder itself."""
    listed = names if isinstance(names, list) else []
    return tuple(
        n for n in listed if isinstance(n, str) and n not in ("", "..") and Path(n).name == n
    )
