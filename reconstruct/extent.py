"""How large the particle is: the radius that a map's own density needs, for the real-space mask.

Neighbouring particles sit inside real boxes; a mask near the particle's own radius keeps them and
solvent noise out of the reference.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
import scipy.ndimage

from reconstruct.fourier import centre_distance

__all__ = ["particle_radius_pixels"]

PROFILE_FLOOR = 0.05  # of the profile's peak: where the mean density ends
BODY_THRESHOLD = 0.5  # of the 99.5th percentile: neighbours come off the particle at this level
MARGIN_PIXELS = 1.5
LOOKED_AT = 64  # pixels along an edge, or up to twice as many


def particle_radius_pixels(volume: npt.NDArray[np.floating]) -> float:
    """Radius in pixels about the centre voxel that holds the map's central body.

    The larger of two estimates: where the spherically averaged density falls to nothing, which
    neighbours hardly disturb, and how far the largest connected dense body reaches, which keeps
    long particles whole.

    Parameters
    ----------
    volume
        (n, n, n) map at low resolution, solvent around 0, protein positive.

    Returns
    -------
    Pixels, margin included; half the box if the map shows no body. A large map is looked at in
    blocks of several pixels: the estimate needs no more, and its time goes with the voxels.
    """
    block = max(1, volume.shape[0] // LOOKED_AT)
    if block > 1:
        return float(block * particle_radius_pixels(_binned(volume, block)))
    n = volume.shape[0]
    smooth = scipy.ndimage.gaussian_filter(np.asarray(volume, np.float32), 1.0)
    distance, ring, counts = _rings(n)
    profile = (np.bincount(ring, smooth.ravel()) / counts)[: n // 2]
    peak = int(np.argmax(profile))
    if profile[peak] <= 0:
        return float(n / 2)
    below = np.flatnonzero(profile[peak:] < PROFILE_FLOOR * profile[peak])
    edge = peak + int(below[0]) if len(below) else n // 2
    labels, _ = scipy.ndimage.label(smooth > BODY_THRESHOLD * np.percentile(smooth, 99.5))
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    body = np.percentile(distance[labels == int(np.argmax(sizes))], 99.0)
    return float(min(np.ceil(max(1.05 * edge, body) + MARGIN_PIXELS), n / 2))


def _binned(volume: npt.NDArray[np.floating], block: int) -> npt.NDArray[np.floating]:
    """Mean over blocks of ``block`` pixels along each axis; what is left over is cut off."""
    n = volume.shape[0] // block
    cut = volume[: n * block, : n * block, : n * block]
    binned: npt.NDArray[np.floating] = cut.reshape(n, block, n, block, n, block).mean(
        axis=(1, 3, 5)
    )
    return binned


@lru_cache(maxsize=4)
def _rings(
    n: int,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Distance of each voxel from the centre, that in whole pixels, and voxels of each."""
    distance = centre_distance(n)
    ring = distance.astype(np.intp).ravel()
    return distance, ring, np.bincount(ring)
