"""The demo's particle is one asymmetric, well-framed, repeatable density with the wanted parts."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from reconstruct.structures import ParticleKind, _subunits, demo_atoms, demo_particle
from reconstruct.types import Geometry

GEOMETRY = Geometry(box=48, pixel_size_angstrom=6.0)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def test_the_same_arguments_give_the_same_bits() -> None:
    first = demo_particle(GEOMETRY)
    _subunits.cache_clear()
    assert first.tobytes() == demo_particle(GEOMETRY).tobytes()


@pytest.mark.parametrize("kind", ["whole", "large_subunit", "rotated"])
def test_it_is_centred_and_stays_inside_the_box(kind: ParticleKind) -> None:
    volume = np.maximum(demo_particle(GEOMETRY, kind=kind), 0)
    axis = np.arange(48) - 24
    for direction in range(3):
        profile = volume.sum(axis=tuple({0, 1, 2} - {direction}))
        assert abs((profile * axis).sum() / profile.sum()) < 0.2
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    outside = x**2 + y**2 + z**2 > 23**2
    assert volume[outside].sum() < 0.005 * volume.sum()


def test_it_has_no_symmetry() -> None:
    volume = demo_particle(Geometry(box=49, pixel_size_angstrom=6.0))
    turns = [np.rot90(volume, k, axes) for k in (1, 2) for axes in ((0, 1), (1, 2), (0, 2))]
    assert max(correlation(volume, turned) for turned in turns) < 0.85
    assert correlation(volume, volume[::-1]) < 0.85  # nor is it its own mirror image


def test_the_kinds_differ_as_classes_should() -> None:
    whole, weights = demo_atoms("whole")
    large, large_weights = demo_atoms("large_subunit")
    assert 0.55 < large_weights.sum() / weights.sum() < 0.8
    rotated = demo_particle(GEOMETRY, kind="rotated")
    assert 0.6 < correlation(demo_particle(GEOMETRY), rotated) < 0.95
    assert len(whole) > len(large)


def test_the_spectrum_falls_like_a_proteins() -> None:
    power = np.abs(np.fft.fftn(demo_particle(GEOMETRY))) ** 2
    k = np.fft.fftfreq(48, 6.0)
    radius = np.sqrt(k[:, None, None] ** 2 + k[None, :, None] ** 2 + k[None, None, :] ** 2)
    bands = [(1 / 140, 1 / 70), (1 / 70, 1 / 35), (1 / 35, 1 / 20), (1 / 20, 1 / 13)]
    means = [power[(radius > low) & (radius < high)].mean() for low, high in bands]
    assert all(a > 2 * b for a, b in itertools.pairwise(means))
    assert means[0] < 1e5 * means[2]  # and there is detail left to find


def test_a_small_box_shrinks_the_particle() -> None:
    small = Geometry(box=32, pixel_size_angstrom=5.0)
    volume = np.maximum(demo_particle(small), 0)
    assert volume[:, :, :2].sum() < 0.005 * volume.sum()
