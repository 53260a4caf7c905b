"""Where arrays live and which kernels work on them: the CPU, or one CUDA device through CuPy.

This module and ``kernels_cuda`` are the only ones that import cupy, and only when a device is
asked for. A ``Backend`` is passed as an argument; there is no global one.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import scipy.fft

from reconstruct import kernels_cpu

__all__ = [
    "Backend",
    "DeviceDescription",
    "DeviceError",
    "PlainTransforms",
    "Transforms",
    "cpu_backend",
    "describe_devices",
    "make_backend",
    "usable_cores",
]

CPU_CHUNK = 24  # particles a worker takes at a time: their coarse scores stay in its cache
GPU_EXTRA = "pip install 'abinitio-live[gpu]'"


class DeviceError(ValueError):
    """A device was asked for that cannot be used; the message says what to do."""


@dataclass(frozen=True)
class DeviceDescription:
    """One device, or why there is none."""

    device: str  # what to pass as the device: "cpu", "cuda:0"
    name: str
    usable: bool
    detail: str  # versions and memory, or what is wrong and its remedy


class Transforms(Protocol):
    """Real transforms of stacks of cubic maps, without a norm either way."""

    def inverse(self, spectra: Any) -> Any:
        """Maps (m, size, size, size) of spectra (.., size / 2 + 1), which are used up."""

    def forward(self, maps: Any) -> Any:
        """Spectra of maps."""


@dataclass(frozen=True)
class PlainTransforms:
    """Transforms by a module like ``scipy.fft``."""

    fft: Any

    def inverse(self, spectra: Any) -> Any:
        """See ``Transforms``."""
        edge = (spectra.shape[1],) * 3
        return self.fft.irfftn(spectra, s=edge, axes=(1, 2, 3), norm="forward", overwrite_x=True)

    def forward(self, maps: Any) -> Any:
        """See ``Transforms``."""
        return self.fft.rfftn(maps, axes=(1, 2, 3))


class _CufftTransforms:
    """Transforms by cuFFT plans that are kept: making one takes as long as ten transforms."""

    KEPT_BYTES = 1 << 28  # of the plans' work areas; of plans that need more the last few
    LEAST_KEPT = 8  # an update takes five: references and half maps both ways, masks

    def __init__(self, cupy: Any) -> None:
        self._cufft = cupy.cuda.cufft
        self._plans: OrderedDict[tuple[str, tuple[int, ...]], Any] = OrderedDict()
        self._held = 0  # bytes

    def inverse(self, spectra: Any) -> Any:
        """See ``Transforms``."""
        return self._run("C2R", spectra, self._cufft.CUFFT_INVERSE)

    def forward(self, maps: Any) -> Any:
        """See ``Transforms``."""
        return self._run("R2C", maps, self._cufft.CUFFT_FORWARD)

    def _run(self, kind: str, values: Any, direction: int) -> Any:
        from cupyx.scipy.fft import get_fft_plan

        key = kind, values.shape
        plan = self._plans.pop(key, None)
        if plan is None:
            plan = get_fft_plan(values, axes=(1, 2, 3), value_type=kind)
            self._held += plan.work_area.mem.size
        self._plans[key] = plan
        while self._held > self.KEPT_BYTES and len(self._plans) > self.LEAST_KEPT:
            _, oldest = self._plans.popitem(last=False)
            self._held -= oldest.work_area.mem.size
        out = plan.get_output_array(values)
        plan.fft(values, out, direction)
        return out


@dataclass(frozen=True, eq=False)
class Backend:
    """An array module with transforms, kernels and memory; compared and hashed by identity."""

    device: str  # "cpu" or "cuda:0"
    name: str  # of the hardware
    xp: Any  # numpy or cupy
    fft: Any  # scipy.fft or cupyx.scipy.fft
    transforms: Transforms  # of stacks of maps
    kernels: Any  # the functions of kernels_cpu; a device's has those of kernels_cuda
    on_device: bool
    memory: Callable[[], tuple[int, int]]  # free and total bytes
    release: Callable[[], None]  # hand cached memory back
    wait: Callable[[], None]  # until everything started is done
    out_of_memory: tuple[type[BaseException], ...]  # what an allocation raises
    upload: Callable[[npt.NDArray[Any]], Any] | None = None  # contiguous host arrays to the device
    download: Callable[[Any], npt.NDArray[Any]] | None = None  # and back

    def asarray(self, values: npt.ArrayLike, dtype: npt.DTypeLike | None = None) -> Any:
        """Give an array of this backend, C-contiguous; a copy only where one is needed."""
        if self.upload is not None and isinstance(values, np.ndarray):
            return self.upload(np.ascontiguousarray(values, dtype=dtype))
        return self.xp.ascontiguousarray(self.xp.asarray(values, dtype=dtype))

    def asnumpy(self, values: Any) -> npt.NDArray[Any]:
        """Give a NumPy array; waits for the device."""
        if type(values) is np.ndarray:
            return values
        fetch = self.download or self.xp.asnumpy
        return np.asarray(fetch(values))

    def constant(self, values: npt.ArrayLike, dtype: npt.DTypeLike) -> Any:
        """Give a small array of this backend that nobody may change; equal ones are kept."""
        host = np.ascontiguousarray(values, dtype=dtype)
        return _kept(self, host.tobytes(), host.shape, host.dtype.str)

    def address(self, values: Any) -> int:
        """Where an array's data begin."""
        pointer = values.ctypes.data if isinstance(values, np.ndarray) else values.data.ptr
        return int(pointer)

    def run_chunks(
        self,
        work: Callable[[slice], object],
        rows: int,
        *,
        bytes_per_row: int,
        workers: Executor | None = None,
    ) -> None:
        """Call ``work`` on slices that together are ``rows`` particles.

        On the CPU the workers share small chunks. On a device a chunk fills an eighth of the free
        memory at most, and one that does not fit after all is halved and tried again.
        """
        if workers is not None and not self.on_device:
            chunks = [slice(i, min(i + CPU_CHUNK, rows)) for i in range(0, rows, CPU_CHUNK)]
            for _ in workers.map(work, chunks):
                pass
            return
        size = max(1, min(rows, self.memory()[0] // 8 // max(bytes_per_row, 1)))
        done = 0
        while done < rows:
            try:
                work(slice(done, min(done + size, rows)))
            except self.out_of_memory:
                self.release()
                if size == 1:
                    raise
                size = -(-size // 2)
                continue
            done += size


@lru_cache(maxsize=1)
def cpu_backend() -> Backend:
    """The backend that every machine has."""
    return Backend(
        device="cpu",
        name="CPU",
        xp=np,
        fft=scipy.fft,
        transforms=PlainTransforms(scipy.fft),
        kernels=kernels_cpu,
        on_device=False,
        memory=_host_memory,
        release=lambda: None,
        wait=lambda: None,
        out_of_memory=(MemoryError,),
    )


def make_backend(device: str | Backend = "cpu") -> Backend:
    """Open ``auto``, ``cpu``, ``cuda`` or ``cuda:n``; ``auto`` is a device where one is usable.

    Raises
    ------
    DeviceError
        The name is unknown, or the device cannot be used.
    """
    if isinstance(device, Backend):
        return device
    if device == "cpu":
        return cpu_backend()
    if device == "auto":
        usable = [one for one in describe_devices() if one.usable and one.device != "cpu"]
        return _cuda_backend(int(usable[0].device[5:])) if usable else cpu_backend()
    kind, _, number = device.partition(":")
    if kind != "cuda" or not (number.isdecimal() or device == "cuda"):
        raise DeviceError(f"device {device!r} is none of auto, cpu, cuda, cuda:n")
    return _cuda_backend(int(number or 0))


def describe_devices() -> tuple[DeviceDescription, ...]:
    """The CPU, and each CUDA device or the reason why there is none."""
    free, total = _host_memory()
    detail = f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB memory free"
    host = DeviceDescription("cpu", "CPU", usable=True, detail=detail)
    try:
        return host, *_cuda_devices()
    except DeviceError as error:
        return host, DeviceDescription("cuda", "CUDA", usable=False, detail=str(error))


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@lru_cache(maxsize=64)
def _kept(backend: Backend, data: bytes, shape: tuple[int, ...], dtype: str) -> Any:
    return backend.asarray(np.frombuffer(data, dtype).reshape(shape))


def _host_memory() -> tuple[int, int]:
    import psutil

    memory = psutil.virtual_memory()
    return int(memory.available), int(memory.total)


def _import_cupy() -> Any:
    try:
        import cupy
    except ImportError as error:
        raise DeviceError(f"CuPy cannot be imported ({error}): {GPU_EXTRA}") from error
    return cupy


def _cuda_devices() -> list[DeviceDescription]:
    cupy = _import_cupy()
    runtime = cupy.cuda.runtime
    try:
        count = int(runtime.getDeviceCount())
        driver, toolkit = runtime.driverGetVersion(), runtime.runtimeGetVersion()
    except (runtime.CUDARuntimeError, ImportError) as error:
        raise DeviceError(f"no CUDA device can be used: {error}; see nvidia-smi") from error
    found = []
    for number in range(count):
        properties = runtime.getDeviceProperties(number)
        with cupy.cuda.Device(number):
            free, total = runtime.memGetInfo()
        name = properties["name"].decode()
        detail = (
            f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free, compute capability "
            f"{properties['major']}.{properties['minor']}, driver CUDA {_dotted(driver)}, "
            f"runtime CUDA {_dotted(toolkit)}, CuPy {cupy.__version__}"
        )
        found.append(DeviceDescription(f"cuda:{number}", name, usable=True, detail=detail))
    return found


def _dotted(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"


@lru_cache(maxsize=8)
def _cuda_backend(number: int) -> Backend:
    devices = _cuda_devices()
    if number >= len(devices):
        raise DeviceError(f"there is no device cuda:{number}: {len(devices)} found")
    cupy = _import_cupy()
    import cupyx.scipy.fft

    from reconstruct.kernels_cuda import CudaKernels, CupyLauncher
    from reconstruct.transfers import Transfers

    cupy.cuda.Device(number).use()  # one process per device
    pool = cupy.get_default_memory_pool()

    def memory() -> tuple[int, int]:
        free, total = cupy.cuda.runtime.memGetInfo()
        return int(free) + int(pool.free_bytes()), int(total)

    transfers = Transfers(cupy)
    return Backend(
        device=f"cuda:{number}",
        name=devices[number].name,
        xp=cupy,
        fft=cupyx.scipy.fft,
        transforms=_CufftTransforms(cupy),
        kernels=CudaKernels(CupyLauncher(), cupy),
        on_device=True,
        memory=memory,
        release=pool.free_all_blocks,
        wait=cupy.cuda.get_current_stream().synchronize,
        out_of_memory=(cupy.cuda.memory.OutOfMemoryError,),
        upload=transfers.upload,
        download=transfers.download,
    )
