"""`run`: a particle file in, maps out, in one process.

The file's particles go over a bus in memory to the same loop as everywhere else, by reference, so
that pixels are read once, where they are used. A run begins anew each time.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from rich.console import Console

from reconstruct.io.errors import InputFileError
from reconstruct.io.table import AberrationPolicy, ParticleTable
from reconstruct.types import Geometry
from schemas.topics import Topics
from streamer.adapt import batches_from_table
from streamer.attach import BATCH_PARTICLES, Following, follow_file
from streamer.config import Settings
from streamer.contrast import contrast_of_table, decide_sign
from streamer.engines import (
    check_engine_settings,
    check_geometry,
    open_device,
)
from streamer.errors import ConfigurationError
from streamer.host import LINES_EVERY_S, host_session
from streamer.leftovers import begin_anew, check_folder
from streamer.microscope import play
from streamer.microscope_sources import Batch
from streamer.outbox import producer_name
from streamer.parts import StopRequest
from streamer.results import Usage
from streamer.service import Finished, ensure_topics, open_bus, writable_folder
from streamer.state import EngineFactory

__all__ = ["check_kind", "read_particles", "run_file", "session_of", "wait_or_stop"]

_JOIN_S = 10.0
_numbers = itertools.count()


def session_of(path: Path) -> str:
    """Name the session of a file after it, as far as a session's name may be so."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).lstrip("._-")[:100]
    return name or "run"


def check_kind(path: Path) -> None:
    """Refuse a file that is of neither kind, by its ending.

    Raises
    ------
    ConfigurationError
        It is.
    """
    if path.suffix not in (".star", ".cs"):
        wrong = "is neither a STAR nor a .cs file"
        if path.is_dir():
            wrong = "is a folder"
        elif not path.exists():
            wrong = "does not exist, and is no name of a STAR or .cs file"
        raise ConfigurationError(
            f"{path} {wrong}",
            "Give a particles file of RELION or cryoSPARC",
        )


def read_particles(
    path: Path, *, data_root: Path | None = None, aberrations: AberrationPolicy = "refuse"
) -> ParticleTable:
    """Read a STAR or .cs file, by its ending.

    Parameters
    ----------
    aberrations
        Whether to refuse or to neglect what the CTF model does not have.

    Raises
    ------
    ConfigurationError
        The ending is neither.
    InputFileError
        Something about the file or its stacks is wrong; the message has the remedy.
    """
    check_kind(path)
    reader: Callable[..., ParticleTable]
    if path.suffix == ".star":
        from reconstruct.io.star import read_star

        reader = read_star
    else:
        from reconstruct.io.cs import read_cs

        reader = read_cs
    try:
        return reader(path, data_root=data_root, aberrations=aberrations)
    except InputFileError as error:
        if error.reason != "aberrations":
            raise
        remedy = (
            "Use particles from before CTF refinement, or accept the small error at ab-initio "
            "resolution with --neglect-aberrations"
        )
        raise InputFileError(path, error.detail, remedy=remedy, reason=error.reason) from error


def run_file(
    settings: Settings,
    path: Path,
    *,
    console: Console,
    data_root: Path | None = None,
    aberrations: AberrationPolicy = "refuse",
    following: Following | None = None,
    factory: EngineFactory | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Finished:
    """Reconstruct the particles of one file.

    Parameters
    ----------
    settings
        The bus and the roots are replaced: everything stays in this process.
    aberrations
        Whether to refuse or to neglect what the CTF model does not have.
    following
        Follow the file while it grows, instead of reading it once.
    say
        Told, in words, what was noticed about the file.

    Raises
    ------
    ServiceError, InputFileError
        The file, its stacks or the output folder cannot be used.
    """
    usage = Usage()
    check_engine_settings(settings.engine)  # before an earlier run's results are removed
    check_folder(settings, path)
    open_device(settings.device)
    stop = StopRequest()
    notes: list[str] = []  # said once nothing is in the way of the session
    table: ParticleTable | None = None
    batches: Iterable[Batch]
    if following is None:
        table = read_particles(path, data_root=data_root, aberrations=aberrations)
        if table.box is not None:
            geometry = Geometry(table.box, table.pixel_size_angstrom)
            if words := check_geometry(settings.engine, geometry):
                notes.append(words)
        batches = _batches_once(settings, table, notes.append)
        roots = tuple(sorted({Path(os.path.abspath(stack)).parent for stack in table.stacks}))
    else:
        check_kind(path)
        read = functools.partial(read_particles, data_root=data_root, aberrations=aberrations)
        roots = (Path("/"),)  # the user's own file says where the stacks are
        batches = follow_file(
            path, following, read=read, wait=lambda s: wait_or_stop(stop, s), say=say
        )
    settings = settings.model_copy(
        update={"bus": f"memory://run-{os.getpid()}-{next(_numbers)}", "roots": roots}
    )
    with open_bus(settings) as transport:
        ensure_topics(transport, Topics(settings.topics_prefix))
        feeder = _Feeder(settings, batches, stop=stop)

        def begin() -> None:  # the input is accepted, and all around the session is up
            writable_folder(settings.out)
            for words in filter(None, (*notes, begin_anew(settings, path))):
                say(words)
            feeder.start()

        finished = host_session(
            settings,
            console=console,
            usage=usage,
            factory=factory,
            transport=transport,
            table=table,
            results_if_stopped=True,
            stop=stop,
            beside=begin,
            lines_every_s=LINES_EVERY_S,
            expected=None if table is None else len(table),
        )
        feeder.finish()
    if finished.outcome == "ended" and finished.state.step == 0:
        why = finished.state.last_refusal or "all were quarantined; see report.json"
        raise ConfigurationError(
            f"no particle of {path} could be used: {why}", "Correct the input or the setting named"
        )
    return finished


def _batches_once(
    settings: Settings, table: ParticleTable, say: Callable[[str], None]
) -> Iterator[Batch]:
    for note in table.notes:
        say(note)
    sign, words = decide_sign(contrast_of_table(table), table.contrast_sign)
    if words:
        say(words)
    return batches_from_table(
        table,
        BATCH_PARTICLES,
        session_id=settings.session,
        producer=producer_name("run"),
        payload="reference",
        contrast="bright" if sign > 0 else "dark",
    )


def wait_or_stop(stop: StopRequest, seconds: float) -> bool:
    """Wait in short turns, so that a stop is noticed."""
    deadline_s = time.monotonic() + seconds
    while not stop.requested and (left_s := deadline_s - time.monotonic()) > 0:
        time.sleep(min(left_s, 0.2))
    return stop.requested


class _Feeder:
    """Puts batches on the bus from a thread of its own, with a connection of its own."""

    def __init__(self, settings: Settings, batches: Iterable[Batch], *, stop: StopRequest) -> None:
        self._settings = settings
        self._batches = batches
        self._stop = stop
        self._problem: InputFileError | None = None
        self._thread = threading.Thread(target=self._feed, name="feeder", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def finish(self) -> None:
        """Raise what went wrong with the input, if anything did."""
        self._thread.join(_JOIN_S)
        if self._problem is not None:
            raise self._problem

    def _feed(self) -> None:
        with open_bus(self._settings) as transport:
            try:
                for _ in play(
                    transport,
                    self._batches,
                    session_id=self._settings.session,
                    topics=Topics(self._settings.topics_prefix),
                    end_session=True,
                ):
                    if self._stop.requested:
                        return
            except InputFileError as error:
                self._problem = error
                self._stop.requested = True
