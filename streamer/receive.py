"""The check of the loop: one record in, its particles to the engine, the rest to dead letters.

Every record leaves exactly one mark in the ledger, and its position advances whatever it held.
"""

from __future__ import annotations

from reconstruct.types import ParticleImages
from schemas.codec import Limits
from streamer import letters
from streamer.ahead import Ahead
from streamer.contrast import CONTRAST_SAMPLE, contrast_event, contrast_of_sums, contrast_sums
from streamer.intake import Read, Refused, Skipped, Taken, judge, read
from streamer.outbox import Outgoing
from streamer.parts import Parts
from streamer.state import SessionState
from streamer.transports.base import Record

__all__ = ["Receiver"]

_MOST_LETTERS = 100  # dead letters held back to share a transaction
_MOST_DELAYS = 10_000


class Receiver:
    """Looks at records for one session."""

    def __init__(self, parts: Parts, state: SessionState) -> None:
        self._parts = parts
        self._state = state
        self._letters: list[Outgoing] = []
        self.created_ns: list[int] = []  # records that no snapshot holds yet
        self.last_timestamp_ns: int | None = None

    def read(self, record: Record) -> Read | Refused | Skipped | None:
        """Read a record ahead, in another thread; not while one ahead may kill the process."""
        crashes, limits = self._parts.crashes, self._parts.settings.limits
        if crashes.suspects or limits.crashes_per_record == 1:
            return None
        crashes.begin_reading(record.topic_partition, record.offset)
        found = self._read(record)
        crashes.done_reading()
        return found

    def _read(self, record: Record) -> Read | Refused | Skipped:
        settings = self._parts.settings
        return read(
            record,
            session_id=settings.session,
            allowed_roots=self._parts.roots,
            limits=Limits(total_bytes=settings.limits.max_record_bytes),
        )

    def look_at(self, ahead: Ahead) -> None:
        """Judge one record and move past it."""
        parts, state, record = self._parts, self._state, ahead.record
        where = record.topic_partition
        crashes = parts.crashes.crashes(where, record.offset)
        verdict: Taken | Refused | Skipped
        if crashes >= parts.settings.limits.crashes_per_record:
            verdict = Refused("crashed_the_process", f"the process died on it {crashes} times")
        else:
            parts.crashes.begin(where, record.offset)
            found = self._read(record) if ahead.found is None else ahead.found
            verdict = (
                judge(found, geometry=state.geometry, roster=state.roster, recent=state.recent)
                if isinstance(found, Read)
                else found
            )
        parts.hook("checked")
        if isinstance(verdict, Taken):
            self._accept(record, verdict)
        elif isinstance(verdict, Refused):
            self.refuse(record, verdict)
        else:
            state.ledger.other_sessions += 1
        state.positions[where] = record.offset + 1
        self.last_timestamp_ns = record.timestamp_ns
        if len(self._letters) >= _MOST_LETTERS:
            self.send_letters()

    def _accept(self, record: Record, taken: Taken) -> None:
        parts, state = self._parts, self._state
        if taken.particles is not None and state.engine is None:
            try:
                state.engine = parts.factory(parts.settings.engine, taken.geometry)
            except ValueError as error:  # settings that this box and pixel size cannot honour
                self.refuse(record, Refused("unusable_geometry", str(error), taken.record_id))
                return
            state.geometry = taken.geometry
        state.ledger.records += 1
        state.ledger.received += taken.received
        state.ledger.duplicate += taken.duplicates
        state.ledger.quarantined.update(problem.reason for problem in taken.problems)
        state.recent.add(taken.record_id)
        if taken.problems:
            state.first_problem = state.first_problem or taken.problems[0].detail
            self._letters += letters.particle_letters(
                parts.outbox,
                parts.topics.dead_letter,
                record,
                problems=taken.problems,
                image_names=taken.image_names,
                record_id=taken.record_id,
                max_bytes=parts.settings.limits.dead_letter_bytes,
            )
        if taken.particles is not None and state.engine is not None:
            index = state.optics_index(taken.optics_groups)
            group = index[taken.roster_rows["optics_group"]]
            state.roster.extend({**taken.roster_rows, "optics_group": group})
            state.engine.add(taken.particles)
            self._watch_contrast(taken.particles)
            if len(self.created_ns) < _MOST_DELAYS:
                self.created_ns.append(taken.created_at_ns)
        parts.observer.taken(record, taken, state)

    def _watch_contrast(self, particles: ParticleImages) -> None:
        """Measure the stream's first particles as the engine gets them."""
        state = self._state
        if state.contrast_told:
            return
        left = CONTRAST_SAMPLE - int(state.contrast[0])
        added = contrast_sums(particles.images[:left])
        state.contrast = [a + b for a, b in zip(state.contrast, added, strict=True)]
        if state.contrast[0] >= CONTRAST_SAMPLE:
            self.judge_contrast()

    def judge_contrast(self) -> None:
        """Say it if the particles so far are dark: at the full sample, or at a stream's end."""
        state = self._state
        if state.contrast_told:
            return
        state.contrast_told = True
        if (event := contrast_event(contrast_of_sums(state.contrast))) is not None:
            self._parts.publisher.contrast(event)

    def refuse(self, record: Record, refused: Refused) -> None:
        """Count a refused record and write its letter."""
        parts = self._parts
        self._state.ledger.records += 1
        self._state.ledger.dead_lettered[refused.reason] += 1
        self._state.last_refusal = refused.detail
        self._letters.append(
            letters.record_letter(
                parts.outbox,
                parts.topics.dead_letter,
                record,
                reason=refused.reason,
                detail=refused.detail,
                record_id=refused.record_id,
                max_bytes=parts.settings.limits.dead_letter_bytes,
            )
        )
        parts.observer.refused(record, refused)

    def send_letters(self) -> None:
        """Send the letters held back, before the positions behind them are saved."""
        self._parts.outbox.say(self._letters)
        self._letters = []
