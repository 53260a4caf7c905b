"""The command line: sessions here; see `cli_bus` for what talks to them.

Promises: what is wrong comes out as one line with the remedy and a non-zero exit status; nothing
heavy is imported before a command needs it, so ``--help`` is quick.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streamer.cli_options import (
    FLAG,
    Application,
    Assign,
    Bus,
    Classes,
    Config,
    DataRoot,
    Device,
    MaxResolution,
    MetricsPort,
    NeglectAberrations,
    Out,
    PoseSearch,
    Prefix,
    Preset,
    Seed,
    Session,
    Symmetry,
    at_least,
    help_with,
)

if TYPE_CHECKING:
    from rich.console import Console

    from streamer.config import Settings

__all__ = ["app", "main", "settings_from"]

# These register their commands when they are imported, in the order of the help.
MODULES = ("streamer.cli_sources", "streamer.cli_bus")

app = Application(
    name="abinitio-live",
    help="Cryo-EM ab-initio 3D reconstruction that runs while the microscope is collecting.",
    epilog="Settings come from flags, ABINITIO_ variables, the file of --config and --preset, in "
    "this order. Begin with: abinitio-live demo",
    add_completion=False,
    pretty_exceptions_enable=False,
)

EXIT_INPUT = 2
EXIT_BUS = 6
EXIT_INTERRUPTED = 130


def _tell_version(wanted: bool) -> None:
    if wanted:
        try:
            found = importlib.metadata.version("abinitio-live")
        except importlib.metadata.PackageNotFoundError:
            found = "0+source"
        typer.echo(f"abinitio-live {found}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            metavar=FLAG,
            callback=_tell_version,
            is_eager=True,
            help="Say which version it is.",
        ),
    ] = False,
) -> None:
    del version


def settings_from(config: Path | None, assign: Sequence[str] | None, **flags: Any) -> Settings:
    """Put settings together from a command's flags; a flag's name is the setting's with ``__``.

    Raises
    ------
    ConfigurationError
        Something about them is wrong.
    """
    from streamer.config import load_settings
    from streamer.errors import ConfigurationError

    overrides = {name.replace("__", "."): value for name, value in flags.items()}
    for text in assign or ():
        name, separator, value = text.partition("=")
        if not separator:
            raise ConfigurationError(f"--set {text}: no value", "Write --set name=value")
        overrides[name.strip()] = _value(value.strip())
    return load_settings(config, overrides)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def consoles() -> tuple[Console, Console]:
    """Give the consoles for output and for what went wrong."""
    from rich.console import Console

    return Console(), Console(stderr=True)


@app.command()
def demo(
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help=help_with("Folder for the results.", "demo-output")
        ),
    ] = None,
    classes: Classes = None,
    symmetry: Symmetry = None,
    max_resolution: MaxResolution = None,
    pose_search: PoseSearch = None,
    seed: Seed = None,
    device: Device = None,
    preset: Preset = None,
    particles: Annotated[
        int | None,
        typer.Option(
            "--particles",
            metavar="N",
            callback=at_least(200),
            help=help_with("Particles to simulate, at least 200.", 3000),
        ),
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            "--metrics-port",
            metavar="PORT",
            help=help_with("Port of the metrics; 0 takes a free one.", "9109, or a free one"),
        ),
    ] = None,
    keep_serving: Annotated[
        bool,
        typer.Option("--keep-serving", metavar=FLAG, help="Keep the metrics up at the end."),
    ] = False,
    config: Config = None,
    assign: Assign = None,
) -> None:
    """Watch a simulated session from the first particle to the last maps."""
    from streamer.demo import DemoSet, run_demo
    from streamer.ending import RUN_AGAIN, tell_end

    settings = settings_from(
        config,
        assign,
        session="demo",
        out=out or (None if "ABINITIO_OUT" in os.environ else Path("demo-output")),
        engine__n_classes=classes,
        engine__symmetry=symmetry,
        engine__max_resolution_angstrom=max_resolution,
        engine__pose_search=pose_search,
        engine__seed=seed,
        device=device,
        preset=preset,
        metrics__port=metrics_port,
        snapshots__every_particles=500,
    )
    console, _ = consoles()
    console.print("A simulated microscope records; maps grow as the particles come.")
    base = DemoSet()
    finished = run_demo(
        settings,
        DemoSet(particles=particles or base.particles),
        console=console,
        keep_serving=keep_serving,
    )
    tell_end(console, settings, finished, go_on=RUN_AGAIN)
    _exit_if_partial(finished.stopped)


@app.command()
def run(
    particles: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="Particles of RELION (.star) or cryoSPARC (.cs)."),
    ],
    out: Out = None,
    classes: Classes = None,
    symmetry: Symmetry = None,
    max_resolution: MaxResolution = None,
    pose_search: PoseSearch = None,
    seed: Seed = None,
    device: Device = None,
    preset: Preset = None,
    session: Annotated[
        str | None,
        typer.Option(
            "--session", metavar="NAME", help=help_with("Name in pictures and maps.", "the file's")
        ),
    ] = None,
    data_root: DataRoot = None,
    neglect_aberrations: NeglectAberrations = False,
    passes: Annotated[
        int | None,
        typer.Option(
            "--passes",
            metavar="N",
            help=help_with(
                "Replays of all particles at the end.", "2, up to 8 for under 5,000 particles"
            ),
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--particles",
            metavar="N",
            callback=at_least(1),
            help=help_with("Use only so many particles.", "all"),
        ),
    ] = None,
    follow: Annotated[
        bool,
        typer.Option(
            "--follow", metavar=FLAG, help="Watch the file grow until --idle-end, or Ctrl-C."
        ),
    ] = False,
    idle_end_s: Annotated[
        float | None,
        typer.Option(
            "--idle-end",
            metavar="SECONDS",
            help=help_with("Following: end after so long without a new particle.", "never"),
        ),
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            "--metrics-port",
            metavar="PORT",
            help=help_with("Serve metrics on this port; 0 takes a free one.", "no metrics"),
        ),
    ] = None,
    config: Config = None,
    assign: Assign = None,
) -> None:
    """Reconstruct the particles of one file, everything in one process."""
    from functools import partial

    from streamer.attach import Following
    from streamer.ending import RUN_AGAIN, tell_end
    from streamer.host import note_to
    from streamer.run import run_file, session_of

    settings = settings_from(
        config,
        assign,
        session=session,
        out=out,
        engine__n_classes=classes,
        engine__symmetry=symmetry,
        engine__max_resolution_angstrom=max_resolution,
        engine__pose_search=pose_search,
        engine__seed=seed,
        device=device,
        preset=preset,
        engine__replay_passes=passes,
        engine__particles_to_use=limit,
        metrics__enabled=metrics_port is not None,
        metrics__port=metrics_port,
    )
    if "session" not in settings.model_fields_set:
        settings = settings.model_copy(update={"session": session_of(particles)})
    console, errors = consoles()
    say = partial(note_to, errors)
    finished = run_file(
        settings,
        particles,
        console=console,
        data_root=data_root,
        aberrations="neglect" if neglect_aberrations else "refuse",
        following=Following(settings.session, idle_end_s=idle_end_s) if follow else None,
        say=say,
    )
    tell_end(console, settings, finished, go_on=RUN_AGAIN)
    _exit_if_partial("" if follow else finished.stopped)  # a file that is followed may never end


@app.command()
def serve(
    bus: Bus = None,
    session: Session = None,
    out: Out = None,
    classes: Classes = None,
    symmetry: Symmetry = None,
    max_resolution: MaxResolution = None,
    pose_search: PoseSearch = None,
    seed: Seed = None,
    device: Device = None,
    preset: Preset = None,
    roots: Annotated[
        list[Path] | None,
        typer.Option(
            "--root",
            metavar="DIR",
            help=help_with(
                "Folder that particle stacks may lie in; repeatable.",
                "none, only pixels sent inline are used",
            ),
        ),
    ] = None,
    skip_gap: Annotated[
        bool,
        typer.Option(
            "--skip-gap", metavar=FLAG, help="Go on where retention has removed particles."
        ),
    ] = False,
    metrics_port: MetricsPort = None,
    prefix: Prefix = None,
    config: Config = None,
    assign: Assign = None,
) -> None:
    """Train one session from a bus until it is asked to end; goes on where it stopped."""
    from streamer.ending import SERVE_AGAIN, refuse_unused, tell_end
    from streamer.engines import with_spare_time
    from streamer.host import host_session
    from streamer.results import Usage

    usage = Usage()
    settings = settings_from(
        config,
        assign,
        bus=bus,
        session=session,
        out=out,
        engine__n_classes=classes,
        engine__symmetry=symmetry,
        engine__max_resolution_angstrom=max_resolution,
        engine__pose_search=pose_search,
        engine__seed=seed,
        device=device,
        preset=preset,
        roots=[str(root) for root in roots] if roots else None,
        limits__skip_gap=skip_gap or None,
        metrics__port=metrics_port,
        topics_prefix=prefix,
    )
    console, _ = consoles()
    finished = host_session(with_spare_time(settings), console=console, usage=usage)
    tell_end(console, settings, finished, go_on=SERVE_AGAIN)
    refuse_unused(finished, settings.session)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; what went wrong is one line on the error output.

    Parameters
    ----------
    arguments
        By default those of the process.
    """
    for module in MODULES:
        importlib.import_module(module)
    try:
        app(args=None if arguments is None else list(arguments))
    except SystemExit:
        raise
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except Exception as error:
        status = _exit_status(error)
        if status is None:
            raise  # a bug: the traceback is what helps
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(status)


def _exit_if_partial(stopped: str) -> None:
    """Leave with a status that keeps a script from going on with maps of some particles only."""
    if stopped:
        sys.exit(EXIT_INTERRUPTED)


def _exit_status(error: Exception) -> int | None:
    from reconstruct.io.errors import InputFileError
    from streamer.errors import ServiceError
    from streamer.transports.base import TransportError

    if isinstance(error, ServiceError):
        return error.exit_code
    if isinstance(error, TransportError):
        return EXIT_BUS
    if isinstance(error, InputFileError):
        return EXIT_INPUT
    return None
