"""Forecasts are right where the half-maps follow the model, and silent where they do not."""

from __future__ import annotations

import numpy as np
import pytest

from reconstruct.forecast import forecast
from reconstruct.quality import RESOLUTION_FSC, resolution_at

EDGE = 320.0
SHELLS = 27


def half_maps(
    particles: float, *, b: float = 0.02, scatter: float = 0.0, seed: int = 0
) -> np.ndarray:
    """FSC of half-maps whose signal-to-noise ratio falls as exp(-b s^2)."""
    shells = np.arange(SHELLS)
    ratio = particles / 300 * np.exp(-b * shells**2)
    fsc = ratio / (1 + ratio) + scatter * np.random.default_rng(seed).standard_normal(SHELLS)
    fsc[0] = 1.0
    return fsc


def of(fsc: np.ndarray, particles: float, **more: float | None):  # type: ignore[no-untyped-def]
    resolution = more.get("resolution", resolution_at(fsc, EDGE, RESOLUTION_FSC))
    return forecast(fsc, particles=particles, box_angstrom=EDGE, resolution_angstrom=resolution)


def test_the_forecast_is_what_more_particles_then_give() -> None:
    found = of(half_maps(3000), 3000)
    assert found is not None
    assert found.limited_by == "particles"
    for need in found.needs:
        later = resolution_at(half_maps(need.particles), EDGE, RESOLUTION_FSC)
        assert later == pytest.approx(need.resolution_angstrom, rel=0.01)
        assert need.low <= need.particles <= need.high
    assert found.needs[1].particles > found.needs[0].particles > 3000


def test_noise_in_the_curve_widens_the_range_that_still_holds_the_truth() -> None:
    held = 0
    for seed in range(40):
        found = of(half_maps(3000, scatter=0.02, seed=seed), 3000)
        if found is None:
            continue
        need = found.needs[0]
        shell = EDGE / need.resolution_angstrom
        truth = 300 * np.exp(0.02 * shell**2) * RESOLUTION_FSC / (1 - RESOLUTION_FSC)
        held += need.low <= truth <= need.high
    assert held >= 30


def test_where_the_finest_detail_holds_the_settings_are_the_limit() -> None:
    found = of(half_maps(1e6, b=0.01), 1e6, resolution=EDGE / 26)
    assert found is not None
    assert found.limited_by == "settings"
    assert found.needs == ()


@pytest.mark.parametrize(
    ("fsc", "particles", "more"),
    [
        (half_maps(3000), 3000, {"resolution": None}),  # not known
        (half_maps(3000), 900, {}),  # too few particles
        (np.where(np.arange(SHELLS) <= 14, half_maps(1e5), 0), 3000, {"resolution": EDGE / 14}),
        (np.where(np.arange(SHELLS) < 12, 0.99, 0.01), 3000, {}),  # a step is no line
        (np.full(SHELLS, 0.14) + 0.01 * (np.arange(SHELLS) < 12), 3000, {}),  # nor is a plateau
    ],
    ids=["unknown", "few", "radius still growing", "step", "plateau"],
)
def test_it_is_silent_where_nothing_can_be_said(
    fsc: np.ndarray, particles: float, more: dict[str, float | None]
) -> None:
    assert of(fsc, particles, **more) is None
