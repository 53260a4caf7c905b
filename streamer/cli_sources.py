"""Commands that put particles on a bus: a fake microscope, and the files of a live session."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from streamer.cli import app, consoles, settings_from
from streamer.cli_options import (
    FLAG,
    Assign,
    Bus,
    Config,
    DataRoot,
    NeglectAberrations,
    Prefix,
    Session,
    at_least,
    help_with,
)

__all__: list[str] = []


def _microscope(
    particles: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE", help="Play these particles (.star or .cs) instead of simulated ones."
        ),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(
            "--particles",
            metavar="N",
            callback=at_least(1),
            help=help_with("How many to send.", "all of a file, or 3000"),
        ),
    ] = None,
    box: Annotated[
        int,
        typer.Option(
            "--box",
            metavar="PIXELS",
            callback=at_least(16),
            help="Box of simulated particles, at least 16.",
        ),
    ] = 64,
    pixel_size: Annotated[
        float, typer.Option("--pixel-size", metavar="ANGSTROM", help="Their pixel size, in Å.")
    ] = 5.0,
    snr: Annotated[
        float, typer.Option("--snr", metavar="RATIO", help="Their signal-to-noise ratio.")
    ] = 0.1,
    rate: Annotated[
        float | None,
        typer.Option(
            "--rate", metavar="N", help=help_with("Particles per second.", "as fast as it goes")
        ),
    ] = None,
    end: Annotated[
        bool,
        typer.Option("--end/--no-end", metavar=FLAG, help="Ask the session to end after the last."),
    ] = False,
    reference: Annotated[
        bool,
        typer.Option(
            "--reference", metavar=FLAG, help="Send paths instead of pixels (files only)."
        ),
    ] = False,
    data_root: DataRoot = None,
    neglect_aberrations: NeglectAberrations = False,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", help="Seed of the simulated particles.")
    ] = 7,
    bus: Bus = None,
    session: Session = None,
    prefix: Prefix = None,
    config: Config = None,
    assign: Assign = None,
) -> None:
    """Send simulated particles, or those of a file, as a microscope would."""
    from collections.abc import Iterable

    from schemas.topics import Topics
    from streamer.microscope import Clock, Pace, play
    from streamer.microscope_sources import Batch, batches_from_micrographs
    from streamer.parts import StopRequest
    from streamer.run import read_particles, wait_or_stop
    from streamer.service import open_bus
    from streamer.signals import stop_on_signals

    settings = settings_from(config, assign, bus=bus, session=session, topics_prefix=prefix)
    console, _ = consoles()
    given: Iterable[Batch]
    if particles is not None:
        table = read_particles(
            particles,
            data_root=data_root,
            aberrations="neglect" if neglect_aberrations else "refuse",
        )
        given = batches_from_micrographs(
            table,
            session_id=settings.session,
            payload="reference" if reference else "inline",
            limit=count,
        )
    else:
        given = _simulated(settings.session, count or 3000, box, pixel_size, snr=snr, seed=seed)
    stop = StopRequest()
    with stop_on_signals(stop, budget_s=30.0), open_bus(settings) as transport:
        for sent in play(
            transport,
            given,
            session_id=settings.session,
            pace=Pace(particles_per_second=rate),
            topics=Topics(settings.topics_prefix),
            end_session=end,
            clock=Clock(wait=lambda seconds: wait_or_stop(stop, seconds)),
        ):
            if sent.kind == "end":
                console.print(f"end after {sent.total_particles} particles", highlight=False)
            else:
                console.print(
                    f"sent particles={sent.particles} total={sent.total_particles} "
                    f"records={sent.records} late_s={sent.late_s:.1f}",
                    highlight=False,
                )
            if stop.requested:
                break


def _simulated(  # type: ignore[no-untyped-def]
    session_id: str, count: int, box: int, pixel_size: float, *, snr: float, seed: int
):
    from reconstruct.simulate import SimulationSettings, Species, simulate
    from reconstruct.structures import demo_particle
    from reconstruct.types import Geometry
    from streamer.microscope_sources import batches_from_simulated

    geometry = Geometry(box, pixel_size)
    chunks = simulate(
        [Species(demo_particle(geometry))],
        geometry,
        settings=SimulationSettings(n_particles=count, snr=snr, seed=seed),
    )
    return batches_from_simulated(chunks, session_id=session_id)


app.command("microscope")(_microscope)
app.command("simulate", hidden=True)(_microscope)


@app.command()
def attach(
    program: Annotated[
        str,
        typer.Argument(metavar="PROGRAM", help="Who writes the file: relion or cryosparc."),
    ],
    particles: Annotated[
        Path, typer.Argument(metavar="FILE", help="Its particles file (.star or .cs).")
    ],
    data_root: DataRoot = None,
    neglect_aberrations: NeglectAberrations = False,
    root: Annotated[
        Path | None,
        typer.Option(
            "--root",
            metavar="DIR",
            help=help_with("Send paths relative to this root of the service.", "whole paths"),
        ),
    ] = None,
    inline: Annotated[
        bool, typer.Option("--inline", metavar=FLAG, help="Send pixels, not paths.")
    ] = False,
    every_s: Annotated[
        float, typer.Option("--every", metavar="SECONDS", help="Time between two looks.")
    ] = 5.0,
    idle_end_s: Annotated[
        float | None,
        typer.Option(
            "--idle-end",
            metavar="SECONDS",
            help=help_with(
                "End, and ask the session to end, after so long without a new particle.", "never"
            ),
        ),
    ] = None,
    bus: Bus = None,
    session: Session = None,
    prefix: Prefix = None,
    config: Config = None,
    assign: Assign = None,
) -> None:
    """Follow the particles file of a live session and send what is new."""
    import functools

    from schemas.topics import Topics
    from streamer.attach import Following, follow_file
    from streamer.errors import ConfigurationError
    from streamer.host import note_to
    from streamer.microscope import play
    from streamer.parts import StopRequest
    from streamer.run import check_kind, read_particles, wait_or_stop
    from streamer.service import open_bus
    from streamer.signals import stop_on_signals

    if program not in ("relion", "cryosparc"):
        raise ConfigurationError(f"cannot attach to {program!r}", "Use relion or cryosparc")
    check_kind(particles)  # before a bus is made for it
    settings = settings_from(config, assign, bus=bus, session=session, topics_prefix=prefix)
    console, errors = consoles()
    stop = StopRequest()
    say = functools.partial(note_to, errors)
    batches = follow_file(
        particles,
        Following(
            settings.session,
            payload="inline" if inline else "reference",
            reference_root=root,
            every_s=every_s,
            idle_end_s=idle_end_s,
        ),
        read=functools.partial(
            read_particles,
            data_root=data_root,
            aberrations="neglect" if neglect_aberrations else "refuse",
        ),
        wait=lambda seconds: wait_or_stop(stop, seconds),
        say=say,
    )
    with stop_on_signals(stop, budget_s=30.0), open_bus(settings) as transport:
        for sent in play(
            transport,
            batches,
            session_id=settings.session,
            topics=Topics(settings.topics_prefix),
            end_session=idle_end_s is not None,
        ):
            words = f"sent particles={sent.particles} total={sent.total_particles}"
            console.print(words if sent.kind == "particles" else "end", highlight=False)
