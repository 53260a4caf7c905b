"""What can be done to the classes of a session: scored, put to rest, merged, filled anew, added.

Whatever is done leaves statistics and references that agree, and a class for every particle.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from reconstruct.learned import LearnResult
from reconstruct.learner import Learner
from reconstruct.schedule import ShellGrowth, memory_window
from reconstruct.search import WeightedBatch
from reconstruct.separation import little_remembered
from reconstruct.siblings import Siblings
from reconstruct.store import ParticleStore

__all__ = [
    "Session",
    "alone",
    "asked",
    "claim",
    "class_evidence",
    "divide",
    "fill",
    "learn_cold",
    "merge",
    "put_to_rest",
    "replace_map",
    "score",
    "share_out",
    "tell_apart",
    "unite",
]

Float64 = npt.NDArray[np.float64]
Rows = npt.NDArray[np.intp]

SAMPLE = 24  # of a class's own particles, which are asked what other classes would make of them
FEWEST = 8  # of them, for a class to be judged
PORTION = 300  # particles that are searched at a time


@dataclass(frozen=True)
class Session:
    """What the life of classes looks at and changes."""

    learner: Learner
    store: ParticleStore
    trained: int  # the first rows of the store that were learned from
    weigh: Callable[[Rows, int], WeightedBatch]  # rows and radius in shells
    shell_sums: Callable[[Rows], Float64]  # (rows, 3, shells) of latest ones; see ``ShellSums``
    workers: Executor
    new_learner: Callable[..., Learner]  # an empty one; its number keys its seed; of one class,
    # or of ``n_classes``

    @property
    def classes(self) -> npt.NDArray[np.int32]:
        """Class (trained,) of each particle that was learned from."""
        return np.asarray(self.store["class_index"][: self.trained], dtype=np.int32)

    def of_class(self, k: int) -> Rows:
        """Particles of class ``k`` that can be presented again, in order of arrival."""
        return self.held(np.flatnonzero(self.classes == k))

    def held(self, rows: Rows) -> Rows:
        """Those of ``rows`` that a bounded store still has."""
        return rows[self.store.holds(rows)]


def score(
    session: Session, learner: Learner, rows: Rows, k: int, *, crossed: bool = False
) -> tuple[Rows, LearnResult]:
    """Search the particles ``rows`` in class ``k`` of a learner, alone; nothing is learned.

    ``crossed`` scores each half-set against the map of the other. The first result is the rows in
    the order of the second. Whatever the learner, its searches are as broad as the session's.
    """
    rows, half = session.store.by_half(rows, crossed=crossed)
    batch = session.weigh(rows, learner.insert_radius)
    rng = np.random.default_rng([*learner.seed, learner.updates, k])
    if learner.breadth.is_broad != session.learner.breadth.is_broad:  # a start has not looked yet
        learner = replace(learner, breadth=session.learner.breadth)
    return rows, learner.score_class(batch, half, k, rng=rng, workers=session.workers)


def asked(session: Session, k: int) -> Rows:
    """Particles of class ``k`` that its map knows little of: it flatters those that made it."""
    return little_remembered(session.of_class(k), float(session.learner.mass[k]), SAMPLE)


def class_evidence(session: Session) -> Float64:
    """Mean evidence (K, K) of particles of each class (rows) in every class.

    Of particles that ``asked`` gives, scored against the maps of the other half-set. NaN for
    classes at rest and for those that hold too few particles.
    """
    learner = session.learner
    awake = np.flatnonzero(~learner.resting)
    evidence = np.full((learner.n_classes, learner.n_classes), np.nan)
    for j in awake:
        rows = asked(session, int(j))
        if len(rows) < FEWEST:
            continue
        for k in awake:
            _, found = score(session, learner, rows, int(k), crossed=True)
            evidence[j, k] = float(found.poses.evidence.mean(dtype=np.float64))
    return evidence


def alone(session: Session, k: int, number: int) -> Learner:
    """A learner of class ``k`` alone, as it is; its radius and the width of its searches stay.

    ``number`` keys its seed.
    """
    learner, copy = session.learner, session.new_learner(number)
    copy.growth = ShellGrowth(learner.radius, float("inf"))
    copy.split, copy.group = learner.split, learner.group
    copy.presented = learner.presented
    broad = learner.breadth.is_broad
    copy.breadth = replace(learner.breadth, wanted=broad, compared_at=float("inf"))
    copy.statistics = learner.statistics[:, k : k + 1].copy()
    copy.mass = learner.mass[k : k + 1].copy()
    copy.mask_radius = learner.mask_radius[k : k + 1].copy()
    copy.shift_sums = learner.shift_sums[k : k + 1].copy()
    copy.fsc = [learner.fsc[k].copy()]
    copy.positivity.take(learner.positivity, (k,), learner.n_classes)
    copy.make_references()
    return copy


def learn_cold(session: Session, learner: Learner, rows: Rows) -> None:
    """One update of a start that has no map yet."""
    rows, half = session.store.by_half(rows)
    learner.learn(
        session.weigh(rows, learner.insert_radius),
        half,
        window=memory_window(0, learner.presented, cold=True, schedule=learner.schedule),
        cold=True,
        workers=session.workers,
    )


def put_to_rest(learner: Learner, k: int) -> None:
    """Take a class's map away: it stands for noise from now on.

    What a sibling held goes to the other, which made its map from both anyway.
    """
    if learner.siblings is not None and k in learner.siblings.classes:
        other = next(j for j in learner.siblings.classes if j != k)
        learner.siblings = None
        learner.statistics[:, other] += learner.statistics[:, k]
        learner.mass[other] += learner.mass[k]
    learner.statistics[:, k] = 0
    if learner.velocity is not None:
        learner.velocity[:, k] = 0
    learner.mass[k] = 0.0
    learner.resting[k] = True
    learner.mask_radius[k] = learner.grid.mask_radius_pixels
    learner.shift_sums[k] = 0.0
    learner.fsc[k] = np.eye(1, learner.max_radius + 1)[0]
    learner.make_references()


def merge(session: Session, j: int, k: int, source: Learner) -> int:
    """Make ``source``, which learned from both, class ``k`` and give it the particles of ``j``.

    Those that a bounded store has let go of keep their pose. Returns how many there are.
    """
    learner = session.learner
    rows = np.flatnonzero(session.classes == j)
    share = float(learner.class_share[j] + learner.class_share[k])
    learner.class_share[[j, k]] = 0.0
    put_to_rest(learner, j)
    fill(learner, k, source, share=share)
    claim(session, session.held(rows), k, least=-np.inf)
    session.store["class_index"][rows] = k
    return len(rows)


def replace_map(session: Session, k: int, source: Learner) -> int:
    """Make the one class of ``source`` class ``k``, and find its particles' poses in that map.

    Returns how many these are. Those that a bounded store has let go of keep poses in a frame that
    is gone.
    """
    learner = session.learner
    rows = session.of_class(k)
    fill(learner, k, source, share=float(learner.class_share[k]))
    if learner.n_classes == 1:
        learner.split_halves(source.radius)  # with others it cannot have a radius of its own
    return claim(session, rows, k, least=-np.inf)


def share_out(session: Session, k: int, slot: int, sources: tuple[Learner, Learner]) -> int:
    """Make two learners of one class each class ``k`` and class ``slot``, which is at rest.

    The particles of ``k`` go to the one that explains them better. Returns how many go to
    ``slot``.
    """
    learner, rows = session.learner, session.of_class(k)
    share = 0.5 * float(learner.class_share[k])
    for place, source in ((k, sources[0]), (slot, sources[1])):
        fill(learner, place, source, share=share)
    claim(session, rows, k, least=-np.inf)
    return claim(session, rows, slot)


def divide(
    session: Session, k: int, slot: int, *, differences: npt.NDArray[np.complex64], share: float
) -> None:
    """Make class ``slot``, which is at rest, the sibling of class ``k``, with a share of it.

    ``tell_apart`` comes next: it sorts the particles and makes the references.
    """
    learner = session.learner
    for held in (learner.statistics.swapaxes(0, 1), learner.mass, learner.class_share):
        held[slot] = np.float32(share) * held[k]
        held[k] *= np.float32(1.0 - share)
    learner.mask_radius[slot] = learner.mask_radius[k]
    learner.shift_sums[slot] = learner.shift_sums[k]
    learner.class_share /= learner.class_share.sum()  # less what the class at rest held
    learner.resting[slot] = False
    learner.siblings = Siblings((k, slot), differences)
    learner.fsc = learner.compare_halves()


def tell_apart(
    session: Session,
    rows: Rows,
    second: npt.NDArray[np.bool_],
    differences: npt.NDArray[np.complex64],
) -> None:
    """Give siblings new differences, and sort particles into them."""
    learner = session.learner
    assert learner.siblings is not None
    learner.siblings = Siblings(learner.siblings.classes, differences)
    classes = np.where(second, *learner.siblings.classes[::-1]).astype(np.int32)
    session.store["class_index"][rows] = classes
    learner.make_references()


def unite(session: Session) -> tuple[int, int]:
    """Make siblings one class again; the class that is at rest now, and the one that stays."""
    learner = session.learner
    assert learner.siblings is not None
    stays, goes = learner.siblings.classes
    learner.class_share[stays] += learner.class_share[goes]
    learner.class_share[goes] = 0.0
    put_to_rest(learner, goes)
    session.store["class_index"][np.flatnonzero(session.classes == goes)] = stays
    return goes, stays


def claim(session: Session, rows: Rows, k: int, *, least: float = 0.0) -> int:
    """Give those of ``rows`` to class ``k`` that it explains better by ``least`` nats.

    Returns how many these are.
    """
    store, taken = session.store, 0
    for start in range(0, len(rows), PORTION):
        part, found = score(session, session.learner, rows[start : start + PORTION], k)
        gain = found.poses.evidence - np.asarray(store["evidence"][part], np.float32)
        better = np.flatnonzero(gain > least)
        best = {
            "rotation": found.poses.rotation[better, 0],
            "shift": found.poses.shift[better, 0],
            "evidence": found.poses.evidence[better],
            "max_probability": found.weights[better, 0],
            "class_index": k,
        }
        for name, values in best.items():
            store[name][part[better]] = values
        taken += len(better)
    return taken


def fill(learner: Learner, k: int, source: Learner, *, share: float) -> None:
    """Make the one class of ``source`` class ``k``, new or at rest, with a share of particles."""
    if k == learner.n_classes:
        _add_class(learner)
    _put_statistics(learner, k, source)
    learner.mass[k] = source.mass[0]
    learner.mask_radius[k] = source.mask_radius[0]
    learner.shift_sums[k] = source.shift_sums[0]
    learner.resting[k] = False
    learner.class_share[k] = 0.0
    learner.class_share *= (1.0 - share) / max(float(learner.class_share.sum()), 1e-12)
    learner.class_share[k] = share
    learner.fsc = learner.compare_halves(k)
    learner.make_references()


def _add_class(learner: Learner) -> None:
    """Make room for one more class, at rest."""
    xp = learner.backend.xp
    more = xp.zeros((2, 1, *learner.statistics.shape[2:]), np.float32)
    learner.positivity.grow(learner.n_classes)
    learner.n_classes += 1
    learner.statistics = xp.concatenate([learner.statistics, more], axis=1)
    if learner.velocity is not None:
        still = xp.zeros((2, 1, *learner.velocity.shape[2:]), np.float32)
        learner.velocity = xp.concatenate([learner.velocity, still], axis=1)
    learner.class_share = np.append(learner.class_share, 0.0)
    learner.mass = np.append(learner.mass, 0.0)
    learner.mask_radius = np.append(learner.mask_radius, learner.grid.mask_radius_pixels)
    learner.shift_sums = np.concatenate([learner.shift_sums, np.zeros((1, 4, 4))])
    learner.resting = np.append(learner.resting, True)
    learner.fsc.append(np.eye(1, learner.max_radius + 1)[0])


def _put_statistics(learner: Learner, k: int, source: Learner) -> None:
    """Copy what the one class of ``source`` holds, as far as there is room."""
    mine, theirs = ((one.statistics.shape[2] - 1) // 2 for one in (learner, source))
    reach = min(mine, theirs)
    a, b = (slice(held - reach, held + reach + 1) for held in (mine, theirs))
    learner.statistics[:, k] = 0
    if learner.velocity is not None:
        learner.velocity[:, k] = 0
    learner.statistics[:, k, a, a, : reach + 2] = source.statistics[:, 0, b, b, : reach + 2]
