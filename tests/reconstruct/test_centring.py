"""A map that is found off centre is brought to the centre, and one that is there stays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from reconstruct.backend import cpu_backend
from reconstruct.centring import centred
from reconstruct.fourier import fourier_cube
from reconstruct.symmetry import storable_statistics
from reconstruct.symmetry_naming import centre_of_mass_pixels
from reconstruct.update import MapGrid, box_volume, quotient, symmetric_plane
from tests.reconstruct.small_sets import GEOMETRY, demo_map
from tests.reconstruct.test_engine import SETTINGS, differing, particles, reloaded, run

RADIUS = 9
GRID = MapGrid(GEOMETRY.box, 2.0, 14.0)


def statistics_of(*volumes: np.ndarray) -> np.ndarray:
    """Statistics (2, K, ...) that hold maps, each half-set the same."""
    found = []
    for volume in volumes:
        cube = fourier_cube(volume, RADIUS)
        reach = (cube.shape[0] - 1) // 2
        half = cube[:, :, reach:]
        crop = np.stack([half.real, half.imag, np.ones(half.shape)], axis=-1)
        found.append(storable_statistics(crop.astype(np.float32)))
    return np.stack([np.stack(found)] * 2)


def map_of(statistics: np.ndarray) -> np.ndarray:
    reach = (statistics.shape[0] - 1) // 2
    crop = symmetric_plane(statistics, reach)
    return box_volume(quotient(crop, GRID, RADIUS, np.ones(RADIUS + 1)), GRID, windowed=True)


def test_each_class_goes_to_its_own_centre_of_mass() -> None:
    centre = centre_of_mass_pixels(demo_map())
    shifts = [(2, -3, 1), (-1, 0, 3)]
    volumes = [np.roll(demo_map(), shift, axis=(2, 1, 0)) for shift in shifts]
    statistics = statistics_of(*volumes)
    maps = [map_of(statistics[0, k]) for k in range(2)]
    for found, shift in zip(maps, shifts, strict=True):
        assert np.allclose(centre_of_mass_pixels(found), centre + shift, atol=0.6)
    moved = centred(statistics, maps, padded=GRID.padded, backend=cpu_backend())
    for h in range(2):
        for k in range(2):
            assert np.abs(centre_of_mass_pixels(map_of(moved[h, k]))).max() < 0.4
    assert np.array_equal(moved[..., 2], statistics[..., 2])  # weights stay where they are


def test_a_map_at_the_centre_is_not_touched() -> None:
    middle = -np.round(centre_of_mass_pixels(demo_map())).astype(int)
    volume = np.roll(demo_map(), tuple(middle), axis=(2, 1, 0))
    statistics = statistics_of(volume)
    found = centred(statistics, [map_of(statistics[0, 0])], padded=64, backend=cpu_backend())
    assert found is statistics


def test_an_engine_that_centres_goes_on_with_the_same_bits() -> None:
    settings = replace(SETTINGS, centring="on", race_particles=200)
    engine = run(settings, particles()).engine
    assert differing(reloaded(engine, settings), engine) == []
    found = engine.snapshot().classes[0].volume
    assert np.abs(centre_of_mass_pixels(found)).max() < 1.0
