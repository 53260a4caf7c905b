"""A compiler for CUDA C that needs no device: nvcc where it is installed, else NVRTC's library."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Compiler", "find_compiler"]


@dataclass(frozen=True)
class Compiler:
    """Compiles one translation unit for one architecture."""

    name: str
    targets: tuple[int, ...]  # 80 for sm_80, ascending
    compile: Callable[[str, int], tuple[int, str]]  # source, target: size in bytes (0: no), log


def find_compiler(options: tuple[str, ...], folder: Path) -> Compiler | None:
    """Give nvcc or NVRTC, or None where there is neither."""
    nvcc = shutil.which("nvcc")
    if nvcc is not None:
        return _nvcc(nvcc, options, folder)
    found = [
        library
        for entry in map(Path, sys.path)
        if (entry / "nvidia").is_dir()
        for library in sorted((entry / "nvidia").rglob("libnvrtc.so.*"))
    ]
    return _nvrtc(found[-1], options) if found else None


def _nvcc(nvcc: str, options: tuple[str, ...], folder: Path) -> Compiler:
    listed = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True)
    targets = sorted({int(number) for number in re.findall(r"sm_(\d+)$", listed.stdout, re.M)})

    def build(source: str, target: int) -> tuple[int, str]:
        path, cubin = folder / "kernels.cu", folder / f"kernels_{target}.cubin"
        path.write_text(source)
        command = [nvcc, "--cubin", f"-arch=sm_{target}", *options, "-o", str(cubin), str(path)]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        return cubin.stat().st_size if run.returncode == 0 else 0, run.stderr

    return Compiler("nvcc", tuple(targets), build)


def _nvrtc(path: Path, options: tuple[str, ...]) -> Compiler:
    library = ctypes.CDLL(str(path))
    count = ctypes.c_int()
    library.nvrtcGetNumSupportedArchs(ctypes.byref(count))
    targets = (ctypes.c_int * count.value)()
    library.nvrtcGetSupportedArchs(targets)

    def build(source: str, target: int) -> tuple[int, str]:
        program = ctypes.c_void_p()
        library.nvrtcCreateProgram(
            ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None
        )
        flags = [f"--gpu-architecture=sm_{target}".encode(), *(one.encode() for one in options)]
        result = library.nvrtcCompileProgram(
            program, len(flags), (ctypes.c_char_p * len(flags))(*flags)
        )
        size = ctypes.c_size_t()
        library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        library.nvrtcGetProgramLog(program, log)
        if result == 0:
            library.nvrtcGetCUBINSize(program, ctypes.byref(size))
        library.nvrtcDestroyProgram(ctypes.byref(program))
        return size.value if result == 0 else 0, log.value.decode()

    return Compiler(f"NVRTC ({path.name})", tuple(sorted(targets)), build)
