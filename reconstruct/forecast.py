"""Would more particles help, and how many? An extrapolation of the half-map FSC.

The signal-to-noise ratio of a half-map in a shell, FSC / (1 - FSC), is proportional to the number
of particles and falls with the square of spatial frequency (a B factor; Rosenthal & Henderson, JMB
333 (2003) 721). A straight line through its logarithm over the shells that are neither perfect nor
empty says how many times more particles bring the next shells to FSC 0.143.

Promise: silent (None) where the line is not one, or where something else than the number of
particles sets the resolution.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from reconstruct.quality import RESOLUTION_FSC

__all__ = ["Forecast", "Need", "forecast"]

LEAST_PARTICLES = 1000  # below, the map is still being found rather than refined
FEWEST_SHELLS = 5
TELLING = (0.05, 0.95)  # FSC between which a shell says something about the ratio
FINER = (1, 3)  # shells beyond the resolution that are forecast
MOST_TIMES = 20.0  # an extrapolation further than this is a guess
DEVIATIONS = 2.0


@dataclass(frozen=True)
class Need:
    """How many particles a resolution needs."""

    resolution_angstrom: float
    particles: float
    low: float
    high: float


@dataclass(frozen=True)
class Forecast:
    """What the half-maps say about more particles."""

    limited_by: str  # "particles", or "settings": they agree to the finest detail that is used
    needs: tuple[Need, ...]  # empty where limited by the settings


def forecast(
    fsc: npt.NDArray[np.floating],
    *,
    particles: float,
    box_angstrom: float,
    resolution_angstrom: float | None,
) -> Forecast | None:
    """Forecast for a class of ``particles`` with a half-map FSC (max_radius + 1,)."""
    curve = np.asarray(fsc, np.float64)
    if resolution_angstrom is None or particles < LEAST_PARTICLES:
        return None
    if curve[-1] >= RESOLUTION_FSC:
        return Forecast("settings", ())
    used = len(curve) - 1
    while used > 1 and curve[used] == 0:  # shells that no particle has entered yet
        used -= 1
    if curve[used] >= RESOLUTION_FSC:
        return None  # the working radius holds the map back, and will grow
    reached = box_angstrom / resolution_angstrom
    shells = np.arange(1, used + 1)
    telling = (curve[1 : used + 1] > TELLING[0]) & (curve[1 : used + 1] < TELLING[1])
    # shells past the crossing are noise as often as signal; those far inside it are of other slope
    telling &= (shells <= np.ceil(reached)) & (shells >= 0.4 * reached)
    if telling.sum() < FEWEST_SHELLS:
        return None
    squared = (shells[telling] / reached) ** 2
    ratio = np.log(curve[1 : used + 1][telling] / (1 - curve[1 : used + 1][telling]))
    line = _line(squared, ratio)
    if line is None:
        return None
    wanted = float(np.log(RESOLUTION_FSC / (1 - RESOLUTION_FSC)))
    needs = []
    for finer in FINER:
        shell = reached + finer
        value, error = line.at((shell / reached) ** 2)
        times, spread = np.exp(wanted - value), np.exp(DEVIATIONS * error)
        if shell > len(curve) - 1 or times < 1 or times * spread > MOST_TIMES:
            break
        needs.append(
            Need(
                box_angstrom / shell,
                particles * float(times),
                max(particles, particles * float(times / spread)),
                particles * float(times * spread),
            )
        )
    return Forecast("particles", tuple(needs)) if needs else None


@dataclass(frozen=True)
class _Line:
    centre: float
    height: float
    slope: float
    deviation: float
    spread: float  # sum of squared distances from the centre
    count: int

    def at(self, x: float) -> tuple[float, float]:
        """Value and the error of a single measurement there."""
        far = (x - self.centre) ** 2 / self.spread
        return (
            self.height + self.slope * (x - self.centre),
            self.deviation * float(np.sqrt(1 / self.count + far)),
        )


def _line(x: npt.NDArray[np.floating], y: npt.NDArray[np.floating]) -> _Line | None:
    """Least squares; None where the slope is not clearly negative."""
    centre, height = float(x.mean()), float(y.mean())
    spread = float(((x - centre) ** 2).sum())
    slope = float(((x - centre) * (y - height)).sum()) / spread
    left = y - height - slope * (x - centre)
    deviation = float(np.sqrt((left**2).sum() / (len(x) - 2)))
    if slope + DEVIATIONS * deviation / np.sqrt(spread) >= 0:
        return None
    return _Line(centre, height, slope, deviation, spread, len(x))
