"""The seam to kafka-python 3: its settings, its waiting and its errors, in our terms.

This is the only module that imports ``kafka``. It owns every setting that differs from the
client's defaults, the bounds on waiting and memory, and the words of its errors. Whatever needs
the broker gives up after a stated time, long enough for a broker to restart.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from streamer.transports.base import Isolation, KafkaSecurity, TopicPartition, TopicSpec
from streamer.transports.errors import BusUnreachableError, TransportError

with warnings.catch_warnings():
    # kafka-python 3.0 reads its message schemas by a function that Python 3.11 and 3.12 deprecate.
    warnings.simplefilter("ignore", DeprecationWarning)
    import kafka
    from kafka import errors as kafka_errors

__all__ = [
    "CLOSE_S",
    "DELIVERY_S",
    "IN_FLIGHT_BYTES",
    "REQUEST_S",
    "admin_client",
    "connection_options",
    "consumer_client",
    "in_words",
    "kafka_errors",
    "kafka_offset",
    "kafka_partition",
    "producer_client",
    "topic_options",
    "within",
]

DELIVERY_S = 120.0  # how long a send or a commit outlasts a broker that is away
REQUEST_S = 30.0  # one question to the broker
CLOSE_S = 5.0
IN_FLIGHT_BYTES = 32 * 2**20  # kafka-python 3 has no buffer.memory: without this it has no bound
_FRAMING_BYTES = 2**12  # room for what the client adds to key, value and headers
_FETCH_BYTES = 8 * 2**20  # the default of 1 MiB is one record per round trip

# Errors are raised with a remedy; the client's own log lines are for those who configure logging.
logging.getLogger("kafka").addHandler(logging.NullHandler())


def connection_options(
    servers: str, *, security: KafkaSecurity, connect_timeout_s: float
) -> dict[str, Any]:
    """Settings that every client of one cluster shares."""
    return {
        "bootstrap_servers": servers.split(","),
        "client_id": "abinitio-live",
        "bootstrap_timeout_ms": int(connect_timeout_s * 1000),
        "request_timeout_ms": int(REQUEST_S * 1000),
        # The default is 30 s: a broker that comes back would be noticed late.
        "reconnect_backoff_max_ms": 1000,
        **_security_options(security),
    }


def _security_options(security: KafkaSecurity) -> dict[str, Any]:
    options = {
        "security_protocol": security.protocol,
        "ssl_check_hostname": security.check_hostname,
        "ssl_cafile": security.ca_file,
        "ssl_certfile": security.certificate_file,
        "ssl_keyfile": security.key_file,
        "ssl_password": security.key_password,
        "sasl_mechanism": security.sasl_mechanism,
        "sasl_plain_username": security.username,
        "sasl_plain_password": security.password,
    }
    return {name: value for name, value in options.items() if value is not None}


class _LastFailure(logging.Handler):
    """Remembers why a connection failed: the client itself only says that time is up."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.reason = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.reason = record.getMessage().partition("Connection lost: ")[2] or self.reason


def admin_client(options: dict[str, Any]) -> Any:
    """Connect a client for questions about topics; its error says why nothing answered."""
    failure, log = _LastFailure(), logging.getLogger("kafka.net.connection")
    log.addHandler(failure)
    try:
        return kafka.KafkaAdminClient(**options)
    except kafka_errors.KafkaTimeoutError as error:
        raise kafka_errors.KafkaTimeoutError(failure.reason or "time is up") from error
    finally:
        log.removeHandler(failure)


def producer_client(
    options: dict[str, Any], *, transactional_id: str | None, max_record_bytes: int
) -> Any:
    """Connect a client that appends: every replica acknowledges, retries cause no duplicates."""
    return kafka.KafkaProducer(
        **options,
        acks="all",
        enable_idempotence=True,
        transactional_id=transactional_id,
        delivery_timeout_ms=int(DELIVERY_S * 1000),
        max_block_ms=int(REQUEST_S * 1000),
        max_request_size=max_record_bytes + _FRAMING_BYTES,
        allow_auto_create_topics=False,
        compression_type=None,  # noise does not compress
    )


def consumer_client(
    options: dict[str, Any], *, isolation: Isolation, group: str | None, max_record_bytes: int
) -> Any:
    """Connect a client that reads where it is told: no group assignment, no commit, no reset."""
    fetch_bytes = max(_FETCH_BYTES, 2 * max_record_bytes)
    return kafka.KafkaConsumer(
        **options,
        group_id=group,
        enable_auto_commit=False,
        auto_offset_reset="none",
        isolation_level=isolation,
        allow_auto_create_topics=False,
        max_partition_fetch_bytes=fetch_bytes,
        fetch_max_bytes=2 * fetch_bytes,
    )


def kafka_partition(log: TopicPartition) -> Any:
    """Name a log in the client's terms."""
    return kafka.TopicPartition(log.topic, log.partition)


def kafka_offset(offset: int) -> Any:
    """Wrap an offset for a commit."""
    return kafka.OffsetAndMetadata(offset, "", -1)


def topic_options(spec: TopicSpec) -> dict[str, Any]:
    """Settings of a topic to be made."""
    limits = {
        "retention.bytes": spec.retention_bytes,
        "retention.ms": None if spec.retention_s is None else int(spec.retention_s * 1000),
        "max.message.bytes": spec.max_record_bytes and spec.max_record_bytes + _FRAMING_BYTES,
    }
    configs = {name: str(value) for name, value in limits.items() if value is not None}
    return {"num_partitions": spec.partitions, "configs": configs}


def _reason(error: Exception) -> str:
    return str(error.args[0]) if error.args else str(error)


@contextmanager
def in_words(servers: str) -> Iterator[None]:
    """Turn what kafka-python raises into the errors of the contract."""
    try:
        yield
    except (kafka_errors.KafkaTimeoutError, kafka_errors.KafkaConnectionError) as error:
        raise BusUnreachableError(
            f"no Kafka broker answers at {servers} ({_reason(error)}): check that it runs, that "
            "its advertised.listeners can be reached from here and, if it is secured, the "
            "protocol, certificates, user and password"
        ) from error
    except (kafka_errors.SaslAuthenticationFailedError, kafka_errors.AuthorizationError) as error:
        raise BusUnreachableError(
            f"Kafka at {servers} refuses this user ({error}): check the user, the password and "
            "the access rights of the topics, group and transactional id"
        ) from error
    except OSError as error:  # certificate files
        raise BusUnreachableError(f"{error}: check the security options") from error
    except kafka_errors.KafkaError as error:
        raise TransportError(f"Kafka at {servers}: {error}: see the log of the broker") from error


def within(seconds: float, function: Callable[[], None]) -> None:
    """Call what has no time limit of its own; a call that hangs is left to a daemon thread."""
    raised: list[BaseException] = []

    def call() -> None:
        try:
            function()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise kafka_errors.KafkaTimeoutError(f"no answer in {seconds:.0f} s")
    if raised:
        raise raised[0]
