"""Residuals of particles at their true poses are the noise, and the engine uses them if asked."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from reconstruct.fourier import image_spectra
from reconstruct.residuals import residual_power
from tests.reconstruct.small_sets import (
    GEOMETRY,
    cube_of,
    plane,
    shift_phases,
    simulated,
    slices_of,
    true_ctf,
)
from tests.reconstruct.test_engine import SETTINGS, differing, particles, reloaded, run

SNR = 0.3


def test_at_true_poses_the_residual_is_the_noise_and_elsewhere_it_is_more() -> None:
    layout = plane()
    some = simulated(400, snr=SNR)
    spectra = image_spectra(some.images, layout)
    ctf = true_ctf(some, layout)
    shifts = some.shifts_angstrom / GEOMETRY.pixel_size_angstrom
    slices = slices_of(cube_of("whole", snr=SNR), some.rotations, layout)
    found = residual_power(spectra, ctf, slices, shifts, layout).mean(axis=0)
    assert np.allclose(found[1:10], 0.5, rtol=0.1)  # noise of variance 1 per pixel
    wrong = residual_power(spectra, ctf, np.roll(slices, 1, axis=0), shifts, layout).mean(axis=0)
    assert np.all(wrong[2:6] > 1.5 * found[2:6])
    unmoved = residual_power(spectra, ctf, slices, -shifts, layout).mean(axis=0)
    assert unmoved[1:6].mean() > found[1:6].mean()
    assert shift_phases(shifts, layout).shape == slices.shape


def test_an_engine_measures_residuals_only_if_asked_and_goes_on_with_the_same_bits() -> None:
    settings = replace(SETTINGS, noise_source="residuals", noise_initial_weight=100.0)
    images = particles()
    settings = replace(settings, replay_passes=14)  # long enough to be warm
    done = run(settings, images).engine
    arrays = done.dump()[1]
    assert arrays["noise_residuals"].max() > 50
    level = arrays["noise_residual"][0, 2:7] / arrays["noise_residuals"][0, 2:7]
    outside = arrays["noise_sum"][0, 2:7] / arrays["noise_count"][0]
    assert np.all((level > 0.7 * outside) & (level < 1.6 * outside))
    assert differing(reloaded(done, settings), done) == []
    plain = run(replace(SETTINGS, replay_passes=1), images).engine
    assert plain.dump()[1]["noise_residuals"].max() == 0
