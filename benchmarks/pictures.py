"""Maps that ``benchmarks.success --keep`` left, turned onto the truth and drawn beside it.

Convention: a row is one set, its columns three central slices of the map and of the truth.

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
from reconstruct.quality import Alignment, align_to_truth, mirror

__all__ = ["laid_on", "main", "row_of_slices", "save_rows"]

Float32 = npt.NDArray[np.float32]

TILE = 160  # pixels
TITLE = 18


def laid_on(volume: Float32, found: Alignment) -> Float32:
    """A map (n, n, n) in the frame of the truth that it was aligned to."""
    map_in_hand = mirror(volume) if found.mirrored else volume
    turn = found.rotation.T[::-1, ::-1]  # map'(x) = map(R^T (x - shift)); arrays are z, y, x
    centre = np.full(3, volume.shape[0] // 2)
    offset = centre - turn @ (centre + found.shift_pixels[::-1])
    laid = scipy.ndimage.affine_transform(map_in_hand, turn, offset=offset, order=1)
    return np.asarray(laid, np.float32)


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
            title = f"{name} {number}: {found.resolution_angstrom:.1f} A, map | truth"
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
