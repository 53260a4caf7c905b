"""What the transports promise to several processes, and when processes and brokers die."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from streamer.transports import open_transport
from streamer.transports.base import KafkaSecurity, TopicSpec
from tests.buses import KAFKA, PATIENCE_S, Bus, make_bus, run_python, take, url_of, values
from tests.kafka_broker import PASSWORD, USER, Broker


@pytest.fixture(params=["sqlite", KAFKA])
def shared_bus(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bus]:
    """A bus that several processes can use."""
    made = make_bus(url_of(request.param, request, tmp_path))
    yield made
    made.transport.close()


HALF_A_TRANSACTION = """
import sys
from streamer.transports import open_transport
url, topic = sys.argv[1:]
producer = open_transport(url).producer("tx-" + topic)
with producer.transaction():
    producer.send(topic, b"committed")
with producer.transaction():
    producer.send(topic, b"never")
    producer.flush()
    print("sent", flush=True)
    sys.stdin.read()
"""


def test_a_producer_killed_in_a_transaction_leaves_nothing(shared_bus: Bus) -> None:
    with run_python(HALF_A_TRANSACTION, shared_bus.url, shared_bus.topic) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "sent\n"
        process.send_signal(signal.SIGKILL)
    successor = shared_bus.transport.producer("tx-" + shared_bus.topic)
    with successor.transaction():
        successor.send(shared_bus.topic, b"successor")
    consumer = shared_bus.reader(shared_bus.topic)
    assert values(take(consumer, 2)) == [b"committed", b"successor"]
    assert consumer.poll(10, 0.2) == []


WRITER = """
import sys
from streamer.transports import open_transport
url, topic, name = sys.argv[1:]
with open_transport(url) as transport, transport.producer() as producer:
    for number in range(100):
        producer.send(topic, f"{name} {number}".encode())
"""


def test_several_processes_write_one_log_while_another_reads(shared_bus: Bus) -> None:
    names = ["one", "two", "three"]
    writers = [run_python(WRITER, shared_bus.url, shared_bus.topic, name) for name in names]
    records = take(shared_bus.reader(shared_bus.topic), 300)
    for writer in writers:
        with writer:
            assert writer.wait(PATIENCE_S) == 0
    assert [record.offset for record in records] == list(range(300))
    for name in names:
        numbers = [int(v.split()[1]) for v in values(records) if v.startswith(name.encode() + b" ")]
        assert numbers == list(range(100))


# These two run their clients in a process of their own: kafka-python 3.0 drops the socket of a
# failed connection unclosed, which here would be an error of whichever test the collector meets.

UNREACHABLE = """
import json, sys, time
from streamer.transports import open_transport
from streamer.transports.base import BusUnreachableError, KafkaSecurity
security = KafkaSecurity(**json.loads(sys.argv[2]))
started_s = time.monotonic()
try:
    open_transport(sys.argv[1], security=security, connect_timeout_s=1.0)
except BusUnreachableError as error:
    print(time.monotonic() - started_s, error)
"""


def refusal(url: str, security: KafkaSecurity) -> str:
    """The one line that opening the bus ends with, in bounded time."""
    with run_python(UNREACHABLE, url, json.dumps(asdict(security))) as process:
        said, _ = process.communicate(timeout=PATIENCE_S)
    seconds, message = said.split(" ", 1)
    assert float(seconds) < 3
    assert message.count("\n") == 1
    return message


@pytest.mark.kafka
def test_an_unreachable_broker_is_one_clear_line_in_time(capfd: pytest.CaptureFixture[str]) -> None:
    message = refusal("kafka://127.0.0.1:9", KafkaSecurity())
    assert "127.0.0.1:9 (KafkaConnectionError: 111 ECONNREFUSED)" in message
    assert "check that it runs" in message
    assert capfd.readouterr().err == ""


@pytest.mark.kafka
def test_tls_and_password_open_the_bus_and_wrong_ones_are_refused_in_words(
    kafka_broker: Broker | None,
) -> None:
    if kafka_broker is None:
        pytest.skip("the broker at KAFKA_BOOTSTRAP has no users of ours")
    url = f"kafka://{kafka_broker.sasl_bootstrap}"
    security = KafkaSecurity(
        protocol="SASL_SSL",
        ca_file=str(kafka_broker.ca_file),
        sasl_mechanism="PLAIN",
        username=USER,
        password=PASSWORD,
    )
    with open_transport(url, security=security) as transport:
        transport.check()
        transport.ensure_topics([TopicSpec("secured")])
        with transport.producer() as producer:
            producer.send("secured", b"secret")
        consumer = transport.consumer(["secured"])
        consumer.seek_to_beginning()
        assert values(take(consumer, 1)) == [b"secret"]
    wrong_password = replace(security, password="guessed")
    assert "guessed" not in repr(wrong_password)
    message = refusal(url, wrong_password)
    assert "user and password" in message
    assert "guessed" not in message
    assert "certificate verify failed" in refusal(url, replace(security, ca_file=None))


OUTAGE = """
import sys, time
from streamer.transports import open_transport
url, topic = sys.argv[1:]
with open_transport(url) as transport:
    plain, transactional = transport.producer(), transport.producer("tx-" + topic)
    consumer = transport.consumer([topic])
    consumer.seek_to_beginning()
    for line in sys.stdin:
        word, came, deadline_s = line.strip().encode(), [], time.monotonic() + 100
        plain.send(topic, b"plain " + word)
        plain.flush()
        with transactional.transaction():
            transactional.send(topic, b"transaction " + word)
        while len(came) < 2 and time.monotonic() < deadline_s:
            came += [record.value.decode() for record in consumer.poll(2 - len(came), 0.5)]
        print(*came, sep=", ", flush=True)
"""


@pytest.mark.kafka
@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_consumer_and_producers_survive_a_broker_restart(
    kafka_broker: Broker | None, how: str
) -> None:
    if kafka_broker is None:
        pytest.skip("the broker at KAFKA_BOOTSTRAP is not ours to restart")
    bus = make_bus(f"kafka://{kafka_broker.bootstrap}")
    bus.transport.close()
    with run_python(OUTAGE, bus.url, bus.topic) as process:
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None
        assert stdout is not None
        print("before", file=stdin, flush=True)
        assert stdout.readline() == "plain before, transaction before\n"
        kafka_broker.stop(kill=how == "killed")
        print("during", file=stdin, flush=True)
        kafka_broker.start()
        assert stdout.readline() == "plain during, transaction during\n"
        stdin.close()
        assert process.wait(PATIENCE_S) == 0
