"""Load the fields of .cs files and join several on ``uid``, never on row order.

Promise: nothing is unpickled, whatever the file says.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import numpy.typing as npt

from reconstruct.io.errors import InputFileError

__all__ = ["join_passthrough", "load_fields"]

COMPRESSED_MAGIC = b"\x95CSDAT"
NUMPY_MAGIC = b"\x93NUMPY"
MAX_HEADER_BYTES = 1 << 20  # hundreds of fields with long names; numpy's own limit is 10,000


def load_fields(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Return the fields of one file.

    Raises
    ------
    InputFileError
        The file is missing, broken, compressed or holds no particles.
    """
    try:
        with open(path, "rb") as stream:
            magic = stream.read(len(COMPRESSED_MAGIC))
            if magic == COMPRESSED_MAGIC:
                records = _load_compressed(path)
            elif magic == NUMPY_MAGIC:
                stream.seek(0)
                records = np.lib.format.read_array(
                    stream, allow_pickle=False, max_header_size=MAX_HEADER_BYTES
                )
            else:
                raise InputFileError(
                    path,
                    "this is no .cs file" if magic else "the file is empty",
                    remedy="Give the particles .cs of a job or an export",
                    reason="malformed" if magic else "empty",
                )
    except OSError as error:
        raise InputFileError(
            path,
            f"cannot be read ({error.strerror or error})",
            remedy="Check the path and its permissions",
            reason="missing_file",
        ) from error
    except (ValueError, SyntaxError, TokenError, MemoryError) as error:  # all from a broken header
        raise InputFileError(
            path,
            f"not a complete .cs file ({error})",
            remedy="Wait until it is written, or copy it again",
            reason="malformed",
        ) from error
    names = records.dtype.names or ()
    if "uid" not in names:
        raise InputFileError(
            path,
            "the field uid is missing",
            remedy="Give the particles .cs of a job or an export",
            reason="missing_column",
        )
    if len(records) == 0:
        raise InputFileError(
            path,
            "holds no particles",
            remedy="Choose the output of a job that has some",
            reason="empty",
        )
    return {name: records[name] for name in names}


def _load_compressed(path: Path) -> npt.NDArray[Any]:
    """Read the newer stream format with cryoSPARC's own package, if that is installed."""
    if importlib.util.find_spec("cryosparc") is None:
        raise InputFileError(
            path,
            "this is cryoSPARC's newer compressed format (CSDAT)",
            remedy="Install cryosparc-tools, or export the particle group, which writes the "
            "plain format",
            reason="unsupported",
        )
    dataset = importlib.import_module("cryosparc.dataset").Dataset.load(str(path))
    return np.asarray(dataset.to_records(fixed=True))


def join_passthrough(
    path: Path,
    fields: dict[str, npt.NDArray[Any]],
    others: Sequence[Path],
    *,
    needed: Sequence[str],
) -> list[str]:
    """Add to ``fields`` what the main file lacks; return what was found unasked, in words.

    Parameters
    ----------
    path, fields
        The main file and its fields.
    others
        Passthrough files. Without any, those of the same folder that hold all particles are taken
        if the main file lacks something.
    needed
        Fields without which the main file is not enough.

    Raises
    ------
    InputFileError
        A named file cannot be read or lacks particles.
    """
    notes: list[str] = []
    asked = bool(others)
    if not asked:
        if all(name in fields for name in needed):
            return notes
        others = sorted(p for p in path.parent.glob("*passthrough*.cs") if p != path)
    for other in others:
        extra = load_fields(other)
        uids = np.asarray(extra["uid"])
        order = np.argsort(uids, kind="stable")
        place = order[np.searchsorted(uids[order], fields["uid"]).clip(max=len(uids) - 1)]
        absent = int(np.count_nonzero(uids[place] != fields["uid"]))
        if absent and asked:
            raise InputFileError(
                other,
                f"lacks {absent} of the {len(place)} particles of {path}",
                remedy="Give the passthrough file of the same job",
                reason="malformed",
            )
        if absent:
            continue
        for name, values in extra.items():
            fields.setdefault(name, values[place])
        if not asked:
            notes.append(f"joined {other.name} on uid")
    return notes
