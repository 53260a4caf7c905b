"""Whether two random starts found one map: what they agree on beyond being a ball.

Two starts know nothing of each other, so what both maps show is in the particles; a local minimum
is another one each time. Their low shells agree however wrong they are where a particle is nearly a
ball, so what depends on the radius alone is taken away first.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from reconstruct.learner import Learner
from reconstruct.quality import align_to_truth
from reconstruct.snapshot import class_volume
from reconstruct.symmetry_naming import centre_of_mass_pixels

__all__ = ["AGREED", "agreement", "without_ball"]

Float32 = npt.NDArray[np.float32]

# Two starts that found the map had 0.88 (virus), 0.91 (a small octahedron) and 0.95 to 1.00 (GroEL,
# beta-galactosidase, ribosome); on real apoferritin in C1, which ends in local minima, 0.29 to 0.39
# (three seeds). Half of a class's poses right in both is more than 0.5, and a wrong map of GroEL
# (46 A) and a right one agreed at 0.78 up to 29 A.
AGREED = 0.8  # from here on two maps are one
FIRST_SHELL = 4  # below, little is left of a ball but noise
SURE = 0.5  # half-map FSC of both maps in the shells that are compared
SEARCHED = 8  # shells in which rotations are tried
ROTATIONS = 4608  # 15 degrees apart
CENTRED = 0.02  # of the box, within which the centres of mass lie on each other
RINGS = 2  # radial bins per pixel


def agreement(first: Learner, second: Learner) -> float:
    """Mean FSC of the maps of class 1 of two starts, laid on each other in either hand.

    Over the shells from ``FIRST_SHELL`` on in which the half-maps of both are ``SURE``; 0 if there
    are none.
    """
    radius = min(first.radius, second.radius)
    maps = [without_ball(class_volume(one, 0, radius=radius)) for one in (first, second)]
    laid = align_to_truth(
        maps[0], maps[1], 1.0, search_radius=min(radius, SEARCHED), refine_radius=radius,
        grid=ROTATIONS, shift_reach=CENTRED,
    )  # fmt: skip
    shells = slice(FIRST_SHELL, radius + 1)
    sure = np.minimum(first.fsc[0], second.fsc[0])[shells] >= SURE
    compared = laid.fsc[shells][sure]
    return float(compared.mean()) if len(compared) else 0.0


def without_ball(volume: Float32) -> Float32:
    """The map (n, n, n) less its mean at each distance from its centre of mass, and centred."""
    axis = np.arange(volume.shape[0]) - volume.shape[0] // 2
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    cx, cy, cz = centre_of_mass_pixels(volume)
    ring = np.rint(RINGS * np.sqrt((x - cx) ** 2 + (y - cy) ** 2 + (z - cz) ** 2)).astype(np.intp)
    mean = np.bincount(ring.ravel(), volume.ravel()) / np.maximum(np.bincount(ring.ravel()), 1)
    steps = tuple(-round(float(one)) for one in (cz, cy, cx))
    rest: Float32 = (volume - mean[ring]).astype(np.float32)
    return np.roll(rest, steps, axis=(0, 1, 2))
