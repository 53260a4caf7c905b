"""Noise spectra measured around the particle are those of the noise inside the window."""

from __future__ import annotations

import numpy as np
import pytest

from reconstruct.fourier import image_spectra, soft_mask
from reconstruct.noise import (
    NOISE_PARTICLES,
    NoiseModel,
    NoiseSpectra,
    normalise,
    outside_power,
    smooth_spectrum,
)
from tests.reconstruct.small_sets import GEOMETRY, demo_map, plane

BOX = GEOMETRY.box
WINDOW = soft_mask(BOX, 9.0, 4.0, axes=2)


def _white(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, BOX, BOX)).astype(np.float32)


def _coloured(count: int) -> np.ndarray:
    """Noise whose amplitude falls from 3 to 1 over some four shells."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(BOX, 1 / BOX), np.fft.rfftfreq(BOX, 1 / BOX)))
    amplitude = 1.0 + 2.0 * np.exp(-((frequency.T / 4.0) ** 2))
    noise = np.fft.irfft2(np.fft.rfft2(_white(count)) * amplitude, s=(BOX, BOX))
    return np.asarray(noise, np.float32)


def _windowed_variance(noise: np.ndarray) -> np.ndarray:
    """What the search needs: component variance of windowed noise, per shell."""
    power = np.abs(image_spectra(noise * WINDOW, plane())) ** 2
    return 0.5 * plane().per_shell_mean(power).mean(axis=0)


def test_the_background_gets_mean_0_and_deviation_1() -> None:
    images = 7.0 + 3.0 * _white(4) + 100.0 * (WINDOW > 0)
    normalised = normalise(images, WINDOW)
    outside = normalised[:, WINDOW == 0]
    assert np.allclose(outside.mean(axis=1), 0, atol=1e-5)
    assert np.allclose(outside.std(axis=1), 1, atol=1e-5)
    assert normalised[:, BOX // 2, BOX // 2].min() > 20  # the particle stays bright


def test_the_scale_and_the_offset_of_an_image_do_not_matter() -> None:
    images = _white(3)
    assert np.allclose(normalise(0.01 * images - 5, WINDOW), normalise(images, WINDOW), atol=1e-4)


def test_half_precision_is_read_as_it_is() -> None:
    half = _white(2).astype(np.float16)
    assert np.array_equal(normalise(half, WINDOW), normalise(half.astype(np.float32), WINDOW))


def test_a_constant_background_gives_numbers() -> None:
    images = np.full((1, BOX, BOX), 4.0, np.float32)
    images[0, BOX // 2, BOX // 2] = 6.0
    normalised = normalise(images, WINDOW)
    assert normalised[0, 0, 0] == 0
    assert normalised[0, BOX // 2, BOX // 2] == 2


def test_white_noise_has_the_power_of_the_windowed_noise() -> None:
    noise = _white(400)
    power = outside_power(noise, WINDOW, plane()).mean(axis=0)
    expected = 0.5 * float((WINDOW**2).sum()) / BOX**2
    assert power[2:] == pytest.approx(np.full(10, expected), rel=0.1)
    assert power[2:] == pytest.approx(_windowed_variance(noise)[2:], rel=0.15)


def test_coloured_noise_has_the_power_of_the_windowed_noise() -> None:
    noise = _coloured(600)
    measured = smooth_spectrum(outside_power(noise, WINDOW, plane()).mean(axis=0))
    expected = _windowed_variance(noise)
    assert expected[2] > 3 * expected[11]  # there is a colour to be seen
    assert measured[2:] == pytest.approx(expected[2:], rel=0.25)


def test_the_particle_does_not_enter_its_noise() -> None:
    noise = _white(50)
    inside = soft_mask(BOX, 7.0, 2.0, axes=2) * demo_map().sum(axis=0)  # where the window is 1
    with_particle = outside_power(noise + inside, WINDOW, plane())
    assert np.allclose(with_particle, outside_power(noise, WINDOW, plane()), rtol=1e-4)


def test_smoothing_keeps_a_flat_spectrum_and_never_gives_zero() -> None:
    flat = np.full(12, 0.3)
    flat[0] = 0.0  # shell 0 holds no coefficient
    assert np.allclose(smooth_spectrum(flat), 0.3)
    assert smooth_spectrum(np.zeros(12)).min() > 0


def _spectra(images: np.ndarray, groups: np.ndarray, cuts: tuple[int, ...]) -> NoiseSpectra:
    """Images measured in parts and counted one by one, for two optics groups."""
    noise = NoiseSpectra(12, NoiseModel(prior_weight=0.0))
    noise.add_group()
    noise.add_group()
    # what arrives and is not counted is of group 0
    whole = np.concatenate([groups, np.zeros(len(images), np.intp)])[: len(images)]
    for part, of_part in zip(np.split(images, cuts), np.split(whole, cuts), strict=True):
        noise.measure(part, of_part, WINDOW, plane())
    for group in groups:
        noise.count(np.array([group]))
    return noise


def test_each_group_has_its_own_noise_and_one_not_met_yet_the_mean() -> None:
    images = np.concatenate([_white(30), 2 * _white(30, seed=1)])
    groups = np.repeat([0, 1], 30)
    variance = _spectra(images, groups, (7, 40)).variance()
    power = outside_power(images, WINDOW, plane())
    assert np.allclose(variance[0], smooth_spectrum(power[:30].mean(axis=0)))
    assert np.allclose(variance[1], smooth_spectrum(power[30:].mean(axis=0)))
    early = _spectra(images, groups[:30], ()).variance()
    assert np.array_equal(early[0], variance[0])
    assert np.array_equal(early[1], early[0])


def test_noise_is_counted_when_particles_are_trained_not_when_they_arrive() -> None:
    images, groups = _white(40), np.zeros(40, np.intp)
    ahead = _spectra(images, groups[:10], ()).variance()
    assert np.array_equal(ahead, _spectra(images[:10], groups[:10], ()).variance())


def test_only_the_first_particles_are_measured() -> None:
    few = np.tile(_white(100), (NOISE_PARTICLES // 100, 1, 1))
    groups = np.zeros(NOISE_PARTICLES + 100, np.intp)
    wanted = _spectra(few, groups[:NOISE_PARTICLES], (1500,))
    more = _spectra(np.concatenate([few, 9 * few[:100]]), groups, (1500, 2050))
    assert np.array_equal(more.variance(), wanted.variance())
    more.measure(9 * few[:10], groups[:10], WINDOW, plane())
    more.count(groups[:10])
    assert np.array_equal(more.variance(), wanted.variance())


def test_noise_goes_on_from_a_dump() -> None:
    images, groups = _white(40), np.zeros(40, np.intp)
    first = _spectra(images, groups[:15], ())
    again = NoiseSpectra(12, NoiseModel(prior_weight=0.0))
    again.restore(first.dump())
    for noise in (first, again):
        noise.count(groups[15:])
    assert np.array_equal(first.variance(), again.variance())


def test_a_group_that_comes_late_is_measured_too() -> None:
    few = np.tile(_white(100), (NOISE_PARTICLES // 100, 1, 1))
    late = 3 * _white(20, seed=5)
    groups = np.repeat([0, 1], [NOISE_PARTICLES, 20])
    variance = _spectra(np.concatenate([few, late]), groups, (1500, 2010)).variance()
    expected = smooth_spectrum(outside_power(late, WINDOW, plane()).mean(axis=0))
    assert np.allclose(variance[1], expected)


def test_a_small_group_leans_on_the_mean_of_all() -> None:
    images = np.concatenate([_white(200), 2 * _white(1, seed=1)])
    groups = np.repeat([0, 1], [200, 1])
    alone = _spectra(images, groups, ())
    leaning = NoiseSpectra(12, NoiseModel(prior_weight=50.0))
    leaning.restore(alone.dump())
    power = outside_power(images, WINDOW, plane())
    wanted = (power[200] + 50 * power.mean(axis=0)) / 51
    assert np.allclose(leaning.variance()[1], smooth_spectrum(wanted))
    assert np.allclose(alone.variance()[1], smooth_spectrum(power[200]))
    assert np.allclose(leaning.variance()[0], alone.variance()[0], rtol=0.02)


def test_a_single_group_has_nothing_to_lean_on() -> None:
    spectra = [NoiseSpectra(12, NoiseModel(prior_weight=weight)) for weight in (0.0, 50.0)]
    for noise in spectra:
        noise.add_group()
        noise.measure(_coloured(20), np.zeros(20, np.intp), WINDOW, plane())
        noise.count(np.zeros(20, np.intp))
    assert np.array_equal(spectra[0].variance(), spectra[1].variance())


def test_a_group_that_only_waits_changes_nothing() -> None:
    noise, beside = (NoiseSpectra(12, NoiseModel(prior_weight=50.0)) for _ in range(2))
    for one in (noise, beside):
        one.add_group()
        one.measure(_coloured(20), np.zeros(20, np.intp), WINDOW, plane())
        one.count(np.zeros(20, np.intp))
    beside.add_group()
    beside.measure(_white(20), np.ones(20, np.intp), WINDOW, plane())
    assert np.array_equal(noise.variance()[0], beside.variance()[0])


def test_white_noise_is_one_level_and_coloured_is_not() -> None:
    counts = np.bincount(plane().shell, minlength=12)
    images, groups = _coloured(60), np.zeros(60, np.intp)
    found = {}
    for kind in ("coloured", "white"):
        noise = NoiseSpectra(12, NoiseModel(kind=kind), coefficients=counts)  # type: ignore[arg-type]
        noise.add_group()
        noise.measure(images, groups, WINDOW, plane())
        noise.count(groups)
        found[kind] = noise.variance()[0]
    assert np.ptp(found["white"]) == 0
    assert found["coloured"][1] > 2 * found["coloured"][-1]
    power = outside_power(images, WINDOW, plane()).mean(axis=0)
    assert found["white"][0] == pytest.approx(np.average(power[1:], weights=counts[1:]))


def test_residuals_join_by_their_number_and_only_where_there_is_a_map() -> None:
    model = NoiseModel(source="residuals", initial_weight=100.0)
    noise = NoiseSpectra(12, model)
    noise.add_group()
    images, groups = _white(20), np.zeros(20, np.intp)
    noise.measure(images, groups, WINDOW, plane())
    noise.count(groups)
    before = noise.variance()[0]
    for _ in range(400):
        noise.add_residuals(np.full((50, 7), 3.0), np.zeros(50, np.intp))
    after = noise.variance()[0]
    assert np.allclose(after[1:6], 3.0, rtol=0.06)
    assert np.array_equal(after[8:], before[8:])
    again = NoiseSpectra(12, model)
    again.restore(noise.dump())
    assert np.array_equal(again.variance(), noise.variance())
