"""What arrays belong to a record: names, element types and shapes, checked before use.

Shapes are written with symbols (``n`` rows, ``box``); a record fixes some symbols through
`Record.dimensions`, the others take the value that the first array shows and must agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = ["DTYPES", "Array", "ArrayMismatchError", "ArraySpec", "check_arrays"]

Array = npt.NDArray[Any]

DTYPES: Final[Mapping[str, np.dtype[Any]]] = {
    "f2": np.dtype("<f2"),
    "f4": np.dtype("<f4"),
    "f8": np.dtype("<f8"),
    "u1": np.dtype("u1"),
    "i4": np.dtype("<i4"),
    "u4": np.dtype("<u4"),
    "i8": np.dtype("<i8"),
    "u8": np.dtype("<u8"),
}
"""Element types that travel, all little endian."""


class ArrayMismatchError(ValueError):
    """The arrays do not fit the record; ``reason`` is a short slug, ``detail`` says it in words."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class ArraySpec:
    """One array of a record."""

    dtypes: tuple[str, ...]  # keys of DTYPES that are allowed
    shape: tuple[str | int, ...]  # symbols or fixed lengths
    description: str
    required: bool = True

    @property
    def shape_text(self) -> str:
        """The shape in words, such as ``(n, box, box)``."""
        return "(" + ", ".join(str(length) for length in self.shape) + ")"


def check_arrays(
    specs: Mapping[str, ArraySpec],
    arrays: Mapping[str, Array],
    *,
    dimensions: Mapping[str, int],
    allow_unknown: bool,
) -> None:
    """Check names, element types and shapes of a record's arrays.

    Parameters
    ----------
    specs
        What the record expects.
    arrays
        What is there.
    dimensions
        Symbols of the shapes that the record's header fixes.
    allow_unknown
        Accept arrays without a spec (a newer minor version may add some).

    Raises
    ------
    ArrayMismatchError
        With reason ``array_missing``, ``array_unexpected`` or ``array_mismatch``.
    """
    known = dict(dimensions)
    for name, spec in specs.items():
        if name not in arrays:
            if spec.required:
                raise ArrayMismatchError("array_missing", f"the record has no array {name!r}")
            continue
        _check_one(name, arrays[name], spec=spec, known=known)
    unexpected = sorted(set(arrays) - set(specs))
    if unexpected and not allow_unknown:
        raise ArrayMismatchError(
            "array_unexpected", f"this record carries no array named {unexpected[0]!r}"
        )


def _check_one(name: str, array: Array, *, spec: ArraySpec, known: dict[str, int]) -> None:
    """Check one array and bind the symbols of its shape that were still open."""
    if array.dtype.newbyteorder("<") not in [DTYPES[code] for code in spec.dtypes]:
        raise ArrayMismatchError(
            "array_mismatch", f"{name} is {array.dtype}, expected one of {', '.join(spec.dtypes)}"
        )
    fits = array.ndim == len(spec.shape)
    if fits:
        for symbol, length in zip(spec.shape, array.shape, strict=True):
            wanted = symbol if isinstance(symbol, int) else known.setdefault(symbol, length)
            fits = fits and length == wanted
    if not fits:
        sizes = ", ".join(f"{symbol} = {known[symbol]}" for symbol in sorted(known))
        raise ArrayMismatchError(
            "array_mismatch",
            f"{name} has shape {array.shape}, expected {spec.shape_text}"
            + (f" with {sizes}" if sizes else ""),
        )
