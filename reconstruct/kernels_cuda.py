"""The kernels on a CUDA device: sources in ``cuda/``, compiled by CuPy, called like the CPU's.

Functions named as in ``kernels_cpu`` take the same arguments, as C-contiguous device arrays, and
``kernels_numpy`` is the twin of both. Same input, same bits: every sum has a fixed order or is
taken in integers. Compilation goes through a ``Launcher``, so that tests can run the same wrappers
on sources compiled for the host.
"""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

__all__ = [
    "KERNEL_NAMES",
    "OPTIONS",
    "CudaKernels",
    "CupyLauncher",
    "Launcher",
    "source",
]

SOURCES = ("common.cuh", "coarse.cu", "refine.cu", "insert.cu", "rows.cu")
OPTIONS = ("--std=c++17",)
KERNEL_NAMES = (
    "ctf_rows",
    "extract_slices",
    "fold_sums",
    "insert_particles",
    "largest_value",
    "normalise_images",
    "refine_poses",
    "segment_sums",
    "select_cells",
    "shift_rows",
    "weigh_rows",
)

ROW_THREADS = 128  # per particle, where a thread takes every 128th coefficient
SELECT_THREADS = 512  # their maxima bound the keep-th score, so it must exceed any ``keep``
REFINE_THREADS = 256  # 8 warps: one per child rotation of a parent
STATIC_SHARED_BYTES = 48 * 1024  # beyond it a kernel must ask for shared memory
SLICE_SAMPLES = 16  # of one slice that reach a voxel, at most; see insert.cu


def source() -> str:
    """All sources as one translation unit."""
    folder = Path(__file__).parent / "cuda"
    return "\n".join((folder / name).read_text(encoding="utf-8") for name in SOURCES)


class Launcher(Protocol):
    """Runs one of ``KERNEL_NAMES``."""

    def launch(
        self,
        name: str,
        grid: tuple[int, ...],
        threads: int,
        arguments: tuple[Any, ...],
        *,
        shared_bytes: int = 0,
    ) -> None:
        """Start a kernel on ``grid`` blocks; arrays go as pointers, NumPy scalars by value."""
        ...


class CupyLauncher:
    """Compiles the sources with NVRTC on first use; CuPy caches the result on disk."""

    def __init__(self) -> None:
        self._asked: dict[str, int] = {}

    @cached_property
    def _module(self) -> Any:
        import cupy

        return cupy.RawModule(code=source(), options=OPTIONS)

    def launch(
        self,
        name: str,
        grid: tuple[int, ...],
        threads: int,
        arguments: tuple[Any, ...],
        *,
        shared_bytes: int = 0,
    ) -> None:
        """Start a kernel on CuPy's current stream."""
        function = self._module.get_function(name)
        if shared_bytes > max(STATIC_SHARED_BYTES, self._asked.get(name, 0)):
            function.max_dynamic_shared_size_bytes = shared_bytes
            self._asked[name] = shared_bytes
        function(grid, (threads,), arguments, shared_mem=shared_bytes)


class CudaKernels:
    """The kernels, on arrays of the module ``xp``."""

    def __init__(self, launcher: Launcher, xp: Any) -> None:
        self._launcher = launcher
        self._xp = xp

    def extract_slices(
        self, cube: Any, rotations: Any, kx: Any, ky: Any, scale: float, out: Any
    ) -> None:
        """Slices of one cube at many rotations."""
        n = out.shape[2]
        arguments = (
            cube, np.int32(cube.shape[0]), rotations, kx, ky, np.int32(n), np.float32(scale), out,
        )  # fmt: skip
        self._launch("extract_slices", (len(rotations),), ROW_THREADS, arguments)

    def shift_rows(self, a_re: Any, a_im: Any, phase_re: Any, phase_im: Any, out: Any) -> None:
        """Spectra (b, >= n) times the phases (t, n) of each shift: out (b, t, 2n)."""
        b, t = out.shape[:2]
        n = phase_re.shape[1]
        arguments = (a_re, a_im, np.int32(a_re.shape[1]), phase_re, phase_im, np.int32(n), out)
        self._launch("shift_rows", (b, t), ROW_THREADS, arguments)

    def coarse_product(self, left: Any, right: Any) -> Any:
        """Matrix product in TF32: what survives the coarse pass is scored again in float32."""
        if self._xp.__name__ != "cupy":  # the sources compiled for the host
            return left @ right
        from cupy._core import _routines_linalg as linalg

        before = linalg.get_compute_type(np.float32)
        linalg.set_compute_type(np.float32, linalg.COMPUTE_TYPE_TF32)
        try:
            return left @ right
        finally:
            linalg.set_compute_type(np.float32, before)

    def select_cells(
        self,
        scores: Any,
        half_power: Any,
        log_prior: Any,
        keep: int,
        sharpness: float,
        share: float,
        index: Any,
        value: Any,
        count: Any,
    ) -> None:
        """Keep the best coarse cells of each particle; ``scores`` stay as they are."""
        if keep > SELECT_THREADS:
            raise ValueError(f"keep must be at most {SELECT_THREADS}, not {keep}")
        b, t, r = scores.shape
        arguments = (
            scores, half_power, log_prior, np.int32(t), np.int32(r), np.int32(keep),
            np.float64(sharpness), np.float64(share), index, value, count,
        )  # fmt: skip
        self._launch("select_cells", (b,), SELECT_THREADS, arguments)

    def refine_poses(
        self, cubes: Any, kx: Any, ky: Any, ikx: Any, iky: Any, scale: float, box: float,
        a_re: Any, a_im: Any, c2: Any, n: int,
        offsets: Any, shift_step: float, log_prior: Any,
        cell_rotation: Any, cell_rotation_id: Any, cell_shift: Any, cell_shift_id: Any,
        cell_class: Any, cell_count: Any,
        keep: int, sharpness: float, share: float,
        out_rotation: Any, out_rotation_id: Any, out_shift: Any, out_shift_id: Any,
        out_class: Any, out_score: Any, out_count: Any, out_evidence: Any,
    ) -> None:  # fmt: skip
        """Split every cell into 8 rotations x 4 shifts, score them, keep the best."""
        b, capacity = cell_rotation_id.shape
        length = _table_length(n)
        room = 1 << (32 * capacity - 1).bit_length()
        shared_bytes = 8 * (
            room + max(keep, REFINE_THREADS) + 2 * capacity * length + 2 * length + 2 * capacity
        )
        arguments = (
            cubes, np.int32(cubes.shape[1]), kx, ky, ikx, iky, np.float32(scale), np.float32(box),
            a_re, a_im, c2, np.int32(c2.shape[1]), np.int32(n), np.int32(length),
            offsets, np.float32(shift_step), log_prior,
            cell_rotation, cell_rotation_id, cell_shift, cell_shift_id, cell_class, cell_count,
            np.int32(capacity), np.int32(keep), np.float64(sharpness), np.float64(share),
            np.int32(room), out_rotation, out_rotation_id, out_shift, out_shift_id, out_class,
            out_score, out_count, out_evidence,
        )  # fmt: skip
        self._launch("refine_poses", (b,), REFINE_THREADS, arguments, shared_bytes)

    def insert_particles(
        self, statistics: Any, members: Any, kx: Any, ky: Any, ikx: Any, iky: Any,
        scale: float, box: float, a_re: Any, a_im: Any, c2: Any, n: int,
        cell_rotation: Any, cell_rotation_id: Any, cell_shift: Any, cell_class: Any,
        cell_weight: Any, cell_count: Any,
    ) -> None:  # fmt: skip
        """Back-project the posterior-weighted ``members`` into one half-set's statistics."""
        if not len(members):
            return
        xp = self._xp
        edge, width = statistics.shape[1], statistics.shape[3]
        capacity, length = cell_rotation_id.shape[1], _table_length(n)
        head = np.int32(62 - math.ceil(math.log2(SLICE_SAMPLES * len(members))))
        stride = np.int32(c2.shape[1])
        largest = xp.zeros(2, np.uint32)
        sums = xp.zeros(statistics.size, np.int64)
        self._launch(
            "largest_value",
            (len(members),),
            ROW_THREADS,
            (a_re, a_im, c2, stride, np.int32(n), members, largest),
        )
        arguments = (
            sums, np.int32(edge), np.int32(width), members, kx, ky, ikx, iky, np.float32(scale),
            np.float32(box), a_re, a_im, c2, stride, np.int32(n), np.int32(length), cell_rotation,
            cell_rotation_id, cell_shift, cell_class, cell_weight, cell_count, np.int32(capacity),
            largest, head,
        )  # fmt: skip
        shared_bytes = 8 * (2 * capacity * length + (capacity + 1) // 2)
        self._launch("insert_particles", (len(members),), REFINE_THREADS, arguments, shared_bytes)
        self._launch(
            "fold_sums",
            (-(-statistics.size // REFINE_THREADS),),
            REFINE_THREADS,
            (sums, largest, head, np.int64(statistics.size), statistics),
        )

    def ctf_rows(
        self, kx: Any, ky: Any, step: float, parameters: Any,
        wavelength: Any, cs_angstrom: Any, amplitude: Any, out: Any,
    ) -> None:  # fmt: skip
        """CTF of each particle."""
        xp = self._xp
        columns = xp.stack([wavelength, cs_angstrom, amplitude], axis=1)
        rows = xp.ascontiguousarray(xp.concatenate([parameters, columns], axis=1))
        arguments = (kx, ky, np.float64(step), rows, np.int32(out.shape[1]), out)
        self._launch("ctf_rows", (len(out),), ROW_THREADS, arguments)

    def weigh_rows(
        self, segments: Any, segment_bits: int, width: int, rows: Any,
        parameters: Any, group: Any, variance: Any, kx: Any, ky: Any, step: float,
        a_re: Any, a_im: Any, c2: Any,
    ) -> None:  # fmt: skip
        """Take ``rows`` out of a store's segments and weigh them.

        Parameters
        ----------
        segments
            (s,) uint64 addresses of arrays (2**segment_bits, width) complex64.
        parameters
            (b, 7) float64: defocus u and v, angle, phase shift, wavelength, spherical aberration
            in Angstrom, amplitude contrast.
        group, variance
            (b,) int32 into (groups, n) float32, the noise variance.
        a_re, a_im, c2
            Output (b, n) float32.
        """
        arguments = (
            segments, np.int32(segment_bits), np.int32(width), rows, parameters, group, variance,
            kx, ky, np.float64(step), np.int32(a_re.shape[1]), a_re, a_im, c2,
        )  # fmt: skip
        self._launch("weigh_rows", (len(rows),), ROW_THREADS, arguments)

    def normalise_images(self, images: Any, outside: Any, out: Any) -> None:
        """Background mean 0 and deviation 1."""
        pixels = images.shape[1] * images.shape[2]
        arguments = (images, outside, np.int32(pixels), out)
        self._launch("normalise_images", (len(images),), REFINE_THREADS, arguments)

    def segment_sums(self, values: Any, order: Any, starts: Any, sums: Any) -> None:
        """Sums of float64 ``values[order]`` between ``starts``."""
        self._launch("segment_sums", (len(sums),), ROW_THREADS, (values, order, starts, sums))

    def _launch(
        self,
        name: str,
        grid: tuple[int, ...],
        threads: int,
        arguments: tuple[Any, ...],
        shared_bytes: int = 0,
    ) -> None:
        if not all(grid):
            return
        for argument in arguments:
            if not isinstance(argument, np.generic) and not argument.flags.c_contiguous:
                raise ValueError(f"{name} takes C-contiguous arrays")
        self._launcher.launch(name, grid, threads, arguments, shared_bytes=shared_bytes)


def _table_length(n: int) -> int:
    """Places of a phase table: k = 0 to beyond the largest of ``n`` coefficients sorted by radius.

    A disc of radius r holds n = pi r^2 / 2 half-plane coefficients, and fewer than (r + 2) more
    can lie between n and the disc that its largest k spans.
    """
    return math.ceil(math.sqrt(2 * n / math.pi)) + 3
