"""One instruction for Numba that LLVM does not find by itself: a cell's rows as 128-bit loads.

Numba's cache of compiled kernels does not see changes here: clear it, or touch ``kernels_cpu``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

__all__ = ["between"]


def _emit_between(
    typing: Any, cube: Any, cell: Any, row: Any, sheet: Any, fx: Any, fy: Any, fz: Any
) -> Any:
    """Trilinear complex value, as two floats, in a cell of a flat cube.

    ``cell`` is the number of the cell's first sample; ``row`` and ``sheet`` are steps along y and
    z. The four floats of an x pair lie side by side, so each of the cell's four rows is one 128-bit
    load; LLVM does not find that by itself.
    """
    del typing
    floats, flags = ir.VectorType(ir.FloatType(), 4), ("contract", "nsz")

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        flat, start, to_y, to_z, *fractions = arguments
        data = context.make_array(signature.args[0])(context, builder, flat).data

        def lanes(vector: Any, numbers: Sequence[int]) -> Any:
            mask = ir.Constant(ir.VectorType(ir.IntType(32), 4), list(numbers))
            return builder.shuffle_vector(vector, ir.Constant(floats, ir.Undefined), mask)

        def everywhere(value: Any) -> Any:
            empty, first = ir.Constant(floats, ir.Undefined), ir.Constant(ir.IntType(32), 0)
            return lanes(builder.insert_element(empty, value, first), (0, 0, 0, 0))

        def pair(*steps: Any) -> Any:
            sample = start
            for step in steps:
                sample = builder.add(sample, step)
            offset = builder.shl(sample, ir.Constant(sample.type, 1))
            at = builder.bitcast(builder.gep(data, [offset]), ir.PointerType(floats))
            return builder.load(at, align=4)

        def mix(first: Any, second: Any, share: Any) -> Any:
            apart = builder.fsub(second, first, flags=flags)
            return builder.fadd(first, builder.fmul(share, apart, flags=flags), flags=flags)

        x, y, z = (everywhere(fraction) for fraction in fractions)
        near, far = mix(pair(), pair(to_y), y), mix(pair(to_z), pair(to_z, to_y), y)
        both = mix(near, far, z)
        value = mix(both, lanes(both, (2, 3, 2, 3)), x)
        parts = [builder.extract_element(value, ir.Constant(ir.IntType(32), i)) for i in (0, 1)]
        return context.make_tuple(builder, signature.return_type, parts)

    real = types.float32
    returned = types.Tuple((real, real))  # type: ignore[no-untyped-call]
    return returned(cube, cell, row, sheet, real, real, real), emit


between: Any = intrinsic(_emit_between)
