"""The books of a session: a particle is trained, quarantined, a duplicate, left out or in flight.

The ledger counts what came in; the engine counts what it stored and trained; `balance` compares the
two independent counts and refuses to go on when a particle is unaccounted for.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from streamer.errors import AccountingError

__all__ = ["Balance", "Ledger", "RecentRecords", "balance"]


@dataclass
class Ledger:
    """Counts since the session began; the checkpoint carries them."""

    records: int = 0  # records of this session read, dead-lettered ones included
    received: int = 0  # particles in all records that could be read
    duplicate: int = 0
    quarantined: Counter[str] = field(default_factory=Counter)  # by reason
    dead_lettered: Counter[str] = field(default_factory=Counter)  # records, by reason
    other_sessions: int = 0  # records of other sessions on the same topic, left alone
    gap_offsets: int = 0  # offsets that retention removed before they were read
    snapshots: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Give the counts for the checkpoint."""
        return {
            "records": self.records,
            "received": self.received,
            "duplicate": self.duplicate,
            "quarantined": dict(self.quarantined),
            "dead_lettered": dict(self.dead_lettered),
            "other_sessions": self.other_sessions,
            "gap_offsets": self.gap_offsets,
            "snapshots": self.snapshots,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Ledger:
        """Take the counts back from a checkpoint."""
        counters = {name: Counter(values[name]) for name in ("quarantined", "dead_lettered")}
        return cls(**{**values, **counters})


@dataclass(frozen=True)
class Balance:
    """Where every particle received is."""

    received: int
    trained: int
    quarantined: int
    duplicate: int
    in_flight: int  # accepted and not trained, those that ``particles_to_use`` leaves out included

    def left_out(self, limit: int | None) -> int:
        """Give how many of ``in_flight`` will stay untrained, as only ``limit`` are to be used."""
        accepted = self.trained + self.in_flight
        return 0 if limit is None else max(0, accepted - limit)


def balance(ledger: Ledger, *, stored: int, trained: int) -> Balance:
    """Close the books.

    Parameters
    ----------
    stored
        Particles that the engine holds.
    trained
        Distinct particles that have changed the model.

    Raises
    ------
    AccountingError
        What the engine holds is not what came in less what was refused.
    """
    quarantined = ledger.quarantined.total()
    accepted = ledger.received - quarantined - ledger.duplicate
    if accepted != stored or trained > stored:
        raise AccountingError(
            f"{ledger.received} particles received, {quarantined} quarantined and "
            f"{ledger.duplicate} duplicate leave {accepted}, but the engine holds {stored} and has "
            f"trained {trained}",
            "This is a bug: please report it with the state folder",
        )
    return Balance(ledger.received, trained, quarantined, ledger.duplicate, stored - trained)


class RecentRecords:
    """The ids of the last records, so that one sent twice is recognised without decoding it again.

    Bounded: an older repeat is still caught, particle by particle, through the particle ids.
    """

    def __init__(self, limit: int, ids: Iterable[str] = ()) -> None:
        self._order: deque[str] = deque(ids, maxlen=limit)
        self._known = set(self._order)

    def __contains__(self, record_id: str) -> bool:
        return record_id in self._known

    def add(self, record_id: str) -> None:
        """Remember one more, forgetting the oldest."""
        if record_id in self._known or self._order.maxlen == 0:
            return
        if len(self._order) == self._order.maxlen:
            self._known.discard(self._order[0])
        self._order.append(record_id)
        self._known.add(record_id)

    def as_list(self) -> list[str]:
        """Give the ids, oldest first, for the checkpoint."""
        return list(self._order)
