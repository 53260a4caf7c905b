"""Pruned transforms give what whole ones give, where the map or the samples are not 0."""

from __future__ import annotations

import numpy as np
import pytest

from reconstruct.fourier import centred_rfftn
from reconstruct.pruned_fft import to_half_cube, to_map

SIZE, EDGE, REACH = 30, 14, 11


def middle(edge: int = EDGE) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((edge,) * 3).astype(np.float32)


def whole(edge: int = EDGE) -> np.ndarray:
    """The map of ``middle`` with zeros around it."""
    return np.pad(middle(edge), (SIZE - edge) // 2)


def test_samples_of_a_map_that_is_0_outside() -> None:
    c = SIZE // 2
    span = slice(c - REACH, c + REACH + 1)
    expected = centred_rfftn(whole())[span, span, : REACH + 1]
    assert np.allclose(to_half_cube(middle(), SIZE, REACH), expected, atol=1e-4)


@pytest.mark.parametrize("edge", [EDGE, SIZE])
def test_the_middle_of_a_map(edge: int) -> None:
    half = to_half_cube(middle(), SIZE, REACH)
    full = np.zeros((SIZE, SIZE, SIZE // 2 + 1), np.complex64)
    span = slice(SIZE // 2 - REACH, SIZE // 2 + REACH + 1)
    full[span, span, : REACH + 1] = half
    spectrum = np.fft.ifftshift(full, axes=(0, 1))
    expected = np.fft.fftshift(np.fft.irfftn(spectrum, s=(SIZE,) * 3, axes=(0, 1, 2)))
    inner = slice(SIZE // 2 - edge // 2, SIZE // 2 + edge // 2)
    assert np.allclose(to_map(half, SIZE, edge), expected[inner, inner, inner], atol=1e-5)


@pytest.mark.parametrize("edge", [13, 14])
def test_there_and_back(edge: int) -> None:
    half = to_half_cube(middle(), SIZE, REACH)
    assert np.allclose(to_half_cube(to_map(half, SIZE, SIZE), SIZE, REACH), half, atol=1e-4)
    cut, start = np.zeros((SIZE,) * 3, np.float32), SIZE // 2 - edge // 2
    inner = slice(start, start + edge)
    cut[inner, inner, inner] = to_map(half, SIZE, edge)
    again = to_half_cube(to_map(half, SIZE, edge), SIZE, REACH)
    assert np.allclose(again, to_half_cube(cut, SIZE, REACH), atol=1e-4)
