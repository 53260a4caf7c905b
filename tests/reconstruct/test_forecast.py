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


def test_with_the_same_poses_the_upper_limit_is_what_more_particles_then_give() -> None:
    found = of(half_maps(3000), 3000)
    assert found is not None
    assert found.limited_by == "particles"
    for need in found.needs:
        later = resolution_at(half_maps(need.high), EDGE, RESOLUTION_FSC)
        assert later == pytest.approx(need.resolution_angstrom, rel=0.01)
        assert 3000 < need.low < need.particles < need.high
        assert need.low / 3000 == pytest.approx((need.high / 3000) ** 0.5, rel=0.01)
    assert len(found.needs) == 2
    assert found.needs[1].particles > found.needs[0].particles


def test_noise_in_the_curve_widens_the_range() -> None:
    exact = of(half_maps(3000), 3000).needs[0]
    ranges = []
    for seed in range(40):
        found = of(half_maps(3000, scatter=0.02, seed=seed), 3000)
        if found is not None:
            need = found.needs[0]
            ranges.append(need.high / need.low)
    assert len(ranges) >= 20
    assert np.median(ranges) > 1.05 * exact.high / exact.low


# Ends of sessions (two replays) with the first 3,500 and 6,000 of 10,000 ribosomes, and the size
# of a session whose resolution was a shell finer, by interpolation between sessions.
MEASURED = {
    3500: ([0.97, 0.92, 0.74, 0.47, 0.36, 0.32, 0.28, 0.24, 0.15, 0.09, 0.05, 0.03], 20.02, 4610),
    6000: ([0.98, 0.95, 0.82, 0.59, 0.47, 0.42, 0.40, 0.35, 0.28, 0.20, 0.14, 0.14], 21.98, 7480),
}


@pytest.mark.parametrize("particles", MEASURED)
def test_the_range_held_what_was_then_needed(particles: int) -> None:
    curve, shell, needed = MEASURED[particles]
    fsc = np.concatenate([np.ones(12), curve, [0.05, 0.0, 0.0]])
    found = of(fsc, particles, resolution=EDGE / shell)
    assert found is not None
    assert found.needs[0].low < needed < found.needs[0].high
    assert found.needs[0].high < 2 * found.needs[0].low


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
