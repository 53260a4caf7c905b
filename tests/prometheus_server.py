"""A real Prometheus on loopback with the deployed rules and dashboards, for tests.

Promise: scrapes and rules run every second instead of every few; everything else is the deployed
configuration. The process is gone when the context ends.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

__all__ = [
    "DEPLOY",
    "DashboardQuery",
    "Prometheus",
    "alert_expressions",
    "dashboard_queries",
    "find_program",
    "problems_of",
    "running_prometheus",
]

DEPLOY = Path(__file__).resolve().parents[1] / "deploy"
PATIENCE_S = 25.0
# What Grafana puts in for its variables; any instance, and a window of many scrapes.
GRAFANA_VARIABLES = {"$instance": ".+", "$__rate_interval": "20s", "$__range": "1m"}


def find_program(name: str) -> str:
    """Find a program of the Debian package prometheus; without it fail in CI, else skip."""
    found = shutil.which(name)
    if found is None:
        complaint = f"{name} is missing: apt-get install prometheus"
        if os.environ.get("CI"):
            pytest.fail(complaint)
        pytest.skip(complaint)
    return found


@dataclass(frozen=True)
class DashboardQuery:
    """One query of a dashboard, with Grafana's variables filled in."""

    panel: str
    expression: str


def dashboard_queries() -> list[DashboardQuery]:
    """Every query of every dashboard."""
    queries = []
    for path in sorted((DEPLOY / "grafana" / "dashboards").glob("*.json")):
        for panel in json.loads(path.read_text(encoding="utf-8"))["panels"]:
            for target in panel.get("targets", []):
                expression = target["expr"]
                for variable, value in GRAFANA_VARIABLES.items():
                    expression = expression.replace(variable, value)
                queries.append(DashboardQuery(panel["title"], expression))
    return queries


def alert_expressions() -> dict[str, str]:
    """Every alert's expression by its name."""
    text = (DEPLOY / "rules" / "abinitio.yml").read_text(encoding="utf-8")
    groups = yaml.safe_load(text)["groups"]
    return {rule["alert"]: rule["expr"] for group in groups for rule in group["rules"]}


class Prometheus:
    """A running server."""

    def __init__(self, url: str) -> None:
        self.url = url

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Evaluate an expression now; a wrong one is an error with Prometheus's own words."""
        question = urllib.parse.urlencode({"query": expression})
        try:
            result: list[dict[str, Any]] = self._get(f"/api/v1/query?{question}")["result"]
        except urllib.error.HTTPError as error:
            said = error.read().decode()
            raise AssertionError(f"{expression}: {said}") from error
        return result

    def rules(self) -> list[dict[str, Any]]:
        """Every rule as Prometheus last evaluated it."""
        groups = self._get("/api/v1/rules")["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def wait_until(
        self, condition: Callable[[], bool], *, what: str, between: Callable[[], None] | None = None
    ) -> None:
        """Poll until the condition holds, doing something ``between``; fail after a while."""
        deadline = time.monotonic() + PATIENCE_S
        pause = threading.Event()
        while not condition():
            assert time.monotonic() < deadline, f"waited {PATIENCE_S:.0f} s for {what}"
            if between is not None:
                between()
            pause.wait(0.1)

    def scraped(self, times: int, *, port: int) -> bool:
        """Say whether a target has been read at least so often."""
        instance = f'instance="127.0.0.1:{port}"'
        found = self.query(f"count_over_time(abinitio_step{{{instance}}}[5m])")
        return bool(found) and float(found[0]["value"][1]) >= times

    def _get(self, path: str) -> dict[str, Any]:
        with urllib.request.urlopen(self.url + path, timeout=10) as answer:
            data: dict[str, Any] = json.load(answer)["data"]
        return data


def problems_of(prometheus: Prometheus, *, may_be_empty: Collection[str] = ()) -> list[str]:
    """Evaluate every dashboard query and alert against what has been scraped so far.

    Parameters
    ----------
    may_be_empty
        Titles of panels that have nothing to show yet, such as the resolution of a young session.

    Returns
    -------
        What is wrong, a line each; empty when all is well.
    """
    problems = []
    for query in dashboard_queries():
        values = [float(item["value"][1]) for item in prometheus.query(query.expression)]
        if query.panel not in may_be_empty and not any(math.isfinite(v) for v in values):
            problems.append(f"{query.panel}: no data from {query.expression}")
    for expression in alert_expressions().values():
        prometheus.query(expression)
    for rule in prometheus.rules():
        if rule["health"] != "ok":
            problems.append(f"{rule['name']}: {rule['health']} {rule.get('lastError', '')}")
    return problems


@contextmanager
def running_prometheus(folder: Path, ports: Sequence[int]) -> Iterator[Prometheus]:
    """Start Prometheus on the deployed configuration, scraping sessions on these ports.

    Parameters
    ----------
    folder
        An empty folder for its configuration and data.
    ports
        Metrics ports of sessions on this machine.
    """
    program = find_program("prometheus")
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text(encoding="utf-8"))
    config["global"] = {
        "scrape_interval": "1s",
        "scrape_timeout": "1s",
        "evaluation_interval": "1s",
    }
    config["scrape_configs"] = [
        job for job in config["scrape_configs"] if job["job_name"] == "abinitio-live"
    ]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    targets = [{"targets": [f"127.0.0.1:{port}" for port in ports]}]
    (folder / "targets.yml").write_text(yaml.safe_dump(targets), encoding="utf-8")
    shutil.copytree(DEPLOY / "rules", folder / "rules")
    own_port = _free_port()
    command = [
        program,
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{own_port}",
        "--log.level=warn",
    ]
    log_path = folder / "prometheus.log"
    with log_path.open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            prometheus = Prometheus(f"http://127.0.0.1:{own_port}")
            prometheus.wait_until(
                lambda: process.poll() is not None or _answers(prometheus.url),
                what="Prometheus to start",
            )
            assert process.poll() is None, log_path.read_text(encoding="utf-8")
            yield prometheus
        finally:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url + "/-/ready", timeout=2):
            return True
    except OSError:
        return False
