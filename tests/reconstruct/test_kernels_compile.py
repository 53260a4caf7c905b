"""The CUDA sources compile to machine code for every card that they are meant for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from reconstruct import kernels_cuda
from reconstruct.kernels_cuda import KERNEL_NAMES, OPTIONS, source
from tests.reconstruct.cuda_compiler import Compiler, find_compiler

NAMED_TARGETS = (80, 90)  # A100; H100 and H200


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Compiler:
    found = find_compiler(OPTIONS, tmp_path_factory.mktemp("cuda"))
    if found is None:
        pytest.skip("needs nvcc, or NVRTC from the package nvidia-cuda-nvrtc-cu12")
    return found


@pytest.mark.parametrize("target", [*NAMED_TARGETS, "newest"])
def test_the_sources_compile_without_warnings(compiler: Compiler, target: int | str) -> None:
    architecture = compiler.targets[-1] if target == "newest" else int(target)
    size, log = compiler.compile(source(), architecture)
    assert size > 0, f"{compiler.name}: {log}"
    assert log.strip("\0\n ") == ""


def test_a_mistake_does_not_compile(compiler: Compiler) -> None:
    size, log = compiler.compile(source() + "\n__global__ void f() { nonsense(); }", 90)
    assert size == 0
    assert "nonsense" in log


def test_every_kernel_of_the_sources_is_named() -> None:
    declared = re.findall(
        r'extern "C" __global__ void (?:__launch_bounds__\(\w+(?:, \d+)?\)\s+)?(\w+)\(', source()
    )
    assert sorted(declared) == sorted(KERNEL_NAMES)


@pytest.mark.parametrize(
    "name",
    [
        "TILE",
        "MOST_STEPS",
        "SHARED_STEPS",
        "STEP",
        "UNITS",
        "STAGE",
        "STAGES",
        "SELECT_ROOM",
        "COARSE_THREADS",
    ],
)
def test_both_sides_of_a_launch_have_the_same_constants(name: str) -> None:
    values = re.findall(rf"#define {name} (\d+)", source())
    assert values == [str(getattr(kernels_cuda, name))]


def test_the_sources_travel_with_the_package() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert 'reconstruct = ["cuda/*"]' in text
