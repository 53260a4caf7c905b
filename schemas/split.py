"""Keep records under a byte budget by splitting rows; a record is never cut into chunks.

Every part is a complete record of its own. Part ids are the record's id with the part's number,
so splitting the same record again gives the same ids; a record that fits keeps its id.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeVar

from schemas.arrays import Array
from schemas.assignments import AssignmentBatch
from schemas.codec import encoded_size
from schemas.particles import ParticleBatch

__all__ = ["DEFAULT_MAX_BYTES", "split_batch"]

DEFAULT_MAX_BYTES: Final = 2**20 - 2**15
"""1 MiB of a stock broker less room for key, headers, framing and a dead letter around it."""

_RowRecord = TypeVar("_RowRecord", ParticleBatch, AssignmentBatch)


def split_batch(
    record: _RowRecord, arrays: Mapping[str, Array], max_bytes: int = DEFAULT_MAX_BYTES
) -> list[tuple[_RowRecord, dict[str, Array]]]:
    """Split a batch by rows so that each encoded part stays within a budget.

    Parameters
    ----------
    record
        A particle or assignment batch.
    arrays
        Its arrays; every one has one row per particle.
    max_bytes
        Largest encoded size of a part.

    Returns
    -------
    parts
        Records with views of the arrays, in order of rows.

    Raises
    ------
    ValueError
        One row alone is over the budget.
    """
    if encoded_size(record, arrays) <= max_bytes:
        return [(record, dict(arrays))]
    parts: list[tuple[_RowRecord, dict[str, Array]]] = []
    start = 0
    guess = record.count  # rows of the previous part: rows cost about the same
    while start < record.count:
        part_id = f"{record.envelope.record_id}.{len(parts)}"
        part, rows = _largest_part(
            record, arrays, start=start, guess=guess, part_id=part_id, max_bytes=max_bytes
        )
        parts.append((part, rows))
        guess = part.count
        start += part.count
    return parts


def _largest_part(
    record: _RowRecord,
    arrays: Mapping[str, Array],
    *,
    start: int,
    guess: int,
    part_id: str,
    max_bytes: int,
) -> tuple[_RowRecord, dict[str, Array]]:
    """Find the longest run of rows from ``start`` that fits, by bisection around a guess."""

    def cut(rows: int) -> tuple[_RowRecord, dict[str, Array]]:
        stop = start + rows
        part = record.take_rows(start, stop, record_id=part_id)
        return part, {name: array[start:stop] for name, array in arrays.items()}

    fits, too_many = 0, record.count - start + 1
    trial, stride = min(guess, too_many - 1), 1
    while too_many - fits > 1:
        if encoded_size(*cut(trial)) <= max_bytes:
            # the guess is usually right: look just above it, then in growing strides
            fits, trial, stride = trial, trial + stride, 2 * stride
        else:
            too_many = trial
            trial = (fits + too_many) // 2
        if not fits < trial < too_many:
            trial = (fits + too_many) // 2
    if fits == 0:
        row_bytes = encoded_size(*cut(1))
        raise ValueError(
            f"one row of {record.envelope.record_id} (particle {record.image_names[start]!r}) "
            f"takes {row_bytes} bytes, over the budget of {max_bytes}: raise the budget (and the "
            "broker's message.max.bytes), send float16, or send references instead of pixels"
        )
    return cut(fits)
