"""Split STAR text into blocks of named columns, leaving every value as it was written.

Convention owned here: column names lose their leading underscore, values keep their quotes;
``unquoted`` takes them off. gemmi does the parsing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import gemmi
import numpy as np
import numpy.typing as npt

from reconstruct.io.errors import InputFileError

__all__ = ["numbers", "parse_star", "quoted", "unquoted", "whole_numbers"]

UNSAFE = re.compile(r"""^$|\s|^[_#$'";]|^(data|save|loop|stop|global)_""", re.IGNORECASE)
GEMMI_PLACE = re.compile(
    r"^string(?::(\d+))?(?::\d+\(\d+\))?(?: in data_\S* ?)?:\s*(.*)$", re.DOTALL
)
LARGEST_WHOLE = 2**31 - 1
REMEDY = "Write the file again, or mend the line"


def parse_star(path: Path, data: bytes) -> dict[str, dict[str, list[str]]]:
    """Return block name -> column name -> values as written.

    A block of tag-value pairs becomes columns of one row. Loops and pairs of one block are kept
    together only if they have one length; otherwise the longest loop wins, as in RELION.

    Raises
    ------
    InputFileError
        The text is empty or breaks the STAR rules; the line is named.
    """
    if not data.strip():
        raise InputFileError(
            path, "the file is empty", remedy="Wait until it is written", reason="empty"
        )
    text, marker = _ascii_text(path, data)
    try:
        document = gemmi.cif.read_string(text)
    except (ValueError, RuntimeError) as error:
        raise InputFileError(path, _place(str(error)), remedy=REMEDY, reason="malformed") from error
    blocks: dict[str, dict[str, list[str]]] = {}
    for block in document:
        columns: dict[str, list[str]] = {}
        for item in block:
            if item.loop is not None:
                tags = item.loop.tags
                values = item.loop.values
                loop = {tag[1:]: values[k :: len(tags)] for k, tag in enumerate(tags)}
            elif item.pair is not None:
                loop = {item.pair[0][1:]: [item.pair[1]]}
            else:
                continue
            columns = _merged(columns, loop)
        blocks[block.name.strip()] = {
            tag: _restored(values, marker) for tag, values in columns.items()
        }
    return blocks


def unquoted(value: str) -> str:
    """Return a value without its quotes."""
    if value[:1] in ("'", '"', ";"):
        return str(gemmi.cif.as_string(value))
    return value


def quoted(value: str) -> str:
    """Return text as one STAR value."""
    if not UNSAFE.search(value):
        return value
    return f'"{value}"' if '"' not in value else f"'{value}'"


def numbers(path: Path, columns: Mapping[str, Sequence[str]], tag: str) -> npt.NDArray[np.float64]:
    """Return a column as numbers; a missing column or a word among them is named."""
    if tag not in columns:
        raise InputFileError(
            path,
            f"the column {tag} is missing",
            remedy="Write the particles again with it, or add it",
            reason="missing_column",
        )
    values = columns[tag]
    try:
        return np.asarray(values, dtype=np.float64)
    except ValueError:
        row = next(k for k, value in enumerate(values) if not _is_number(value))
    raise InputFileError(
        path,
        f"{tag}, row {row + 1}: {values[row]!r} is not a number",
        remedy="Mend or remove the row",
        reason="malformed",
    )


def whole_numbers(
    path: Path, columns: Mapping[str, Sequence[str]], tag: str
) -> npt.NDArray[np.int32]:
    """Return a column as whole numbers; anything else among them is named."""
    values = numbers(path, columns, tag)
    odd = np.flatnonzero(~(np.abs(values) <= LARGEST_WHOLE) | (values != np.rint(values)))
    if len(odd):
        raise InputFileError(
            path,
            f"{tag}, row {odd[0] + 1}: {columns[tag][odd[0]]!r} is not a whole number",
            remedy="Mend or remove the row",
            reason="malformed",
        )
    return values.astype(np.int32)


def _merged(columns: dict[str, list[str]], loop: dict[str, list[str]]) -> dict[str, list[str]]:
    """Join two parts of a block when they have one length; otherwise keep the longer."""
    if not columns:
        return loop
    before, now = len(next(iter(columns.values()))), len(next(iter(loop.values())))
    if before == now:
        return {**columns, **loop}
    return columns if before > now else loop


def _ascii_text(path: Path, data: bytes) -> tuple[str, str]:
    """Return text for a parser that knows only ASCII, and the marker that hides the rest.

    File names are not always ASCII: each other byte becomes the marker and two hex digits.
    """
    if data.isascii():
        return data.decode("ascii"), ""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputFileError(
            path, f"line {line} is not text (UTF-8)", remedy=REMEDY, reason="malformed"
        ) from error
    length = 2
    while b"~" * length in data:
        length += 1
    marker = "~" * length

    def hide(run: re.Match[bytes]) -> bytes:
        return b"".join(f"{marker}{byte:02x}".encode() for byte in run.group())

    return re.sub(rb"[\x80-\xff]+", hide, data).decode("ascii"), marker


def _restored(values: Sequence[str], marker: str) -> list[str]:
    """Undo ``_ascii_text`` and share equal strings, of which metadata are full."""
    shared: dict[str, str] = {}
    if not marker:
        return [shared.setdefault(value, value) for value in values]
    return [shared.setdefault(value, _unmarked(value, marker)) for value in values]


def _unmarked(value: str, marker: str) -> str:
    """Return one value with its hidden bytes back."""
    if not marker or marker not in value:
        return value
    head, *tail = value.split(marker)
    raw = head.encode() + b"".join(bytes.fromhex(t[:2]) + t[2:].encode() for t in tail)
    return raw.decode("utf-8")


def _place(message: str) -> str:
    """Turn the parser's message into words with the line."""
    match = GEMMI_PLACE.match(message)
    if match is None:
        return message
    line, what = match.groups()
    if "Wrong number of values" in what:
        return f"the table that starts at line {line} has an incomplete row"
    where = f"line {line}: " if line else ""
    return f"{where}{what.strip() or 'not STAR'}"


def _is_number(value: str) -> bool:
    """Whether the text reads as a number."""
    try:
        float(value)
    except ValueError:
        return False
    return True
