"""Names of the topics, in one place; the prefix separates installations on one broker."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

__all__ = ["DEFAULT_PREFIX", "Topics"]

DEFAULT_PREFIX: Final = "abinitio"
_PREFIX: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


@dataclass(frozen=True)
class Topics:
    """Topic names under one prefix.

    Raises
    ------
    ValueError
        A prefix that no broker accepts.
    """

    prefix: str = DEFAULT_PREFIX

    def __post_init__(self) -> None:
        """Refuse a prefix that would make an illegal topic name."""
        if not _PREFIX.fullmatch(self.prefix):
            raise ValueError(
                f"topic prefix {self.prefix!r} is not legal: use 1 to 200 letters, digits, "
                "'.', '_' or '-', starting with a letter or digit"
            )

    @property
    def particles(self) -> str:
        """Particle batches, from producers to the service."""
        return f"{self.prefix}.particles"

    @property
    def control(self) -> str:
        """Requests to the service."""
        return f"{self.prefix}.control"

    @property
    def control_replies(self) -> str:
        """Answers to control requests."""
        return f"{self.prefix}.control.replies"

    @property
    def volumes(self) -> str:
        """Volume snapshots."""
        return f"{self.prefix}.volumes"

    @property
    def assignments(self) -> str:
        """Class, pose and shift per particle."""
        return f"{self.prefix}.assignments"

    @property
    def events(self) -> str:
        """Things worth telling a person."""
        return f"{self.prefix}.events"

    @property
    def dead_letter(self) -> str:
        """Records and particles that were refused, and why."""
        return f"{self.prefix}.particles.dead-letter"

    @property
    def all(self) -> tuple[str, ...]:
        """Every topic."""
        return (
            self.particles,
            self.control,
            self.control_replies,
            self.volumes,
            self.assignments,
            self.events,
            self.dead_letter,
        )
