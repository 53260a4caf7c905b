"""The order of a session, written once: poll, check, train, checkpoint, publish, commit.

Nobody else advances positions, saves or publishes. What is decided here depends on the records and
the settings, never on the clock, except when to save; so a session that was killed anywhere and
started again ends with the same bits, each particle counted once and each snapshot announced once.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Literal

from reconstruct.types import StepReport
from schemas.control import SessionState as Activity
from streamer.ahead import Ahead, Idle, ReadAhead
from streamer.config import training_digest, training_settings
from streamer.desk import Desk
from streamer.errors import RetentionGapError
from streamer.findings import lasting
from streamer.parts import Parts
from streamer.press import Press, Printed
from streamer.receive import Receiver
from streamer.state import CAPPED_ROWS, SessionState, rows_from, to_checkpoint
from streamer.transports.base import TopicPartition, lag
from streamer.transports.errors import OffsetOutOfRangeError

__all__ = ["Loop", "Outcome"]

Outcome = Literal["ended", "stopped"]

_LAG_EVERY_S = 1.0


def _reader(parts: Parts, receiver: Receiver) -> ReadAhead:
    batch = parts.settings.batch
    return ReadAhead(
        parts.particles,
        read=receiver.read,
        most_records=batch.max_records,
        most_bytes=batch.max_bytes,
        poll_records=max(
            1, min(batch.max_records, batch.max_bytes // parts.outbox.max_record_bytes)
        ),
        wait_s=batch.max_wait_s,
    )


class Loop:
    """One session from where its state stands to its end, or until asked to stop."""

    def __init__(self, parts: Parts, state: SessionState) -> None:
        self._parts = parts
        self._state = state
        self._pending: deque[Ahead] = deque()  # taken and not yet looked at
        self._receiver = Receiver(parts, state)
        self._reader = _reader(parts, self._receiver)
        self._press = Press(parts.publisher, self._announce)
        self._desk = Desk(
            parts, state, receiver=self._receiver, save=self._save, ends=self._reader.ends_now
        )
        self._saved_at_s = parts.clock_s()
        self._saved_received = state.ledger.received
        self._saved_step = state.step
        self._lag_at_s = float("-inf")
        self._digest = training_digest(parts.settings)
        self._training = training_settings(parts.settings)

    def run(self, *, fresh: bool) -> Outcome:
        """Work until the session has ended (``"ended"``) or a stop is requested (``"stopped"``).

        Parameters
        ----------
        fresh
            There was no checkpoint.

        Raises
        ------
        ServiceError, TransportError
            The session cannot go on; the last checkpoint is whole.
        """
        self._seek()
        self._reader.start()
        try:
            outcome = self._run(fresh=fresh)
            self._press.settle()
            return outcome
        finally:
            self._press.close()
            self._reader.close()

    def _run(self, *, fresh: bool) -> Outcome:
        parts, state = self._parts, self._state
        if fresh:  # so that nothing can be announced before there is a checkpoint to go back to
            self._save()
        parts.outbox.recall(state.output_positions)
        self._publish_if_due()
        while not (state.finished or parts.stop.requested):
            parts.lease.check()
            self._press.settle_if_made()
            self._desk.answer()
            self._publish_if_due()
            if state.paused:
                self._show("paused")
                self._desk.answer(wait_s=parts.settings.batch.max_wait_s)
            elif state.engine is not None and state.engine.ready:
                self._show("running")
                self._step()
            elif self._pending:
                self._receiver.look_at(self._pending.popleft())
            elif self._at_end():
                self._finish()
            else:
                self._poll()
            self._save_if_due()
            self._tell_lag()
        if not state.finished:
            self._leave()
        parts.crashes.done()
        return "ended" if state.finished else "stopped"

    # poll -------------------------------------------------------------------------------------

    def _seek(self) -> None:
        """Start reading where the state says, the beginning where it says nothing."""
        for consumer in (self._parts.particles, self._parts.control):
            for where in consumer.partitions:
                position = self._state.positions.get(where)
                if position is None:
                    position = consumer.low_watermark(where.topic, where.partition)
                    self._state.positions[where] = position
                consumer.seek(where.topic, where.partition, position)

    def _poll(self) -> None:
        batch = self._parts.settings.batch
        self._parts.crashes.done()
        self._receiver.send_letters()
        taken: list[Ahead | Idle] = []
        try:
            taken = self._reader.take(batch.max_records, batch.max_wait_s)
        except OffsetOutOfRangeError as error:
            self._cross_gap(error)
        self._parts.hook("polled")
        for item in taken:
            if isinstance(item, Ahead):
                self._pending.append(item)
            elif not self._pending:  # else records before it are still to be looked at
                self._show("waiting")
                self._state.positions.update(item.positions)  # past what holds no records

    def _cross_gap(self, error: OffsetOutOfRangeError) -> None:
        """Stop at a hole in the log, or step over it on request and count it."""
        if not error.below_low_watermark:
            raise error
        lost = error.low_watermark - error.offset
        if not self._parts.settings.limits.skip_gap:
            raise RetentionGapError(
                f"retention has removed {lost} offsets of {error.topic} that this session has not "
                f"read (next {error.offset}, oldest left {error.low_watermark})",
                "Lengthen the retention of the topic; to go on without these particles, start "
                "again with --skip-gap",
            )
        where = TopicPartition(error.topic, error.partition)
        self._state.ledger.gap_offsets += lost
        self._state.positions[where] = error.low_watermark
        self._reader.go_on(where, error.low_watermark)
        self._parts.publisher.event(
            f"gap-{error.partition}-{error.offset}-{error.low_watermark}",
            "retention_gap",
            f"{lost} offsets were removed by retention before they were read; skipped on request.",
            severity="warning",
            values={"offsets": float(lost)},
        )

    def _tell_lag(self) -> None:
        now_s = self._parts.clock_s()
        if now_s - self._lag_at_s < _LAG_EVERY_S:
            return
        ends = self._reader.ends
        if ends is None:
            return
        self._lag_at_s = now_s
        for where, end in ends.items():
            behind = lag(
                self._state.positions[where],
                end,
                last_timestamp_ns=self._receiver.last_timestamp_ns,
                now_ns=time.time_ns(),
            )
            self._parts.observer.lag(where, behind)

    # train ------------------------------------------------------------------------------------

    def _step(self) -> None:
        assert self._state.engine is not None
        self._note(self._state.engine.step())
        self._parts.hook("trained")
        self._owe_snapshot()

    def _note(self, report: StepReport) -> None:
        if report.events:  # said in the order of steps
            self._press.settle()
        self._state.note(report)
        self._state.verdicts |= lasting(report)
        self._parts.publisher.step_events(report)
        self._parts.observer.stepped(report, self._state)

    def _owe_snapshot(self) -> None:
        """Decide from particles and steps alone whether new maps are due."""
        state, cadence = self._state, self._parts.settings.snapshots
        new_particles = state.trained - state.last_snapshot_particles
        new_steps = state.step - state.last_snapshot_step
        first = state.last_snapshot_id is None
        if first and state.trained >= cadence.first_particles:
            state.snapshot_due = "first"
        elif not first and (
            new_particles >= cadence.every_particles or new_steps >= cadence.every_steps
        ):
            state.snapshot_due = "cadence"

    def _at_end(self) -> bool:
        end_at = self._state.end_at
        return end_at is not None and all(
            self._state.positions.get(where, 0) >= end for where, end in end_at.items()
        )

    def _finish(self) -> None:
        """Train the left-overs and replay; then save and publish the last maps."""
        parts, state = self._parts, self._state
        self._show("finishing")
        parts.crashes.done()
        self._save()
        if state.engine is not None:
            self._receiver.judge_contrast()
            for report in state.engine.finish():
                self._note(report)
                parts.hook("replayed")
                self._owe_snapshot()
                self._press.settle_if_made()
                self._publish_if_due()
                self._save_if_due()  # the engine goes on with its replay from a checkpoint
                self._tell_lag()
                parts.lease.check()
                self._desk.answer()
                if parts.stop.requested:
                    return
        state.finished = True
        state.snapshot_due = "final" if state.step else None
        self._publish_if_due()
        self._save()
        self._show("ended")

    # checkpoint -------------------------------------------------------------------------------

    def _save_if_due(self) -> None:
        settings = self._parts.settings.checkpoint
        new_particles = self._state.ledger.received - self._saved_received
        if new_particles == 0 and self._state.step == self._saved_step:
            return
        waited_s = self._parts.clock_s() - self._saved_at_s
        if new_particles >= settings.every_particles or waited_s >= settings.every_s:
            self._save()

    def _save(self) -> None:
        """Write the state and the positions in one file; a full disk is told and tried again.

        A snapshot under way is announced first: a checkpoint in which it is no longer due must not
        be there before its announcement.
        """
        self._press.settle()
        parts, state = self._parts, self._state
        self._receiver.send_letters()
        state.balance()
        state.output_positions = parts.outbox.ends()
        parts.hook("saving")
        meta, arrays = to_checkpoint(
            state,
            session_id=parts.settings.session,
            digest=self._digest,
            training=self._training,
        )
        stored = 0 if state.engine is None else state.engine.particles_stored
        self._saved_at_s = parts.clock_s()
        try:
            saved = parts.store.save(
                meta,
                arrays,
                rows=stored,
                rows_from=lambda start: rows_from(state, start),
                capped=CAPPED_ROWS,
            )
        except OSError as error:
            parts.observer.checkpoint_failed(str(error))
            return
        self._saved_received, self._saved_step = state.ledger.received, state.step
        parts.hook("saved")
        parts.crashes.forget(state.positions)
        parts.observer.checkpointed(saved, state)
        self._commit()

    # publish ----------------------------------------------------------------------------------

    def _publish_if_due(self) -> None:
        if self._state.snapshot_due is not None:
            self._save()
            self._publish()

    def _publish(self) -> None:
        parts, state = self._parts, self._state
        if state.snapshot_due is None:
            return
        grown = len(state.roster) >= 1.1 * state.assigned_rows
        assign = state.finished or state.snapshot_due in ("request", "stop") or grown
        taken = parts.publisher.take(state, is_final=state.finished, assign=assign)
        state.snapshot_due = None
        state.last_snapshot_id = parts.publisher.name(state, is_final=state.finished)
        state.last_snapshot_step = state.step
        state.last_snapshot_particles = state.trained
        state.ledger.snapshots += 1
        if assign:
            state.assigned_rows = len(state.roster)
        created_ns, self._receiver.created_ns = self._receiver.created_ns, []
        if taken is not None:
            self._press.start(taken, created_ns)

    def _announce(self, printed: Printed) -> None:
        parts, made = self._parts, printed.made
        parts.publisher.announce(made, self._state)
        if made.snapshot is not None:
            now_ns = time.time_ns()
            delays_s = [max(0, now_ns - created_ns) * 1e-9 for created_ns in printed.created_ns]
            parts.observer.published(made.name, made.snapshot, self._state, delays_s)

    # commit -----------------------------------------------------------------------------------

    def _commit(self) -> None:
        """Tell the bus how far this session is; it is never asked back."""
        partitions = self._parts.particles.partitions
        self._reader.commit({where: self._state.positions[where] for where in partitions})
        self._parts.hook("committed")

    # around the order -------------------------------------------------------------------------

    def _show(self, activity: Activity) -> None:
        if activity != self._desk.activity:
            self._desk.activity = activity
            self._parts.observer.activity(activity)

    def _leave(self) -> None:
        """Stop on request: the maps so far are saved and published."""
        state = self._state
        self._pending.clear()
        if state.step > state.last_snapshot_step:
            state.snapshot_due = "stop"
            self._publish_if_due()
        else:
            self._save()
