"""Would more particles help, and how many? An extrapolation of the half-map FSC.

The signal-to-noise ratio of a half-map in a shell, FSC / (1 - FSC), is proportional to the number
of particles and falls with the square of spatial frequency (a B factor; Rosenthal & Henderson, JMB
333 (2003) 721). The slope of its logarithm over the last shells before the resolution says how many
times more particles a finer shell needs, if all else stays. It does not: poses get better with the
map. Where measured (docs/decisions/verdicts.md) the need was between the square root of that factor
and the factor itself; those are the limits given here, widened by the slope's own error.

Promise: silent (None) where the slope is not clear, or where something else than the number of
particles sets the resolution.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from reconstruct.quality import RESOLUTION_FSC

__all__ = ["Forecast", "Need", "forecast"]

LEAST_PARTICLES = 1000  # below, the map is still being found rather than refined
SHELLS = 6  # the last ones before the resolution: the slope is local
FEWEST_SHELLS = 5  # of them, between
TELLING = (0.03, 0.97)  # these FSC
FINER = (1, 3)  # shells beyond the resolution that are forecast
MOST_TIMES = 10.0  # an extrapolation further than this is a guess
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
    shells = np.arange(used + 1)
    telling = (curve[: used + 1] > TELLING[0]) & (curve[: used + 1] < TELLING[1])
    telling &= (shells <= np.ceil(reached)) & (shells > np.ceil(reached) - SHELLS)
    if telling.sum() < FEWEST_SHELLS:
        return None
    ratio = np.log(curve[: used + 1][telling] / (1 - curve[: used + 1][telling]))
    slope, error = _slope(shells[telling].astype(np.float64) ** 2, ratio)
    steep, flat = -slope + DEVIATIONS * error, -slope - DEVIATIONS * error
    needs = []
    for finer in FINER:
        further = (reached + finer) ** 2 - reached**2
        high, low = np.exp(steep * further), np.exp(0.5 * flat * further)
        if flat <= 0 or high > MOST_TIMES or reached + finer > len(curve) - 1:
            break
        needs.append(
            Need(
                resolution_angstrom=box_angstrom / (reached + finer),
                particles=particles * float(np.sqrt(low * high)),
                low=particles * float(low),
                high=particles * float(high),
            )
        )
    return Forecast("particles", tuple(needs)) if needs else None


def _slope(x: npt.NDArray[np.floating], y: npt.NDArray[np.floating]) -> tuple[float, float]:
    """Slope of a straight line by least squares, and its error from the scatter about it."""
    away = x - x.mean()
    spread = float((away**2).sum())
    slope = float((away * y).sum()) / spread
    left = y - y.mean() - slope * away
    return slope, float(np.sqrt((left**2).sum() / (len(x) - 2) / spread))
