"""What a learner's class looks like from outside: its map, half maps, resolution and views."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from reconstruct.learner import Learner
from reconstruct.quality import RESOLUTION_FSC, resolution_at
from reconstruct.store import ParticleStore
from reconstruct.types import ClassSnapshot, WhyNone
from reconstruct.update import box_volume

__all__ = [
    "LEAST_PARTICLES",
    "Resolution",
    "class_snapshot",
    "class_snapshots",
    "class_volume",
    "direction_histogram",
    "honest_resolution",
    "resolutions_told",
    "tells_signal",
    "view_histogram",
]

LEAST_PARTICLES = 300  # of a session, and of a class, for a resolution to be told
VIEW_BINS = (18, 36)  # tilt 0..pi, rot -pi..pi


class Resolution(NamedTuple):
    """A resolution, or why there is none to tell."""

    resolution_angstrom: float | None
    why_none: WhyNone | None = None


def resolutions_told(
    learner: Learner,
    *,
    particles: int,
    racing: bool,
    doubts: Sequence[WhyNone | None],
    box_angstrom: float,
) -> tuple[Resolution, ...]:
    """What may be said of each class.

    Parameters
    ----------
    particles
        Of the session so far.
    doubts
        Per class what speaks against its map; under a group, ``imposed_symmetry`` says what a
        resolution is worth.
    """
    if racing:
        return (Resolution(None, "racing"),) * learner.n_classes
    if learner.presented <= learner.split_at:  # the half-sets learned from one reference so far
        return (Resolution(None, "sharing"),) * learner.n_classes
    if not tells_signal(learner.evidence, particles):
        few: WhyNone = "few_particles" if particles < LEAST_PARTICLES else "noise"
        return (Resolution(None, few),) * learner.n_classes
    held = learner.class_share * particles  # a class is told by its own particles
    told = []
    for own, doubt, fsc in zip(held, doubts, learner.fsc, strict=True):
        if own < LEAST_PARTICLES:
            told.append(Resolution(None, "few_particles"))
        elif doubt is not None and (learner.group == "C1" or doubt == "starts_disagree"):
            told.append(Resolution(None, doubt))
        else:
            found = honest_resolution(fsc, box_angstrom)
            told.append(Resolution(found, "halves_disagree" if found is None else None))
    return tuple(told)


def honest_resolution(
    fsc: npt.NDArray[np.floating], box_angstrom: float, threshold: float = RESOLUTION_FSC
) -> float | None:
    """Half-map resolution at FSC 0.143; None while the halves agree nowhere.

    It may only be said of half-sets with references of their own: on the ribosome set it then lies
    within 0.5 A of FSC 0.5 against truth, while halves that share a reference flatter the map
    (docs/decisions/split-references.md).
    """
    if float(fsc[1]) < threshold:
        return None
    entered = int(np.flatnonzero(fsc)[-1])  # shells beyond hold nothing that could disagree
    return resolution_at(fsc[: entered + 1], box_angstrom, threshold)


def tells_signal(evidence: float, particles: int) -> bool:
    """Whether the evidence per particle (nats) is more than a map of pure noise would have.

    Such a map explains the images it was made from, the better the fewer they are: 6.2 nats for 400
    images of noise, 4.9 for 800, 3.7 for 2,000 (real apoferritin: 59; the ribosome set: 300).
    Under 300 particles a resolution would be a guess whatever the evidence.
    """
    return particles >= LEAST_PARTICLES and evidence >= 4.0 + 2400.0 / particles


def view_histogram(rotations: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Counts of view directions over tilt x rot, ``VIEW_BINS``, of rotations (n, 3, 3)."""
    return direction_histogram(rotations[:, 2]) if len(rotations) else np.zeros(VIEW_BINS)


def direction_histogram(directions: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Counts of directions (n, 3), of any length, over tilt x rot, ``VIEW_BINS``."""
    x, y, z = np.moveaxis(np.asarray(directions, np.float64), -1, 0)
    tilt, rot = np.arctan2(np.hypot(x, y), z), np.arctan2(y, x)
    limits = [[0, np.pi], [-np.pi, np.pi]]
    counts: npt.NDArray[np.float64] = np.histogram2d(tilt, rot, bins=VIEW_BINS, range=limits)[0]
    return counts


def class_volume(learner: Learner, k: int, *, radius: int | None = None) -> npt.NDArray[np.float32]:
    """Map (box, box, box) of class ``k`` in its own mask, at its working radius or ``radius``."""
    spectrum = learner.map_spectrum(k, learner.fsc[k], radius=radius or learner.radius)
    return box_volume(spectrum, learner.class_grid(k), windowed=True)


def class_snapshot(
    learner: Learner,
    k: int,
    *,
    fsc: npt.NDArray[np.float64],
    told: Resolution,
    rotations: npt.NDArray[np.floating],
) -> ClassSnapshot:
    """Map, half maps and numbers of class ``k``; ``rotations`` (m, 3, 3) of its particles."""
    radius = learner.insert_radius
    grid = learner.class_grid(k)

    def volume(halves: tuple[int, ...], *, windowed: bool) -> npt.NDArray[np.float32]:
        spectrum = learner.map_spectrum(k, fsc, radius=radius, halves=halves)
        return box_volume(spectrum, grid, windowed=windowed)

    return ClassSnapshot(
        volume=volume((0, 1), windowed=True),
        half1=volume((0,), windowed=False),
        half2=volume((1,), windowed=False),
        fsc=fsc,
        **told._asdict(),
        particles=len(rotations),
        occupancy=float(learner.class_share[k]),
        effective_particles=min(float(learner.mass[k]), float(len(rotations))),
        # Particles of a class at rest were not seen from anywhere.
        view_histogram=view_histogram(rotations[:0] if learner.resting[k] else rotations),
    )


def class_snapshots(
    learner: Learner, store: ParticleStore, told: Sequence[Resolution]
) -> tuple[ClassSnapshot, ...]:
    """Every class, with the views of the stored particles whose best class it is."""
    class_index = np.asarray(store["class_index"], np.int32)
    rotations = np.asarray(store["rotation"], np.float32)
    return tuple(
        class_snapshot(
            learner,
            k,
            fsc=fsc,
            told=one,
            rotations=rotations[class_index == k].reshape(-1, 3, 3),
        )
        for k, (fsc, one) in enumerate(zip(learner.compare_halves(), told, strict=True))
    )
