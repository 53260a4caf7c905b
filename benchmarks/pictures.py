"""Maps that ``benchmarks.success --keep`` left, turned onto the truth and drawn beside it.

Convention: a row is one set, its columns three central slices of the map and of the truth. FSC is
given as it is, and within a soft mask of the truth (its density at 20 A above 15 % of its 99.5th
percentile, two voxels more, a cosine edge of three): what a model's FSC with a map mostly is.
Masked maps take in neighbouring shells, which flatters them.

    python -m benchmarks.success --set groel --particles 4000 --seeds 1 --keep build/groel
    python -m benchmarks.pictures groel=build/groel/0_replay_2.npz --save maps.png
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import scipy.ndimage
from PIL import Image, ImageDraw

from benchmarks.sets import load
from reconstruct.density import low_pass
from reconstruct.quality import (
    Alignment,
    align_to_truth,
    fourier_shell_correlation,
    mirror,
    resolution_at,
)
from reconstruct.types import Geometry

__all__ = ["laid_on", "main", "row_of_slices", "save_rows", "soft_body"]

Float32 = npt.NDArray[np.float32]

TILE = 160  # pixels
TITLE = 18
BLUR_ANGSTROM, LEVEL = 20.0, 0.15  # of the density that a mask is made of
MARGIN, EDGE = 2.0, 3.0  # voxels


def laid_on(volume: Float32, found: Alignment) -> Float32:
    """A map (n, n, n) in the frame of the truth that it was aligned to.

    By cubic splines of a copy with twice as many samples, padded in Fourier space.
    """
    n = volume.shape[0]
    map_in_hand = mirror(volume) if found.mirrored else volume
    padded = np.pad(np.fft.fftshift(np.fft.fftn(map_in_hand)), n // 2)
    fine = (np.fft.ifftn(np.fft.ifftshift(padded)).real * 8).astype(np.float32)
    turn = found.rotation.T[::-1, ::-1]  # map'(x) = map(R^T (x - shift)); arrays are z, y, x
    centre = np.full(3, n // 2)
    offset = centre - turn @ (centre + found.shift_pixels[::-1])
    laid = scipy.ndimage.affine_transform(
        fine, 2 * turn, offset=2 * offset, output_shape=volume.shape, order=3
    )
    return np.asarray(laid, np.float32)


def soft_body(volume: Float32, geometry: Geometry) -> Float32:
    """Mask (n, n, n) of a molecule, from 0 to 1."""
    blurred = low_pass(volume, geometry=geometry, resolution_angstrom=BLUR_ANGSTROM)
    body = blurred > LEVEL * np.percentile(blurred, 99.5)
    beyond = scipy.ndimage.distance_transform_edt(~body) - MARGIN
    inside = 1.0 - np.clip(beyond / EDGE, 0.0, 1.0)
    return np.asarray(0.5 - 0.5 * np.cos(np.pi * inside), np.float32)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("maps", nargs="+", metavar="SET=FILE")
    parser.add_argument("--save", type=Path, required=True, metavar="FILE")
    options = parser.parse_args(arguments)
    data = Path(os.environ.get("ABINITIO_DATA", "../shared/data"))
    rows = []
    for item in options.maps:
        name, file = item.split("=", 1)
        chosen = load(name, data, n_particles=1)
        with np.load(file) as archive:
            volumes = archive["volumes"]
        for number, kind in enumerate(chosen.species, 1):
            pixel = chosen.geometry.pixel_size_angstrom
            all_found = [(align_to_truth(v, kind.volume, pixel), v) for v in volumes if np.any(v)]
            found, volume = min(all_found, key=lambda pair: pair[0].resolution_angstrom)
            laid = laid_on(volume, found)
            mask = soft_body(kind.volume, chosen.geometry)
            fsc = fourier_shell_correlation(laid * mask, kind.volume * mask)
            masked = resolution_at(fsc, chosen.geometry.box_angstrom)
            told = f"{found.resolution_angstrom:.1f} A, {masked:.1f} A in a mask"
            title = f"{name} {number}: {told}, map | truth"
            rows.append(row_of_slices(title, laid, kind.volume))
            agreed = np.corrcoef(laid.ravel(), kind.volume.ravel())[0, 1]
            print(f"{title}; correlation {agreed:.2f}")
    save_rows(rows, options.save)


def save_rows(rows: Sequence[npt.NDArray[np.uint8]], file: Path) -> None:
    """Write rows of equal width as one picture."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(rows)).save(file)


def row_of_slices(title: str, volume: Float32, truth: Float32) -> npt.NDArray[np.uint8]:
    """Three central slices of two maps (n, n, n), with a title above."""
    tiles = [_tile(one, axis) for one in (volume, truth) for axis in range(3)]
    strip = Image.fromarray(np.concatenate(tiles, axis=1))
    row = Image.new("L", (strip.width, strip.height + TITLE), 255)
    row.paste(strip, (0, TITLE))
    ImageDraw.Draw(row).text((4, 3), title, fill=0)
    return np.asarray(row)


def _tile(volume: Float32, axis: int) -> npt.NDArray[np.uint8]:
    plane = np.take(volume, volume.shape[0] // 2, axis=axis)
    low, high = np.quantile(plane, [0.01, 0.995])
    grey = np.clip((plane - low) / max(high - low, 1e-12), 0, 1)
    tile = Image.fromarray((255 * grey).astype(np.uint8)).resize((TILE, TILE))
    return np.asarray(tile)


if __name__ == "__main__":
    main()
