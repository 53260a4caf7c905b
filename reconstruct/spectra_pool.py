"""Room for spectra: segments of fixed size, slots that are used again, 32 or 16 bits a number.

Segments are never moved or copied, so a growing store takes what its particles take. Half precision
rounds each number by at most 2^-11 of itself, which is far below the noise in it.
"""

from __future__ import annotations

import heapq
import itertools
from concurrent.futures import Executor
from typing import Any

import numpy as np
import numpy.typing as npt

from reconstruct.types import StorePrecision

__all__ = ["SpectraPool"]

Complex64 = npt.NDArray[np.complex64]
Slots = npt.NDArray[np.int32]

SEGMENT_BITS = 10  # 1,024 particles a segment: NumPy asks for huge pages from 4 MiB on
PART = 512  # particles that a worker copies at a time
LARGEST = 6.0e4  # below the largest half-precision number: no infinity is ever stored


class SpectraPool:
    """Spectra by slot; the lowest free slot is taken first."""

    def __init__(self, coefficients: int, precision: StorePrecision = "float32") -> None:
        self._coefficients = coefficients
        self._dtype = np.dtype(precision)
        self._segments: list[npt.NDArray[Any]] = []  # (2**bits, 2 * coefficients)
        self._free: list[int] = []  # a heap
        self._used = 0  # slots ever used

    @property
    def nbytes(self) -> int:
        """Bytes held, spare slots included."""
        return sum(segment.nbytes for segment in self._segments)

    def rounded(self, spectra: Complex64) -> Complex64:
        """Give what would come back of spectra (n, coefficients)."""
        return self._unpacked(self._packed(spectra))

    def put(self, spectra: Complex64, workers: Executor | None = None) -> Slots:
        """Keep spectra (n, coefficients); return where. Many are copied by ``workers``."""
        slots = self._slots(len(spectra))
        packed = self._packed(spectra)
        # A run of slots in one segment is copied at once.
        apart = (np.diff(slots) != 1) | (np.diff(slots >> SEGMENT_BITS) != 0)
        ends = np.append(np.flatnonzero(apart) + 1, len(slots))
        ends = np.union1d(ends, np.arange(0, len(slots), PART))

        def copy(span: tuple[int, int]) -> None:
            first, last = span
            segment, place = divmod(int(slots[first]), 1 << SEGMENT_BITS)
            self._segments[segment][place : place + last - first] = packed[first:last]

        for _ in (workers.map if workers else map)(copy, itertools.pairwise(ends.tolist())):
            pass
        return slots

    def take(self, slots: Slots, n: int | None = None) -> Complex64:
        """Copy the first ``n`` coefficients of ``slots``: (len(slots), n)."""
        n = self._coefficients if n is None else n
        out = np.empty((len(slots), 2 * n), np.float32)
        for segment, rows in self._by_segment(slots):
            places = slots[rows] & ((1 << SEGMENT_BITS) - 1)
            out[rows] = self._segments[segment][places, : 2 * n]
        return out.view(np.complex64)

    def free(self, slots: Slots) -> None:
        """Give slots back."""
        for slot in slots.tolist():
            heapq.heappush(self._free, slot)

    def _slots(self, count: int) -> Slots:
        """Take ``count`` slots: free ones, then new ones."""
        again = [heapq.heappop(self._free) for _ in range(min(count, len(self._free)))]
        first = self._used
        self._used += count - len(again)
        while len(self._segments) << SEGMENT_BITS < self._used:
            shape = (1 << SEGMENT_BITS, 2 * self._coefficients)
            self._segments.append(np.empty(shape, self._dtype))
        return np.concatenate([again, np.arange(first, self._used)]).astype(np.int32)

    @staticmethod
    def _by_segment(slots: Slots) -> list[tuple[int, Any]]:
        segment = slots >> SEGMENT_BITS
        if len(slots) and segment.min() == segment.max():
            return [(int(segment[0]), slice(None))]
        return [(int(s), np.flatnonzero(segment == s)) for s in np.unique(segment)]

    def _packed(self, spectra: Complex64) -> npt.NDArray[Any]:
        numbers = np.ascontiguousarray(spectra, np.complex64).view(np.float32)
        if self._dtype == np.float32:
            return numbers
        return np.clip(numbers, -LARGEST, LARGEST).astype(self._dtype)

    @staticmethod
    def _unpacked(numbers: npt.NDArray[Any]) -> Complex64:
        return numbers.astype(np.float32, copy=False).view(np.complex64)
