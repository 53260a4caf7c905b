"""Every kernel computes what its NumPy twin does: compiled CPU code, CUDA text, CUDA device."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from reconstruct import kernels_cpu, kernels_maps, kernels_numpy
from reconstruct.backend import describe_devices, make_backend
from reconstruct.kernels_cuda import CudaKernels, fragment_shape, maxima_shape
from reconstruct.rotations import random_rotations
from reconstruct.search import HALF_TURN, shift_grid
from reconstruct.update import shell_table
from tests.reconstruct.cuda_host import HostLauncher
from tests.reconstruct.kernel_cases import SCALE, Implementation, PoseCase, pose_case

SLICE_TOLERANCE = 2e-6  # float32 interpolation weights on values of about 1
SCORE_TOLERANCE = 2e-4  # nats: a sum of some 100 float32 products of about 1
BFLOAT_TOLERANCE = 0.15  # nats: sums of some 200 products of about 1, each 0.4 % off at most
CTF_TOLERANCE = 3e-6  # a sine in float32 after a reduction in float64
SUM_TOLERANCE = 3e-5  # float32 sums over particles of values of about 1
ROW_TOLERANCE = 2e-5  # relative, float32 products

KINDS = ["numba", "cuda text on the host", pytest.param("cuda device", marks=pytest.mark.gpu)]
CUDA_KINDS = KINDS[1:]


@pytest.fixture(scope="session")
def host_launcher(tmp_path_factory: pytest.TempPathFactory) -> HostLauncher:
    return HostLauncher(tmp_path_factory.mktemp("cuda_host"))


def on_the_host(launcher: Any) -> Implementation:
    kernels = CudaKernels(launcher, np)
    return Implementation("host", kernels, np.ascontiguousarray, np.asarray, paired=True)


@pytest.fixture
def kernels(request: pytest.FixtureRequest) -> Implementation:
    kind = request.param
    if kind == "numba":
        return Implementation(kind, kernels_cpu, np.asarray, np.asarray)
    if kind == "cuda device":
        usable = [one for one in describe_devices() if one.usable and one.device != "cpu"]
        if not usable:
            pytest.skip("no CUDA device")
        backend = make_backend(usable[0].device)
        return Implementation(kind, backend.kernels, backend.asarray, backend.asnumpy, paired=True)
    launcher: HostLauncher = request.getfixturevalue("host_launcher")
    return on_the_host(launcher)


TWIN = Implementation("twin", kernels_numpy, np.asarray, np.asarray)
every_kind = pytest.mark.parametrize("kernels", KINDS, indirect=True)
compiled = pytest.mark.parametrize("kernels", KINDS[:1], indirect=True)
every_cuda = pytest.mark.parametrize("kernels", CUDA_KINDS, indirect=True)


@compiled
def test_slices(kernels: Implementation) -> None:
    case = pose_case()
    plane = case.plane
    rotations = random_rotations(np.random.default_rng(1), 7).reshape(-1, 9).astype(np.float32)
    out = np.empty((7, 2, len(plane.kx)), np.float32)
    call = (case.cubes[0], rotations, plane.kx, plane.ky, np.float32(SCALE), out)
    (got,) = kernels.call("extract_slices", *call, out=(5,))
    (expected,) = TWIN.call("extract_slices", *call, out=(5,))
    np.testing.assert_allclose(got, expected, atol=SLICE_TOLERANCE)


def test_values_anywhere_in_a_cube() -> None:
    rng = np.random.default_rng(4)
    cube = (rng.standard_normal((9, 9, 9)) + 1j * rng.standard_normal((9, 9, 9))).astype("c8")
    points = rng.uniform(-3.9, 3.9, (50, 3))
    got, expected = np.empty(50, np.complex128), np.empty(50, np.complex128)
    kernels_maps.sample_cube(cube, points, got)
    kernels_numpy.sample_cube(cube, points, expected)
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    corner = np.array([[2.0, -1.0, 3.0]])
    kernels_maps.sample_cube(cube, corner, got[:1])
    assert got[0] == cube[7, 3, 6]


def half_cube(seed: int) -> npt.NDArray[np.complex64]:
    parts = np.random.default_rng(seed).standard_normal((2, 13, 13, 7))
    return (parts[0] + 1j * parts[1]).astype(np.complex64)


def test_the_quotient_of_statistics() -> None:
    shells, counts = shell_table(6, 2.0)
    crop = np.stack([half_cube(0).real, half_cube(0).imag, 1 + np.abs(half_cube(1))], axis=-1)
    got, expected = np.full_like(half_cube(0), 7), np.empty_like(half_cube(0))
    call = crop.astype(np.float32), shells, counts, np.array([0.1, 0.5, 3.0])
    kernels_maps.wiener_quotient(*call, got)
    kernels_numpy.wiener_quotient(*call, expected)
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert np.all(got[shells > 2] == 0)
    assert np.all(got[shells <= 2] != 0)


def test_shells_of_two_half_cubes() -> None:
    shells, counts = shell_table(6, 2.0)
    got, expected = np.zeros((2, 3, len(counts)))
    kernels_maps.compare_shells(half_cube(0), half_cube(1), shells, got)
    kernels_numpy.compare_shells(half_cube(0), half_cube(1), shells, expected)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


PAIRS = {(3, 9, 700): 350, (2, 4, 6): 3, (2, 1, 40): 40}  # of a class: two, two and one of them


def coarse_products(
    seed: int, shape: tuple[int, int, int]
) -> tuple[npt.NDArray[np.float32] | int, ...]:
    rng = np.random.default_rng(seed)
    even, odd = (5 * rng.standard_normal((2, *shape))).astype(np.float32)
    return even, odd, rng.uniform(0, 3, shape[::2]).astype(np.float32), PAIRS[shape]


def select(kernels: Implementation, arrays: tuple[Any, ...], keep: int = 40) -> list[Any]:
    b = len(arrays[0])
    out = (np.zeros((b, keep), np.int32), np.zeros((b, keep), np.float32), np.zeros(b, np.int32))
    return kernels.call("select_cells", *arrays, keep, 0.33, 0.99, *out, out=(7, 8, 9))


@compiled
@pytest.mark.parametrize("shape", PAIRS)
def test_the_best_coarse_cells(kernels: Implementation, shape: tuple[int, int, int]) -> None:
    arrays = coarse_products(0, shape)
    got, expected = select(kernels, arrays), select(TWIN, arrays)
    np.testing.assert_array_equal(got[2], expected[2])
    np.testing.assert_array_equal(got[0], expected[0])
    np.testing.assert_allclose(got[1], expected[1], atol=SLICE_TOLERANCE)


@dataclass(frozen=True)
class CoarseCase:
    """Particles of two half-sets and two classes, coarse rotations that fill no tile, shifts."""

    case: PoseCase
    cubes: npt.NDArray[np.float32]  # (4, g, g, g, 2)
    base: npt.NDArray[np.float32]  # (half of the rotations, 9)
    turn: npt.NDArray[np.float32]
    shifts: npt.NDArray[np.float32]
    phases: npt.NDArray[np.float32]
    n: int
    first: int

    @property
    def particles(self) -> tuple[npt.NDArray[np.float32], ...]:
        return self.case.a_re, self.case.a_im, self.case.c2


def of_real_maps(cubes: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Cubes (m, g, g, g, 2) made Hermitian, as those of maps are: half turns are conjugates."""
    values = cubes[..., 0] + 1j * cubes[..., 1]
    values = np.sqrt(0.5) * (values + np.flip(values, axis=(1, 2, 3)).conj())
    return np.stack([values.real, values.imag], axis=-1).astype(np.float32)


def coarse_case(cells: int = 5, rotations: int = 42, radius: int = 6, first: int = 2) -> CoarseCase:
    case = pose_case()
    n = case.plane.count(radius)
    shifts = shift_grid(cells, 0.7)
    turns = shifts @ np.stack([case.plane.kx[:n], case.plane.ky[:n]]) / case.plane.box
    phases = np.exp(-2j * np.pi * turns).astype(np.complex64)
    rng = np.random.default_rng(8)
    return CoarseCase(
        case=case,
        cubes=of_real_maps(np.concatenate([case.cubes, 0.5 * case.cubes[::-1]])),
        base=random_rotations(rng, rotations // 2).reshape(-1, 9).astype(np.float32),
        turn=random_rotations(rng, 1).ravel().astype(np.float32),
        shifts=shifts.astype(np.float32),
        phases=phases.view(np.float32).reshape(len(shifts), n, 2),
        n=n,
        first=first,
    )


def coarse_slices(kernels: Implementation, case: CoarseCase) -> list[npt.NDArray[Any]]:
    plane, maps, r = case.case.plane, len(case.cubes), 2 * len(case.base)
    out = (
        np.zeros((r, 9), np.float32),
        np.zeros((maps, r, case.n, 2), np.float32),
        np.zeros(fragment_shape(maps, r), np.uint32),
    )
    cubes = kernels.cubes(case.cubes)
    arguments = (cubes, case.base, case.turn, plane.kx, plane.ky, SCALE, *out)
    return kernels.call("coarse_slices", *arguments, out=(6, 7, 8))


def twin_slices(case: CoarseCase) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    first = case.turn.reshape(3, 3).astype(float) @ case.base.reshape(-1, 3, 3)
    turned = np.concatenate([first, HALF_TURN @ first])
    rotations = turned.reshape(-1, 9).astype(np.float32)
    plane = case.case.plane
    slices = np.zeros((len(case.cubes), len(rotations), case.n, 2), np.float32)
    for cube, out in zip(case.cubes, slices, strict=True):
        planes = np.zeros((len(rotations), 2, case.n), np.float32)
        kernels_numpy.extract_slices(
            cube, rotations, plane.kx[: case.n], plane.ky[: case.n], SCALE, planes
        )
        out[:] = np.moveaxis(planes, 1, 2)
    return rotations, slices


def coarse_maxima(kernels: Implementation, case: CoarseCase, right: Any) -> npt.NDArray[Any]:
    r = 2 * len(case.base)
    maxima = np.zeros(maxima_shape(len(case.case.c2), len(case.shifts), 2, r), np.float32)
    arguments = (*case.particles, case.phases, right, case.first, maxima)
    return kernels.call("coarse_maxima", *arguments, out=(6,))[0]


def without_padding(maxima: npt.NDArray[Any], rotations: int) -> npt.NDArray[Any]:
    """Both halves of the rotations, one after the other."""
    halves = maxima.reshape(*maxima.shape[:3], 2, -1)[..., : rotations // 2]
    return halves.reshape(*maxima.shape[:3], rotations)


@every_cuda
def test_turned_slices_for_the_coarse_pass(kernels: Implementation) -> None:
    case = coarse_case()
    rotations, slices, _ = coarse_slices(kernels, case)
    expected = twin_slices(case)
    np.testing.assert_allclose(rotations, expected[0], atol=SLICE_TOLERANCE)
    np.testing.assert_allclose(slices, expected[1], atol=20 * SLICE_TOLERANCE)  # turned in float32


@every_cuda
@pytest.mark.parametrize(
    ("cells", "rotations", "radius", "first"),
    [(5, 42, 6, 2), (4, 16, 5, 0), (1, 6, 3, 5), (4, 8, 6, 3)],
)
def test_best_scores_over_the_shifts(
    kernels: Implementation, cells: int, rotations: int, radius: int, first: int
) -> None:
    case = coarse_case(cells, rotations, radius, first)
    got, expected = (
        without_padding(coarse_maxima(one, case, right), rotations)
        for one, right in (
            (kernels, coarse_slices(kernels, case)[2]),
            (TWIN, twin_slices(case)[1]),
        )
    )
    assert np.ptp(expected) > 20 * BFLOAT_TOLERANCE
    np.testing.assert_allclose(got, expected, atol=BFLOAT_TOLERANCE)


def choose(
    kernels: Implementation, case: CoarseCase, maxima: npt.NDArray[Any], keep: int = 20
) -> list[npt.NDArray[Any]]:
    rotations, slices = twin_slices(case)
    b = len(case.case.c2)
    out = (
        np.zeros((b, keep, 9), np.float32), np.zeros((b, keep), np.int32),
        np.zeros((b, keep, 2), np.float32), np.zeros((b, keep), np.int32),
        np.zeros((b, keep), np.int32), np.zeros((b, keep), np.float32), np.zeros(b, np.int32),
    )  # fmt: skip
    arguments = (
        maxima, case.case.log_prior, slices, rotations, case.phases.transpose(1, 0, 2), case.shifts,
        *case.particles, case.first, keep, 0.2, 0.99, *out,
    )  # fmt: skip
    return kernels.call("choose_cells", *arguments, out=tuple(range(13, 20)))


@every_cuda
@pytest.mark.parametrize("rotations", [42, 10])
def test_the_best_cells_are_on_the_best_rotations(kernels: Implementation, rotations: int) -> None:
    case = coarse_case(rotations=rotations)
    maxima = coarse_maxima(TWIN, case, twin_slices(case)[1])
    halves = maxima.reshape(*maxima.shape[:3], 2, -1)
    halves[..., rotations // 2 :] = 1e9  # padding must not be taken for a rotation
    for one, other in zip(choose(kernels, case, maxima), choose(TWIN, case, maxima), strict=True):
        if one.dtype.kind == "i":
            np.testing.assert_array_equal(one, other)
        else:
            np.testing.assert_allclose(one, other, atol=SCORE_TOLERANCE)


@every_cuda
def test_rotations_that_all_score_alike_are_taken_in_order(kernels: Implementation) -> None:
    case = coarse_case(cells=1, rotations=700)
    maxima = np.ones((5, 1, 2, 704), np.float32)
    maxima[0, 0, 1, 100] = 2.0  # one stands out: too many others tie with the bound
    got = choose(kernels, case, maxima)
    expected = choose(TWIN, case, maxima)
    np.testing.assert_array_equal(got[1], expected[1])
    assert expected[1].max() == 800


@every_cuda
@pytest.mark.parametrize("similarity", [0.0, 0.3])
def test_posterior_weights_and_what_the_host_is_told(
    kernels: Implementation, similarity: float
) -> None:
    case = pose_case(particles=6)
    rng = np.random.default_rng(5)
    b, keep = case.class_index.shape
    score = -np.sort(-5 * rng.standard_normal((b, keep)), axis=1).astype(np.float32)
    out = np.full((b, keep), np.nan, np.float32), np.full((b, 15), np.nan, np.float32)
    arguments = (
        score, case.class_index, case.count, case.rotation, case.shift, score[:, 0], similarity,
        *out,
    )  # fmt: skip
    got = kernels.call("posterior_weights", *arguments, out=(7, 8))
    expected = TWIN.call("posterior_weights", *arguments, out=(7, 8))
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=ROW_TOLERANCE)
    np.testing.assert_allclose(got[0].sum(axis=1), 1, atol=ROW_TOLERANCE)


def refine(
    kernels: Implementation, case: PoseCase, *, n: int, keep: int = 20, **extra: int
) -> list[Any]:
    b = len(case.count)
    plane = case.plane
    out = (
        np.zeros((b, keep, 9), np.float32), np.zeros((b, keep), np.int32),
        np.zeros((b, keep, 2), np.float32), np.zeros((b, keep), np.int32),
        np.zeros((b, keep), np.int32), np.zeros((b, keep), np.float32),
        np.zeros(b, np.int32), np.zeros(b, np.float32),
    )  # fmt: skip
    arguments = (
        kernels.cubes(case.cubes), plane.kx, plane.ky,
        plane.kx.astype(np.int32), plane.ky.astype(np.int32),
        np.float32(SCALE), float(plane.box), case.a_re, case.a_im, case.c2, n,
        case.offsets, 1.5, case.log_prior, case.rotation, case.rotation_id, case.shift,
        case.shift_id, case.class_index, case.count, keep, 0.2, 0.999, *out,
    )  # fmt: skip
    return kernels.call("refine_poses", *arguments, out=tuple(range(23, 31)), **extra)


@every_kind
@pytest.mark.parametrize("radius", [3, 9])
def test_refined_poses(kernels: Implementation, radius: int) -> None:
    case = pose_case()
    n = case.plane.count(radius)
    got, expected = (refine(one, case, n=n) for one in (kernels, TWIN))
    names = ("rotation", "rotation_id", "shift", "shift_id", "class", "score", "count", "evidence")
    for name, one, other in zip(names, got, expected, strict=True):
        if one.dtype.kind == "i":
            np.testing.assert_array_equal(one, other, err_msg=name)
        else:
            np.testing.assert_allclose(one, other, atol=SCORE_TOLERANCE, err_msg=name)


@every_cuda
def test_particles_of_the_second_half_set_meet_the_second_cubes(kernels: Implementation) -> None:
    case = pose_case()
    both = replace(case, cubes=np.concatenate([case.cubes, 0.5 * case.cubes[::-1]]))
    n = case.plane.count(5)
    got, expected = (refine(one, both, n=n, first=2) for one in (kernels, TWIN))
    np.testing.assert_allclose(got[5], expected[5], atol=SCORE_TOLERANCE)
    alone = refine(TWIN, case, n=n)
    np.testing.assert_allclose(got[7][:2], alone[7][:2], atol=SCORE_TOLERANCE)
    assert np.all(np.abs(got[7][2:] - alone[7][2:]) > 10 * SCORE_TOLERANCE)


def insert(kernels: Implementation, case: PoseCase, members: list[int]) -> npt.NDArray[Any]:
    plane, n = case.plane, len(case.plane.kx)
    reach = case.grid.reach(plane.max_radius)
    g = 2 * reach + 1
    statistics = np.full((len(case.cubes), g, g, reach + 2, 3), 0.5, np.float32)
    arguments = (
        statistics, np.array(members, np.intp), plane.kx, plane.ky, plane.kx.astype(np.int32),
        plane.ky.astype(np.int32), np.float32(SCALE), float(plane.box), case.a_re, case.a_im,
        case.c2, n, case.rotation, case.rotation_id, case.shift, case.class_index, case.weight,
        case.count,
    )  # fmt: skip
    return kernels.call("insert_particles", *arguments, out=(0,))[0]


@compiled
@pytest.mark.parametrize("members", [[0, 1, 2, 3, 4], [3], []])
def test_back_projection(kernels: Implementation, members: list[int]) -> None:
    case = pose_case()
    expected = insert(TWIN, case, members)
    assert (np.ptp(expected) > 0) == bool(members)
    np.testing.assert_allclose(insert(kernels, case, members), expected, atol=SUM_TOLERANCE)


def insert_halves(
    kernels: Implementation,
    case: PoseCase,
    first: int,
    order: list[int] | None = None,
    cut: int | None = None,
) -> npt.NDArray[Any]:
    """Back-projection of all particles in one span, or in two that meet at ``cut``."""
    plane, n = case.plane, len(case.plane.kx)
    reach = case.grid.reach(plane.max_radius)
    g = 2 * reach + 1
    statistics = np.full((2, len(case.cubes), g, g, reach + 2, 3), 0.5, np.float32)
    rows = [
        case.a_re, case.a_im, case.c2, case.rotation, case.rotation_id, case.shift,
        case.class_index, case.weight, case.count,
    ]  # fmt: skip
    if order is not None:
        rows = [np.ascontiguousarray(one[order]) for one in rows]
    spans = [first, *rows]
    if cut is not None:
        spans = [min(first, cut), *(one[:cut] for one in rows)]
        spans += [max(first - cut, 0), *(one[cut:] for one in rows)]
    arguments = (
        statistics, np.array([0.5, 0.9], np.float32), plane.kx, plane.ky,
        plane.kx.astype(np.int32), plane.ky.astype(np.int32), np.float32(SCALE), float(plane.box),
        n, *spans,
    )  # fmt: skip
    return kernels.call("insert_halves", *arguments, out=(0,))[0]


@every_cuda
@pytest.mark.parametrize("first", [0, 2, 5])
def test_back_projection_of_both_half_sets(kernels: Implementation, first: int) -> None:
    case = pose_case()
    expected = insert_halves(TWIN, case, first)
    assert np.ptp(expected) > 0
    np.testing.assert_allclose(insert_halves(kernels, case, first), expected, atol=SUM_TOLERANCE)


@every_cuda
def test_back_projection_does_not_depend_on_order(kernels: Implementation) -> None:
    case = pose_case(particles=9)
    first = insert_halves(kernels, case, 9)
    np.testing.assert_array_equal(insert_halves(kernels, case, 9, list(range(9))[::-1]), first)
    for of_first in (4, 6):
        whole = insert_halves(kernels, case, of_first)
        np.testing.assert_array_equal(insert_halves(kernels, case, of_first, cut=5), whole)


@compiled
def test_ctf(kernels: Implementation) -> None:
    rng = np.random.default_rng(2)
    plane = pose_case().plane
    b = 6
    u = rng.uniform(5e3, 3e4, b)
    parameters = np.stack([u, u - 800, rng.uniform(-3, 3, b), rng.uniform(0, 3, b)], axis=1)
    out = np.empty((b, len(plane.kx)), np.float32)
    optics = np.full(b, 0.0197), np.full(b, 2.7e7), np.full(b, 0.1)
    call = (plane.kx, plane.ky, 1 / 60.0, parameters, *optics, out)  # to 6.7 A
    (got,) = kernels.call("ctf_rows", *call, out=(7,))
    (expected,) = TWIN.call("ctf_rows", *call, out=(7,))
    np.testing.assert_allclose(got, expected, atol=CTF_TOLERANCE)


@every_kind
def test_sums_over_shells(kernels: Implementation) -> None:
    case = pose_case()
    shells = case.plane.max_radius
    starts = np.array([case.plane.count(s) for s in range(shells + 1)], np.int32)
    out = np.zeros((len(case.c2), 3, shells), np.float32)
    call = (case.a_re, case.a_im, case.c2, starts, out)
    (got,) = kernels.call("shell_sums", *call, out=(4,))
    (expected,) = TWIN.call("shell_sums", *call, out=(4,))
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    whole = case.c2[:, : starts[-1]].sum(axis=1)
    np.testing.assert_allclose(expected[:, 0].sum(axis=1), whole, rtol=1e-5)


@every_kind
def test_background(kernels: Implementation) -> None:
    rng = np.random.default_rng(3)
    images = (40 + 7 * rng.standard_normal((4, 20, 20))).astype(np.float32)
    images[2] = 5.0  # a constant image keeps its scale
    outside = rng.random(400) < 0.3
    call = (images, outside, np.empty_like(images))
    (got,) = kernels.call("normalise_images", *call, out=(2,))
    (expected,) = TWIN.call("normalise_images", *call, out=(2,))
    np.testing.assert_allclose(got, expected, atol=ROW_TOLERANCE)


@every_cuda
def test_rows_out_of_a_segmented_store_are_weighed(kernels: Implementation) -> None:
    rng = np.random.default_rng(6)
    plane = pose_case().plane
    bits, width, n = 3, len(plane.kx) + 2, len(plane.kx) - 7
    spectra = rng.standard_normal((2, 8, width, 2)).astype(np.float32).view(np.complex64)[..., 0]
    segments = [kernels.put(one) for one in spectra]
    pointer = "ptr" if hasattr(segments[0].data, "ptr") else None
    addresses = [one.data.ptr if pointer else one.ctypes.data for one in segments]
    rows = np.array([[1, 15, 8, 7], [3, 0, 4, 1]], np.int64)
    parameters = np.tile([15e3, 14e3, 0.4, 0.0, 0.0197, 2.7e7, 0.1], (5, 1))
    parameters[:, 0] += 300 * np.arange(5)
    group = np.array([0, 1, 1, 0, 1], np.int32)
    variance = rng.uniform(0.5, 2, (2, n)).astype(np.float32)
    shared = (bits, width, rows, parameters, group, variance, plane.kx, plane.ky, 1 / 160)
    out = tuple(np.empty((4, n), np.float32) for _ in range(3))
    got = kernels.call(
        "weigh_rows", np.array(addresses, np.uint64), *shared, *out, out=(10, 11, 12)
    )
    expected = TWIN.call("weigh_rows", list(spectra), *shared, *out, out=(10, 11, 12))
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=ROW_TOLERANCE)


@pytest.mark.parametrize("seed", [1, 2])
def test_the_order_of_threads_does_not_show(host_launcher: HostLauncher, seed: int) -> None:
    one = on_the_host(host_launcher)
    case, coarse = pose_case(), coarse_case()
    maxima = coarse_maxima(TWIN, coarse, twin_slices(coarse)[1])
    runs = []
    for order in (0, seed):
        host_launcher.order(order)
        found = refine(one, case, n=len(case.plane.kx))
        right = coarse_slices(one, coarse)[2]
        runs.append(
            [
                *found,
                *choose(one, coarse, maxima),
                *choose(one, coarse, np.ones_like(maxima)),
                without_padding(coarse_maxima(one, coarse, right), 42),
                insert_halves(one, case, 2),
            ]
        )
    host_launcher.order(0)
    for first, second in zip(*runs, strict=True):
        np.testing.assert_array_equal(first, second)


def test_the_host_sees_writes_beyond_shared_memory(host_launcher: HostLauncher) -> None:
    class Stingy:
        def launch(self, *call: Any, shared_bytes: int = 0) -> None:
            host_launcher.launch(*call, shared_bytes=max(0, shared_bytes - 64))

    case = pose_case()
    with pytest.raises(AssertionError, match="beyond its shared memory"):
        refine(on_the_host(Stingy()), case, n=len(case.plane.kx))


def test_phase_tables_reach_every_coefficient() -> None:
    from reconstruct.fourier import make_half_plane
    from reconstruct.kernels_cuda import _table_length

    plane = make_half_plane(260, 128)
    largest = np.maximum.accumulate(np.maximum(np.abs(plane.kx), np.abs(plane.ky)))
    lengths = np.array([_table_length(n) for n in range(1, len(largest) + 1)])
    assert (largest < lengths).all()


def test_unsuitable_arrays_are_refused(host_launcher: HostLauncher, tmp_path: Path) -> None:
    kernels = CudaKernels(host_launcher, np)
    with pytest.raises(ValueError, match="C-contiguous"):
        kernels.normalise_images(np.zeros((2, 4, 8))[..., ::2], np.zeros(16), np.zeros((2, 4, 4)))


def test_a_coarse_radius_that_does_not_fit_is_refused(host_launcher: HostLauncher) -> None:
    with pytest.raises(ValueError, match="lower its radius"):
        coarse_slices(on_the_host(host_launcher), coarse_case(radius=8))
