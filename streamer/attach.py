"""Follow the particle file of a live session and turn what is new into batches.

The file is rewritten whole by its owner; only image names that were not seen before are sent.
Sending a particle again does no harm: the session recognises it by its identity.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from reconstruct.io.table import ParticleTable
from reconstruct.io.watch import StarWatcher
from streamer.adapt import PayloadKind, batches_from_table
from streamer.contrast import contrast_of_table, decide_sign
from streamer.microscope_sources import Batch
from streamer.outbox import producer_name

__all__ = ["Following", "follow_file"]

BATCH_PARTICLES = 500


@dataclass(frozen=True)
class Following:
    """How to follow a file."""

    session_id: str
    payload: PayloadKind = "reference"
    reference_root: Path | None = None
    every_s: float = 5.0  # between two looks
    idle_end_s: float | None = None  # the session ends after so long without anything new


def follow_file(
    path: Path,
    following: Following,
    *,
    read: Callable[[Path], ParticleTable],
    wait: Callable[[float], bool],
    say: Callable[[str], None] = lambda _: None,
    clock_s: Callable[[], float] = time.monotonic,
) -> Iterator[Batch]:
    """Yield batches as particles appear in the file.

    Ends when ``wait`` says so, or after a quiet time if that was asked for; either way the file is
    read once more at the end.

    Parameters
    ----------
    read
        Reads the file.
    wait
        Waits so many seconds; True means stop.
    say
        Told, in words, what was noticed.

    Raises
    ------
    InputFileError
        The file is complete but cannot be used.
    """
    watcher = StarWatcher(path, read=read)
    contrast: Literal["bright", "dark"] | None = None
    told = ""
    quiet_since_s = clock_s()
    ending = False
    while True:
        update = watcher.poll(last_call=ending and path.exists())
        if update.waiting_for and update.waiting_for != told:
            told = update.waiting_for
            say(f"waiting for {told}")
        if update.table is not None and len(update.new_rows):
            quiet_since_s = clock_s()
            if contrast is None:
                sign, words = decide_sign(
                    contrast_of_table(update.table), update.table.contrast_sign
                )
                contrast = "bright" if sign > 0 else "dark"
                for note in (*update.table.notes, words):
                    if note:
                        say(note)
            yield from batches_from_table(
                update.table,
                BATCH_PARTICLES,
                session_id=following.session_id,
                producer=producer_name("attach"),
                payload=following.payload,
                rows=update.new_rows,
                contrast=contrast,
                reference_root=following.reference_root,
            )
        if ending:
            return
        quiet_s = clock_s() - quiet_since_s
        ending = following.idle_end_s is not None and quiet_s >= following.idle_end_s
        if not ending:
            ending = wait(following.every_s)
