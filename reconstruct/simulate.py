"""Simulated particle images with known truth, made chunk by chunk so that a million can stream.

Promise: the same seed gives the same particles, however many are consumed. Each micrograph draws
from its own generator, seeded by ``(seed, micrograph)``, and is one chunk.

Image model: ``image = gain * ctf * (projection along A, displaced by -shift) + noise`` with bright
particles and noise of variance 1 in every image. SNR is the variance of the CTF-modulated signal
over **all** pixels of the image (no mask), averaged over a calibration draw of particles that are
not junk, over the noise variance; ``gain`` is one number per set.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import scipy.fft

from reconstruct.ctf import ctf_values
from reconstruct.euler import matrix_from_euler
from reconstruct.projection import (
    ImagePlane,
    Projector,
    image_plane,
    images_from_transforms,
    make_projector,
    project,
)
from reconstruct.simulated import (
    JUNK,
    JunkKind,
    Simulated,
    SimulationSettings,
    Species,
    Views,
    concatenate,
    image_name,
    particle_ids,
)
from reconstruct.types import FloatArray, Geometry, IntArray

__all__ = [
    "JUNK",
    "JunkKind",
    "Simulated",
    "SimulationSettings",
    "Species",
    "Views",
    "concatenate",
    "image_name",
    "simulate",
    "simulate_set",
]

_CALIBRATION_PARTICLES = 200
_CALIBRATION_STREAM = 2**32 - 1  # no micrograph has this number
_FRAGMENT_STREAM = 2**32 - 2
_FRAGMENTS = 4
_COLOUR_LENGTH_ANGSTROM = 100.0  # coloured noise is stronger above this length


def simulate_set(
    species: Sequence[Species], geometry: Geometry, *, settings: SimulationSettings
) -> Simulated:
    """Collect everything that ``simulate`` yields."""
    return concatenate(list(simulate(species, geometry, settings=settings)))


def simulate(
    species: Sequence[Species], geometry: Geometry, *, settings: SimulationSettings
) -> Iterator[Simulated]:
    """Yield the particles of one micrograph after another.

    Parameters
    ----------
    species
        The kinds of particle with their relative fractions.
    geometry
        Box and pixel size of the images; every volume is already on this grid.
    settings
        How many, and how they look.

    Raises
    ------
    ValueError
        No species, a volume of another box, or a setting out of range.
    """
    _check(species, geometry, settings)
    bench = _Bench(
        plane=image_plane(geometry.box),
        projectors=tuple(make_projector(kind.volume) for kind in species),
        fragments=_fragments(species[0].volume, settings) if settings.junk_fraction > 0 else (),
        fractions=np.array([kind.fraction for kind in species]),
        appear_at=np.array([kind.appears_at for kind in species]),
        geometry=geometry,
    )
    gain = _gain(bench, settings)
    per_micrograph = settings.particles_per_micrograph
    for micrograph in range(math.ceil(settings.n_particles / per_micrograph)):
        first = micrograph * per_micrograph
        count = min(per_micrograph, settings.n_particles - first)
        rng = np.random.default_rng([settings.seed, micrograph])
        truth = _draw_truth(rng, count, first, bench, settings)
        signal = _signal(rng, truth, bench, settings)
        images = images_from_transforms(signal * np.float32(gain), bench.plane)
        if math.isfinite(settings.snr):
            images += _noise(rng, count, geometry, settings.noise_colour)
        frame = np.arange(count, dtype=np.int32)
        yield Simulated(
            images=images,
            particle_ids=particle_ids(micrograph, count),
            rotations=truth.rotations,
            shifts_angstrom=truth.shifts_angstrom,
            species=truth.species,
            defocus_u_angstrom=truth.defocus_u_angstrom,
            defocus_v_angstrom=truth.defocus_v_angstrom,
            defocus_angle_rad=truth.defocus_angle_rad,
            phase_shift_rad=np.full(count, settings.phase_shift_rad, dtype=np.float32),
            optics_group=np.zeros(count, dtype=np.int32),
            micrograph=np.full(count, micrograph, dtype=np.int32),
            frame=frame,
            optics=(settings.optics,),
            geometry=geometry,
        )


@dataclass(frozen=True)
class _Bench:
    """What stays the same for all chunks of one set."""

    plane: ImagePlane
    projectors: tuple[Projector, ...]
    fragments: tuple[Projector, ...]
    fractions: FloatArray  # (species,) relative
    appear_at: FloatArray  # (species,) share of the set
    geometry: Geometry


@dataclass(frozen=True)
class _Truth:
    rotations: FloatArray
    shifts_angstrom: FloatArray
    species: IntArray
    defocus_u_angstrom: FloatArray
    defocus_v_angstrom: FloatArray
    defocus_angle_rad: FloatArray


def _check(species: Sequence[Species], geometry: Geometry, settings: SimulationSettings) -> None:
    box = geometry.box
    if not species:
        raise ValueError("simulate needs at least one species")
    for kind in species:
        if kind.volume.shape != (box, box, box):
            raise ValueError(f"a species has a volume of {kind.volume.shape}, the box is {box}")
        if kind.fraction <= 0:
            raise ValueError(f"a species' fraction must be above 0, not {kind.fraction}")
        if not 0 <= kind.appears_at < 1:
            raise ValueError(f"a species' appears_at must be 0 to below 1, not {kind.appears_at}")
    if all(kind.appears_at > 0 for kind in species):
        raise ValueError("one species must be there from the start: appears_at 0")
    if settings.n_particles <= 0 or settings.particles_per_micrograph <= 0:
        raise ValueError("n_particles and particles_per_micrograph must be above 0")
    if settings.snr <= 0:
        raise ValueError(f"snr must be above 0, not {settings.snr}")
    if not 0 <= settings.junk_fraction < 1:
        raise ValueError(f"junk_fraction must be 0 to below 1, not {settings.junk_fraction}")
    if settings.junk_fraction > 0 and not settings.junk_kinds:
        raise ValueError("junk_fraction is above 0 but junk_kinds is empty")


def _draw_truth(
    rng: np.random.Generator,
    count: int,
    first: int,
    bench: _Bench,
    settings: SimulationSettings,
) -> _Truth:
    here = bench.fractions * (first >= bench.appear_at * settings.n_particles)
    species = rng.choice(len(here), size=count, p=here / here.sum()).astype(np.int32)
    species[rng.random(count) < settings.junk_fraction] = JUNK
    shift = settings.max_shift_angstrom
    centre = rng.uniform(*settings.defocus_angstrom)
    mean = centre + settings.defocus_spread_angstrom * rng.standard_normal(count)
    half = 0.5 * rng.uniform(0.0, settings.astigmatism_angstrom)
    angle = rng.uniform(0.0, math.pi)
    return _Truth(
        rotations=_draw_rotations(rng, count, first, settings),
        shifts_angstrom=rng.uniform(-shift, shift, size=(count, 2)).astype(np.float32),
        species=species,
        defocus_u_angstrom=(mean + half).astype(np.float32),
        defocus_v_angstrom=(mean - half).astype(np.float32),
        defocus_angle_rad=np.full(count, angle, dtype=np.float32),
    )


def _draw_rotations(
    rng: np.random.Generator, count: int, first: int, settings: SimulationSettings
) -> npt.NDArray[np.float64]:
    u = rng.random(count)
    rot = rng.uniform(-math.pi, math.pi, size=count)
    psi = rng.uniform(-math.pi, math.pi, size=count)
    if settings.views == "tilt_sorted":
        u = (np.arange(first, first + count) + u) / settings.n_particles
    cosine = 1.0 - 2.0 * u
    if settings.views == "concentrated":
        kappa = settings.concentration
        cosine = 1.0 + np.log(1.0 - u * (1.0 - math.exp(-2.0 * kappa))) / kappa
    tilt = np.arccos(np.clip(cosine, -1.0, 1.0))
    rotations = matrix_from_euler(np.stack([rot, tilt, psi], axis=1))
    if settings.views == "concentrated":
        x, y, z = settings.preferred_direction
        turn = matrix_from_euler([math.atan2(y, x), math.atan2(math.hypot(x, y), z), 0.0])
        rotations = rotations @ turn
    return rotations


def _signal(
    rng: np.random.Generator, truth: _Truth, bench: _Bench, settings: SimulationSettings
) -> npt.NDArray[np.complex64]:
    """CTF-modulated transforms (n, m) of the displaced projections."""
    plane = bench.plane
    signal = np.zeros((len(truth.species), len(plane.x)), dtype=np.complex64)
    for number, projector in enumerate(bench.projectors):
        rows = np.flatnonzero(truth.species == number)
        signal[rows] = project(projector, truth.rotations[rows], plane)
    for row in np.flatnonzero(truth.species == JUNK):
        kind = settings.junk_kinds[rng.integers(len(settings.junk_kinds))]
        signal[row] = _junk(rng, kind, truth.rotations[row], bench)
    signal *= _displacement(truth.shifts_angstrom, bench)
    edge = bench.geometry.box_angstrom
    signal *= ctf_values(
        plane.x / edge,
        plane.y / edge,
        defocus_u_angstrom=truth.defocus_u_angstrom,
        defocus_v_angstrom=truth.defocus_v_angstrom,
        defocus_angle_rad=truth.defocus_angle_rad,
        phase_shift_rad=np.full(len(truth.species), settings.phase_shift_rad),
        optics=settings.optics,
    )
    return signal


def _junk(
    rng: np.random.Generator, kind: JunkKind, rotation: FloatArray, bench: _Bench
) -> npt.NDArray[np.complex64]:
    if kind == "noise":
        return np.zeros(len(bench.plane.x), dtype=np.complex64)
    if kind == "broken":
        fragment = bench.fragments[rng.integers(len(bench.fragments))]
        piece: npt.NDArray[np.complex64] = project(fragment, rotation[None], bench.plane)[0]
        return piece
    neighbours = int(rng.integers(2, 4))
    angles = rng.uniform(-math.pi, math.pi, size=(3, neighbours))
    apart = rng.uniform(0.15, 0.45, size=neighbours) * bench.geometry.box_angstrom
    direction = angles[0]
    offsets = apart[:, None] * np.stack([np.cos(direction), np.sin(direction)], axis=1)
    tilt = np.arccos(rng.uniform(-1.0, 1.0, size=neighbours))
    rotations = matrix_from_euler(np.stack([angles[1], tilt, angles[2]], axis=1))
    parts = project(bench.projectors[0], rotations, bench.plane)
    clump: npt.NDArray[np.complex64] = (parts * _displacement(offsets, bench)).sum(axis=0)
    return clump


def _displacement(shifts_angstrom: FloatArray, bench: _Bench) -> npt.NDArray[np.complex64]:
    """Phases (n, m) that move an image by ``-shift``."""
    turns = 2.0 * math.pi / bench.geometry.box_angstrom * shifts_angstrom.astype(np.float64)
    phase = turns[:, :1] * bench.plane.x + turns[:, 1:] * bench.plane.y
    factors: npt.NDArray[np.complex64] = np.exp(1j * phase).astype(np.complex64)
    return factors


def _gain(bench: _Bench, settings: SimulationSettings) -> float:
    """Factor that gives the set its SNR, measured on clean particles drawn from the same model."""
    rng = np.random.default_rng([settings.seed, _CALIBRATION_STREAM])
    # Many micrographs of one particle each, so that the whole defocus range counts.
    per_step = replace(settings, junk_fraction=0.0, n_particles=_CALIBRATION_PARTICLES)
    variance = 0.0
    for number in range(_CALIBRATION_PARTICLES):
        truth = _draw_truth(rng, 1, number, bench, per_step)
        images = images_from_transforms(_signal(rng, truth, bench, per_step), bench.plane)
        variance += float(images.var()) / _CALIBRATION_PARTICLES
    wanted = settings.snr if math.isfinite(settings.snr) else 1.0
    return math.sqrt(wanted / variance)


def _noise(
    rng: np.random.Generator, count: int, geometry: Geometry, colour: float
) -> npt.NDArray[np.float32]:
    box = geometry.box
    noise = rng.standard_normal((count, box, box), dtype=np.float32)
    if colour == 0.0:
        return noise
    y = np.fft.fftfreq(box, geometry.pixel_size_angstrom)
    x = np.fft.fftfreq(box, geometry.pixel_size_angstrom)
    k2 = y[:, None] ** 2 + x[None, :] ** 2
    power = 1.0 + colour / (1.0 + k2 * _COLOUR_LENGTH_ANGSTROM**2)
    amplitude = np.sqrt(power / power.mean())[:, : box // 2 + 1].astype(np.float32)
    spectrum = scipy.fft.rfft2(noise, workers=1) * amplitude
    coloured: npt.NDArray[np.float32] = scipy.fft.irfft2(spectrum, s=(box, box), workers=1)
    return coloured


def _fragments(volume: FloatArray, settings: SimulationSettings) -> tuple[Projector, ...]:
    """Pieces of a particle: what lies on one side of a random plane near its centre."""
    rng = np.random.default_rng([settings.seed, _FRAGMENT_STREAM])
    box = volume.shape[0]
    axis = np.arange(box) - box // 2
    pieces = []
    for _ in range(_FRAGMENTS):
        normal = rng.standard_normal(3)
        normal /= np.linalg.norm(normal)
        height = (
            normal[2] * axis[:, None, None]
            + normal[1] * axis[None, :, None]
            + normal[0] * axis[None, None, :]
        )
        side = 0.5 * (1.0 + np.tanh((height - rng.uniform(-0.05, 0.05) * box) / 1.5))
        pieces.append(make_projector(volume * side))
    return tuple(pieces)
