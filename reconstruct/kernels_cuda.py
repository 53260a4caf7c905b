"""The kernels on a CUDA device: sources in ``cuda/``, compiled by CuPy, called like the CPU's.

Functions named as in ``kernels_cpu`` take the same arguments, as C-contiguous device arrays, and
``kernels_numpy`` is the twin of both. Same input, same bits: every sum has a fixed order or is
taken in integers. Compilation goes through a ``Launcher``, so that tests can run the same wrappers
on sources compiled for the host.
"""

from __future__ import annotations

import math
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

__all__ = [
    "KERNEL_NAMES",
    "MOST_STEPS",
    "OPTIONS",
    "CudaKernels",
    "CupyLauncher",
    "Launcher",
    "coarse_fits",
    "fragment_shape",
    "maxima_shape",
    "source",
]

SOURCES = (
    "common.cuh",
    "coarse.cu",
    "refine.cu",
    "posterior.cu",
    "insert.cu",
    "maps.cu",
    "rows.cu",
)
OPTIONS = ("--std=c++17",)
KERNEL_NAMES = (
    "average_crops",
    "choose_cells",
    "coarse_maxima",
    "coarse_slices",
    "compare_shells",
    "crop_statistics",
    "fill_spectra",
    "fold_sums",
    "gather_cubes",
    "insert_particles",
    "largest_value",
    "normalise_images",
    "posterior_weights",
    "refine_poses",
    "shell_ridges",
    "shell_sums",
    "shell_weights",
    "weigh_rows",
    "window_maps",
)

ROW_THREADS = 128  # per particle, where a thread takes every 128th coefficient
CHOOSE_THREADS = 512  # their maxima bound the keep-th rotation, so it must exceed any ``keep``
COARSE_THREADS = 384
SHELL_THREADS = 512
REFINE_THREADS = 256  # 8 warps: one per child rotation of a parent
WARP = 32
STATIC_SHARED_BYTES = 48 * 1024  # beyond it a kernel must ask for shared memory
SLICE_SAMPLES = 16  # of one slice that reach a voxel, at most; see insert.cu
TILE = 16  # pairs of rotations; this, the next six and COARSE_THREADS as in coarse.cu
MOST_STEPS = 14
SHARED_STEPS = 9
STEP = 16
UNITS = 2
STAGE = 4
STAGES = 3
SELECT_ROOM = 1024
SPAN_COLUMNS = 10  # of a span of particles that is back-projected
UNIT_SHIFTS = 16
MULTIPROCESSORS = 132  # of an H100 or H200; each takes one block of the coarse pass at a time
LEFT_TILES = 12  # what a block's left factor costs to make, in tiles


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
        self._functions: dict[str, Any] = {}

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
        function = self._functions.get(name)
        if function is None:
            function = self._functions[name] = self._module.get_function(name)
        if shared_bytes > max(STATIC_SHARED_BYTES, self._asked.get(name, 0)):
            function.max_dynamic_shared_size_bytes = shared_bytes
            self._asked[name] = shared_bytes
        function(grid, (threads,), arguments, shared_mem=shared_bytes)


class CudaKernels:
    """The kernels, on arrays of the module ``xp``."""

    def __init__(self, launcher: Launcher, xp: Any) -> None:
        self._launcher = launcher
        self._xp = xp

    def coarse_slices(
        self, cubes: Any, base: Any, turn: Any, kx: Any, ky: Any, scale: float,
        rotations: Any, slices: Any, fragments: Any,
    ) -> None:  # fmt: skip
        """Slices of cubes (m, g, g, g, 4) at turned base rotations, plain and for tensor cores.

        Parameters
        ----------
        base, turn
            (r / 2, 9) and (9,): the rotations are ``turn @ base``, then these turned by 180 degrees
            in the image.
        rotations, slices, fragments
            Output (r, 9), (m, r, n, 2) and ``fragment_shape(m, r)`` uint32.
        """
        m, r, n = slices.shape[:3]
        if not coarse_fits(n):
            raise ValueError(f"the coarse pass takes fewer coefficients than {n}: lower its radius")
        arguments = (
            cubes, np.int32(cubes.shape[1]), base, turn, kx, ky, np.int32(n), np.int32(r),
            np.float32(scale), rotations, slices, fragments,
        )  # fmt: skip
        grid = (-(-r // (2 * TILE)), m)
        self._launch("coarse_slices", grid, ROW_THREADS, arguments, 8 * TILE * n)

    def coarse_maxima(
        self, a_re: Any, a_im: Any, c2: Any, phases: Any, fragments: Any, first: int, maxima: Any
    ) -> None:
        """Best score over each unit of 16 shifts of every class and rotation, in bfloat16.

        Parameters
        ----------
        phases
            (t, n, 2): of the shifts.
        fragments
            From ``coarse_slices``; particles from ``first`` on take the second half of its cubes.
        maxima
            Output of ``maxima_shape``: along its last axis half of the rotations, padding, the
            other half, padding.
        """
        b, units, classes, padded = maxima.shape
        t, n = phases.shape[:2]
        tiles = padded // (2 * TILE)
        per_block = COARSE_THREADS // WARP * UNITS
        columns = sum(-(-rows * units // per_block) for rows in (first, b - first))
        parts = _coarse_parts(columns, classes * tiles)
        arguments = (
            a_re, a_im, c2, np.int32(c2.shape[1]), phases, np.int32(t), np.int32(n), np.int32(b),
            np.int32(first), np.int32(classes), np.int32(tiles), fragments, maxima,
        )  # fmt: skip
        shared_bytes = STAGES * STAGE * MOST_STEPS * WARP * 16
        grid = (columns, parts)
        self._launch("coarse_maxima", grid, COARSE_THREADS, arguments, shared_bytes)

    def choose_cells(
        self, maxima: Any, log_prior: Any, slices: Any, rotations: Any, turns: Any, shifts: Any,
        a_re: Any, a_im: Any, c2: Any, first: int, keep: int, sharpness: float, share: float,
        out_rotation: Any, out_rotation_id: Any, out_shift: Any, out_shift_id: Any,
        out_class: Any, out_score: Any, out_count: Any,
    ) -> None:  # fmt: skip
        """Score every shift of the best rotations in float32 and keep the best cells.

        ``turns`` (n, t, 2) are the phases of the shifts, coefficient by coefficient.
        """
        if keep > CHOOSE_THREADS:
            raise ValueError(f"keep must be at most {CHOOSE_THREADS}, not {keep}")
        b, units, classes, padded = maxima.shape
        r, n = slices.shape[1:3]
        t = len(shifts)
        room = max(SELECT_ROOM, 1 << (keep * t - 1).bit_length())
        arguments = (
            maxima, np.int32(units), np.int32(padded), np.int32(r), np.int32(classes), log_prior,
            slices, rotations, turns, shifts, np.int32(t), a_re, a_im, c2, np.int32(c2.shape[1]),
            np.int32(n), np.int32(first), np.int32(keep), np.float64(sharpness), np.float64(share),
            np.int32(room), out_rotation, out_rotation_id, out_shift, out_shift_id, out_class,
            out_score, out_count,
        )  # fmt: skip
        shared_bytes = 8 * (room + CHOOSE_THREADS // WARP * n)
        self._launch("choose_cells", (b,), CHOOSE_THREADS, arguments, shared_bytes)

    def refine_poses(
        self, cubes: Any, kx: Any, ky: Any, ikx: Any, iky: Any, scale: float, box: float,
        a_re: Any, a_im: Any, c2: Any, n: int,
        offsets: Any, shift_step: float, log_prior: Any,
        cell_rotation: Any, cell_rotation_id: Any, cell_shift: Any, cell_shift_id: Any,
        cell_class: Any, cell_count: Any,
        keep: int, sharpness: float, share: float,
        out_rotation: Any, out_rotation_id: Any, out_shift: Any, out_shift_id: Any,
        out_class: Any, out_score: Any, out_count: Any, out_evidence: Any,
        first: int | None = None,
    ) -> None:  # fmt: skip
        """Split every cell into 8 rotations x 4 shifts, score them, keep the best.

        In ``cubes`` (m, g, g, g, 4) each value is followed by its neighbour along x.
        Particles from ``first`` on are scored against the second half of ``cubes``; as a rule
        there is none.
        """
        b, capacity = cell_rotation_id.shape
        length = _table_length(n)
        room = 1 << (32 * capacity - 1).bit_length()
        shared_bytes = 8 * (
            room + max(keep, REFINE_THREADS) + 2 * capacity * length + 2 * length + 2 * capacity
        )
        arguments = (
            cubes, np.int32(cubes.shape[1]), np.int32(b if first is None else first),
            np.int32(len(log_prior)), kx, ky, ikx, iky, np.float32(scale), np.float32(box),
            a_re, a_im, c2, np.int32(c2.shape[1]), np.int32(n), np.int32(length),
            offsets, np.float32(shift_step), log_prior,
            cell_rotation, cell_rotation_id, cell_shift, cell_shift_id, cell_class, cell_count,
            np.int32(capacity), np.int32(keep), np.float64(sharpness), np.float64(share),
            np.int32(room), out_rotation, out_rotation_id, out_shift, out_shift_id, out_class,
            out_score, out_count, out_evidence,
        )  # fmt: skip
        self._launch("refine_poses", (b,), REFINE_THREADS, arguments, shared_bytes)

    def posterior_weights(
        self, score: Any, class_index: Any, count: Any, rotation: Any, shift: Any, evidence: Any,
        similarity: float, weights: Any, report: Any,
    ) -> None:  # fmt: skip
        """Weights (b, keep) of cells and a report (b, 13 + K) of each particle.

        The report is the best cell's rotation, shift, weight and evidence, then class masses.
        """
        b, capacity = score.shape
        classes, warps = report.shape[1] - 13, ROW_THREADS // WARP
        arguments = (
            score, class_index, count, rotation, shift, evidence, np.int32(b), np.int32(capacity),
            np.int32(classes), np.float32(similarity), weights, report,
        )  # fmt: skip
        grid = (-(-b // warps),)
        self._launch("posterior_weights", grid, ROW_THREADS, arguments, 4 * warps * classes)

    def insert_halves(
        self, statistics: Any, decay: Any, kx: Any, ky: Any, ikx: Any, iky: Any,
        scale: float, box: float, n: int, *spans: Any,
    ) -> None:  # fmt: skip
        """Let statistics (2, K, ...) fade by ``decay`` (K,) and back-project particles into them.

        Parameters
        ----------
        spans
            One after another, of each span of particles: how many are of half-set 0, which come
            first; their a_re, a_im, c2; rotation, rotation_id, shift, class, weight and count of
            their cells. How particles are divided into spans does not show in the bits.
        """
        xp = self._xp
        parts = [spans[i : i + SPAN_COLUMNS] for i in range(0, len(spans), SPAN_COLUMNS)]
        classes, edge, width = statistics.shape[1], statistics.shape[2], statistics.shape[4]
        length = _table_length(n)
        total = sum(len(part[1]) for part in parts)
        head = np.int32(62 - math.ceil(math.log2(SLICE_SAMPLES * max(total, 1))))
        largest = xp.zeros(2, np.uint32)
        sums = xp.zeros(statistics.size, np.int64)
        for _, a_re, a_im, c2, *_cells in parts:
            arguments = a_re, a_im, c2, np.int32(c2.shape[1]), np.int32(n), largest
            self._launch("largest_value", (len(a_re),), ROW_THREADS, arguments)
        for first, a_re, a_im, c2, *cells in parts:
            capacity = cells[1].shape[1]
            arguments = (
                sums, np.int32(edge), np.int32(width), np.int32(first), np.int32(classes), kx, ky,
                ikx, iky, np.float32(scale), np.float32(box), a_re, a_im, c2,
                np.int32(c2.shape[1]), np.int32(n), np.int32(length), *cells, np.int32(capacity),
                largest, head,
            )  # fmt: skip
            shared_bytes = 8 * (2 * capacity * length + (capacity + 1) // 2)
            grid = (len(a_re),)
            self._launch("insert_particles", grid, REFINE_THREADS, arguments, shared_bytes)
        size = statistics.size
        folded = (
            sums, largest, head, np.int64(size), np.int64(size // (2 * classes)),
            np.int32(classes), decay, statistics,
        )  # fmt: skip
        self._launch("fold_sums", (-(-size // REFINE_THREADS),), REFINE_THREADS, folded)

    def weigh_rows(
        self, segments: Any, segment_bits: int, width: int, places: Any,
        parameters: Any, group: Any, variance: Any, kx: Any, ky: Any, step: float,
        a_re: Any, a_im: Any, c2: Any,
    ) -> None:  # fmt: skip
        """Take particles out of a store's segments and weigh them.

        Parameters
        ----------
        segments
            (s,) uint64 addresses of arrays (2**segment_bits, width) complex64.
        places
            (2, b) int64: where each particle's spectrum is, and its row in the next two.
        parameters
            (rows, 7) float64: defocus u and v, angle, phase shift, wavelength, spherical aberration
            in Angstrom, amplitude contrast.
        group, variance
            (rows,) int32 into (groups, n) float32, the noise variance.
        a_re, a_im, c2
            Output (b, n) float32.
        """
        arguments = (
            segments, np.int32(segment_bits), np.int32(width), places, parameters, group, variance,
            kx, ky, np.float64(step), np.int32(a_re.shape[1]), a_re, a_im, c2,
        )  # fmt: skip
        self._launch("weigh_rows", (places.shape[1],), ROW_THREADS, arguments)

    def shell_sums(self, a_re: Any, a_im: Any, c2: Any, starts: Any, out: Any) -> None:
        """Sums over each shell; see ``kernels_images``."""
        b, _, shells = out.shape
        arguments = a_re, a_im, c2, np.int32(c2.shape[1]), starts, np.int32(shells), out
        self._launch("shell_sums", (b,), WARP, arguments)

    def normalise_images(self, images: Any, outside: Any, out: Any) -> None:
        """Background mean 0 and deviation 1."""
        pixels = images.shape[1] * images.shape[2]
        arguments = (images, outside, np.int32(pixels), out)
        self._launch("normalise_images", (len(images),), REFINE_THREADS, arguments)

    def crop_statistics(self, statistics: Any, crops: Any) -> None:
        """Statistics (2, K, ...) to crops (2, K, g, g, reach + 1, 3), the plane x = 0 completed."""
        edge, width, reach = statistics.shape[2], statistics.shape[4], crops.shape[4] - 1
        arguments = (statistics, np.int32(edge), np.int32(width), np.int32(reach), crops)
        self._over("crop_statistics", _voxels(crops), _maps(crops), arguments)

    def average_crops(self, crops: Any, operators: Any, out: Any) -> None:
        """Mean of crops over operators (m, 9)."""
        reach = np.int32(crops.shape[4] - 1)
        arguments = (crops, reach, operators, np.int32(len(operators)), out)
        self._over("average_crops", _voxels(crops), _maps(crops), arguments)

    def shell_weights(self, crops: Any, order: Any, starts: Any, sums: Any) -> None:
        """Sums (2, K, shells) of D over the shells of each crop."""
        arguments = (crops, np.int32(_voxels(crops)), order, starts, sums)
        grid = (sums.shape[2], _maps(crops))
        self._launch("shell_weights", grid, SHELL_THREADS, arguments)

    def shell_ridges(self, sums: Any, counts: Any, noise_over_signal: Any, ridges: Any) -> None:
        """Sums to ridges (maps, 2, radius + 1) of the own half-set and of both.

        ``noise_over_signal`` is (2, K, radius + 1) float32, for one half-set and for both.
        """
        _, classes, shells = sums.shape
        radius = ridges.shape[2] - 1
        arguments = (
            sums, counts, np.int32(shells), np.int32(classes), np.int32(radius), noise_over_signal,
            ridges,
        )  # fmt: skip
        self._launch("shell_ridges", (len(ridges), 2), WARP, arguments)

    def fill_spectra(
        self, crops: Any, radius: int, join: int, scale: float, ridges: Any, spectra: Any
    ) -> None:
        """Wiener quotients as spectra (maps, size, size, size / 2 + 1) complex64."""
        maps, size, _, width = spectra.shape
        arguments = (
            crops, np.int32(crops.shape[4] - 1), np.int32(crops.shape[1]), np.int32(size),
            np.int32(radius), np.int32(join), np.float32(scale), ridges, spectra,
        )  # fmt: skip
        self._over("fill_spectra", size * size * width, maps, arguments)

    def window_maps(
        self, maps: Any, classes: int, spacing: float, radii: Any, edge: float, decay: Any,
        power: int,
    ) -> None:  # fmt: skip
        """Window maps (m, size, size, size) with their origin at voxel 0, and norm them."""
        count, size = maps.shape[:2]
        arguments = (
            maps, np.int32(size), np.int32(classes), np.float32(spacing), radii, np.float32(edge),
            decay, np.int32(power),
        )  # fmt: skip
        self._over("window_maps", size**3, count, arguments)

    def gather_cubes(self, spectra: Any, cubes: Any) -> None:
        """Spectra to Friedel-complete centred cubes (maps, g, g, g, 4), neighbours paired."""
        count, g = cubes.shape[:2]
        arguments = (spectra, np.int32(spectra.shape[1]), np.int32((g - 1) // 2), cubes)
        self._over("gather_cubes", g**3, count, arguments)

    def compare_shells(self, spectra: Any, reach: int, order: Any, starts: Any, sums: Any) -> None:
        """Sums (K, 3, shells) of the half maps' cross terms and powers."""
        classes, _, shells = sums.shape
        arguments = (
            spectra, np.int32(spectra.shape[1]), np.int32(reach), np.int32(classes), order, starts,
            sums,
        )  # fmt: skip
        self._launch("compare_shells", (shells, classes), SHELL_THREADS, arguments)

    def _over(self, name: str, items: int, maps: int, arguments: tuple[Any, ...]) -> None:
        """A thread for each item of each map."""
        self._launch(name, (-(-items // REFINE_THREADS), maps), REFINE_THREADS, arguments)

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
            if not (isinstance(argument, np.generic) or argument.flags.c_contiguous):
                raise ValueError(f"{name} takes C-contiguous arrays")
        self._launcher.launch(name, grid, threads, arguments, shared_bytes=shared_bytes)


def _table_length(n: int) -> int:
    """Places of a phase table: k = 0 to beyond the largest of ``n`` coefficients sorted by radius.

    A disc of radius r holds n = pi r^2 / 2 half-plane coefficients, and fewer than (r + 2) more
    can lie between n and the disc that its largest k spans.
    """
    return math.ceil(math.sqrt(2 * n / math.pi)) + 3


@lru_cache(maxsize=256)
def _coarse_parts(columns: int, tiles: int) -> int:
    """Into how many parts to cut the tiles, so that ``columns`` of blocks fill whole rounds."""

    def cost(parts: int) -> float:
        rounds = -(-columns * parts // MULTIPROCESSORS)
        return rounds * (-(-tiles // parts) + LEFT_TILES)

    return min(range(1, tiles + 1), key=cost)


def coarse_fits(n: int) -> bool:
    """Whether the coarse pass can take ``n`` coefficients."""
    return 2 * n <= STEP * SHARED_STEPS


def fragment_shape(maps: int, rotations: int) -> tuple[int, ...]:
    """Shape of ``coarse_slices``' fragments, uint32."""
    return maps, -(-rotations // (2 * TILE)), MOST_STEPS, WARP, 4


def maxima_shape(
    particles: int, shifts: int, classes: int, rotations: int
) -> tuple[int, int, int, int]:
    """Shape of ``coarse_maxima``'s output, float32."""
    tiles = -(-rotations // (2 * TILE))
    return particles, -(-shifts // UNIT_SHIFTS), classes, 2 * TILE * tiles


def _voxels(crops: Any) -> int:
    return int(crops.shape[2] * crops.shape[3] * crops.shape[4])


def _maps(crops: Any) -> int:
    return int(crops.shape[0] * crops.shape[1])
