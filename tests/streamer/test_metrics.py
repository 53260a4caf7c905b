"""The metrics say what the loop told them, and the server answers what it should and no more."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from dataclasses import replace

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from reconstruct.types import (
    ClassSnapshot,
    EngineEvent,
    Geometry,
    SearchCount,
    Snapshot,
    StepReport,
)
from streamer.errors import ConfigurationError
from streamer.ledger import Balance
from streamer.metrics import LABELS, Metrics
from streamer.state import SessionState
from streamer.status import Health, Page, StatusServer
from streamer.telemetry import MetricsObserver


def report(
    *, step: int = 1, resolution: tuple[float | None, ...] = (None,), events: tuple[str, ...] = ()
) -> StepReport:
    n_classes = len(resolution)
    return StepReport(
        step=step,
        phase="initial",
        new_particles=100,
        replayed_particles=20,
        particles_seen=100 * step,
        particles_presented=120 * step,
        temperature=3.5,
        radius_shells=(5,) * n_classes,
        resolution_angstrom=resolution,
        occupancy=(1 / n_classes,) * n_classes,
        evidence_per_particle=1.25,
        stage_seconds={"search": 0.25, "update": 0.125},
        events=tuple(EngineEvent(kind, "words") for kind in events),
    )


def snapshot(*, histogram: np.ndarray | None = None) -> Snapshot:
    volume = np.zeros((8, 8, 8), np.float32)
    views = np.ones((18, 36)) if histogram is None else histogram
    item = ClassSnapshot(volume, volume, volume, np.ones(5), 20.0, 90, 1.0, 30.0, views)
    return Snapshot(3, "final", 100, 120, Geometry(8, 4.0), (item,))


def samples(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for sample in _all_samples(metrics)
    }


def _all_samples(metrics: Metrics) -> list[Sample]:
    text = metrics.exposition()[0].decode()
    return [s for family in text_string_to_metric_families(text) for s in family.samples]


def value(metrics: Metrics, name: str, **labels: str) -> float:
    labels = {key.rstrip("_"): label for key, label in labels.items()}
    return samples(metrics)[f"abinitio_{name}", frozenset(labels.items())]


def names_of_class(metrics: Metrics, number: str) -> set[str]:
    return {name for name, labels in samples(metrics) if ("class", number) in labels}


def test_searches_are_counted_by_kind_and_an_audit_shows_the_share_of_violations() -> None:
    metrics = Metrics(clock=lambda: 1000.0)
    assert value(metrics, "search_cells_total", kind="branch_and_bound") == 0
    for violations in (0, 1):
        searches = (
            SearchCount("branch_and_bound", 300, 24_000_000),
            SearchCount("audit", 5, 500_000, violations),
        )
        metrics.step(replace(report(), searches=searches))
    assert value(metrics, "search_particles_total", kind="branch_and_bound") == 600
    assert value(metrics, "search_cells_total", kind="branch_and_bound") == 48_000_000
    assert value(metrics, "search_cells_total", kind="audit") == 1_000_000
    assert value(metrics, "search_violations_total") == 1
    assert value(metrics, "search_violation_ratio") == 0.1


def test_a_step_is_shown_with_its_stages_and_counted_once() -> None:
    metrics = Metrics(clock=lambda: 1000.0)
    metrics.step(report(step=1))
    metrics.step(report(step=2))
    assert value(metrics, "particles_trained_total") == 200
    assert value(metrics, "particles_replayed_total") == 40
    assert value(metrics, "step") == 2
    assert value(metrics, "step_stage_seconds_total", stage="search") == 0.5
    assert value(metrics, "step_seconds_sum") == 0.75
    assert value(metrics, "step_timestamp_seconds") == 1000
    assert value(metrics, "phase", phase="initial") == 1
    assert value(metrics, "phase", phase="waiting") == 0


def test_an_unknown_resolution_is_absent_not_zero() -> None:
    metrics = Metrics()
    labels = {"class_": "1", "kind": "half_map_fsc_0.143"}
    metrics.step(report(resolution=(None,)))
    with pytest.raises(KeyError):
        value(metrics, "class_resolution_angstroms", **labels)
    metrics.step(report(resolution=(15.5,)))
    assert value(metrics, "class_resolution_angstroms", **labels) == 15.5
    metrics.step(report(resolution=(None,)))
    with pytest.raises(KeyError):
        value(metrics, "class_resolution_angstroms", **labels)


def test_a_class_that_is_no_more_leaves_no_series_behind() -> None:
    metrics = Metrics()
    metrics.step(report(resolution=(15.0, 20.0)))
    assert names_of_class(metrics, "2")
    metrics.step(report(resolution=(15.0,)))
    assert not names_of_class(metrics, "2")
    assert names_of_class(metrics, "1")


def test_every_particle_is_on_the_books() -> None:
    metrics = Metrics()
    metrics.books(Balance(received=10, trained=5, quarantined=2, duplicate=1, in_flight=2))
    kinds = {
        kind: value(metrics, "session_particles", kind=kind)
        for kind in ("received", "trained", "quarantined", "duplicate", "in_flight")
    }
    assert kinds.pop("received") == sum(kinds.values()) == 10
    assert value(metrics, "particles_in_flight") == 2


def test_what_came_in_is_counted_by_topic_and_reason() -> None:
    metrics = Metrics(quarantine_reasons=["defocus_zero"], dead_letter_reasons=["bad_magic"])
    assert value(metrics, "particles_quarantined_total", reason="defocus_zero") == 0
    assert value(metrics, "records_dead_lettered_total", reason="bad_magic") == 0
    metrics.received(256, "particles")
    metrics.quarantined("defocus_zero", 3)
    metrics.dead_lettered("bad_magic")
    metrics.duplicates(4)
    metrics.lag(12, -0.5)
    assert value(metrics, "particles_received_total", topic="particles") == 256
    assert value(metrics, "records_received_total", topic="particles") == 1
    assert value(metrics, "particles_quarantined_total", reason="defocus_zero") == 3
    assert value(metrics, "records_dead_lettered_total", reason="bad_magic") == 1
    assert value(metrics, "particles_duplicate_total") == 4
    assert value(metrics, "lag_records", topic="particles", partition="0") == 12
    assert value(metrics, "lag_seconds", topic="particles", partition="0") == 0


def test_a_snapshot_shows_views_and_when_it_was_published() -> None:
    metrics = Metrics(clock=lambda: 500.0)
    one_view = np.zeros((18, 36))
    one_view[4, 4] = 1000
    metrics.snapshot(snapshot(histogram=one_view))
    assert value(metrics, "class_orientation_coverage_ratio", class_="1") < 0.05
    assert value(metrics, "class_effective_particles", class_="1") == 30
    assert value(metrics, "snapshots_published_total") == 1
    assert value(metrics, "snapshot_timestamp_seconds") == 500


def test_an_inverted_contrast_raises_a_flag_that_stays() -> None:
    metrics = Metrics()
    assert value(metrics, "contrast_inverted") == 0
    metrics.step(report(events=("contrast_inverted",)))
    metrics.step(report(step=2))
    assert value(metrics, "contrast_inverted") == 1
    assert value(metrics, "events_total", kind="contrast_inverted") == 1


def test_an_event_of_a_step_counts_once() -> None:
    metrics = Metrics()
    MetricsObserver(metrics).stepped(report(events=("phase",)), SessionState())
    assert value(metrics, "events_total", kind="phase") == 1


def test_one_state_holds_at_a_time() -> None:
    metrics = Metrics()
    metrics.state("running")
    states = {
        dict(labels)["state"]: shown
        for (name, labels), shown in samples(metrics).items()
        if name == "abinitio_session_state"
    }
    assert [name for name, shown in states.items() if shown] == ["running"]
    assert len(states) == 5


def test_names_and_labels_follow_the_rules() -> None:
    metrics = Metrics(quarantine_reasons=["a"], dead_letter_reasons=["b"])
    metrics.received(1, "particles")
    metrics.lag(1, 1.0)
    metrics.step(report(resolution=(15.0,), events=("phase",)))
    metrics.snapshot(snapshot())
    metrics.map_delay(3.0)
    found = _all_samples(metrics)
    assert len({sample.name for sample in found}) > 40
    for sample in found:
        assert sample.name.startswith(("abinitio_", "process_")), sample.name
        assert set(sample.labels) <= LABELS | {"le"}, sample
        assert not sample.name.endswith(("_ms", "_milliseconds", "_percent", "_mb")), sample.name


def ask(server: StatusServer, path: str, method: str = "GET") -> tuple[int, str, bytes]:
    connection = http.client.HTTPConnection(server.host, server.port, timeout=10)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.headers.get("Content-Type", ""), answer.read()
    finally:
        connection.close()


def test_health_gives_its_reasons_and_the_status_that_probes_read() -> None:
    health = Health(live=True, ready=False, reasons=("no broker",))
    with StatusServer(Metrics(), lambda: health, port=0) as server:
        status, kind, body = ask(server, "/health/ready")
        assert (status, json.loads(body)) == (503, {"ready": False, "reasons": ["no broker"]})
        assert kind.startswith("application/json")
        assert ask(server, "/health/live")[0] == 200
        health = Health(live=True, ready=True)
        assert ask(server, "/health/ready")[0] == 200
        health = Health(live=False, ready=True, reasons=("loop died",))
        assert ask(server, "/health/live")[0] == 503
        assert ask(server, "/health/ready")[0] == 503


def test_nothing_but_its_paths_is_served() -> None:
    with StatusServer(Metrics(), lambda: Health(True, True), port=0) as server:
        status, kind, body = ask(server, "/metrics")
        assert status == 200
        assert kind.startswith("text/plain")
        assert b"abinitio_step 0.0" in body
        for path in ("/", "/metrics/", "/health", "/../etc/passwd"):
            assert ask(server, path)[0] == 404
        assert ask(server, "/metrics", "POST")[0] == 501
        assert server.host == "127.0.0.1"


def test_pages_handed_in_are_served_too() -> None:
    pages = {"/": lambda: Page(b"hello", "text/html; charset=utf-8")}
    with StatusServer(Metrics(), lambda: Health(True, True), port=0, pages=pages) as server:
        assert ask(server, "/") == (200, "text/html; charset=utf-8", b"hello")
        assert ask(server, "/metrics")[0] == 200


def test_closing_frees_the_port_and_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    server = StatusServer(Metrics(), lambda: Health(True, True), port=0)
    assert ask(server, "/metrics")[0] == 200
    server.close()
    server.close()
    assert set(threading.enumerate()) == before
    with socket.socket() as probe:
        assert probe.connect_ex((server.host, server.port)) != 0


def test_a_taken_port_stops_with_a_remedy() -> None:
    with (
        StatusServer(Metrics(), lambda: Health(True, True), port=0) as server,
        pytest.raises(ConfigurationError, match="port"),
    ):
        StatusServer(Metrics(), lambda: Health(True, True), port=server.port)


def test_no_series_tells_when_a_counter_was_made() -> None:
    for accept in ("", "application/openmetrics-text"):
        text = Metrics().exposition(accept)[0].decode()
        assert "_total" in text
        assert "_created" not in text


def test_a_snapshot_shows_how_far_each_class_has_come_and_forgets_what_is_not_known() -> None:
    metrics = Metrics()
    shown = snapshot()
    shells = np.arange(27)
    ratio = 10.0 * np.exp(-0.02 * shells**2)
    item = replace(
        shown.classes[0],
        fsc=ratio / (1 + ratio),
        resolution_angstrom=320 / 14.3,
        particles=3000,
        phase="final",
        overlap=(0.0, 0.3),
    )
    geometry = Geometry(64, 5.0)
    metrics.snapshot(replace(shown, classes=(item, item), geometry=geometry, converged=True))
    assert value(metrics, "class_phase", class_="1", phase="final") == 1
    assert value(metrics, "class_phase", class_="1", phase="intermediate") == 0
    assert value(metrics, "class_overlap_ratio", class_="1") == pytest.approx(0.3)
    assert value(metrics, "class_particles_needed", class_="1") > 3000
    assert value(metrics, "converged") == 1
    unknown = replace(item, resolution_angstrom=None)
    metrics.snapshot(replace(shown, classes=(unknown,), geometry=geometry))
    assert "abinitio_class_particles_needed" not in names_of_class(metrics, "1")
    assert not names_of_class(metrics, "2")
    assert value(metrics, "converged") == 0
