"""The half plane's order, and that transforms of images, volumes and slices agree."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconstruct import kernels_cpu
from reconstruct.fourier import (
    centred_rfftn,
    fourier_cube,
    full_from_half,
    image_spectra,
    make_half_plane,
    shell_index,
    sinc_squared,
    soft_mask,
)
from reconstruct.projection import image_plane, images_from_transforms, make_projector, project
from reconstruct.rotations import random_rotations
from tests.reconstruct.small_sets import demo_map, plane

FLOAT32 = 2e-5  # relative to the largest coefficient: the transforms run in float32


@settings(deadline=None, max_examples=25)
@given(st.integers(4, 30), st.data())
def test_every_friedel_pair_is_there_once_in_order_of_radius(
    half: int, data: st.DataObject
) -> None:
    box = 2 * half
    radius = data.draw(st.integers(1, half - 1))
    layout = make_half_plane(box, radius)
    listed = {(int(x), int(y)) for x, y in zip(layout.kx, layout.ky, strict=True)}
    mirrored = {(-x, -y) for x, y in listed}
    assert len(listed) == len(layout.kx)
    assert not listed & mirrored
    axis = range(-half, half + 1)
    inside = {
        (x, y)
        for x in axis
        for y in axis
        if (x, y) != (0, 0) and np.floor(np.hypot(x, y) + 0.5) <= radius
    }
    assert listed | mirrored == inside
    assert np.all(np.diff(layout.kx**2 + layout.ky**2) >= 0)


def test_a_prefix_holds_exactly_the_shells_up_to_a_radius() -> None:
    layout = make_half_plane(40, 17)
    counts = [layout.count(radius) for radius in range(19)]
    assert counts[0] == 0
    assert counts[17] == counts[18] == len(layout.kx)
    for radius in range(1, 18):
        assert layout.shell[counts[radius] - 1] == radius
        assert np.all(layout.shell[counts[radius] :] > radius)
    assert np.array_equal(make_half_plane(40, 9).kx, layout.kx[: counts[9]])


def test_an_odd_box_is_refused_with_a_remedy() -> None:
    with pytest.raises(ValueError, match="even, not 33: crop or pad"):
        make_half_plane(33, 5)


@pytest.mark.parametrize("radius", [0, 16])
def test_a_radius_outside_the_transform_is_refused(radius: int) -> None:
    with pytest.raises(ValueError, match="1 to 15"):
        make_half_plane(32, radius)


@pytest.mark.parametrize("box", [8, 10])
def test_spectra_are_the_transform_about_the_centre_pixel(box: int) -> None:
    images = np.random.default_rng(0).standard_normal((3, box, box))
    layout = make_half_plane(box, box // 2 - 1)
    axis = np.arange(box) - box // 2
    along_x = np.exp(-2j * np.pi / box * np.outer(layout.kx, axis))
    along_y = np.exp(-2j * np.pi / box * np.outer(layout.ky, axis))
    expected = np.einsum("nyx,ky,kx->nk", images, along_y, along_x) / box
    assert np.allclose(image_spectra(images, layout), expected, atol=FLOAT32 * 10)


def test_white_noise_has_variance_one_half_in_each_part() -> None:
    images = np.random.default_rng(1).standard_normal((200, 32, 32))
    spectra = image_spectra(images, plane())
    assert spectra.real.var() == pytest.approx(0.5, rel=0.02)
    assert spectra.imag.var() == pytest.approx(0.5, rel=0.02)


def test_means_per_shell() -> None:
    layout = plane(7)
    means = layout.per_shell_mean(np.stack([layout.shell, 2.0 * layout.shell]))
    assert np.allclose(means, [np.arange(8), 2 * np.arange(8)])


def _slices(volume: np.ndarray, rotations: np.ndarray, radius: int) -> np.ndarray:
    layout = make_half_plane(volume.shape[0], radius)
    cube = fourier_cube(volume, radius)
    out = np.empty((len(rotations), 2, len(layout.kx)), np.float32)
    kernels_cpu.extract_slices(
        cube.view(np.float32).reshape(*cube.shape, 2),
        rotations.reshape(-1, 9).astype(np.float32),
        layout.kx,
        layout.ky,
        np.float32(2),
        out,
    )
    return out[:, 0] + 1j * out[:, 1]


def test_a_slice_is_the_spectrum_of_the_sum_along_z() -> None:
    volume = demo_map()
    layout = plane()
    expected = image_spectra(volume.sum(axis=0)[None], layout)[0]
    # grid points need no interpolation, so the correction for it is taken off again
    decay = sinc_squared(32, 64)
    cube = decay[:, None, None] * decay[None, :, None] * decay[None, None, :]
    found = _slices(volume * cube, np.eye(3)[None], 11)[0]
    assert np.abs(found - expected).max() < FLOAT32 * np.abs(expected).max()


def test_slices_are_the_spectra_of_projections_in_any_direction() -> None:
    volume = demo_map()
    rotations = random_rotations(np.random.default_rng(3), 20)
    carried = image_plane(32)
    images = images_from_transforms(project(make_projector(volume), rotations, carried), carried)
    expected = image_spectra(images, plane())
    error = _slices(volume, rotations, 11) - expected
    assert np.linalg.norm(error) < 0.05 * np.linalg.norm(expected)


def test_a_full_cube_is_that_of_the_full_transform() -> None:
    volume = np.random.default_rng(4).standard_normal((8, 8, 8)).astype(np.float32)
    whole = np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(volume)))[1:, 1:, 1:]
    half = centred_rfftn(volume)[1:, 1:, :4]
    assert np.allclose(full_from_half(half), whole, atol=1e-4)


def test_shells_of_a_half_cube() -> None:
    shells = shell_index(3)
    assert shells.shape == (7, 7, 4)
    assert shells[3, 3].tolist() == [0, 1, 2, 3]
    assert shells[3, 0, 0] == shells[0, 3, 0] == 3
    assert shells[0, 0, 3] == 5  # sqrt(27)


def test_interpolation_decays_towards_the_edge_and_not_at_the_centre() -> None:
    decay = sinc_squared(32, 64)
    assert decay[16] == 1
    assert decay[0] == pytest.approx(8 / np.pi**2)  # sinc^2 of a quarter
    assert np.allclose(sinc_squared(16, 64, spacing=2.0), decay[::2])


def test_a_soft_mask_falls_from_one_to_zero_over_its_edge() -> None:
    mask = soft_mask(32, 8.0, 4.0)
    assert mask[16, 16, 16] == mask[16, 16, 24] == 1
    assert mask[16, 26, 16] == pytest.approx(0.5)
    assert mask[4, 16, 16] == mask[0, 0, 0] == 0
    assert np.all(np.diff(mask[16, 16, 16:]) <= 0)
    coarse = soft_mask(16, 8.0, 4.0, spacing=2.0)
    assert np.allclose(coarse, mask[::2, ::2, ::2])
    assert np.array_equal(soft_mask(32, 8.0, 4.0, axes=2), mask[16])
