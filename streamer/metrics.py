"""What Prometheus sees of a session; the only module that imports prometheus_client.

Conventions owned here: every name starts with ``abinitio_``, units are base units at the end of the
name (Angstrom for resolution, the unit of the field), labels are those in `LABELS` and bounded, and
``class`` counts from 1 as it does in STAR files. Counters start at 0 with the process, as
Prometheus expects; `session_particles` are the session's own books and survive a restart.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection
from typing import Final, get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import choose_encoder

from reconstruct.quality import RESOLUTION_KIND
from reconstruct.session_verdicts import forecast_of
from reconstruct.types import (
    ClassSnapshot,
    Phase,
    SearchCount,
    SearchKind,
    Snapshot,
    StepReport,
)
from schemas.control import SessionState
from streamer.ledger import Balance
from streamer.views import fourier_coverage, orientation_coverage

__all__ = ["LABELS", "Metrics"]

LABELS: Final = frozenset(
    {"topic", "partition", "class", "reason", "phase", "kind", "stage", "state"}
)
"""Every label a metric may have; each has few values and none names a particle or a file."""


_STEP_BUCKETS_SECONDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60)
_DELAY_BUCKETS_SECONDS = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600)


class Metrics:
    """One session's metrics in a registry of their own.

    Parameters
    ----------
    quarantine_reasons, dead_letter_reasons
        Reasons known beforehand: their counters exist from the start, so that the first increase is
        seen as one. Others are added as they come.
    clock
        Seconds since 1970; an argument for tests.
    """

    def __init__(
        self,
        *,
        quarantine_reasons: Collection[str] = (),
        dead_letter_reasons: Collection[str] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series per counter
        self._registry = CollectorRegistry()
        self._clock = clock
        self._n_classes = 0
        self._audited, self._violated = 0, 0
        ProcessCollector(registry=self._registry)
        counter, gauge, histogram = self._counter, self._gauge, self._histogram

        self._records = counter("records_received", "Records read, by topic.", "topic")
        self._received = counter("particles_received", "Particles in readable records.", "topic")
        self._trained = counter("particles_trained", "Particles trained for the first time.")
        self._replayed = counter("particles_replayed", "Presentations of particles seen before.")
        self._duplicates = counter("particles_duplicate", "Particles that came again.")
        self._quarantined = counter("particles_quarantined", "Particles refused.", "reason")
        self._dead_lettered = counter("records_dead_lettered", "Records refused.", "reason")
        self._session_particles = gauge(
            "session_particles",
            "Particles since the session began, restarts included: "
            "received = trained + quarantined + duplicate + in_flight, which includes those that "
            "particles_to_use leaves out.",
            "kind",
        )
        self._in_flight = gauge("particles_in_flight", "Particles accepted and not trained.")

        self._lag_records = gauge(
            "lag_records", "Records in the log and not yet read.", "topic", "partition"
        )
        self._lag_seconds = gauge(
            "lag_seconds", "Age of the oldest record not yet read.", "topic", "partition"
        )
        self._map_delay = histogram(
            "map_delay_seconds",
            "From the creation of a particle record to the first map that holds it.",
            _DELAY_BUCKETS_SECONDS,
        )

        self._step = gauge("step", "Updates made so far.")
        self._steps = counter("steps", "Updates made by this process.")
        self._step_seconds = histogram("step_seconds", "Time of one update.", _STEP_BUCKETS_SECONDS)
        self._stage_seconds = counter("step_stage_seconds", "Time in each stage.", "stage")
        self._step_at = gauge("step_timestamp_seconds", "When the last update ended.")
        self._phase = gauge("phase", "1 for the current phase of the schedule.", "phase")
        self._temperature = gauge("temperature", "Temperature of the pose posterior.")
        self._evidence = gauge(
            "evidence_per_particle_nats",
            "Evidence against noise only of the last minibatch, before learning from it.",
        )
        self._search_particles = counter(
            "search_particles", "Particles searched, by kind of pose search.", "kind"
        )
        self._search_cells = counter(
            "search_cells", "Cells scored, by kind of pose search.", "kind"
        )
        self._violations = counter(
            "search_violations", "Audited particles whose best pose the search had discarded."
        )
        self._violation_ratio = gauge(
            "search_violation_ratio", "Share of the particles audited by this process."
        )
        self._seen = gauge("particles_seen", "Distinct particles in the model.")
        self._presented = gauge("particles_presented", "Presentations, replays included.")

        self._radius = gauge("radius_shells", "Resolution radius in Fourier shells.", "class")
        self._occupancy = gauge(
            "class_occupancy_ratio", "Part in explaining the latest particles.", "class"
        )
        self._resolution = gauge(
            "class_resolution_angstroms",
            "Resolution; absent until known.",
            "class",
            "kind",
        )
        self._class_particles = gauge(
            "class_particles", "Particles whose best class this is.", "class"
        )
        self._effective = gauge(
            "class_effective_particles", "Particles' worth of information in memory.", "class"
        )
        self._coverage = gauge(
            "class_orientation_coverage_ratio",
            "Share of the sphere that the views effectively fill.",
            "class",
        )

        self._fourier = gauge(
            "class_fourier_coverage_ratio", "How evenly the views fill Fourier space.", "class"
        )

        self._class_phase = gauge(
            "class_phase", "1 for the current phase of the class.", "class", "phase"
        )
        self._overlap = gauge(
            "class_overlap_ratio",
            "Share of its particles that another class explains better.",
            "class",
        )
        self._needed = gauge(
            "class_particles_needed",
            "Particles that would make the map a shell finer; absent while unknown.",
            "class",
        )
        self._converged = gauge("converged", "1 while new particles teach nothing more.")

        self._snapshots = counter("snapshots_published", "Snapshots published.")
        self._snapshot_at = gauge("snapshot_timestamp_seconds", "When the last one was published.")
        self._checkpoint_at = gauge("checkpoint_timestamp_seconds", "When the last was written.")
        self._checkpoint_failures = counter("checkpoint_failures", "Checkpoints not written.")
        self._device_errors = counter("device_errors", "Errors of the compute device.")
        self._device_used = gauge("device_memory_used_bytes", "Memory in use on the device.")
        self._device_total = gauge("device_memory_total_bytes", "Memory of the device.")
        self._store_bytes = gauge("store_bytes", "Size of the particle store.")
        self._contrast = gauge("contrast_inverted", "1 when particles look dark on bright.")
        self._events = counter("events", "Events published, by kind.", "kind")
        self._state = gauge("session_state", "1 for what the loop is doing.", "state")

        for reason in quarantine_reasons:
            self._quarantined.labels(reason)
        for reason in dead_letter_reasons:
            self._dead_lettered.labels(reason)
        for kind in get_args(SearchKind):
            self._search_particles.labels(kind)
            self._search_cells.labels(kind)
        self._choose(self._phase, get_args(Phase), "waiting")
        self.state("waiting")

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """Give the metrics as a scraper asks for them: the text and its content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    # What came in -----------------------------------------------------------------------------

    def received(self, particles: int, topic: str, *, records: int = 1) -> None:
        """Count particles in records that could be read."""
        self._records.labels(topic).inc(records)
        self._received.labels(topic).inc(particles)

    def trained(self, particles: int) -> None:
        """Count particles trained for the first time; `step` does this from its report."""
        self._trained.inc(particles)

    def duplicates(self, particles: int) -> None:
        """Count particles that had been accepted before."""
        self._duplicates.inc(particles)

    def quarantined(self, reason: str, particles: int) -> None:
        """Count particles refused for a reason."""
        self._quarantined.labels(reason).inc(particles)

    def dead_lettered(self, reason: str, records: int = 1) -> None:
        """Count records refused for a reason."""
        self._dead_lettered.labels(reason).inc(records)

    def books(self, balance: Balance) -> None:
        """Show the session's own totals."""
        totals = {
            "received": balance.received,
            "trained": balance.trained,
            "quarantined": balance.quarantined,
            "duplicate": balance.duplicate,
            "in_flight": balance.in_flight,
        }
        for kind, particles in totals.items():
            self._session_particles.labels(kind).set(particles)
        self._in_flight.set(balance.in_flight)

    def lag(
        self, records: int, seconds: float, *, topic: str = "particles", partition: int = 0
    ) -> None:
        """Show how far behind the log this session is."""
        self._lag_records.labels(topic, str(partition)).set(records)
        self._lag_seconds.labels(topic, str(partition)).set(max(seconds, 0.0))

    def map_delay(self, seconds: float) -> None:
        """Note how long a particle record waited for the first map that holds it."""
        self._map_delay.observe(max(seconds, 0.0))

    # What the engine does ---------------------------------------------------------------------

    def step(self, report: StepReport) -> None:
        """Show one update."""
        self.trained(report.new_particles)
        self._replayed.inc(report.replayed_particles)
        self._step.set(report.step)
        self._steps.inc()
        self._step_seconds.observe(sum(report.stage_seconds.values()))
        for stage, seconds in report.stage_seconds.items():
            self._stage_seconds.labels(stage).inc(seconds)
        self._step_at.set(self._clock())
        self._choose(self._phase, get_args(Phase), report.phase)
        self._temperature.set(report.temperature)
        self._evidence.set(report.evidence_per_particle)
        self._seen.set(report.particles_seen)
        self._presented.set(report.particles_presented)
        self._keep_classes(len(report.occupancy))
        for index, occupancy in enumerate(report.occupancy):
            self._occupancy.labels(str(index + 1)).set(occupancy)
        for index, radius in enumerate(report.radius_shells):
            self._radius.labels(str(index + 1)).set(radius)
        for index, resolution_angstrom in enumerate(report.resolution_angstrom):
            self._set_resolution(index, resolution_angstrom)
        for count in report.searches:
            self._search(count)
        for event in report.events:
            self.event(event.kind)

    def snapshot(self, snapshot: Snapshot) -> None:
        """Show a snapshot that has just been published."""
        self._keep_classes(len(snapshot.classes))
        for index, item in enumerate(snapshot.classes):
            name = str(index + 1)
            self._class_particles.labels(name).set(item.particles)
            self._effective.labels(name).set(item.effective_particles)
            self._coverage.labels(name).set(orientation_coverage(item.view_histogram))
            self._fourier.labels(name).set(fourier_coverage(item.view_histogram))
            self._set_resolution(index, item.resolution_angstrom)
            self._show_class(index, item, snapshot)
        self._converged.set(float(snapshot.converged))
        self._snapshots.inc()
        self._snapshot_at.set(self._clock())

    def event(self, kind: str) -> None:
        """Count an event; an inverted contrast also raises its flag, which stays up."""
        self._events.labels(kind).inc()
        if kind == "contrast_inverted":
            self.contrast_inverted()

    def contrast_inverted(self) -> None:
        """Raise the flag, which stays up; a restarted session raises it again."""
        self._contrast.set(1)

    # How the process is -----------------------------------------------------------------------

    def checkpoint(self, written_at_s: float | None = None) -> None:
        """Note a checkpoint, written now unless said otherwise (seconds since 1970)."""
        self._checkpoint_at.set(self._clock() if written_at_s is None else written_at_s)

    def checkpoint_failed(self) -> None:
        """Count a checkpoint that could not be written."""
        self._checkpoint_failures.inc()

    def device_error(self) -> None:
        """Count an error of the compute device."""
        self._device_errors.inc()

    def device_memory(self, used_bytes: int, total_bytes: int) -> None:
        """Show the memory of the compute device; without one, that of the machine."""
        self._device_used.set(used_bytes)
        self._device_total.set(total_bytes)

    def store(self, size_bytes: int) -> None:
        """Show the size of the particle store."""
        self._store_bytes.set(size_bytes)

    def state(self, name: SessionState) -> None:
        """Show what the loop is doing."""
        self._choose(self._state, get_args(SessionState), name)

    # ------------------------------------------------------------------------------------------

    def _search(self, count: SearchCount) -> None:
        """Count a search; an audit also shows how often the session's own has gone wrong."""
        self._search_particles.labels(count.kind).inc(count.particles)
        self._search_cells.labels(count.kind).inc(count.cells)
        if count.kind == "audit" and count.particles:
            self._audited += count.particles
            self._violated += count.violations
            self._violations.inc(count.violations)
            self._violation_ratio.set(self._violated / self._audited)

    def _set_resolution(self, index: int, resolution_angstrom: float | None) -> None:
        name = str(index + 1)
        if resolution_angstrom is None:
            self._forget(self._resolution, name, RESOLUTION_KIND)
        else:
            self._resolution.labels(name, RESOLUTION_KIND).set(resolution_angstrom)

    def _show_class(self, index: int, item: ClassSnapshot, snapshot: Snapshot) -> None:
        """Show how far a class has come."""
        name = str(index + 1)
        for phase in get_args(Phase):
            self._class_phase.labels(name, phase).set(1.0 if phase == item.phase else 0.0)
        self._overlap.labels(name).set(max(item.overlap, default=0.0))
        found = forecast_of(item, snapshot)
        if found is None or not found.needs:
            self._forget(self._needed, name)
        else:
            self._needed.labels(name).set(found.needs[0].particles)

    def _keep_classes(self, n_classes: int) -> None:
        """Take away what is shown of classes that are no more."""
        for index in range(n_classes, self._n_classes):
            name = str(index + 1)
            self._set_resolution(index, None)
            for gauge in (
                *(self._radius, self._occupancy, self._class_particles),
                *(self._effective, self._coverage, self._fourier),
                *(self._overlap, self._needed),
            ):
                self._forget(gauge, name)
            for phase in get_args(Phase):
                self._forget(self._class_phase, name, phase)
        self._n_classes = n_classes

    @staticmethod
    def _forget(gauge: Gauge, *labels: str) -> None:
        with contextlib.suppress(KeyError):  # never shown
            gauge.remove(*labels)

    @staticmethod
    def _choose(gauge: Gauge, names: Collection[str], current: str) -> None:
        for name in names:
            gauge.labels(name).set(1.0 if name == current else 0.0)

    def _counter(self, name: str, words: str, *labels: str) -> Counter:
        return Counter(f"abinitio_{name}", words, labels, registry=self._registry)

    def _gauge(self, name: str, words: str, *labels: str) -> Gauge:
        return Gauge(f"abinitio_{name}", words, labels, registry=self._registry)

    def _histogram(self, name: str, words: str, buckets: Collection[float]) -> Histogram:
        return Histogram(f"abinitio_{name}", words, registry=self._registry, buckets=tuple(buckets))
