"""A small session of one class with the map of the true poses, for tests of what tries maps."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache, partial

import numpy as np

from reconstruct.class_actions import Session
from reconstruct.engine import Engine
from reconstruct.learner_state import new_learner
from reconstruct.search import local_start
from reconstruct.simulate import Simulated
from reconstruct.types import EngineSettings
from tests.reconstruct.small_sets import GEOMETRY, simulated

SETTINGS = EngineSettings(
    max_resolution_angstrom=32.0, race_starts=2, race_particles=300, replay_passes=1
)
PARTICLES = 700


@lru_cache(maxsize=1)
def _finished() -> Engine:
    found = Engine(SETTINGS, GEOMETRY)
    found.add(simulated(PARTICLES).particle_images())
    for _ in found.finish():
        pass
    return found


def finished_engine() -> Engine:
    """A session that has come to its end by itself; each time a copy of its own."""
    engine = _finished()
    meta, arrays = engine.dump()
    copied = {name: array.copy() for name, array in arrays.items()}
    return Engine.load(SETTINGS, GEOMETRY, meta, copied, engine.dump_store(0))


@contextmanager
def known_session() -> Iterator[Session]:
    """Such a session whose map is that of the true poses."""
    with ThreadPoolExecutor(2) as workers:
        found = session_of(finished_engine(), workers)
        know_the_poses(found, simulated(PARTICLES))
        yield found


def session_of(engine: Engine, workers: ThreadPoolExecutor) -> Session:
    """What the life of classes sees of an engine."""
    return Session(
        learner=engine._leader,
        store=engine._store,
        trained=PARTICLES,
        weigh=engine._weighted,
        shell_sums=partial(engine._sums.of, noise=engine._noise.variance(), weigh=engine._weighted),
        workers=workers,
        new_learner=partial(new_learner, SETTINGS, engine._layout, backend=engine.backend),
    )


def know_the_poses(session: Session, particles: Simulated) -> None:
    """Make the map from the true poses."""
    learner = session.learner
    rows = np.arange(PARTICLES)
    half = session.store.half_of(rows)
    order = np.argsort(half, kind="stable")
    poses = local_start(
        particles.rotations[order].reshape(-1, 9).astype(np.float32),
        (particles.shifts_angstrom[order] / GEOMETRY.pixel_size_angstrom).astype(np.float32),
        np.zeros(PARTICLES, np.int32),
        keep=1,
    )
    learner.statistics[:] = 0
    batch = session.weigh(rows[order], learner.insert_radius)
    learner.adopt(batch, half[order], poses, workers=session.workers)
