"""Large copies arrive whole, whatever their size; the device is played by host memory."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from reconstruct.transfers import LARGE_BYTES, PART_BYTES, SMALL_BYTES, Transfers


class Data:
    """A device pointer that is an address here."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def copy_from_host_async(self, address: int, size: int) -> None:
        ctypes.memmove(self.array.ctypes.data, address, size)

    def copy_to_host_async(self, address: int, size: int) -> None:
        ctypes.memmove(address, self.array.ctypes.data, size)


class DeviceArray:
    def __init__(self, array: np.ndarray) -> None:
        self.array, self.data = array, Data(array)
        self.nbytes, self.shape, self.dtype = array.nbytes, array.shape, array.dtype
        self.flags = SimpleNamespace(c_contiguous=array.flags.c_contiguous)


class Pinned(bytearray):
    @property
    def ptr(self) -> int:
        return ctypes.addressof(ctypes.c_char.from_buffer(self))


def played(waits: list[int]) -> Any:
    stream = SimpleNamespace(synchronize=lambda: waits.append(1))
    return SimpleNamespace(
        asarray=lambda values: DeviceArray(values.copy()),
        asnumpy=lambda values: values.array.copy(),
        empty=lambda shape, dtype: DeviceArray(np.zeros(shape, dtype)),
        cuda=SimpleNamespace(alloc_pinned_memory=Pinned, get_current_stream=lambda: stream),
    )


@pytest.mark.parametrize(
    "size",
    [
        0,
        1,
        SMALL_BYTES,
        SMALL_BYTES + 1,
        LARGE_BYTES - 1,
        LARGE_BYTES,
        LARGE_BYTES + PART_BYTES + 3,
    ],
)
def test_bytes_go_to_a_device_and_come_back(size: int) -> None:
    waits: list[int] = []
    transfers = Transfers(played(waits))
    values = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
    there = transfers.upload(values)
    np.testing.assert_array_equal(there.array, values)
    np.testing.assert_array_equal(transfers.download(there), values)
    # pinned memory may only go back once the device is done with it
    assert len(waits) == (2 if size >= LARGE_BYTES else 0)


def test_an_array_with_gaps_comes_back_too() -> None:
    transfers = Transfers(played([]))
    values = np.arange(4 * LARGE_BYTES // 8, dtype=np.float64).reshape(-1, 4)
    gaps = DeviceArray(values[:, ::2])
    np.testing.assert_array_equal(transfers.download(gaps), values[:, ::2])
