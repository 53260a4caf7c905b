"""Near-spherical particles: told from the data, and the course that finds their map.

The low shells of a hollow ball say nothing about its orientation: a coarse pass over them keeps
poses at random, and a C1 start ends in a local minimum. Where the user has named a cubic group,
its operators are the way in. Starts have the group from their first batch and are searched at the
resolution that carries orientation. What they find at low resolution is the particle or its
opposite, with hollows for bumps, which fits nearly as well and never turns into the particle; so
the opposite of every start goes on beside it. All march from low resolution to a high one again and
again, and those with the highest evidence stay. docs/decisions/spherical.md has the
measurements.

Radii are given per particle diameter: ``n`` means ``n`` shells of a box as wide as the particle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from reconstruct.imposing import seek_axes
from reconstruct.learned import first_half
from reconstruct.learner import Learner
from reconstruct.learner_state import dump_learner, restore_learner
from reconstruct.search import WeightedBatch
from reconstruct.symmetry import parse_group
from reconstruct.symmetry_course import SYMMETRY_SCORE
from reconstruct.update import shell_table

__all__ = [
    "BATCH",
    "FIELD",
    "PROBED",
    "STARTS",
    "TRIED",
    "WINDOW",
    "Sphericity",
    "best_of_groups",
    "is_over",
    "keep_best",
    "make_opposite",
    "prepare_starts",
    "race_ends",
    "restart_radius",
    "shows_axes",
    "sphericity",
    "steer",
    "told_apart",
    "window_of",
    "within_reach",
]

Float32 = npt.NDArray[np.float32]

SPHERICAL_SHARE = 0.4  # of the evidence, that views may explain of a near-sphere
PROBED = 300  # particles that the verdict is asked of

STARTS = 4
FIELD = (2 * STARTS, 5, 3, 2)  # starts and opposites that march, in each of the marches
RACED = 1300  # presentations of every start, at one radius
MARCHED = 2500  # presentations of one march, from MARCH_FROM to MARCH_TO
WINDOW = 300.0  # particles remembered
BATCH = 100
RACE_AT = 10.2
TRIED = ("O", "I")  # groups of near-balls that are raced where none is named; T lies in both
TELLING = 1.03  # times the evidence of the other group's best, that a group is believed at
MARCH_FROM, MARCH_TO = 6.25, 15.6  # or as far as the session goes, if that is less
MORE_MARCHES = 2  # at most, while groups are too close to tell
HOPELESS = 1.1  # times the evidence of a group's best that another's has, for it to be given up


@dataclass(frozen=True)
class Sphericity:
    """How much of what a map explains depends on the view."""

    evidence: float  # mean per particle, nats against noise only
    of_a_ball: float  # the same of the radially averaged map

    @property
    def share(self) -> float:
        """Share of the evidence that only views explain; 0 for a ball."""
        return float(1.0 - self.of_a_ball / self.evidence) if self.evidence > 0 else 1.0

    @property
    def near_ball(self) -> bool:
        """Whether views explain so little that low shells cannot be trusted with poses."""
        return self.share < SPHERICAL_SHARE


def sphericity(
    learner: Learner,
    batch: WeightedBatch,
    half: npt.NDArray[np.intp],
    *,
    workers: Executor,
) -> Sphericity:
    """Compare a learner's map with its own radial average on particles (sorted by half-set)."""
    assert learner.cubes is not None
    cubes = learner.backend.asnumpy(learner.cubes)
    ball = np.stack([_radial_average(cube[..., :2]) for cube in cubes])
    if cubes.shape[-1] == 4:  # a device keeps each value with the next along x
        ball = np.concatenate([ball, np.roll(ball, -1, axis=3)], axis=-1)

    def evidence(cubes: Float32) -> float:
        probe = replace(learner, cubes=learner.backend.asarray(cubes))
        poses, _ = probe.search(
            batch,
            first_half(half),
            np.random.default_rng([*learner.seed, learner.updates]),
            cold=False,
            workers=workers,
            start=None,
        )
        return float(learner.backend.asnumpy(poses.evidence).mean())

    return Sphericity(evidence=evidence(cubes), of_a_ball=evidence(ball))


def _radial_average(cube: Float32) -> Float32:
    """Mean over shells one grid step wide of a centred Fourier cube (g, g, g, 2)."""
    g = cube.shape[0]
    axis = np.arange(g) - (g - 1) / 2
    squares = axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis[None, None, :] ** 2
    shell = np.round(np.sqrt(squares)).astype(np.intp)
    counts = np.bincount(shell.ravel())
    mean = np.bincount(shell.ravel(), cube[..., 0].ravel()) / np.maximum(counts, 1)
    ball = np.zeros_like(cube)  # the imaginary part of what is even is 0
    ball[..., 0] = mean[shell]
    return ball


def _shells(per_diameter: float, learner: Learner) -> int:
    diameter = 2 * float(learner.mask_radius.max())
    return round(per_diameter * learner.grid.box / diameter)


def _radius(per_diameter: float, learner: Learner) -> int:
    shells = _shells(per_diameter, learner)
    return int(np.clip(shells, learner.schedule.start_radius, learner.max_radius))


def within_reach(learner: Learner) -> bool:
    """Whether the session's resolution is one at which a near-ball's views can be told."""
    return _shells(RACE_AT, learner) <= learner.max_radius


def shows_axes(learner: Learner, group: str) -> bool:
    """Whether the map shows the axes of ``group`` already, so that it needs no other course."""
    return max(verdict.score for verdict in seek_axes(learner, group)) >= SYMMETRY_SCORE


def prepare_starts(fresh: list[Learner], leader: Learner, group: str) -> list[Learner]:
    """Make fresh learners starts of this course, with the mask that ``leader`` has found."""
    for learner in fresh:
        learner.group = parse_group(group).name
        learner.mask_radius = leader.mask_radius.copy()
        learner.coarse_radius = _radius(RACE_AT, learner) - 1
        steer(learner)
    return fresh


def make_opposite(start: Learner, fresh: Learner) -> Learner:
    """Make ``fresh`` a start whose map is that of ``start`` with hollows for bumps.

    The statistics become those of particles that look like the mean over views, less what set
    them apart from it: N' = 2 B D - N, where B is the radial mean of N / D.
    """
    meta, arrays = dump_learner(start)
    for other in ("velocity", "references"):  # they lead to the other map
        arrays.pop(other, None)
    held: Float32 = np.array(arrays["statistics"], np.float32)
    arrays["statistics"] = held
    reach = (held.shape[-3] - 1) // 2
    shells, _ = shell_table(reach, 1.0)  # one grid step wide
    inner = held[..., : reach + 1, :]  # (2, 1, g, g, reach + 1, 3); the column beyond is empty
    both = inner.sum(axis=(0, 1), dtype=np.float64)
    weight = np.bincount(shells.ravel(), both[..., 2].ravel())
    ball = np.bincount(shells.ravel(), both[..., 0].ravel()) / np.maximum(weight, 1e-20)
    inner[..., 0] = 2 * ball[shells] * inner[..., 2] - inner[..., 0]
    inner[..., 1] *= -1  # the transform of a ball is real
    restore_learner(fresh, meta, arrays)
    return fresh


def race_ends(before: float, after: float) -> bool:
    """Whether starts that had ``before`` presentations end their race with ``after``."""
    return before < RACED <= after


def is_over(before: float, after: float, best: Mapping[str, float]) -> bool:
    """Whether starts that had ``before`` presentations end their last march with ``after``.

    As long as groups are too close to tell there are some more: each march finds a little more of
    the right one. ``best`` is what each group explains.
    """
    march = _march(after)
    more = MORE_MARCHES if len(best) > 1 and not told_apart(best) else 0
    return march != _march(before) and march >= len(FIELD) + more


def steer(learner: Learner) -> None:
    """Set the radius that a start has reached; half maps that share a reference cannot say."""
    radius = _radius(RACE_AT, learner)
    if learner.presented >= RACED:
        lowest, highest = _radius(MARCH_FROM, learner), _radius(MARCH_TO, learner)
        done = (learner.presented - RACED) % MARCHED
        radius = round(lowest + (highest - lowest) * done / MARCHED)
    learner.hold_radius(radius)


def keep_best(learners: Sequence[Learner], before: float) -> list[Learner]:
    """The starts of every group that go on in this march: those with the highest evidence.

    A group far behind keeps one once a march is over, so that there is something to tell it by;
    starts had ``before`` presentations before their last update.
    """
    march = _march(learners[0].presented)
    most = FIELD[min(max(march, 0), len(FIELD) - 1)]
    over = march >= 1 and march != _march(before)
    best, kept = best_of_groups(learners), []
    for group, evidence in best.items():
        own = [learner for learner in learners if learner.group == group]
        hopeless = over and max(best.values()) > HOPELESS * evidence
        room = 1 if hopeless else most
        if len(own) > room:
            own = sorted(own, key=lambda learner: -learner.evidence)[:room]
        kept += own
    return kept


def _march(presented: float) -> int:
    """Number of the march that starts are in, from 0; negative while they race."""
    return int((presented - RACED) // MARCHED)


def best_of_groups(learners: Sequence[Learner]) -> dict[str, float]:
    """Evidence of the best start of every group, nats per particle."""
    best: dict[str, float] = {}
    for learner in learners:
        best[learner.group] = max(learner.evidence, best.get(learner.group, 0.0))
    return best


def told_apart(best: Mapping[str, float]) -> bool:
    """Whether one group explains so much more than the next that it is the particle's."""
    first, second = sorted(best.values(), reverse=True)[:2]
    return first > TELLING * second


def restart_radius(learner: Learner) -> int:
    """Shells from which the half-sets go on by themselves: those that all starts share."""
    return _radius(MARCH_FROM, learner)


def window_of(learner: Learner, usual: float) -> float:
    """Particles that a learner remembers: one of this course never fewer than ``WINDOW``."""
    return max(usual, WINDOW) if learner.coarse_radius else usual
