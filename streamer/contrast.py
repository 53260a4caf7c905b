"""Tell from the pixels whether protein is brighter than solvent.

Convention owned here: the sign is 1 for bright, -1 for dark and 0 where the images do not tell; the
two CTF conventions in use differ by exactly this sign, so it is measured, not assumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reconstruct.io.table import ParticleTable
from reconstruct.types import EngineEvent, FloatArray
from streamer.adapt import images_from_table

__all__ = [
    "Contrast",
    "contrast_event",
    "contrast_of_sums",
    "contrast_of_table",
    "contrast_sums",
    "decide_sign",
    "measure_contrast",
]

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
    return contrast_of_sums(contrast_sums(images))


def contrast_sums(images: FloatArray) -> tuple[float, float, float]:
    """Count, sum and sum of squares of the images' differences; sums of batches add up."""
    box = images.shape[-1]
    axis = (np.arange(box) - box // 2) / box
    radius = np.hypot(axis[:, None], axis[None, :])
    disc, corners = radius < DISC_RADIUS, radius > CORNER_RADIUS
    pixels = np.asarray(images, dtype=np.float32)
    spread = pixels.std(axis=(1, 2), dtype=np.float64)
    usable = np.isfinite(spread) & (spread > 0)
    pixels, spread = pixels[usable], spread[usable]
    if not len(pixels):
        return 0.0, 0.0, 0.0
    inside = pixels[:, disc].mean(axis=1, dtype=np.float64)
    outside = pixels[:, corners].mean(axis=1, dtype=np.float64)
    difference = (inside - outside) / spread
    return float(len(pixels)), float(difference.sum()), float(np.square(difference).sum())


def contrast_of_sums(sums: Sequence[float]) -> Contrast:
    """Give the contrast that accumulated sums amount to."""
    count, total, squares = sums
    if count < 2:
        return Contrast(0.0, np.inf, int(count))
    variance = max(0.0, squares - total**2 / count) / (count - 1)
    return Contrast(total / count, float(np.sqrt(variance / count)), int(count))


def contrast_event(measured: Contrast) -> EngineEvent | None:
    """Tell loudly that particles reach the engine dark; None when they do not."""
    if measured.sign >= 0:
        return None
    return EngineEvent(
        kind="contrast_inverted",
        message=(
            f"CONTRAST INVERTED: protein is dark in the first {measured.images} particles "
            f"({measured.difference:.3f} +- {measured.standard_error:.3f} standard deviations), "
            "so the maps will be inverted. Begin a new session with particles sent as dark "
            "(attach and run do this by themselves) or inverted at extraction"
        ),
        values={
            "difference": measured.difference,
            "standard_error": measured.standard_error,
            "images": float(measured.images),
        },
    )


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
