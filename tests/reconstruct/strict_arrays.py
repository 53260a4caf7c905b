"""NumPy arrays that are as strict as a device's: they refuse to meet arrays of the host.

CuPy raises where an operation, an index or an assignment mixes its arrays with NumPy's. These do
too, so that a forgotten transfer shows without a device. ``numpy.asarray`` still passes: there is
no way to stop it for a subclass.
"""

from __future__ import annotations

import types
from typing import Any

import numpy as np
import scipy.fft

__all__ = ["HostArrayError", "fft", "xp"]


class HostArrayError(TypeError):
    """A host array met a device array."""


def _refuse_host(values: Any) -> None:
    if isinstance(values, tuple | list):
        for one in values:
            _refuse_host(one)
    elif isinstance(values, np.ndarray) and not isinstance(values, _DeviceArray) and values.ndim:
        raise HostArrayError(f"a host array of shape {values.shape} among device arrays")


def _to_device(values: Any) -> Any:
    if isinstance(values, np.ndarray):
        return values.view(_DeviceArray)
    if isinstance(values, tuple | list):
        return type(values)(_to_device(one) for one in values)
    return values


def _to_host(values: Any) -> Any:
    if isinstance(values, _DeviceArray):
        return values.view(np.ndarray)
    if isinstance(values, tuple | list):
        return type(values)(_to_host(one) for one in values)
    return values


class _DeviceArray(np.ndarray):
    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        _refuse_host((*inputs, *kwargs.get("out", ())))
        if "out" in kwargs:
            kwargs["out"] = tuple(_to_host(list(kwargs["out"])))
        return _to_device(getattr(ufunc, method)(*_to_host(inputs), **kwargs))

    def __array_function__(self, function: Any, kinds: Any, args: Any, kwargs: Any) -> Any:
        _refuse_host((args, tuple(kwargs.values())))
        return _to_device(function(*_to_host(args), **{n: _to_host(v) for n, v in kwargs.items()}))

    def __getitem__(self, index: Any) -> Any:
        _refuse_host(index)
        return super().__getitem__(index)

    def __setitem__(self, index: Any, value: Any) -> None:
        _refuse_host((index, value))
        super().__setitem__(index, value)


def _strict(function: Any, *, takes_host: bool = False) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        if not takes_host:
            _refuse_host((args, tuple(kwargs.values())))
        host = {name: _to_host(value) for name, value in kwargs.items()}
        return _to_device(function(*_to_host(args), **host))

    return call


class _StrictModule(types.ModuleType):
    def __init__(self, module: Any) -> None:
        super().__init__(f"strict_{module.__name__}")
        self._module = module

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._module, name)
        if not callable(found) or isinstance(found, type):
            return found
        return _strict(found, takes_host=name in ("asarray", "ascontiguousarray"))

    @staticmethod
    def asnumpy(values: Any) -> Any:
        """Copy to the host."""
        return np.array(_to_host(values))


xp: Any = _StrictModule(np)
fft: Any = _StrictModule(scipy.fft)
