"""Every dashboard query and alert, evaluated by a real Prometheus that scrapes the real server."""

from __future__ import annotations

import subprocess
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from reconstruct.types import (
    ClassSnapshot,
    EngineEvent,
    Geometry,
    SearchCount,
    Snapshot,
    StepReport,
)
from streamer.ledger import Balance
from streamer.metrics import Metrics
from streamer.status import Health, StatusServer
from tests.prometheus_server import (
    DEPLOY,
    Prometheus,
    alert_expressions,
    dashboard_queries,
    find_program,
    problems_of,
    running_prometheus,
)

REPORT = StepReport(
    step=1,
    phase="intermediate",
    new_particles=150,
    replayed_particles=50,
    particles_seen=150,
    particles_presented=200,
    temperature=2.5,
    radius_shells=(9, 8),
    resolution_angstrom=(14.5, None),
    occupancy=(0.7, 0.3),
    evidence_per_particle=6.5,
    stage_seconds={"search": 0.2, "update": 0.05, "schedule": 0.001},
    searches=(SearchCount("branch_and_bound", 200, 90_000), SearchCount("audit", 4, 3_600, 1)),
    events=(EngineEvent("phase", "words"),),
)


def well_and_ready() -> Health:
    return Health(live=True, ready=True)


class FedSession:
    """Metrics of a session that takes a step whenever it is told to."""

    def __init__(self, *, views: np.ndarray) -> None:
        self.metrics = Metrics(
            quarantine_reasons=["defocus_zero"], dead_letter_reasons=["bad_magic"]
        )
        volume = np.zeros((8, 8, 8), np.float32)
        fsc = 1 / (1 + np.exp((np.arange(33) ** 2 - 206) / 60))  # 0.143 at 14.5 A of this box
        item = ClassSnapshot(volume, volume, volume, fsc, 14.5, 5000, 0.7, 900.0, views, "final")
        other = replace(item, resolution_angstrom=None, particles=2000, occupancy=0.3)
        self._snapshot = Snapshot(1, "intermediate", 150, 200, Geometry(64, 4.0), (item, other))
        self._step = 0
        self.metrics.state("running")
        self.metrics.device_memory(2 << 30, 16 << 30)
        self.metrics.store(200 << 20)

    def advance(self) -> None:
        """One record arrives, one update is made, maps and state are saved."""
        self._step += 1
        metrics = self.metrics
        metrics.received(150, "particles")
        report = replace(REPORT, step=self._step, particles_seen=150 * self._step)
        metrics.step(report)
        seen = 150 * self._step
        metrics.books(Balance(received=seen, trained=seen, quarantined=0, duplicate=0, in_flight=0))
        metrics.snapshot(self._snapshot)
        metrics.map_delay(12.0)
        metrics.checkpoint()
        metrics.lag(3, 1.5)

    def fall_ill(self) -> None:
        """Everything that can go wrong in one step goes wrong."""
        metrics = self.metrics
        metrics.step(replace(REPORT, events=(EngineEvent("contrast_inverted", "dark"),)))
        metrics.dead_lettered("crashed_the_process")
        metrics.checkpoint_failed()
        metrics.device_error()


@pytest.fixture
def sessions() -> tuple[FedSession, FedSession]:
    top_views = np.zeros((18, 36))
    top_views[0] = 100
    return FedSession(views=np.ones((18, 36))), FedSession(views=top_views)


def firing(prometheus: Prometheus, port: int) -> set[str]:
    """Alerts whose condition holds now for one session, however long it has to hold to be told."""
    instance = f"127.0.0.1:{port}"
    return {
        name
        for name, expression in alert_expressions().items()
        if any(item["metric"].get("instance") == instance for item in prometheus.query(expression))
    }


def test_a_real_prometheus_answers_every_panel_and_tells_sick_from_well(
    sessions: tuple[FedSession, FedSession], tmp_path: Path
) -> None:
    well, sick = sessions
    with ExitStack() as stack:
        well_server = stack.enter_context(StatusServer(well.metrics, well_and_ready, port=0))
        sick_server = stack.enter_context(StatusServer(sick.metrics, well_and_ready, port=0))
        ports = (well_server.port, sick_server.port)
        prometheus = stack.enter_context(running_prometheus(tmp_path, ports))

        def live() -> None:
            well.advance()
            sick.advance()

        live()
        prometheus.wait_until(
            lambda: all(prometheus.scraped(3, port=port) for port in ports),
            what="three scrapes",
            between=live,
        )
        assert problems_of(prometheus) == []
        assert firing(prometheus, well_server.port) == set()

        sick.fall_ill()
        illnesses = {
            "AbinitioCheckpointFailing",
            "AbinitioContrastInverted",
            "AbinitioDeadLetters",
            "AbinitioDeviceError",
            "AbinitioPreferredOrientation",
        }
        prometheus.wait_until(
            lambda: firing(prometheus, sick_server.port) == illnesses,
            what="the sick session's alerts",
            between=live,
        )
        told = 'ALERTS{alertname="AbinitioContrastInverted",alertstate="firing"}'
        prometheus.wait_until(lambda: bool(prometheus.query(told)), what="an alert that fires")

        sick_server.close()
        prometheus.wait_until(
            lambda: "AbinitioDown" in firing(prometheus, sick_server.port),
            what="the session's absence to be noticed",
        )
        assert firing(prometheus, well_server.port) == set()


def test_a_query_without_data_is_reported(tmp_path: Path) -> None:
    with (
        StatusServer(Metrics(), well_and_ready, port=0) as server,
        running_prometheus(tmp_path, [server.port]) as prometheus,
    ):
        prometheus.wait_until(lambda: prometheus.scraped(2, port=server.port), what="scrapes")
        problems = problems_of(prometheus)
        assert any(line.startswith("Resolution by class") for line in problems)
        assert not any(line.startswith("Particles in the map") for line in problems)
        with pytest.raises(AssertionError, match="parse error"):
            prometheus.query("sum(")


def test_alerts_pass_their_unit_tests() -> None:
    promtool = find_program("promtool")
    for arguments in (["check", "rules", "abinitio.yml"], ["test", "rules", "abinitio_test.yml"]):
        done = subprocess.run(
            [promtool, *arguments], cwd=DEPLOY / "rules", capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_unit_test_that_makes_it_fire() -> None:
    text = (DEPLOY / "rules" / "abinitio_test.yml").read_text(encoding="utf-8")
    for name in alert_expressions():
        assert f"alertname: {name}\n        exp_alerts:" in text, name


def test_the_configuration_is_valid_as_it_is_laid_out(tmp_path: Path) -> None:
    promtool = find_program("promtool")
    for targets in ("local", "compose"):
        folder = tmp_path / targets
        (folder / "rules").mkdir(parents=True)
        for source, target in (
            ("prometheus.yml", "prometheus.yml"),
            ("rules/abinitio.yml", "rules/abinitio.yml"),
            (f"targets/{targets}.yml", "targets.yml"),
        ):
            (folder / target).write_bytes((DEPLOY / source).read_bytes())
        done = subprocess.run(
            [promtool, "check", "config", "prometheus.yml"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "WARNING" not in done.stdout + done.stderr


def test_dashboards_ask_both_kinds_of_people() -> None:
    panels = {query.panel for query in dashboard_queries()}
    assert {"Resolution by class", "Class occupancy", "Temperature", "Phase", "Rate"} <= panels
    assert {"Lag", "Seconds per step, by stage", "Dead letters", "Memory"} <= panels
