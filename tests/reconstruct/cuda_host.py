"""The CUDA sources compiled for the host: their text, the launch code and the array layouts.

A fiber per CUDA thread stands in for the device (cuda_host.h); arrays are NumPy's. This shows that
the kernels compute the right thing and have no race between barriers; it says nothing about speed
or about the device's compiler.
"""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reconstruct.backend import Backend, PlainTransforms, cpu_backend
from reconstruct.kernels_cuda import KERNEL_NAMES, CudaKernels, source
from tests.reconstruct import strict_arrays

__all__ = ["HostLauncher", "host_backend"]

HEADER = Path(__file__).with_name("cuda_host.h")
FLAGS = (
    "-O2",
    "-g",
    "-std=c++17",
    "-shared",
    "-fPIC",
    "-ffp-contract=fast",
    "-march=native",
    "-U_FORTIFY_SOURCE",
)
ERRORS = {
    1: "wrote beyond its shared memory",
    2: "was called with another number of arguments",
    3: "asked for more shared memory than there is",
    4: "is not known",
}


def _unit() -> str:
    """The sources and a launcher per kernel."""
    text = source().replace("extern __shared__ u64 shared[];", "u64* shared = (u64*)shared_room;")
    assert "extern __shared__" not in text
    cases = "\n".join(
        f'    if (!strcmp(name, "{name}"))\n'
        f"        return run_grid({name}, gx, gy, threads, shared, arguments, count);"
        for name in KERNEL_NAMES
    )
    return (
        f'#include "{HEADER}"\n{text}\nextern "C" int emu_launch(const char* name, unsigned gx, '
        f"unsigned gy, unsigned threads, size_t shared, void** arguments, int count) {{\n{cases}\n"
        "    return 4;\n}\n"
    )


class HostLauncher:
    """Runs the kernels on NumPy arrays; ``order`` decides who goes first among threads."""

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("g++")
        if compiler is None:
            pytest.skip("needs g++ to compile the CUDA sources for the host")
        unit = _unit()
        stamp = hashlib.sha256((unit + HEADER.read_text()).encode()).hexdigest()[:16]
        library = folder / f"kernels-{stamp}.so"
        if not library.exists():
            path = folder / f"kernels-{stamp}.cpp"
            path.write_text(unit)
            command = [compiler, *FLAGS, "-w", str(path), "-o", str(library)]
            built = subprocess.run(command, capture_output=True, text=True, check=False)
            assert built.returncode == 0, built.stderr
        self._library = ctypes.CDLL(str(library))

    def order(self, seed: int) -> None:
        """0: ascending, 1: descending, more: shuffled per block."""
        self._library.emu_order(ctypes.c_int(seed))

    def launch(
        self,
        name: str,
        grid: tuple[int, ...],
        threads: int,
        arguments: tuple[Any, ...],
        *,
        shared_bytes: int = 0,
    ) -> None:
        """Run every block to its end."""
        held = []
        for argument in arguments:
            if isinstance(argument, np.ndarray):
                held.append(np.array(argument.ctypes.data, np.uint64))
            else:
                assert isinstance(argument, np.generic), f"{name}: {argument!r} has no fixed size"
                held.append(np.array(argument))
        pointers = (ctypes.c_void_p * len(held))(*(one.ctypes.data for one in held))
        gx, gy = (*grid, 1)[:2]
        result = self._library.emu_launch(
            name.encode(), gx, gy, threads, ctypes.c_size_t(shared_bytes), pointers, len(held)
        )
        assert result == 0, f"{name} {ERRORS[result]}"


def host_backend(launcher: HostLauncher) -> Backend:
    """A backend that takes every path of a device, with arrays that refuse to meet NumPy's."""
    return replace(
        cpu_backend(),
        device="cuda:0",
        name="CUDA sources on the host",
        xp=strict_arrays.xp,
        fft=strict_arrays.fft,
        transforms=PlainTransforms(strict_arrays.fft),
        kernels=CudaKernels(launcher, strict_arrays.xp),
        on_device=True,
    )
