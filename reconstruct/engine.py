"""The engine: particles in, one update at a time, maps and assignments out.

It owns the order of things: preprocessing and storing on arrival, the race of random starts on
the first particles, the pass over the stream, and replay at its end. Same settings and same
particles in the same order give the same bits, however ``add`` calls are cut, because updates are
made of fixed numbers of particles and everything random is keyed by (seed, start, update).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import ThreadpoolController

from reconstruct import spherical
from reconstruct.accumulate import fade
from reconstruct.backend import Backend, make_backend, usable_cores
from reconstruct.class_actions import Session
from reconstruct.course import Course, Replay
from reconstruct.engine_events import store_event, with_events
from reconstruct.engine_state import (
    Arrays,
    check_version,
    learner_arrays,
    pack,
    unpack_optics,
    unpack_store,
)
from reconstruct.fourier import image_spectra
from reconstruct.layout import make_layout
from reconstruct.learned import LearnResult, Start
from reconstruct.learner import Learner
from reconstruct.learner_state import restore_learner
from reconstruct.lifecycle import Lifecycle
from reconstruct.memory import plan_memory
from reconstruct.noise import NoiseSpectra, noise_model_of, normalise
from reconstruct.progress import Progress
from reconstruct.races import Races
from reconstruct.residuals import RESIDUALS_EVERY, measure_residuals
from reconstruct.schedule import memory_window
from reconstruct.search import WeightedBatch
from reconstruct.search_ahead import SearchAhead
from reconstruct.separation import class_overlaps
from reconstruct.shell_sums import ShellSums, mean_transfer
from reconstruct.snapshot import Resolution, class_snapshots, resolutions_told
from reconstruct.store import ParticleStore, ctf_parameters
from reconstruct.symmetry_course import SymmetryCourse
from reconstruct.types import (
    Assignments,
    EngineSettings,
    Geometry,
    Optics,
    ParticleImages,
    Phase,
    Snapshot,
    StepReport,
)
from reconstruct.weighting import Weigher

__all__ = ["Engine"]

Rows = npt.NDArray[np.intp]

COUNTERS = ("presented", "step")  # attributes, less the underscore, that a checkpoint keeps
MOST_BORN = 2  # classes beyond those that were asked for
_BLAS = ThreadpoolController()


class Engine(Races):
    """Online reconstruction of one session; see docs/architecture.md for the contract."""

    def __init__(
        self, settings: EngineSettings, geometry: Geometry, *, device: str | Backend = "cpu"
    ) -> None:
        """Lay out the Fourier space of the session on ``device``: auto, cpu, cuda or cuda:n.

        Raises
        ------
        ValueError
            The box or the resolutions cannot be honoured, or the device cannot do the work.
        """
        self.backend = make_backend(device)
        self.settings = settings
        self.geometry = geometry
        layout = make_layout(settings, geometry)
        self.max_radius = layout.max_radius
        self.plane, self.grid = layout.plane, layout.grid
        self._max_shift_pixels = layout.max_shift_pixels
        self._window = layout.window
        self._layout = layout
        self._symmetry = SymmetryCourse(
            settings.symmetry,
            box_angstrom=geometry.box_angstrom,
            restart_radius=layout.schedule.join_radius + 1,
        )
        self._store = ParticleStore(
            len(self.plane.kx),
            precision=settings.store_precision,
            limit=settings.store_particles,
            wanted=settings.particles_to_use,
            seed=settings.seed,
        )
        self.memory = plan_memory(
            self.backend,
            settings,
            geometry,
            grid=self.grid,
            max_radius=self.max_radius,
            max_shift_pixels=self._max_shift_pixels,
        )
        self._weigher = Weigher(
            self.backend,
            self.plane,
            box_angstrom=geometry.box_angstrom,
            budget_bytes=self.memory.store,
            most=settings.store_particles,
        )
        self._optics: list[Optics] = []
        self._noise = NoiseSpectra(
            self.max_radius + 1,
            noise_model_of(settings),
            coefficients=np.bincount(self.plane.shell, minlength=self.max_radius + 1),
        )
        self._course = Course(settings, layout.schedule)
        self._life = Lifecycle(
            most_classes=settings.n_classes + MOST_BORN,
            splitting=settings.symmetry == "C1",  # siblings cannot be turned to a group's axes
        )
        self._learners: list[Learner] = []
        self._set_pace(settings.start_stretch or 1.0)
        self._learners = [self._new_learner(i) for i in range(settings.starts)]
        self._progress = Progress(self.max_radius)
        self._sums = ShellSums(self.plane, self.backend)
        self._presented = 0
        self._step = 0
        self._workers = ThreadPoolExecutor(max_workers=usable_cores())
        self._ahead = SearchAhead(
            self._store, weigh=self._weighted, sums=self._sums.of_batch, workers=self._workers
        )

    # ---- particles in

    def add(self, particles: ParticleImages) -> None:
        """Preprocess, store and queue checked particles; beyond ``particles_to_use`` none is used.

        Raises
        ------
        ValueError
            Images of another box than the session's.
        """
        if particles.images.shape[1:] != (self.geometry.box,) * 2:
            raise ValueError(
                f"images of {particles.images.shape[1:]} in a session with box {self.geometry.box}"
            )
        if not len(particles):
            return
        groups = np.array([self._group(optics) for optics in particles.optics], dtype=np.int32)
        optics_group = groups[particles.optics_group]
        backend = self.backend
        images = normalise(particles.images, self._window, backend)
        self._noise.measure(images, optics_group, self._window, self.plane, backend)
        images *= backend.asarray(self._window)
        spectra = image_spectra(images, self.plane, xp=backend.xp, fft=backend.fft)
        held = self._store.append(
            {
                "spectra": backend.asnumpy(spectra),
                "particle_ids": particles.particle_ids,
                "optics_group": optics_group,
                "ctf": ctf_parameters(particles),
            },
            self._workers,
        )
        exact = self.settings.store_precision == "float32"  # and then there already
        self._weigher.append(spectra[: len(held)] if exact else held)

    def _group(self, optics: Optics) -> int:
        if optics not in self._optics:
            self._optics.append(optics)
            self._noise.add_group()
        return self._optics.index(optics)

    @property
    def particles_stored(self) -> int:
        """Particles in the store."""
        return self._store.count

    @property
    def _usable(self) -> int:
        limit = self.settings.particles_to_use
        return self._store.count if limit is None else min(self._store.count, limit)

    # ---- updates

    @property
    def ready(self) -> bool:
        """Whether the next update has all its particles."""
        if self._course.race_due or self._again_due:
            return True
        return self._usable - self._course.trained >= self._minibatch

    @property
    def _minibatch(self) -> int:
        return self._course.minibatch(self._leader.presented)

    def step(self) -> StepReport:
        """One update; call it only while ``ready``."""
        if self._course.race_due:
            return self._race_again(self._course.race_particles)
        if self._again_due:
            return self._replay(self._course.again(self._replayable))
        start = self._course.trained
        return self._train_new(np.arange(start, min(start + self._minibatch, self._usable)))

    def finish(self) -> Iterator[StepReport]:
        """End of the stream: the particles left over, the rest of the race, replay passes."""
        course = self._course
        while course.trained < self._usable:
            yield self.step()
        while course.racing and course.trained:
            yield self._race_again(min(course.race_particles, course.trained))
        self._ahead.forget()
        while not course.replayed_enough(self._leader.radius, self._held):
            again = course.replay(self._leader.radius, self._replayable)
            yield self._replay(again, window=math.inf)
        self._leader.catch_up(self._workers)

    def _train_new(self, rows: Rows) -> StepReport:
        self._noise.count(np.asarray(self._store["optics_group"][rows], dtype=np.intp))
        self._course.train(len(rows), held=self._store.held(self._course.trained + len(rows)))
        report = self._update(rows, new=len(rows), cold=self._course.racing)
        if told := self._choose_pace():
            report = with_events(report, told)
        if self._store.note_trained(self._course.trained):
            report = with_events(report, store_event(self.settings.store_particles or 0))
        return self._with_symmetry(self._with_classes(report))

    def _replay(self, again: Replay, *, window: float | None = None) -> StepReport:
        fade(self._leader, again.kept)
        local = not again.everywhere
        report = self._update(again.rows, new=0, cold=False, local=local, window=window)
        return self._with_symmetry(self._with_classes(report), last_chance=again.last_chance)

    def _with_classes(self, report: StepReport) -> StepReport:
        """Look after the classes of the map that was chosen."""
        if self._course.racing:
            return report
        report = self._centred(report)
        session = Session(
            learner=self._leader,
            store=self._store,
            trained=self._course.trained,
            weigh=self._weighted,
            shell_sums=partial(self._sums.of, noise=self._noise.variance(), weigh=self._weighted),
            workers=self._workers,
            new_learner=partial(self._new_learner, n_classes=1),
        )
        with _BLAS.limit(limits=1, user_api="blas"):
            events = self._life.after_update(session, streaming=report.new_particles > 0)
        return with_events(replace(report, **self._standing), *events) if events else report

    def _with_symmetry(self, report: StepReport, *, last_chance: bool = False) -> StepReport:
        """Take up a symmetry once the C1 map shows its axes."""
        if self._course.racing:
            return report
        leader = self._leader
        with _BLAS.limit(limits=1, user_api="blas"):
            event = self._symmetry.after_update(leader, self._store, last_chance=last_chance)
        return report if event is None else with_events(replace(report, **self._standing), event)

    def _update(
        self,
        rows: Rows,
        *,
        new: int,
        cold: bool,
        local: bool = False,
        window: float | None = None,
    ) -> StepReport:
        leader_before, noise, ahead = self._leader, self._noise.variance(), None
        began, steady = leader_before.clock(), self._noise.model.source != "residuals"
        result: LearnResult | None = None
        with _BLAS.limit(limits=1, user_api="blas"):
            if new and not cold and steady and len(self._awake) == 1:
                until_replay = self._course.new_before_again(self._held) + new
                waiting = min(self._usable - int(rows[0]), until_replay)
                ahead = self._ahead.take(leader_before, rows, waiting=waiting, noise=noise)
            rows, half = self._store.by_half(rows)
            start = Start(**self._store.poses(rows)) if local else None
            weighted: dict[int, WeightedBatch] = {}  # starts of a race mostly share a radius
            for learner in self._awake:
                remembered = window or memory_window(
                    self._course.trained, learner.presented, cold=cold, schedule=learner.schedule,
                    replays=self._course.again_each(self._held),
                )  # fmt: skip
                remembered = spherical.window_of(learner, remembered)
                if ahead is not None:
                    result = learner.take_in(
                        ahead[0], window=remembered, workers=self._workers, began=began
                    )
                    continue
                radius = learner.insert_radius
                if radius not in weighted:
                    weighted[radius] = self._weighted(rows, radius)
                found = learner.learn(
                    weighted[radius], half, window=remembered, cold=cold, workers=self._workers,
                    start=start,
                )  # fmt: skip
                if learner is leader_before:
                    result, batch = found, weighted[radius]
        assert result is not None
        evidence = float(result.poses.evidence.mean())
        sums = self._sums.of_batch(batch) if ahead is None else ahead[1]
        if new:
            self._sums.keep(rows, sums, noise)
        self._remember(rows, result)
        if not cold:
            leader = self._leader
            self._progress.after_update(
                leader.fsc, presented=leader.presented, new_particles=new, evidence=evidence,
                transfer=mean_transfer(sums, self.plane),
            )  # fmt: skip
            if self._noise.model.source == "residuals" and self._step % RESIDUALS_EVERY == 0:
                measured = measure_residuals(
                    leader, self._store, rows, result, half,
                    plane=self.plane, optics=self._optics, box_angstrom=self.geometry.box_angstrom,
                )  # fmt: skip
                self._noise.add_residuals(*measured)
        self._presented += len(rows)
        self._step += 1
        return self._report(new, len(rows) - new, evidence, result)

    def _weighted(self, rows: Rows, radius: int) -> WeightedBatch:
        return self._weigher.weigh(
            self._store,
            rows,
            radius,
            optics=self._optics,
            noise_variance=self._noise.variance(),
        )

    def _remember(self, rows: Rows, result: LearnResult) -> None:
        poses = result.poses
        self._store.remember(
            rows,
            rotation=poses.rotation[:, 0],
            shift=poses.shift[:, 0],
            class_index=np.argmax(result.class_mass, axis=1),
            max_probability=result.weights[:, 0],
            evidence=poses.evidence,
        )

    # ---- reports

    @property
    def phase(self) -> Phase:
        """Where the schedule stands."""
        if not self._course.trained:
            return "waiting"
        if self._course.racing:
            return "initial"
        return "intermediate" if self._leader.radius < self.max_radius else "final"

    @property
    def _class_phases(self) -> tuple[Phase, ...]:
        leader = self._leader
        return self._progress.phases(
            leader.presented, session=self.phase, n_classes=leader.n_classes
        )

    def _report(self, new: int, replayed: int, evidence: float, result: LearnResult) -> StepReport:
        leader = self._leader
        return StepReport(
            step=self._step,
            phase=self.phase,
            new_particles=new,
            replayed_particles=replayed,
            particles_seen=self._course.trained,
            particles_presented=self._presented,
            temperature=leader.temperature,
            **self._standing,
            evidence_per_particle=evidence,
            stage_seconds=result.stage_seconds,
            searches=result.searches,
        )

    @property
    def _standing(self) -> dict[str, Any]:
        """What a report says of the leader, which may change after its update."""
        leader = self._leader
        return {
            "radius_shells": (leader.radius,) * leader.n_classes,
            "resolution_angstrom": tuple(one.resolution_angstrom for one in self._told()),
            "symmetry": leader.group,
            "class_phases": self._class_phases,
            "occupancy": tuple(float(share) for share in leader.class_share),
        }

    def _told(self) -> tuple[Resolution, ...]:
        leader = self._leader
        return resolutions_told(
            leader,
            particles=self._course.trained,
            racing=self._course.racing,
            doubts=self._life.doubts.words(leader.n_classes),
            box_angstrom=self.geometry.box_angstrom,
        )

    @property
    def step_radius(self) -> int:
        """Working radius in shells."""
        return self._leader.radius

    def snapshot(self) -> Snapshot:
        """Every class's map and what is known about it now."""
        leader, trained, work = self._leader, self._course.trained, (self._weighted, self._workers)
        with _BLAS.limit(limits=1, user_api="blas"):
            classes = class_snapshots(leader, self._store, self._told())
            overlap = class_overlaps(leader, self._store, *work, trained=trained)
        snapshot = Snapshot(
            step=self._step,
            phase=self.phase,
            particles_seen=trained,
            particles_presented=self._presented,
            geometry=self.geometry,
            classes=classes,
        )
        return self._progress.described(snapshot, self._class_phases, overlap)

    def assignments(self) -> Assignments:
        """What is known about each particle, in order of arrival."""
        return self._store.assignments(self.geometry.pixel_size_angstrom)

    # ---- state

    def dump(self) -> tuple[dict[str, Any], Arrays]:
        """All state that changes; ``dump_store`` has the rest."""
        meta, arrays = pack(
            {
                **self._course.dump(),
                **self._symmetry.dump(),
                **{name: getattr(self, f"_{name}") for name in COUNTERS},
            },
            optics=self._optics,
            noise=self._noise,
            store=self._store,
            learners=self._learners,
            more=self._progress.dump(),
        )
        return {**meta, "lifecycle": self._life.dump()}, arrays

    def dump_store(self, start: int) -> Arrays:
        """Immutable rows of the particle store from row ``start`` on."""
        return self._store.immutable_rows(start)

    @classmethod
    def load(
        cls,
        settings: EngineSettings,
        geometry: Geometry,
        meta: Mapping[str, Any],
        arrays: Mapping[str, npt.NDArray[Any]],
        rows: Mapping[str, npt.NDArray[Any]],
        *,
        device: str | Backend = "cpu",
    ) -> Engine:
        """Take up a session where ``dump`` left it.

        Raises
        ------
        ValueError
            The state is of another version.
        """
        check_version(meta)
        engine = cls(settings, geometry, device=device)
        for optics in unpack_optics(meta):
            engine._group(optics)
        engine._weigher.append(engine._store.append(rows, engine._workers))
        unpack_store(arrays, engine._store)
        engine._noise.restore(arrays)
        engine._progress.restore(arrays)
        engine._course.restore(meta)
        engine._set_pace(engine._course.stretch)
        engine._symmetry.restore(meta)
        engine._life.restore(meta["lifecycle"])
        for name in COUNTERS:
            setattr(engine, f"_{name}", meta[name])
        engine._learners = []
        for number, learner_meta in enumerate(meta["learners"]):
            learner = engine._new_learner(int(learner_meta["seed"][1]))
            restore_learner(learner, learner_meta, learner_arrays(arrays, number))
            engine._learners.append(learner)
        return engine
