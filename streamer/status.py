"""The small HTTP server of a session: metrics, health, and pages handed to it.

Promise: only GET of the paths it was given is answered; it listens on loopback unless told
otherwise; closing it waits for answers under way and leaves no thread behind.
"""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from types import TracebackType
from typing import Self

from streamer.errors import ConfigurationError
from streamer.metrics import Metrics

__all__ = ["Health", "Page", "StatusServer"]

_JSON = "application/json; charset=utf-8"
# A client that connects and says nothing holds one thread for this long, and a close as well.
_CLIENT_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Health:
    """How a session is; ``reasons`` say in words what is wrong or missing."""

    live: bool
    ready: bool
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Page:
    """An answer."""

    body: bytes
    content_type: str
    status: HTTPStatus = HTTPStatus.OK


class StatusServer:
    """Serve /metrics, /health/live and /health/ready until closed; a context manager.

    Parameters
    ----------
    metrics
        What /metrics shows.
    health
        Asked at every health request, from the server's threads.
    host, port
        Where to listen; port 0 takes a free one.
    pages
        More paths and what makes their answers, for the live page.

    Raises
    ------
    ConfigurationError
        The address cannot be listened on.
    """

    def __init__(
        self,
        metrics: Metrics,
        health: Callable[[], Health],
        *,
        host: str = "127.0.0.1",
        port: int = 9109,
        pages: Mapping[str, Callable[[], Page]] | None = None,
    ) -> None:
        routes: dict[str, Callable[[str], Page]] = {
            path: lambda _accept, make=make: make()  # type: ignore[misc]
            for path, make in (pages or {}).items()
        }
        routes["/metrics"] = lambda accept: Page(*metrics.exposition(accept))
        routes["/health/live"] = lambda _accept: _health_page(health(), "live")
        routes["/health/ready"] = lambda _accept: _health_page(health(), "ready")
        try:
            self._server = _Server((host, port), _handler(routes))
        except OSError as error:
            raise ConfigurationError(
                f"cannot serve metrics on {host}:{port}: {error.strerror or error}",
                "Choose another metrics port (0 takes a free one) or another host",
            ) from error
        self.host = host
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="status-server"
        )
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def url(self) -> str:
        """Where it listens, without a path."""
        return f"http://{self.host}:{self.port}"

    def close(self) -> None:
        """Stop listening and wait for the threads; again does nothing."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = False
    block_on_close = True


def _health_page(health: Health, question: str) -> Page:
    good = health.live if question == "live" else health.live and health.ready
    body = {question: good, "reasons": list(health.reasons)}
    status = HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE
    return Page((json.dumps(body) + "\n").encode(), _JSON, status)


def _handler(routes: Mapping[str, Callable[[str], Page]]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        server_version = "abinitio-live"
        sys_version = ""
        timeout = _CLIENT_TIMEOUT_S

        def do_GET(self) -> None:
            make = routes.get(self.path.partition("?")[0])
            if make is None:
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            page = make(self.headers.get("Accept", ""))
            self.send_response(page.status)
            self.send_header("Content-Type", page.content_type)
            self.send_header("Content-Length", str(len(page.body)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(page.body)

        def log_message(self, format: str, *args: object) -> None:
            """Keep quiet: a scrape every few seconds is no news."""

    return Handler
