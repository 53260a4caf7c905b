"""An engine of plain sums that obeys the contract: a particle lost, doubled or moved shows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from reconstruct.types import (
    Assignments,
    ClassSnapshot,
    EngineEvent,
    EngineSettings,
    Geometry,
    ParticleImages,
    Snapshot,
    StepReport,
)

Array = np.ndarray[Any, np.dtype[Any]]


class FakeEngine:
    """Float sums in order of arrival, with a decay, so that order and cuts matter."""

    def __init__(self, settings: EngineSettings, geometry: Geometry) -> None:
        self._settings = settings
        self._geometry = geometry
        self._ids = np.zeros(0, np.uint64)
        self._images = np.zeros((0, geometry.box, geometry.box), np.float16)
        self._sums = np.zeros((settings.n_classes, geometry.box, geometry.box))
        self._chain = ""  # digest of everything trained, in order
        self._trained = 0
        self._presented = 0
        self._step = 0
        self._replays_done = 0

    @property
    def ready(self) -> bool:
        return self._usable - self._trained >= self._settings.minibatch_initial

    @property
    def particles_stored(self) -> int:
        return len(self._ids)

    @property
    def _usable(self) -> int:
        limit = self._settings.particles_to_use
        return len(self._ids) if limit is None else min(limit, len(self._ids))

    def add(self, particles: ParticleImages) -> None:
        self._ids = np.concatenate([self._ids, particles.particle_ids])
        self._images = np.concatenate([self._images, particles.images.astype(np.float16)])

    def step(self) -> StepReport:
        return self._update(self._trained, self._trained + self._settings.minibatch_initial)

    def finish(self) -> Iterator[StepReport]:
        if self._trained < self._usable:
            yield self._update(self._trained, self._usable)
        passes = self._settings.replay_passes
        while self._replays_done < (2 if passes is None else passes):
            self._replays_done += 1
            yield self._update(0, self._usable)

    def _update(self, start: int, stop: int) -> StepReport:
        for row in range(start, stop):
            k = int(self._ids[row]) % self._settings.n_classes
            self._sums[k] = self._sums[k] * 0.999 + self._images[row].astype(np.float64)
            self._chain = hashlib.sha256(f"{self._chain}{self._ids[row]}".encode()).hexdigest()
        new = max(0, stop - self._trained)
        self._trained += new
        self._presented += stop - start
        self._step += 1
        k = self._settings.n_classes
        return StepReport(
            step=self._step,
            phase="initial",
            new_particles=new,
            replayed_particles=stop - start - new,
            particles_seen=self._trained,
            particles_presented=self._presented,
            temperature=1.0,
            radius_shells=(3,) * k,
            resolution_angstrom=(None,) * k,
            occupancy=(1 / k,) * k,
            evidence_per_particle=0.5,
            stage_seconds={"search": 0.001},
            events=(EngineEvent("phase", "The first update."),) if self._step == 1 else (),
        )

    def snapshot(self) -> Snapshot:
        n = self._geometry.box
        counts = np.bincount(
            self._ids[: self._trained] % np.uint64(self._settings.n_classes),
            minlength=self._settings.n_classes,
        )
        return Snapshot(
            step=self._step,
            phase="initial",
            particles_seen=self._trained,
            particles_presented=self._presented,
            geometry=self._geometry,
            classes=tuple(
                ClassSnapshot(
                    volume=np.broadcast_to(self._sums[k], (n, n, n)).astype(np.float32),
                    half1=np.zeros((n, n, n), np.float32),
                    half2=np.zeros((n, n, n), np.float32),
                    fsc=np.ones(n // 2, np.float32),
                    resolution_angstrom=None,
                    particles=int(counts[k]),
                    occupancy=1 / self._settings.n_classes,
                    effective_particles=float(counts[k]),
                    view_histogram=np.ones((18, 36), np.float32),
                )
                for k in range(self._settings.n_classes)
            ),
        )

    def assignments(self) -> Assignments:
        n = len(self._ids)
        index = (self._ids % np.uint64(self._settings.n_classes)).astype(np.int32)
        index[self._trained :] = -1
        return Assignments(
            particle_ids=self._ids,
            class_index=index,
            rotations=np.broadcast_to(np.eye(3, dtype=np.float32), (n, 3, 3)),
            shifts_angstrom=np.zeros((n, 2), np.float32),
            max_probability=np.ones(n, np.float32),
            log_likelihood=np.zeros(n, np.float32),
            half=(self._ids % np.uint64(2)).astype(np.int32) + 1,
        )

    def dump(self) -> tuple[dict[str, Any], dict[str, Array]]:
        meta = {
            "chain": self._chain,
            "trained": self._trained,
            "presented": self._presented,
            "step": self._step,
            "replays_done": self._replays_done,
        }
        return meta, {"sums": self._sums}

    def dump_store(self, start: int) -> dict[str, Array]:
        return {"ids": self._ids[start:], "images": self._images[start:]}

    @classmethod
    def load(
        cls,
        settings: EngineSettings,
        geometry: Geometry,
        meta: Mapping[str, Any],
        arrays: Mapping[str, Array],
        rows: Mapping[str, Array],
    ) -> FakeEngine:
        engine = cls(settings, geometry)
        engine._sums = arrays["sums"]
        engine._ids, engine._images = rows["ids"], rows["images"]
        engine._chain = meta["chain"]
        engine._trained, engine._presented = meta["trained"], meta["presented"]
        engine._step, engine._replays_done = meta["step"], meta["replays_done"]
        return engine

    def fingerprint(self) -> tuple[str, bytes, int, int]:
        return self._chain, self._sums.tobytes(), self._step, self._presented
