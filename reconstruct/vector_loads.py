"""Two operations for Numba that LLVM does not find by itself: a cell's rows as vectors.

A cell of a cube has eight samples; two along x lie side by side, so its four rows are vectors in
memory. Numba's cache of compiled kernels does not see changes here: clear it, or touch
``kernels_cpu``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.errors import TypingError
from numba.extending import intrinsic

__all__ = ["add_between", "between"]

_REAL, _INDEX = types.float32, types.uintp
_FLAGS = ("contract", "nsz")


def _check(cube: Any) -> None:
    """Refuse arrays whose bytes are laid out otherwise: nothing else would notice.

    Raises
    ------
    TypingError
        The array is not flat, contiguous and of float32.
    """
    if (cube.dtype, cube.ndim, cube.layout) != (_REAL, 1, "C"):
        raise TypingError(f"a flat contiguous float32 array is needed, not {cube}")


def _number(value: int) -> Any:
    return ir.Constant(ir.IntType(32), value)


class _Rows:
    """Emits code that reads and writes the rows of one cell of a flat float32 array."""

    def __init__(self, context: Any, builder: Any, array_type: Any, array: Any) -> None:
        self.builder = builder
        self._data = context.make_array(array_type)(context, builder, array).data

    def vector(self, *values: Any) -> Any:
        """The values side by side."""
        made = ir.Constant(ir.VectorType(ir.FloatType(), len(values)), ir.Undefined)
        for lane, value in enumerate(values):
            made = self.builder.insert_element(made, value, _number(lane))
        return made

    def lanes(self, vector: Any, numbers: Sequence[int]) -> Any:
        """Some lanes of a vector."""
        mask = ir.Constant(ir.VectorType(ir.IntType(32), len(numbers)), list(numbers))
        return self.builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), mask)

    def place(self, sample: Any, floats: int, steps: Sequence[Any], lanes: int, skip: int) -> Any:
        """Pointer to ``lanes`` floats, ``skip`` after the sample ``steps`` away from ``sample``."""
        for step in steps:
            sample = self.builder.add(sample, step)
        offset = self.builder.mul(sample, ir.Constant(sample.type, floats))
        offset = self.builder.add(offset, ir.Constant(sample.type, skip))
        pointer = ir.PointerType(ir.VectorType(ir.FloatType(), lanes))
        return self.builder.bitcast(self.builder.gep(self._data, [offset]), pointer)

    def times(self, first: Any, second: Any) -> Any:
        """Product."""
        return self.builder.fmul(first, second, flags=_FLAGS)

    def plus(self, first: Any, second: Any) -> Any:
        """Sum."""
        return self.builder.fadd(first, second, flags=_FLAGS)

    def mix(self, first: Any, second: Any, share: Any) -> Any:
        """``first`` and a ``share`` of the way to ``second``."""
        apart = self.builder.fsub(second, first, flags=_FLAGS)
        return self.plus(first, self.times(share, apart))


def _emit_between(
    typing: Any, cube: Any, cell: Any, row: Any, sheet: Any, fx: Any, fy: Any, fz: Any
) -> Any:
    """Trilinear complex value, as two floats, in a cell of a flat cube (samples of two floats).

    ``cell`` is the number of the cell's first sample; ``row`` and ``sheet`` are steps along y and
    z in samples.
    """
    del typing, cell, row, sheet, fx, fy, fz
    _check(cube)

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        flat, first, to_y, to_z, *fractions = arguments
        rows = _Rows(context, builder, signature.args[0], flat)

        def pair(*steps: Any) -> Any:
            return builder.load(rows.place(first, 2, steps, lanes=4, skip=0), align=4)

        x, y, z = (rows.lanes(rows.vector(share), (0, 0, 0, 0)) for share in fractions)
        near, far = rows.mix(pair(), pair(to_y), y), rows.mix(pair(to_z), pair(to_z, to_y), y)
        both = rows.mix(near, far, z)
        value = rows.mix(both, rows.lanes(both, (2, 3, 2, 3)), x)
        parts = [builder.extract_element(value, _number(lane)) for lane in (0, 1)]
        return context.make_tuple(builder, signature.return_type, parts)

    returned = types.Tuple((_REAL, _REAL))  # type: ignore[no-untyped-call]
    return returned(cube, _INDEX, _INDEX, _INDEX, _REAL, _REAL, _REAL), emit


def _emit_add_between(
    typing: Any, cube: Any, cell: Any, row: Any, sheet: Any,
    v0: Any, v1: Any, v2: Any, fx: Any, fy: Any, fz: Any,
) -> Any:  # fmt: skip
    """Add three values to the eight samples of a cell of a flat cube (samples of three floats).

    The twin of ``between``: ``cell``, ``row`` and ``sheet`` are as there.
    """
    del typing, cell, row, sheet, v0, v1, v2, fx, fy, fz
    _check(cube)

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        flat, first, to_y, to_z, *values, x, y, z = arguments
        rows = _Rows(context, builder, signature.args[0], flat)
        one = ir.Constant(ir.FloatType(), 1.0)
        left, near, low = (builder.fsub(one, share, flags=_FLAGS) for share in (x, y, z))
        here = [rows.times(left, value) for value in values]
        there = [rows.times(x, value) for value in values]
        # six floats of a row, as four and two
        parts = (rows.vector(*here, there[0]), 4, 0), (rows.vector(*there[1:]), 2, 4)
        for steps, along_z, along_y in (
            ((), low, near), ((to_y,), low, y), ((to_z,), z, near), ((to_z, to_y), z, y),
        ):  # fmt: skip
            weight = rows.vector(rows.times(along_z, along_y))
            for part, lanes, skip in parts:
                place = rows.place(first, 3, steps, lanes=lanes, skip=skip)
                more = rows.times(rows.lanes(weight, (0,) * lanes), part)
                builder.store(rows.plus(builder.load(place, align=4), more), place, align=4)
        return context.get_dummy_value()

    arguments = (cube, _INDEX, _INDEX, _INDEX, *(_REAL,) * 6)
    return types.void(*arguments), emit


between: Any = intrinsic(_emit_between)
add_between: Any = intrinsic(_emit_add_between)
