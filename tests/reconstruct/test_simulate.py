"""Simulated particles follow their settings: repeatable, centred by their shifts, right SNR."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace

import numpy as np
import pytest

from reconstruct.density import density_from_atoms
from reconstruct.simulate import (
    JUNK,
    SimulationSettings,
    Species,
    image_name,
    simulate,
    simulate_set,
)
from reconstruct.types import Geometry

GEOMETRY = Geometry(box=32, pixel_size_angstrom=5.0)
SETTINGS = SimulationSettings(
    n_particles=250, seed=3, max_shift_angstrom=10.0, particles_per_micrograph=60
)


def particle(seed: int = 1, spread: float = 22.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return density_from_atoms(
        rng.normal(scale=spread, size=(80, 3)),
        rng.uniform(2, 9, size=80),
        geometry=GEOMETRY,
        resolution_angstrom=15.0,
    )


ONE = (Species(particle()),)
TWO = (Species(particle(), fraction=3.0), Species(particle(2, 12.0), fraction=1.0))


def test_the_same_seed_gives_the_same_bits_and_another_does_not() -> None:
    first = simulate_set(ONE, GEOMETRY, settings=SETTINGS)
    again = simulate_set(ONE, GEOMETRY, settings=SETTINGS)
    other = simulate_set(ONE, GEOMETRY, settings=replace(SETTINGS, seed=4))
    assert first.images.tobytes() == again.images.tobytes()
    assert not np.array_equal(first.images, other.images)


def test_a_consumer_that_stops_early_has_seen_the_head_of_the_set() -> None:
    whole = simulate_set(ONE, GEOMETRY, settings=SETTINGS)
    head = next(simulate(ONE, GEOMETRY, settings=SETTINGS))
    assert len(head) == 60
    assert np.array_equal(whole.images[:60], head.images)
    assert len(whole) == 250
    assert list(np.bincount(whole.micrograph)) == [60, 60, 60, 60, 10]


def test_ids_are_digests_of_unique_names() -> None:
    made = simulate_set(ONE, GEOMETRY, settings=SETTINGS)
    assert len(np.unique(made.particle_ids)) == 250
    digest = hashlib.blake2b(image_name(1, 2).encode()).digest()
    assert made.particle_ids[62] == int.from_bytes(digest[:8], "little")


def test_snr_is_signal_variance_over_noise_variance() -> None:
    clean = simulate_set(ONE, GEOMETRY, settings=replace(SETTINGS, snr=math.inf))
    assert clean.images.var(axis=(1, 2)).mean() == pytest.approx(1.0, rel=0.1)
    noisy = simulate_set(ONE, GEOMETRY, settings=replace(SETTINGS, snr=0.25))
    noise = noisy.images - math.sqrt(0.25) * clean.images
    assert noise.var() == pytest.approx(1.0, rel=0.01)
    assert abs(np.mean(noise * clean.images)) < 0.01


def test_particles_are_bright() -> None:
    clean = simulate_set(ONE, GEOMETRY, settings=replace(SETTINGS, snr=math.inf)).images
    y, x = np.mgrid[:32, :32] - 16
    radius = np.hypot(x, y)
    assert clean[:, radius < 6].mean() > clean[:, radius > 12].mean()


def test_translating_by_the_shift_centres_the_particle() -> None:
    settings = replace(SETTINGS, snr=math.inf)
    displaced = simulate_set(ONE, GEOMETRY, settings=settings)
    still = simulate_set(ONE, GEOMETRY, settings=replace(settings, max_shift_angstrom=0.0))
    assert np.array_equal(displaced.rotations, still.rotations)
    k = np.fft.fftfreq(32, 5.0)
    sx, sy = displaced.shifts_angstrom.T[:, :, None, None]
    phase = np.exp(-2j * np.pi * (sx * k[None, None, :] + sy * k[None, :, None]))
    moved = np.fft.ifft2(np.fft.fft2(displaced.images) * phase).real
    # One gain per set: both are scaled alike up to the calibration's own sampling.
    assert np.corrcoef(moved.ravel(), still.images.ravel())[0, 1] > 0.999
    assert np.abs(displaced.shifts_angstrom).max() <= 10.0
    assert np.abs(displaced.shifts_angstrom).max() > 9.0


def test_species_appear_in_their_fractions_and_look_different() -> None:
    made = simulate_set(TWO, GEOMETRY, settings=replace(SETTINGS, n_particles=4_000))
    assert np.mean(made.species == 0) == pytest.approx(0.75, abs=0.03)
    clean = simulate_set(TWO, GEOMETRY, settings=replace(SETTINGS, snr=math.inf)).images
    species = simulate_set(TWO, GEOMETRY, settings=SETTINGS).species
    assert clean[species == 1].std() < 0.8 * clean[species == 0].std() or (
        clean[species == 0].std() < 0.8 * clean[species == 1].std()
    )


@pytest.mark.parametrize("kind", ["noise", "broken", "aggregate"])
def test_junk_is_marked_and_takes_its_share(kind: str) -> None:
    settings = replace(
        SETTINGS, n_particles=600, snr=math.inf, junk_fraction=0.3, junk_kinds=(kind,)
    )
    made = simulate_set(ONE, GEOMETRY, settings=settings)
    junk = made.species == JUNK
    assert junk.mean() == pytest.approx(0.3, abs=0.06)
    power = made.images[junk].var() / made.images[~junk].var()
    assert {"noise": power < 1e-6, "broken": 0.1 < power < 0.9, "aggregate": power > 1.2}[kind]


def test_concentrated_views_gather_about_the_preferred_direction() -> None:
    direction = np.array([1.0, 2.0, -2.0]) / 3
    settings = replace(
        SETTINGS, views="concentrated", concentration=20.0, preferred_direction=tuple(direction)
    )
    views = simulate_set(ONE, GEOMETRY, settings=settings).rotations[:, 2]  # A^T z
    expected = 1 / math.tanh(20.0) - 1 / 20.0
    assert (views @ direction).mean() == pytest.approx(expected, abs=0.01)


def test_tilt_sorted_views_turn_from_one_pole_to_the_other() -> None:
    made = simulate_set(ONE, GEOMETRY, settings=replace(SETTINGS, views="tilt_sorted"))
    cosine = made.rotations[:, 2, 2]
    assert np.all(np.diff(cosine) < 0)
    assert cosine[0] > 0.98
    assert cosine[-1] < -0.98


def test_uniform_views_have_no_preferred_direction() -> None:
    views = simulate_set(ONE, GEOMETRY, settings=replace(SETTINGS, n_particles=3_000)).rotations
    assert np.linalg.norm(views[:, 2].mean(axis=0)) < 0.05
    assert np.linalg.norm(views.mean(axis=0)) < 0.1


def test_coloured_noise_keeps_its_variance_and_gains_at_low_frequency() -> None:
    settings = replace(SETTINGS, snr=1e-9, noise_colour=4.0)
    noise = simulate_set(ONE, GEOMETRY, settings=settings).images
    assert noise.var() == pytest.approx(1.0, rel=0.02)
    power = (np.abs(np.fft.fft2(noise)) ** 2).mean(axis=0)
    assert power[0, 1] > 2.5 * power[16, 16]


def test_astigmatism_and_defocus_stay_in_range() -> None:
    settings = replace(SETTINGS, astigmatism_angstrom=800.0, defocus_spread_angstrom=0.0)
    made = simulate_set(ONE, GEOMETRY, settings=settings)
    difference = made.defocus_u_angstrom - made.defocus_v_angstrom
    assert np.all((difference > 0) & (difference < 800))
    mean = (made.defocus_u_angstrom + made.defocus_v_angstrom) / 2
    assert np.all((mean >= 10_000) & (mean <= 25_000))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"snr": 0.0}, "snr"),
        ({"n_particles": 0}, "n_particles"),
        ({"junk_fraction": 1.0}, "junk_fraction"),
    ],
)
def test_settings_that_cannot_be_honoured_are_refused(
    change: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        simulate_set(ONE, GEOMETRY, settings=replace(SETTINGS, **change))


def test_a_volume_of_another_box_is_refused() -> None:
    with pytest.raises(ValueError, match="box"):
        simulate_set((Species(np.zeros((8, 8, 8))),), GEOMETRY, settings=SETTINGS)
