"""`run`: a particle file in, maps out, in one process.

The file's particles go over a bus in memory to the same loop as everywhere else, by reference, so
that pixels are read once, where they are used. A run begins anew each time.
"""

from __future__ import annotations

import itertools
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from reconstruct.io.errors import InputFileError
from reconstruct.io.table import ParticleTable
from schemas.topics import Topics
from streamer.config import Settings
from streamer.errors import ConfigurationError
from streamer.host import host_session
from streamer.parts import StopRequest
from streamer.results import Usage
from streamer.service import Finished, ensure_topics, open_bus, writable_folder
from streamer.state import EngineFactory

__all__ = ["begin_anew", "read_particles", "run_file"]

_BATCH_PARTICLES = 500
_JOIN_S = 10.0
_numbers = itertools.count()


def read_particles(path: Path, *, data_root: Path | None = None) -> ParticleTable:
    """Read a STAR or .cs file, by its ending.

    Raises
    ------
    ConfigurationError
        The ending is neither.
    InputFileError
        Something about the file or its stacks is wrong; the message has the remedy.
    """
    if path.suffix == ".star":
        from reconstruct.io.star import read_star

        return read_star(path, data_root)
    if path.suffix == ".cs":
        from reconstruct.io.cs import read_cs

        return read_cs(path, data_root=data_root)
    raise ConfigurationError(
        f"{path} is neither a STAR nor a .cs file", "Give a particles file of RELION or cryoSPARC"
    )


def run_file(
    settings: Settings,
    path: Path,
    *,
    console: Console,
    data_root: Path | None = None,
    factory: EngineFactory | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Finished:
    """Reconstruct the particles of one file.

    Parameters
    ----------
    settings
        The bus and the roots are replaced: everything stays in this process.
    say
        Told, in words, what was noticed about the file.

    Raises
    ------
    ServiceError, InputFileError
        The file, its stacks or the output folder cannot be used.
    """
    usage = Usage()
    table = read_particles(path, data_root=data_root)
    writable_folder(settings.out)
    for note in table.notes:
        say(note)
    contrast = _contrast(table, say)
    roots = tuple(sorted({Path(os.path.abspath(stack)).parent for stack in table.stacks}))
    settings = settings.model_copy(
        update={"bus": f"memory://run-{os.getpid()}-{next(_numbers)}", "roots": roots}
    )
    begin_anew(settings)
    topics = Topics(settings.topics_prefix)
    stop = StopRequest()
    with open_bus(settings) as transport:
        ensure_topics(transport, topics)
        feeder = _Feeder(settings, table, contrast=contrast, stop=stop)
        finished = host_session(
            settings,
            console=console,
            usage=usage,
            factory=factory,
            transport=transport,
            table=table,
            stop=stop,
            beside=feeder.start,
        )
        feeder.finish()
    return finished


def _contrast(table: ParticleTable, say: Callable[[str], None]) -> str:
    from streamer.contrast import contrast_of_table, decide_sign

    sign, words = decide_sign(contrast_of_table(table), table.contrast_sign)
    if words:
        say(words)
    return "bright" if sign > 0 else "dark"


def begin_anew(settings: Settings) -> None:
    """Remove what an earlier run left in the output folder, and only that."""
    for folder in (settings.state_folder, settings.out / "series"):
        shutil.rmtree(folder, ignore_errors=True)
    (settings.out / "report.json").unlink(missing_ok=True)


class _Feeder:
    """Puts the table on the bus from a thread of its own, with a connection of its own."""

    def __init__(
        self, settings: Settings, table: ParticleTable, *, contrast: str, stop: StopRequest
    ) -> None:
        self._settings = settings
        self._table = table
        self._contrast = contrast
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
        from streamer.adapt import batches_from_table
        from streamer.microscope import play
        from streamer.outbox import producer_name

        batches = batches_from_table(
            self._table,
            _BATCH_PARTICLES,
            session_id=self._settings.session,
            producer=producer_name("run"),
            payload="reference",
            contrast="bright" if self._contrast == "bright" else "dark",
        )
        with open_bus(self._settings) as transport:
            try:
                for _ in play(
                    transport,
                    batches,
                    session_id=self._settings.session,
                    topics=Topics(self._settings.topics_prefix),
                    end_session=True,
                ):
                    if self._stop.requested:
                        return
            except InputFileError as error:
                self._problem = error
                self._stop.requested = True
