"""A mask needs the particle's own radius, whatever lies beside it and however large the box."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from reconstruct.extent import particle_radius_pixels
from reconstruct.fourier import centre_distance


def ball(box: int, radius: float) -> npt.NDArray[np.float64]:
    """A ball about the centre with a soft edge."""
    return np.asarray(1 / (1 + np.exp(2 * (centre_distance(box) - radius) * 64 / box)))


@pytest.mark.parametrize("box", [64, 96, 128, 150, 192])
def test_a_ball_s_own_radius_is_found_in_any_box(box: int) -> None:
    radius = 0.25 * box
    found = particle_radius_pixels(ball(box, radius))
    assert radius < found <= radius + 5 * box / 64


@pytest.mark.parametrize("box", [64, 128])
def test_a_neighbour_in_the_corner_does_not_widen_it(box: int) -> None:
    alone = ball(box, 0.2 * box)
    shifted = np.roll(ball(box, 0.08 * box), 3 * (int(0.36 * box),), axis=(0, 1, 2))
    assert particle_radius_pixels(alone + shifted) == particle_radius_pixels(alone)


def test_a_map_without_a_body_needs_the_whole_box() -> None:
    assert particle_radius_pixels(-ball(64, 16.0)) == 32
