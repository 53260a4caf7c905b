"""An engine that only keeps particles and takes a fixed time per update: what the service costs.

Promise: everything around it (bus, codec, judgement, checkpoints, maps as files, pictures) is real;
its maps are those of nobody. For machines whose own engine is too slow to show the service's part.
"""

from __future__ import annotations

import time

import numpy as np

from reconstruct.types import EngineSettings, Geometry, ParticleImages, StepReport
from tests.streamer.fake_engine import Array, FakeEngine

__all__ = ["StandIn"]

STEP_S = 0.003  # a minibatch of 300 on a data-centre card


class StandIn(FakeEngine):
    """Waits, as for a device, instead of learning."""

    def __init__(self, settings: EngineSettings, geometry: Geometry) -> None:
        super().__init__(settings, geometry)
        self._kept: list[Array] = []

    @property
    def ready(self) -> bool:
        """Tell whether a full minibatch is queued."""
        return self._usable - self._trained >= self._settings.minibatch_final

    def add(self, particles: ParticleImages) -> None:
        """Keep."""
        self._ids = np.concatenate([self._ids, particles.particle_ids])
        self._kept.append(particles.images.astype(np.float16))

    def step(self) -> StepReport:
        """Wait for the device that is not there."""
        time.sleep(STEP_S)
        return self._update(self._trained, self._trained + self._settings.minibatch_final)

    def _update(self, start: int, stop: int) -> StepReport:
        report = super()._update(start, start)  # counts of a step, without its arithmetic
        self._trained = max(self._trained, stop)
        new = stop - start if stop == self._trained else 0
        self._presented += stop - start
        return StepReport(
            **{
                **vars(report),
                "new_particles": new,
                "replayed_particles": stop - start - new,
                "particles_seen": self._trained,
                "particles_presented": self._presented,
            }
        )

    def dump_store(self, start: int) -> dict[str, Array]:
        """Give the rows from ``start`` on."""
        if len(self._kept) > 1:
            self._kept = [np.concatenate(self._kept)]
        images = self._kept[0] if self._kept else self._images
        return {"ids": self._ids[start:], "images": images[start:]}
