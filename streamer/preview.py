"""Small grey pictures of the maps that travel inside the volumes record.

Convention owned here: plane 0 looks along z (rows y, columns x), plane 1 along y (rows z, columns
x), plane 2 along x (rows z, columns y); row 0 is the lowest coordinate, so show them with the
origin at the lower left. Grey is per class: 0 is solvent, 255 the densest protein.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from reconstruct.types import FloatArray, Snapshot

__all__ = [
    "MAX_EDGE_PIXELS",
    "PREVIEW_BUDGET_BYTES",
    "central_slices",
    "fourier_resize",
    "grey_levels",
    "preview_arrays",
    "projections",
]

MAX_EDGE_PIXELS = 128
# Half of a stock broker's 1 MiB record: the manifest and its headers need room too.
PREVIEW_BUDGET_BYTES = 512 * 1024

# Clipped so that a few hot voxels, or the ringing at the edge of a mask, do not set the contrast.
_LOW_PERCENTILE = 1.0
_HIGH_PERCENTILE = 99.7

GreyArray = npt.NDArray[np.uint8]


def projections(volume: FloatArray) -> FloatArray:
    """Mean density along z, y and x.

    Parameters
    ----------
    volume
        (n, n, n), axes z, y, x.

    Returns
    -------
        (3, n, n), planes in the order of this module's convention.
    """
    return np.stack([volume.mean(axis=axis, dtype=np.float64) for axis in range(3)])


def central_slices(volume: FloatArray) -> FloatArray:
    """Sections through the centre of the box, index n // 2, across z, y and x.

    Parameters
    ----------
    volume
        (n, n, n), axes z, y, x.

    Returns
    -------
        (3, n, n), planes in the order of this module's convention.
    """
    centre = volume.shape[0] // 2
    return np.stack([volume.take(centre, axis=axis) for axis in range(3)])


def fourier_resize(images: FloatArray, edge: int) -> FloatArray:
    """Shrink square images by cutting their transform, so nothing aliases.

    Parameters
    ----------
    images
        (..., n, n).
    edge
        New edge in pixels; images already that small are returned as they are.
    """
    old_edge = images.shape[-1]
    if edge >= old_edge:
        return images
    transform = np.fft.rfft2(images)
    low = (edge + 1) // 2
    rows = np.concatenate([np.arange(low), np.arange(old_edge - edge + low, old_edge)])
    cut = transform[..., rows, : edge // 2 + 1]
    shrunk: FloatArray = np.fft.irfft2(cut, s=(edge, edge)) * (edge / old_edge) ** 2
    return shrunk


def grey_levels(images: FloatArray) -> GreyArray:
    """Map densities to 0..255 with one percentile-clipped range for all the images given.

    Flat input has no contrast to show and becomes 0; so do values that are not finite.
    """
    finite = np.isfinite(images)
    if not finite.any():
        return np.zeros(images.shape, np.uint8)
    low, high = np.percentile(images[finite], [_LOW_PERCENTILE, _HIGH_PERCENTILE])
    if not high > low:
        return np.zeros(images.shape, np.uint8)
    scaled = (np.where(finite, images, low) - low) * (255.0 / (high - low))
    grey: GreyArray = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
    return grey


def preview_arrays(
    snapshot: Snapshot, *, budget_bytes: int = PREVIEW_BUDGET_BYTES
) -> dict[str, GreyArray]:
    """Make the arrays that go with a volumes record.

    Parameters
    ----------
    snapshot
        What the engine returned.
    budget_bytes
        Upper bound for all arrays together; the edge shrinks below 128 pixels to honour it.

    Returns
    -------
        ``projections`` and ``slices``, each (K, 3, edge, edge).
    """
    n_classes = len(snapshot.classes)
    if n_classes == 0:
        empty = np.zeros((0, 3, 0, 0), np.uint8)
        return {"projections": empty, "slices": empty}
    affordable = math.isqrt(budget_bytes // (6 * n_classes))
    edge = max(1, min(MAX_EDGE_PIXELS, snapshot.geometry.box, affordable))
    makers = {"projections": projections, "slices": central_slices}
    return {
        name: np.stack(
            [grey_levels(fourier_resize(make(item.volume), edge)) for item in snapshot.classes]
        )
        for name, make in makers.items()
    }
