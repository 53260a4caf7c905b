"""What operators copy (container files, unit, provisioning) agrees with the program."""

from __future__ import annotations

import json
import re
from configparser import RawConfigParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from streamer.config import load_settings
from streamer.metrics import Metrics

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"


def read_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.fixture
def compose() -> dict[str, Any]:
    content: dict[str, Any] = read_yaml(ROOT / "docker-compose.yml")
    return content


def with_defaults(text: str) -> str:
    """Fill in ${NAME:-default} as Compose does when NAME is not set."""
    return re.sub(r"\$\{[A-Z_]+:-([^}]*)\}", r"\1", text)


def dockerfile_environment() -> dict[str, str]:
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    return dict(re.findall(r"(ABINITIO_[A-Z_]+)=(\S+)", text))


def test_every_port_is_bound_to_loopback(compose: dict[str, Any]) -> None:
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert len(ports) == 4
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_every_service_that_others_wait_for_has_a_health_check(compose: dict[str, Any]) -> None:
    services = compose["services"]
    awaited = {name for service in services.values() for name in service.get("depends_on", {})}
    assert awaited == {"kafka", "prometheus"}
    assert all("healthcheck" in services[name] for name in awaited)
    assert "HEALTHCHECK" in (DEPLOY / "Dockerfile").read_text(encoding="utf-8")


def test_images_are_pinned_and_volumes_declared(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert "build" in service or re.search(r":v?\d+\.\d+", service["image"]), name
        for volume in service.get("volumes", []):
            source = with_defaults(volume).split(":")[0]
            assert source in compose["volumes"] or source.startswith("./"), volume


def test_the_files_that_compose_mounts_exist(compose: dict[str, Any]) -> None:
    mounted = [
        volume.split(":")[0]
        for service in compose["services"].values()
        for volume in service.get("volumes", [])
        if volume.startswith("./deploy")
    ]
    assert len(mounted) == 5
    assert all((ROOT / path).exists() for path in mounted)


def test_the_program_accepts_the_environment_of_the_container(
    compose: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = dockerfile_environment() | {
        name: with_defaults(value)
        for name, value in compose["services"]["session"]["environment"].items()
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    assert settings.bus == "kafka://kafka:9092"
    assert settings.session == "session-1"
    assert settings.metrics.port == 9109
    assert settings.metrics.host == "0.0.0.0"
    assert settings.roots == (Path("/data/particles"),)
    assert settings.engine.symmetry == "C1"


def test_prometheus_looks_for_the_session_where_it_is(compose: dict[str, Any]) -> None:
    (group,) = read_yaml(DEPLOY / "targets" / "compose.yml")
    service, port = group["targets"][0].split(":")
    assert service in compose["services"]
    assert (
        port
        == str(load_settings().metrics.port)
        == dockerfile_environment()["ABINITIO_METRICS__PORT"]
    )
    (local,) = read_yaml(DEPLOY / "targets" / "local.yml")
    assert local["targets"] == [f"127.0.0.1:{port}"]


def test_the_unit_gives_the_session_time_to_stop_and_asks_a_person_when_it_must() -> None:
    unit = RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(DEPLOY / "abinitio-live@.service", encoding="utf-8")
    service = unit["Service"]
    assert float(service["TimeoutStopSec"]) > load_settings().limits.stop_budget_s
    assert service["RestartPreventExitStatus"].split() == ["2", "3", "4", "5", "70"]
    assert service["ExecStart"].endswith("abinitio-live serve")


def test_compose_gives_the_session_time_to_stop(compose: dict[str, Any]) -> None:
    grace_s = float(compose["services"]["session"]["stop_grace_period"].removesuffix("s"))
    assert grace_s > load_settings().limits.stop_budget_s


def test_dashboards_use_the_provisioned_source_and_path(compose: dict[str, Any]) -> None:
    provisioning = DEPLOY / "grafana" / "provisioning"
    (source,) = read_yaml(provisioning / "datasources" / "prometheus.yml")["datasources"]
    (provider,) = read_yaml(provisioning / "dashboards" / "abinitio.yml")["providers"]
    mounts = compose["services"]["grafana"]["volumes"]
    assert any(f":{provider['options']['path']}:" in mount for mount in mounts)
    assert source["url"] == "http://prometheus:9090"
    for path in (DEPLOY / "grafana" / "dashboards").glob("*.json"):
        dashboard = json.loads(path.read_text(encoding="utf-8"))
        panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
        assert len(panels) > 20
        assert {panel["datasource"]["uid"] for panel in panels} == {source["uid"]}
        assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
        assert all(panel["description"] for panel in panels)


# Metrics that no panel asks for, and why.
NOT_SHOWN = {
    "abinitio_particles_in_flight": "a kind of abinitio_session_particles",
    "abinitio_records_received_total": "particles are what people count",
    "abinitio_search_violations_total": "its ratio is shown",
    "abinitio_snapshots_published_total": "the age of the last one is shown; an alert counts them",
    "abinitio_step_timestamp_seconds": "for alerts of an operator's own",
}


def test_every_metric_has_a_panel_and_every_panel_a_metric() -> None:
    text, _ = Metrics().exposition()
    exported = {
        name
        for family in text_string_to_metric_families(text.decode())
        for name in (family.name, f"{family.name}_total", f"{family.name}_bucket")
        if name.startswith("abinitio_")
        and (family.type, name.removeprefix(family.name))
        in (("gauge", ""), ("counter", "_total"), ("histogram", "_bucket"))
    }
    assert len(exported) > 40
    asked = {
        name
        for path in (DEPLOY / "grafana" / "dashboards").glob("*.json")
        for panel in json.loads(path.read_text(encoding="utf-8"))["panels"]
        for target in panel.get("targets", [])
        for name in re.findall(r"abinitio_\w+", target["expr"])
    }
    assert asked - exported == set()
    assert exported - asked == set(NOT_SHOWN)


def test_panels_do_not_overlap() -> None:
    for path in (DEPLOY / "grafana" / "dashboards").glob("*.json"):
        taken: set[tuple[int, int]] = set()
        for panel in json.loads(path.read_text(encoding="utf-8"))["panels"]:
            place = panel["gridPos"]
            cells = {
                (place["x"] + column, place["y"] + row)
                for column in range(place["w"])
                for row in range(place["h"])
            }
            assert not cells & taken, panel["title"]
            assert max(column for column, _ in cells) < 24
            taken |= cells
