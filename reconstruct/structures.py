"""The demo's particle, built in code: two subunits of packed rods with stalks, a cleft, a tunnel.

It resembles no deposited structure. Envelopes are unions of ellipsoids and capsules; they are
filled with double-stranded rods (as nucleic acid looks at this resolution), bundles of thin rods
(protein helices) near the surface and weak filler, all as pseudo-atoms that the density code blurs.

Promise: the same arguments give the same density, and species share the parts that they share.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from reconstruct.density import density_from_atoms
from reconstruct.types import Geometry

__all__ = ["NATURAL_DIAMETER_ANGSTROM", "ParticleKind", "demo_atoms", "demo_particle"]

Float64 = npt.NDArray[np.float64]
ParticleKind = Literal["whole", "large_subunit", "rotated"]

NATURAL_DIAMETER_ANGSTROM = 270.0
_SEED = 70
_RATCHET_RAD = math.radians(16.0)  # turn of the small subunit in the "rotated" kind
_FINEST_PIXELS = 2.2  # blur, in pixels, that leaves nothing at the edge of the transform
_FINEST_ANGSTROM = 9.0
_DUPLEX_WEIGHT = 1.0
_FILLER_TRIES = 60_000
_FILLER_DENSITY = 0.006  # weight per cubic Angstrom; a duplex rod has about 0.01


@dataclass(frozen=True)
class _Ellipsoid:
    centre: tuple[float, float, float]
    radii: tuple[float, float, float]

    def depth(self, points: Float64) -> Float64:
        """About how far inside (positive) points (n, 3) lie, in Angstrom."""
        scaled = (points - np.array(self.centre)) / np.array(self.radii)
        inside: Float64 = (1.0 - np.linalg.norm(scaled, axis=1)) * min(self.radii)
        return inside


@dataclass(frozen=True)
class _Capsule:
    start: tuple[float, float, float]
    end: tuple[float, float, float]
    radius: float

    def depth(self, points: Float64) -> Float64:
        """How far inside (positive) points (n, 3) lie, in Angstrom."""
        a, b = np.array(self.start), np.array(self.end)
        along = b - a
        t = np.clip((points - a) @ along / (along @ along), 0.0, 1.0)
        inside: Float64 = self.radius - np.linalg.norm(points - a - t[:, None] * along, axis=1)
        return inside


@dataclass(frozen=True)
class _Plan:
    """How to pack one kind of rod (Angstrom)."""

    tries: int
    lengths: tuple[float, float]
    apart: float  # between axes
    margin: float  # from an axis to the surface
    weight: float
    strand: Callable[[Float64, Float64], Float64]


@dataclass(frozen=True)
class _Envelope:
    """Union of parts minus holes, cut by planes ``z <= ceiling`` or ``z >= floor``."""

    parts: tuple[_Ellipsoid | _Capsule, ...]
    holes: tuple[_Ellipsoid | _Capsule, ...] = ()
    ceiling: float = math.inf
    floor: float = -math.inf

    def depth(self, points: Float64) -> Float64:
        inside = np.max([part.depth(points) for part in self.parts], axis=0)
        for hole in self.holes:
            inside = np.minimum(inside, -hole.depth(points))
        inside = np.minimum(inside, self.ceiling - points[:, 2])
        bounded: Float64 = np.minimum(inside, points[:, 2] - self.floor)
        return bounded


# Angstrom; x runs from stalk to stalk, y up to the head, z through the cleft between the subunits.
_LARGE = _Envelope(
    parts=(
        _Ellipsoid((0.0, -10.0, -24.0), (90.0, 80.0, 62.0)),
        _Ellipsoid((-34.0, 18.0, -18.0), (54.0, 54.0, 44.0)),
        _Ellipsoid((38.0, -38.0, -44.0), (52.0, 50.0, 48.0)),
        _Ellipsoid((4.0, 74.0, -2.0), (24.0, 36.0, 24.0)),
        _Capsule((-72.0, 34.0, -6.0), (-106.0, 56.0, 2.0), 15.0),
        _Ellipsoid((-114.0, 62.0, 4.0), (22.0, 24.0, 19.0)),
        _Capsule((66.0, 32.0, -10.0), (126.0, 56.0, 0.0), 14.0),
    ),
    holes=(
        _Capsule((-4.0, 12.0, 30.0), (16.0, -28.0, -120.0), 10.0),  # tunnel
        _Ellipsoid((-46.0, 78.0, 8.0), (24.0, 26.0, 44.0)),  # notches beside the crown
        _Ellipsoid((54.0, 74.0, 4.0), (28.0, 32.0, 44.0)),
    ),
    ceiling=12.0,
)
_SMALL = _Envelope(
    parts=(
        _Ellipsoid((8.0, -40.0, 54.0), (48.0, 58.0, 34.0)),
        _Ellipsoid((-42.0, -8.0, 46.0), (30.0, 34.0, 24.0)),
        _Capsule((2.0, 5.0, 50.0), (8.0, 44.0, 56.0), 19.0),
        _Ellipsoid((8.0, 70.0, 60.0), (50.0, 32.0, 32.0)),
        _Capsule((44.0, 74.0, 62.0), (86.0, 84.0, 62.0), 15.0),
        _Capsule((24.0, -88.0, 52.0), (36.0, -118.0, 44.0), 13.0),
    ),
    holes=(_Ellipsoid((44.0, 24.0, 50.0), (26.0, 18.0, 44.0)),),
    floor=25.0,
)
# Rods laid by hand where chance would leave thin parts empty.
_LARGE_SPINES = (
    ((-66.0, 28.0, -8.0), (-120.0, 64.0, 4.0)),
    ((-112.0, 74.0, -6.0), (-116.0, 46.0, 12.0)),
    ((60.0, 28.0, -12.0), (124.0, 55.0, 0.0)),
)
_SMALL_SPINES = (
    ((40.0, 73.0, 62.0), (88.0, 84.0, 62.0)),
    ((22.0, -82.0, 53.0), (36.0, -119.0, 44.0)),
    ((3.0, -14.0, 46.0), (9.0, 56.0, 58.0)),
)
# Bridges between the subunits, and an L of two rods that sits in the cleft.
_BRIDGES = (
    ((-22.0, -14.0, 6.0), (-24.0, -12.0, 34.0)),
    ((18.0, -48.0, 4.0), (16.0, -46.0, 36.0)),
    ((30.0, -12.0, 4.0), (26.0, -16.0, 34.0)),
    ((4.0, 60.0, 8.0), (6.0, 58.0, 38.0)),
    ((26.0, 28.0, 12.0), (-4.0, 12.0, 2.0)),
    ((26.0, 28.0, 12.0), (8.0, 30.0, 46.0)),
)


def demo_particle(
    geometry: Geometry,
    *,
    kind: ParticleKind = "whole",
    diameter_angstrom: float | None = None,
    resolution_angstrom: float | None = None,
) -> npt.NDArray[np.float32]:
    """Density of the demo's particle on a grid.

    Parameters
    ----------
    geometry
        Box and pixel size.
    kind
        ``whole``; ``large_subunit`` alone; ``rotated``: the small subunit turned on the large one.
    diameter_angstrom
        Longest extent; by default the natural one, or 0.78 of the box if that is smaller.
    resolution_angstrom
        Blur; by default as fine as the pixels carry, but not finer than 9 Angstrom.

    Returns
    -------
    (box, box, box) float32, the centre of mass at the centre.
    """
    diameter = diameter_angstrom or min(NATURAL_DIAMETER_ANGSTROM, 0.78 * geometry.box_angstrom)
    scale = diameter / NATURAL_DIAMETER_ANGSTROM
    finest = max(_FINEST_ANGSTROM, _FINEST_PIXELS * geometry.pixel_size_angstrom)
    positions, weights = demo_atoms(kind)
    return density_from_atoms(
        positions * scale,
        weights,
        geometry=geometry,
        resolution_angstrom=resolution_angstrom or finest,
    )


def demo_atoms(kind: ParticleKind = "whole") -> tuple[Float64, Float64]:
    """Pseudo-atoms of the particle: positions (a, 3) x, y, z in Angstrom and weights (a,)."""
    large, small = _subunits()
    link = np.concatenate([_duplex(np.array(a), np.array(b)) for a, b in _BRIDGES])
    upper = np.concatenate([small[0], link])
    upper_weights = np.concatenate([small[1], np.full(len(link), _DUPLEX_WEIGHT)])
    if kind == "large_subunit":
        return _centred(*large)
    if kind == "rotated":
        cosine, sine = math.cos(_RATCHET_RAD), math.sin(_RATCHET_RAD)
        turn = np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])
        upper = upper @ turn.T
    return _centred(np.concatenate([large[0], upper]), np.concatenate([large[1], upper_weights]))


@functools.cache
def _subunits() -> tuple[tuple[Float64, Float64], tuple[Float64, Float64]]:
    """Atoms of the large and the small subunit; about a second's work, so done once."""
    rng = np.random.default_rng(_SEED)
    large = _fill(rng, _LARGE, _LARGE_SPINES, bounds=((-140, 145), (-105, 115), (-100, 14)))
    small = _fill(rng, _SMALL, _SMALL_SPINES, bounds=((-75, 105), (-135, 105), (22, 95)))
    return large, small


def _centred(positions: Float64, weights: Float64) -> tuple[Float64, Float64]:
    """Move the centre of mass, on which a particle picker would centre, to the origin."""
    return positions - np.average(positions, axis=0, weights=weights), weights


def _fill(
    rng: np.random.Generator,
    envelope: _Envelope,
    spines: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...],
    *,
    bounds: tuple[tuple[float, float], ...],
) -> tuple[Float64, Float64]:
    """Pack an envelope with duplex rods, then thin rods, then weak filler."""
    low, high = np.array(bounds, dtype=np.float64).T
    axes = [_axis(np.array(start), np.array(end)) for start, end in spines]
    occupied = np.concatenate(axes)
    atoms = [_duplex(axis[0], axis[-1]) for axis in axes]
    weights = [np.full(len(rod), _DUPLEX_WEIGHT) for rod in atoms]
    for plan in _PLANS:
        start = rng.uniform(low, high, size=(plan.tries, 3))
        direction = rng.standard_normal((plan.tries, 3))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        end = start + rng.uniform(*plan.lengths, size=(plan.tries, 1)) * direction
        ends_inside = np.minimum(envelope.depth(start), envelope.depth(end)) >= plan.margin
        for i in np.flatnonzero(ends_inside):
            axis = _axis(start[i], end[i])
            if envelope.depth(axis).min() < plan.margin:
                continue
            if _nearest(axis, occupied) < plan.apart:
                continue
            occupied = np.concatenate([occupied, axis])
            rod = plan.strand(axis[0], axis[-1])
            atoms.append(rod)
            weights.append(np.full(len(rod), plan.weight * rng.uniform(0.8, 1.2)))
    filler = rng.uniform(low, high, size=(_FILLER_TRIES, 3))
    filler = filler[envelope.depth(filler) > 2.0]
    # Points per volume, and so the filler's density, are the same in every envelope.
    weight = _FILLER_DENSITY * float(np.prod(high - low)) / _FILLER_TRIES
    atoms.append(filler)
    weights.append(np.full(len(filler), weight))
    return np.concatenate(atoms), np.concatenate(weights)


def _axis(start: Float64, end: Float64) -> Float64:
    """Points (p, 3) at most 5 Angstrom apart from start to end."""
    steps = math.ceil(float(np.linalg.norm(end - start)) / 5.0)
    points: Float64 = start + np.linspace(0.0, 1.0, steps + 1)[:, None] * (end - start)
    return points


def _nearest(line: Float64, axes: Float64) -> float:
    offsets = line[:, None, :] - axes[None, :, :]
    return float(np.sqrt((offsets**2).sum(axis=2).min()))


def _frame(direction: Float64) -> tuple[Float64, Float64]:
    """Two unit vectors across a direction."""
    helper = np.eye(3)[int(np.argmin(np.abs(direction)))]
    first = np.cross(direction, helper)
    first /= np.linalg.norm(first)
    return first, np.cross(direction, first)


def _duplex(start: Float64, end: Float64) -> Float64:
    """Two strands around an axis, 8.5 Angstrom away from it, 28 per turn, and a core."""
    length = float(np.linalg.norm(end - start))
    direction = (end - start) / length
    u, v = _frame(direction)
    along = np.arange(0.0, length, 1.4)
    angle = 2.0 * math.pi * along / 28.0
    axis = start + along[:, None] * direction
    strands = []
    for phase in (0.0, 2.4):  # the angle between the strands gives a wide and a narrow groove
        around = np.cos(angle + phase)[:, None] * u + np.sin(angle + phase)[:, None] * v
        strands += [axis + 8.5 * around, axis + 4.0 * around]
    return np.concatenate(strands)


def _thin(start: Float64, end: Float64) -> Float64:
    """One strand close around an axis: 2.3 Angstrom away, 5.4 per turn."""
    length = float(np.linalg.norm(end - start))
    direction = (end - start) / length
    u, v = _frame(direction)
    along = np.arange(0.0, length, 0.5)
    angle = 2.0 * math.pi * along / 5.4
    around = np.cos(angle)[:, None] * u + np.sin(angle)[:, None] * v
    return start + along[:, None] * direction + 2.3 * around


_PLANS = (  # longest rods first: what comes later has to find a gap
    _Plan(2500, (48.0, 80.0), 19.0, 8.0, _DUPLEX_WEIGHT, _duplex),
    _Plan(5000, (26.0, 48.0), 18.0, 7.0, _DUPLEX_WEIGHT, _duplex),
    _Plan(9000, (16.0, 28.0), 10.0, 3.0, 0.6, _thin),
)
