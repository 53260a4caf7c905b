"""Back-projected images give the map back, and half maps agree as much as their signal."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from reconstruct import kernels_cpu
from reconstruct.density import low_pass
from reconstruct.fourier import centred_rfftn, fourier_cube, image_spectra, soft_mask
from reconstruct.quality import fourier_shell_correlation
from reconstruct.rotations import random_rotations
from reconstruct.search import WeightedBatch
from reconstruct.simulate import Simulated
from reconstruct.update import (
    MapGrid,
    box_volume,
    half_map_fsc,
    join_low_frequencies,
    quotient,
    reference_cube,
    shell_means,
    symmetric_plane,
)
from tests.reconstruct.small_sets import GEOMETRY, demo_map, plane, simulated, true_ctf, weighted

BOX = GEOMETRY.box
RADIUS = 11
GRID = MapGrid(BOX, 2.0, 13.0)
MUCH_SIGNAL = np.full(RADIUS + 1, 0.999)


def back_project(
    batch: WeightedBatch, rotations: np.ndarray, shifts_pixels: np.ndarray, members: np.ndarray
) -> np.ndarray:
    """Statistics (1, g, g, h, 3) of particles at known poses."""
    b, layout = len(batch), plane(RADIUS)
    g = 2 * GRID.reach(RADIUS) + 1
    statistics = np.zeros((1, g, g, GRID.reach(RADIUS) + 2, 3), np.float32)
    ikx, iky = layout.kx.astype(np.int32), layout.ky.astype(np.int32)
    zeros = np.zeros((b, 1), np.int32)
    kernels_cpu.insert_particles(
        statistics, members, layout.kx, layout.ky, ikx, iky,
        np.float32(GRID.scale), float(BOX), batch.a_re, batch.a_im, batch.c2, len(layout.kx),
        rotations.reshape(b, 1, 9).astype(np.float32), zeros,
        shifts_pixels.reshape(b, 1, 2).astype(np.float32), zeros,
        np.ones((b, 1), np.float32), np.ones(b, np.int32),
    )  # fmt: skip
    return statistics


def half_statistics(particles: Simulated, half: int) -> np.ndarray:
    """Statistics of every second particle at its true pose, the plane x = 0 completed."""
    statistics = back_project(
        weighted(particles, plane(RADIUS)),
        particles.rotations,
        particles.shifts_angstrom / GEOMETRY.pixel_size_angstrom,
        np.arange(half, len(particles), 2),
    )
    return symmetric_plane(statistics[0], GRID.reach(RADIUS))


@functools.cache
def both_halves(snr: float) -> tuple[np.ndarray, np.ndarray]:
    particles = simulated(500, snr=snr)
    return half_statistics(particles, 0), half_statistics(particles, 1)


def test_true_poses_give_the_map_back() -> None:
    first, second = both_halves(np.inf)
    half = quotient(first + second, GRID, RADIUS, MUCH_SIGNAL)
    window = soft_mask(BOX, GRID.mask_radius_pixels, GRID.mask_edge_pixels)
    volume = box_volume(half, GRID, windowed=True)
    fsc = fourier_shell_correlation(volume, demo_map() * window)
    assert volume.dtype == np.float32
    assert fsc[1:11].min() > 0.97
    assert volume[~(window > 0)].max() == 0


def test_the_map_has_the_scale_of_the_images() -> None:
    """Images without CTF, made from the map itself: its density comes back, not a multiple."""
    rng = np.random.default_rng(0)
    rotations = random_rotations(rng, 300)
    layout = plane(RADIUS)
    slices = np.empty((300, 2, len(layout.kx)), np.float32)
    cube = fourier_cube(demo_map(), RADIUS)
    kernels_cpu.extract_slices(
        cube.view(np.float32).reshape(*cube.shape, 2), rotations.reshape(-1, 9).astype(np.float32),
        layout.kx, layout.ky, np.float32(2), slices,
    )  # fmt: skip
    batch = WeightedBatch(slices[:, 0].copy(), slices[:, 1].copy(), np.ones_like(slices[:, 0]))
    statistics = back_project(batch, rotations, np.zeros((300, 2)), np.arange(300))
    crop = symmetric_plane(statistics[0], GRID.reach(RADIUS))
    volume = box_volume(quotient(crop, GRID, RADIUS, MUCH_SIGNAL), GRID, windowed=False)
    truth = demo_map() - demo_map().mean()  # the mean is not in the images
    middle = slice(6, 26)
    found, wanted = volume[middle, middle, middle], truth[middle, middle, middle]
    slope, _ = np.polyfit(wanted.ravel(), found.ravel(), 1)
    assert slope == pytest.approx(1, abs=0.1)


def test_a_reference_slices_to_the_images_it_came_from() -> None:
    particles = simulated(500, snr=np.inf)
    first, second = both_halves(np.inf)
    cube = reference_cube(quotient(first + second, GRID, RADIUS, MUCH_SIGNAL), GRID)
    layout = plane(RADIUS)
    out = np.empty((40, 2, len(layout.kx)), np.float32)
    rotations = particles.rotations[:40].reshape(-1, 9).astype(np.float32)
    kernels_cpu.extract_slices(cube, rotations, layout.kx, layout.ky, np.float32(GRID.scale), out)
    found = (out[:, 0] + 1j * out[:, 1]) * true_ctf(particles, layout)[:40]
    shift = particles.shifts_angstrom[:40] / GEOMETRY.pixel_size_angstrom
    found *= np.exp(2j * np.pi / BOX * (shift @ np.stack([layout.kx, layout.ky])))
    expected = image_spectra(particles.images[:40], layout)
    n = layout.count(9)  # the last shells are cut by the map's own interpolation
    error = np.linalg.norm(found[:, :n] - expected[:, :n]) / np.linalg.norm(expected[:, :n])
    assert error < 0.2
    scale = np.vdot(found[:, :n], expected[:, :n]).real / np.linalg.norm(found[:, :n]) ** 2
    assert scale == pytest.approx(1, abs=0.1)


def test_half_maps_agree_without_noise_and_not_on_noise_alone() -> None:
    clean = [quotient(s, GRID, RADIUS, MUCH_SIGNAL) for s in both_halves(np.inf)]
    fsc = half_map_fsc(*clean, GRID, RADIUS)
    assert fsc.shape == (RADIUS + 1,)
    assert fsc[0] == 1
    assert fsc[1:11].min() > 0.9
    noise = [quotient(s, GRID, RADIUS, np.full(12, 0.9)) for s in both_halves(1e-6)]
    assert np.abs(half_map_fsc(*noise, GRID, RADIUS)[3:]).mean() < 0.15


def test_half_maps_at_low_snr_agree_less_with_radius() -> None:
    noisy = [quotient(s, GRID, RADIUS, np.full(12, 0.9)) for s in both_halves(0.05)]
    fsc = half_map_fsc(*noisy, GRID, RADIUS)
    assert fsc[1:4].min() > 0.8
    assert fsc[10] < fsc[2]


def test_a_map_agrees_with_itself_and_nothing_agrees_with_no_map() -> None:
    half = quotient(both_halves(0.05)[0], GRID, RADIUS, np.full(12, 0.9))
    assert np.allclose(half_map_fsc(half, half, GRID, RADIUS), 1)
    empty = half_map_fsc(half, np.zeros_like(half), GRID, RADIUS)
    assert empty.tolist() == [1, *[0] * RADIUS]


def test_the_quotient_of_nothing_is_nothing() -> None:
    half = quotient(np.zeros_like(both_halves(0.05)[0]), GRID, RADIUS, MUCH_SIGNAL)
    assert not np.any(half)


def test_less_signal_means_a_flatter_map_and_nothing_beyond_the_radius() -> None:
    statistics = both_halves(0.05)[0]
    strong = quotient(statistics, GRID, 8, np.full(9, 0.9))
    weak = quotient(statistics, GRID, 8, np.full(9, 0.1))
    assert np.all(np.abs(weak) <= np.abs(strong))
    reach = strong.shape[2] - 1
    assert np.any(strong[reach, reach, : int(8 * GRID.scale)])
    assert not np.any(strong[reach, reach, int(8.5 * GRID.scale) + 1 :])


@pytest.mark.parametrize("reaches", [5, RADIUS])
def test_low_shells_come_from_both_and_the_rest_from_one(reaches: int) -> None:
    first, second = (quotient(s, GRID, RADIUS, MUCH_SIGNAL) for s in both_halves(0.05))
    centre, low = first.shape[2] - 1, GRID.reach(reaches)
    span = slice(centre - low, centre + low + 1)
    joined = first.copy()
    join_low_frequencies(joined, second[span, span, : low + 1], GRID, 5)
    line = joined[centre, centre]
    last = int(np.ceil(5.5 * GRID.scale)) - 1  # the last grid step that rounds to shell 5
    assert np.array_equal(line[: last + 1], second[centre, centre][: last + 1])
    assert np.array_equal(line[last + 1 :], first[centre, centre][last + 1 :])


def test_means_over_shells_in_box_units() -> None:
    values = np.random.default_rng(0).random((9, 9, 5))
    means = shell_means(values, 2.0)
    axis = np.arange(-4, 5)
    radius = np.sqrt(
        axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis[None, None, 4:] ** 2
    )
    assert means[0] == values[radius < 1].mean()
    assert means[1] == pytest.approx(values[(radius >= 1) & (radius < 3)].mean())


def test_the_plane_through_the_origin_is_its_own_mate() -> None:
    crop = both_halves(0.05)[0]
    mate = crop[::-1, ::-1, 0] * np.array([1, -1, 1], np.float32)
    assert np.allclose(crop[:, :, 0], mate)


def test_an_unwindowed_map_is_what_was_put_in() -> None:
    """box_volume takes a transform of the padded map and divides out one interpolation."""
    blurred = low_pass(demo_map(), geometry=GEOMETRY, resolution_angstrom=40.0)
    volume = blurred * soft_mask(BOX, 11.0, 3.0)  # nothing is left to be cut at Nyquist
    padded = np.pad(volume, BOX // 2)
    reach = GRID.padded // 2 - 1
    centre = GRID.padded // 2
    span = slice(centre - reach, centre + reach + 1)
    half = centred_rfftn(padded)[span, span, : reach + 1] / np.float32(BOX)
    decay = np.sinc((np.arange(BOX) - BOX // 2) / GRID.padded) ** 2
    cube = decay[:, None, None] * decay[None, :, None] * decay[None, None, :]
    back = box_volume(half, GRID, windowed=False)
    assert np.allclose(back * cube, volume, atol=2e-3 * volume.max())
