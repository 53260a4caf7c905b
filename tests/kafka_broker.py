"""A real Apache Kafka broker for tests, and for people without Docker.

``KAFKA_BOOTSTRAP`` names a broker that runs already. Otherwise the jars pinned in ``kafka/pom.xml``
come from Maven Central, once, into ``ABINITIO_CACHE`` (default ``~/.cache/abinitio-live``), and one
KRaft node runs on free loopback ports. It ends with the process that started it, however that
ends. ``python -m tests.kafka_broker --port 9092`` runs one until Ctrl-C.
"""

from __future__ import annotations

import argparse
import base64
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import uuid
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

import pytest

__all__ = [
    "PASSWORD",
    "USER",
    "Broker",
    "BrokerError",
    "kafka_bootstrap",
    "kafka_broker",
    "make_broker",
]

USER, PASSWORD = "microscope", "only-for-tests"

POM = Path(__file__).parent / "kafka" / "pom.xml"
FETCH_S = 600
START_S = 90
STOP_S = 30
_STARTED = "Kafka Server started"
# The shell ends the broker when its standard input closes, so no broker outlives a killed test run.
_KEEPER = '"$@" </dev/null & exec >&- 2>&-; read _; kill -TERM $!; wait $!'
_LOG4J = """
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d{HH:mm:ss.SSS} %p %c{1}: %m%n
rootLogger.level = warn
rootLogger.appenderRef.out.ref = out
logger.ready.name = kafka.server.KafkaRaftServer
logger.ready.level = info
"""


class BrokerError(Exception):
    """The broker could not be fetched or started; the message says why."""


def kafka_version() -> str:
    """Return the version pinned in the pom."""
    found = ElementTree.parse(POM).getroot().find(".//{*}kafka.version")
    if found is None or not found.text:
        raise BrokerError(f"{POM} pins no kafka.version")
    return found.text


def jars_folder() -> Path:
    """Return the folder of the pinned jars; fetch them if this is the first time."""
    cache = Path(os.environ.get("ABINITIO_CACHE") or Path.home() / ".cache" / "abinitio-live")
    folder = cache / f"kafka-{kafka_version()}"
    if folder.is_dir():
        return folder
    if shutil.which("mvn") is None:
        raise BrokerError("mvn is not installed: install Maven, or set KAFKA_BOOTSTRAP")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        fetched = Path(scratch) / "jars"
        command = ["mvn", "-q", "-B", "-f", str(POM), "dependency:copy-dependencies"]
        done = subprocess.run(
            [*command, f"-DoutputDirectory={fetched}"],
            cwd=scratch,
            capture_output=True,
            text=True,
            timeout=FETCH_S,
            check=False,
        )
        if done.returncode != 0:
            raise BrokerError(f"Maven could not fetch Kafka: {(done.stdout + done.stderr)[-2000:]}")
        try:
            fetched.rename(folder)
        except OSError:
            if not folder.is_dir():  # another run was faster, or the folder cannot be written
                raise
    return folder


@dataclass
class Broker:
    """One KRaft node; ``stop`` and ``start`` keep its data and its ports."""

    folder: Path
    port: int
    controller_port: int
    sasl_port: int
    _process: subprocess.Popen[str] | None = field(default=None, repr=False)
    _tail: deque[str] = field(default_factory=lambda: deque(maxlen=40), repr=False)
    _reader: threading.Thread | None = field(default=None, repr=False)

    @property
    def bootstrap(self) -> str:
        """Address for clients."""
        return f"127.0.0.1:{self.port}"

    @property
    def sasl_bootstrap(self) -> str:
        """Address for clients that speak TLS and show ``USER`` and ``PASSWORD``."""
        return f"127.0.0.1:{self.sasl_port}"

    @property
    def ca_file(self) -> Path:
        """Certificate that such clients must trust."""
        return self.folder / "broker.pem"

    def start(self) -> None:
        """Run the broker and return when it serves."""
        ready = threading.Event()
        self._process = subprocess.Popen(
            ["sh", "-c", _KEEPER, "sh", *_java("kafka.Kafka", self.folder, "server.properties")],
            cwd=self.folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, args=(self._process, ready), daemon=True)
        self._reader.start()
        served = ready.wait(START_S) and any(_STARTED in line for line in self._tail)
        if not served:
            self.stop(kill=True)
            raise BrokerError("the broker did not start:\n" + "".join(self._tail))

    def _read(self, process: subprocess.Popen[str], ready: threading.Event) -> None:
        assert process.stdout is not None
        self._tail.clear()
        with (self.folder / "broker.log").open("a") as log:
            for line in process.stdout:
                self._tail.append(line)
                log.write(line)
                log.flush()
                if _STARTED in line:
                    ready.set()
        ready.set()  # it ended: whoever waits for the start looks at the last lines

    def stop(self, *, kill: bool = False) -> None:
        """End the broker, in order or at once; stopping twice is harmless."""
        if self._process is None:
            return
        if kill:
            os.killpg(self._process.pid, signal.SIGKILL)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(STOP_S)
        if self._reader is not None:
            self._reader.join(STOP_S)
        self._process.stdout.close()
        self._process = None


def _java(main_class: str, folder: Path, *arguments: str) -> list[str]:
    return [
        "java",
        "-Xmx400m",
        "-XX:+UseSerialGC",
        "-XX:TieredStopAtLevel=1",  # starts sooner; throughput hardly changes on one node
        f"-Dlog4j2.configurationFile={folder / 'log4j2.properties'}",
        "-cp",
        f"{jars_folder()}/*",
        main_class,
        *arguments,
    ]


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=START_S, check=False
    )
    if done.returncode != 0:
        raise BrokerError(f"{command[0]} failed: {(done.stdout + done.stderr)[-2000:]}")


def make_broker(folder: Path, *, port: int | None = None) -> Broker:
    """Format a node's storage under ``folder``; the caller starts and stops it."""
    if shutil.which("java") is None:
        raise BrokerError("java is not installed: install Java 17+, or set KAFKA_BOOTSTRAP")
    free_port, controller_port, sasl_port = _free_ports(3)
    broker = Broker(folder, port or free_port, controller_port, sasl_port)
    open_to_clients = f"PLAINTEXT://{broker.bootstrap},SASL://{broker.sasl_bootstrap}"
    settings = {
        "process.roles": "broker,controller",
        "node.id": 1,
        "controller.quorum.bootstrap.servers": f"127.0.0.1:{controller_port}",
        "listeners": f"{open_to_clients},CONTROLLER://127.0.0.1:{controller_port}",
        "advertised.listeners": open_to_clients,
        "controller.listener.names": "CONTROLLER",
        "listener.security.protocol.map": (
            "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL:SASL_SSL"
        ),
        "listener.name.sasl.ssl.keystore.type": "PKCS12",
        "listener.name.sasl.ssl.keystore.location": folder / "broker.p12",
        "listener.name.sasl.ssl.keystore.password": PASSWORD,
        "listener.name.sasl.sasl.enabled.mechanisms": "PLAIN",
        "listener.name.sasl.plain.sasl.jaas.config": (
            "org.apache.kafka.common.security.plain.PlainLoginModule required "
            f'user_{USER}="{PASSWORD}";'
        ),
        "log.dirs": folder / "data",
        "num.partitions": 1,
        "default.replication.factor": 1,
        "offsets.topic.replication.factor": 1,
        "offsets.topic.num.partitions": 1,
        "transaction.state.log.replication.factor": 1,
        "transaction.state.log.min.isr": 1,
        "transaction.state.log.num.partitions": 1,
        "share.coordinator.state.topic.replication.factor": 1,
        "share.coordinator.state.topic.min.isr": 1,
        "group.initial.rebalance.delay.ms": 0,
        # A killed broker may come back when its old registration has expired: 9 s by default.
        "broker.session.timeout.ms": 2000,
        "broker.heartbeat.interval.ms": 500,
        "auto.create.topics.enable": "false",
    }
    (folder / "server.properties").write_text(
        "".join(f"{name}={value}\n" for name, value in settings.items())
    )
    (folder / "log4j2.properties").write_text(_LOG4J)
    store = ["-alias", "broker", "-keystore", "broker.p12", "-storepass", PASSWORD]
    identity = ["-dname", "CN=localhost", "-ext", "SAN=ip:127.0.0.1", "-validity", "3650"]
    _run(
        ["keytool", "-genkeypair", "-keyalg", "EC", "-storetype", "PKCS12", *identity, *store],
        folder,
    )
    _run(["keytool", "-exportcert", "-rfc", "-file", "broker.pem", *store], folder)
    # A leading "-" would be read as an option.
    cluster_id = "A" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")[1:]
    command = ["format", "--standalone", "-t", cluster_id, "-c", "server.properties"]
    _run(_java("kafka.tools.StorageTool", folder, *command), folder)
    return broker


@pytest.fixture(scope="session")
def kafka_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker | None]:
    """The broker of this test run; None when ``KAFKA_BOOTSTRAP`` names one of somebody else."""
    if os.environ.get("KAFKA_BOOTSTRAP"):
        yield None
        return
    try:
        broker = make_broker(tmp_path_factory.mktemp("kafka"))
    except (BrokerError, subprocess.TimeoutExpired) as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no Kafka broker: {error}")
    try:
        broker.start()
        yield broker
    finally:
        broker.stop()


@pytest.fixture(scope="session")
def kafka_bootstrap(kafka_broker: Broker | None) -> str:
    """``host:port`` of a real broker."""
    return os.environ["KAFKA_BOOTSTRAP"] if kafka_broker is None else kafka_broker.bootstrap


def main() -> None:
    """Run a broker in the foreground until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--port", type=int, default=9092)
    options = parser.parse_args()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with tempfile.TemporaryDirectory(prefix="kafka-") as scratch:
        broker = make_broker(Path(scratch), port=options.port)
        try:
            broker.start()
            print(f"kafka://{broker.bootstrap} (Ctrl-C ends it)", flush=True)
            stop.wait()
        finally:
            broker.stop()


if __name__ == "__main__":
    main()
