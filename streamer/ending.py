"""The last words of a session: what came of it, how to go on, and where its results are."""

from __future__ import annotations

from rich.console import Console

from streamer.config import Settings
from streamer.errors import ConfigurationError
from streamer.quarantine import REASONS
from streamer.service import Finished

__all__ = ["RUN_AGAIN", "SERVE_AGAIN", "refuse_unused", "tell_end"]

RUN_AGAIN = (
    "a run cannot be continued: the same command starts over and replaces these results (a session "
    "of serve continues where it stopped)"
)
SERVE_AGAIN = "the same command continues where it stopped"
_OUTSIDE = "path_outside_roots"


def tell_end(console: Console, settings: Settings, finished: Finished, *, go_on: str) -> None:
    """Say what came of a session, where its results are and, if it was stopped, how to go on."""
    books = finished.state.balance()
    limit = settings.engine.particles_to_use
    cut = limit is not None and books.trained == limit < books.received
    limited = f"; {limit:,} of {books.received:,} used (--particles)" if cut else ""
    words = f"ended: {books.trained:,} particles trained of {books.received:,} received"
    console.print(
        f"session {settings.session} {finished.stopped or words}, {books.quarantined:,} "
        f"quarantined, {books.duplicate:,} duplicate{limited}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    if finished.stopped:
        console.print(f"  {go_on}", markup=False, highlight=False, soft_wrap=True)
    if (settings.out / "report.json").exists():
        for name, what in (
            ("class_001.mrc", "maps and half-maps, one set per class"),
            ("particles.star", "poses and classes"),
            ("picture.png", "the last maps in one picture"),
            ("timeline.png", "how the session went"),
            ("series", "every snapshot on the way"),
            ("report.json", "numbers, settings, versions"),
        ):
            if (settings.out / name).exists():
                path = settings.out / name
                console.print(f"  {path}  {what}", markup=False, highlight=False, soft_wrap=True)


def refuse_unused(finished: Finished, session: str) -> None:
    """Keep a session of which no particle could be used from passing for a good one.

    Raises
    ------
    ConfigurationError
        It has ended, particles or records came, and none was fit to train.
    """
    state, books = finished.state, finished.state.balance()
    if finished.outcome != "ended" or state.step or not (books.quarantined or state.last_refusal):
        return
    reason = next(iter(state.ledger.quarantined), "")  # a process later, all that is known
    known = {**REASONS, _OUTSIDE: "stacks lie outside of the roots, which are given with --root"}
    why = state.first_problem or state.last_refusal or known.get(reason, reason)
    again = "send the particles again to a new session, with another --session and --out"
    remedy = f"Mend what dead-letter list names and {again}"
    if reason == _OUTSIDE:
        remedy = (
            "As this session has ended, start serve with that --root and another --out instead of "
            "a replay: the particles are read from the log once more"
        )
    raise ConfigurationError(f"no particle of session {session} could be used: {why}", remedy)
