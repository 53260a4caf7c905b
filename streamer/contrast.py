"""Tell from the pixels whether protein is brighter than solvent.

Convention owned here: the sign is 1 for bright, -1 for dark and 0 where the images do not tell; the
two CTF conventions in use differ by exactly this sign, so it is measured, not assumed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reconstruct.io.table import ParticleTable
from reconstruct.types import FloatArray
from streamer.adapt import images_from_table

__all__ = ["Contrast", "contrast_of_table", "decide_sign", "measure_contrast"]

CONTRAST_SAMPLE = 1000
DISC_RADIUS = 0.3  # of the box: inside any particle that fills its box reasonably
CORNER_RADIUS = 0.5  # of the box: outside is solvent in a centred particle image
CONTRAST_SIGMAS = 4.0  # below this the sign is not called


@dataclass(frozen=True)
class Contrast:
    """Whether protein is brighter than solvent."""

    difference: float  # mean in the disc minus corners, in units of an image's own deviation
    standard_error: float
    images: int

    @property
    def sign(self) -> int:
        """1 bright, -1 dark, 0 cannot be told."""
        if not abs(self.difference) > CONTRAST_SIGMAS * self.standard_error:
            return 0
        return 1 if self.difference > 0 else -1


def measure_contrast(images: FloatArray) -> Contrast:
    """Compare the particle disc with the corners.

    Parameters
    ----------
    images
        (n, box, box); about 1,000 give a firm answer at cryo-EM's noise.
    """
    box = images.shape[-1]
    axis = (np.arange(box) - box // 2) / box
    radius = np.hypot(axis[:, None], axis[None, :])
    disc, corners = radius < DISC_RADIUS, radius > CORNER_RADIUS
    pixels = np.asarray(images, dtype=np.float32)
    spread = pixels.std(axis=(1, 2), dtype=np.float64)
    usable = np.isfinite(spread) & (spread > 0)
    pixels, spread = pixels[usable], spread[usable]
    if len(pixels) < 2:
        return Contrast(0.0, np.inf, len(pixels))
    inside = pixels[:, disc].mean(axis=1, dtype=np.float64)
    outside = pixels[:, corners].mean(axis=1, dtype=np.float64)
    difference = (inside - outside) / spread
    error = float(difference.std(ddof=1) / np.sqrt(len(difference)))
    return Contrast(float(difference.mean()), error, len(pixels))


def contrast_of_table(table: ParticleTable, *, sample: int = CONTRAST_SAMPLE) -> Contrast:
    """Measure contrast over evenly spread particles of a table."""
    rows = np.unique(np.linspace(0, len(table) - 1, min(sample, len(table))).astype(np.int64))
    return measure_contrast(images_from_table(table, rows))


def decide_sign(measured: Contrast, declared: int | None) -> tuple[int, str]:
    """Return the factor that makes protein bright, and what a person should know about it.

    Parameters
    ----------
    measured
        Contrast of a sample of the particles.
    declared
        What the metadata say (cryoSPARC's ``blob/sign``), if anything.

    Returns
    -------
    1 or -1, and a sentence; the sentence is empty when there is nothing to say.
    """
    sign = measured.sign
    if sign == 0:
        words = f"{measured.images} images do not tell whether protein is bright or dark; "
        if declared is None:
            return 1, words + "it is taken as bright"
        source = "bright" if declared > 0 else "dark"
        return declared, words + f"the metadata say {source}"
    if declared is not None and declared != sign:
        seen, said = ("bright", "dark") if sign > 0 else ("dark", "bright")
        return sign, f"protein is {seen} in the images although the metadata say {said}"
    return sign, "protein is dark in the images, which are inverted" if sign < 0 else ""
