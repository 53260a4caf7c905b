"""The ways a session stops, as one exception tree.

Every message is one line and says what to do; `exit_code` is what the process returns.

What the bus itself can raise is `streamer.transports.base.TransportError`.

- `ServiceError`: anything below
    - `ConfigurationError`: a setting, a path or a credential is wrong (2)
    - `RetentionGapError`: the log no longer holds the next record (3)
    - `CheckpointError`: no readable checkpoint, or one of another session (4)
    - `TwinError`: another process has taken over this session (5)
    - `AccountingError`: the counters do not add up; a bug in this program (70)
"""

from __future__ import annotations

__all__ = [
    "AccountingError",
    "CheckpointError",
    "ConfigurationError",
    "RetentionGapError",
    "ServiceError",
    "TwinError",
]


class ServiceError(Exception):
    """A session cannot go on; the message tells a person why.

    Parameters
    ----------
    problem
        What is wrong, in one line.
    remedy
        What to do about it, in one line.
    """

    exit_code = 1

    def __init__(self, problem: str, remedy: str = "") -> None:
        self.problem = " ".join(problem.split())
        self.remedy = " ".join(remedy.split())
        stop = "" if self.problem.endswith((".", "?", "!")) else "."
        super().__init__(f"{self.problem}{stop} {self.remedy}" if self.remedy else self.problem)


class ConfigurationError(ServiceError):
    """A setting, a path or a credential is wrong."""

    exit_code = 2


class RetentionGapError(ServiceError):
    """The log was trimmed past the next record that this session needs."""

    exit_code = 3


class CheckpointError(ServiceError):
    """No checkpoint can be read, or it belongs to another session."""

    exit_code = 4


class TwinError(ServiceError):
    """Another process has taken over this session."""

    exit_code = 5


class AccountingError(ServiceError):
    """The counters do not add up."""

    exit_code = 70
