"""Maps made on a device, all at once, are those that the CPU makes one by one."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from reconstruct.backend import Backend, cpu_backend, describe_devices, make_backend
from reconstruct.learner import Learner
from reconstruct.schedule import Schedule
from reconstruct.update import MapGrid
from tests.reconstruct.cuda_host import HostLauncher, host_backend
from tests.reconstruct.small_sets import GEOMETRY, plane

CUBE_TOLERANCE = 2e-5  # of the largest value: float32 transforms in another order
FSC_TOLERANCE = 1e-5
MAX_RADIUS = 7


@pytest.fixture(
    scope="module", params=["text on the host", pytest.param("gpu", marks=pytest.mark.gpu)]
)
def device(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backend:
    if request.param == "cuda device":
        usable = [one for one in describe_devices() if one.usable and one.device != "cpu"]
        if not usable:
            pytest.skip("no CUDA device")
        return make_backend(usable[0].device)
    return host_backend(HostLauncher(tmp_path_factory.mktemp("cuda_host")))


@pytest.fixture
def workers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def learner(backend: Backend, *, group: str = "C1", split: bool = True) -> Learner:
    """Two classes with a smooth off-centre density in their statistics, and noise."""
    rng = np.random.default_rng(3)
    made = Learner(
        plane=replace(plane(), max_radius=MAX_RADIUS),
        grid=MapGrid(GEOMETRY.box, 2.0, 13.0),
        n_classes=2,
        seed=(0, 0),
        max_shift_pixels=2.0,
        max_radius=MAX_RADIUS,
        schedule=Schedule(start_radius=5, join_radius=3),
        backend=backend,
    )
    shape = made.statistics.shape
    reach = (shape[2] - 1) // 2
    axis = np.arange(-reach, reach + 1)
    squared = axis[:, None, None] ** 2 + axis[:, None] ** 2 + np.arange(reach + 2) ** 2
    turns = 0.05 * (axis[:, None, None] + 2 * axis[:, None] - np.arange(reach + 2))
    signal = 5 * np.exp(-squared / 80 - 2j * np.pi * turns)
    d = rng.uniform(0.5, 2.0, shape[:-1])
    noise = rng.standard_normal((*shape[:-1], 2)) @ [1, 1j]
    n = d * (signal + 0.3 * noise)
    statistics = np.stack([n.real, n.imag, d], axis=-1).astype(np.float32)
    made.statistics = backend.asarray(statistics)
    made.mask_radius = np.array([12.0, 8.5])
    made.group, made.split = group, split
    made.fsc = [np.linspace(1, 0.1, MAX_RADIUS + 1), np.linspace(0.9, 0.3, MAX_RADIUS + 1)]
    return made


@pytest.mark.parametrize(("group", "split"), [("C1", True), ("C1", False), ("D2", True)])
def test_references(device: Backend, group: str, split: bool) -> None:
    cubes = []
    for backend in (device, cpu_backend()):
        one = learner(backend, group=group, split=split)
        one.make_references()
        cubes.append(backend.asnumpy(one.cubes))
    paired, plain = cubes
    np.testing.assert_array_equal(paired[..., :-1, 2:], paired[..., 1:, :2])
    cubes = [np.ascontiguousarray(paired[..., :2]), plain]
    assert cubes[0].shape == cubes[1].shape
    assert cubes[0].shape[0] == (4 if split else 2)
    np.testing.assert_allclose(*cubes, atol=CUBE_TOLERANCE * np.abs(cubes[1]).max())


@pytest.mark.parametrize("group", ["C1", "C3"])
def test_half_maps_are_compared(device: Backend, group: str) -> None:
    got, expected = (
        np.stack(learner(backend, group=group).compare_halves())
        for backend in (device, cpu_backend())
    )
    assert 0.3 < expected[:, 1:6].min() < expected.max()
    np.testing.assert_allclose(got, expected, atol=FSC_TOLERANCE)


def test_volumes_for_the_masks(device: Backend, workers: ThreadPoolExecutor) -> None:
    got, expected = (
        np.stack(list(learner(backend)._box_volumes(workers)))
        for backend in (device, cpu_backend())
    )
    np.testing.assert_allclose(got, expected, atol=CUBE_TOLERANCE * np.abs(expected).max())


def test_the_same_bits_again(device: Backend) -> None:
    runs = []
    for _ in range(2):
        one = learner(device, group="D2")
        one.make_references()
        runs.append((device.asnumpy(one.cubes), np.stack(one.compare_halves())))
    for first, second in zip(*runs, strict=True):
        np.testing.assert_array_equal(first, second)
