"""Commands that talk to a session over its bus, or look at an installation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from streamer.cli import app, consoles, settings_from
from streamer.cli_options import (
    FLAG,
    Application,
    Assign,
    Bus,
    Config,
    Device,
    MetricsPort,
    Prefix,
    Session,
    help_with,
)

__all__: list[str] = []

dead_letter_app = Application(help="See what was refused and why; send it again.")
app.add_typer(dead_letter_app, name="dead-letter")
series_app = Application(help="All volumes of a session in one file.")
app.add_typer(series_app, name="series")


@series_app.command("pack")
def series_pack(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Output folder of a session.")],
    to: Annotated[
        Path | None,
        typer.Option(
            "--to", metavar="FILE", help=help_with("The archive.", "series.zip in the folder")
        ),
    ] = None,
    half_maps: Annotated[
        bool, typer.Option("--half-maps/--no-half-maps", metavar=FLAG, help="Half-maps too.")
    ] = True,
) -> None:
    """Pack every snapshot of a session into one ZIP file, numbered, with a table."""
    from streamer.series_pack import pack_series

    packed = pack_series(folder, to, half_maps="keep" if half_maps else "leave")
    console, _ = consoles()
    console.print(
        f"{packed.path}: {packed.snapshots} snapshots, {packed.volumes} volumes, "
        f"{packed.size_bytes / 2**20:.1f} MiB",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


@app.command()
def subscribe(
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="Folder to write into.")],
    source: Annotated[
        Path | None,
        typer.Option(
            "--source",
            metavar="DIR",
            help=help_with(
                "The session's output folder as this machine sees it.", "as the session calls it"
            ),
        ),
    ] = None,
    bus: Bus = None,
    session: Session = None,
    prefix: Prefix = None,
    config: Config = None,
    assign: Assign = None,
) -> None:
    """Write a session's maps and poses into a folder as they come, until it ends."""
    from schemas.topics import Topics
    from streamer import subscribe as subscriber
    from streamer.parts import StopRequest
    from streamer.service import ensure_topics, open_existing_bus, writable_folder
    from streamer.signals import stop_on_signals

    settings = settings_from(config, assign, bus=bus, session=session, topics_prefix=prefix)
    console, _ = consoles()
    topics = Topics(settings.topics_prefix)
    stop = StopRequest()
    with stop_on_signals(stop, budget_s=30.0), open_existing_bus(settings) as transport:
        ensure_topics(transport, topics)
        writable_folder(to)
        for received in subscriber.subscribe(
            transport,
            topics,
            to,
            session_id=settings.session,
            source=source,
            stop=lambda: stop.requested,
        ):
            line = f"{received.folder}  {received.maps} maps, {received.poses} poses"
            console.print(line, markup=False, highlight=False, soft_wrap=True)
            for problem in received.problems:
                console.print(f"  note: {problem}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def control(
    action: Annotated[
        str,
        typer.Argument(metavar="ACTION", help="pause, resume, snapshot, end or status."),
    ],
    wait_s: Annotated[
        float, typer.Option("--wait", metavar="SECONDS", help="How long to wait for the reply.")
    ] = 30.0,
    note: Annotated[str, typer.Option("--note", metavar="TEXT", help="Why, for the log.")] = "",
    bus: Bus = None,
    session: Session = None,
    prefix: Prefix = None,
    config: Config = None,
    assign: Assign = None,
) -> None:
    """Ask a running session to pause, resume, publish now, end, or say where it stands."""
    from schemas.topics import Topics
    from streamer.control import ask
    from streamer.errors import ServiceError
    from streamer.service import ensure_topics, open_existing_bus

    settings = settings_from(config, assign, bus=bus, session=session, topics_prefix=prefix)
    console, _ = consoles()
    topics = Topics(settings.topics_prefix)
    with open_existing_bus(settings) as transport:
        ensure_topics(transport, topics)
        reply = ask(
            transport,
            topics,
            session_id=settings.session,
            action=action,
            timeout_s=wait_s,
            note=note,
        )
    if reply is None:
        raise ServiceError(
            f"session {settings.session} did not reply within {wait_s:.0f} s",
            "Is it running on this bus? The request stays in the log and is obeyed when it starts",
        )
    console.print(f"{reply.outcome}: {reply.detail}".rstrip(": "), markup=False, highlight=False)
    if reply.status is not None:
        for name, value in reply.status.model_dump().items():
            shown = "none yet" if value is None else value
            console.print(f"  {name} = {shown}", markup=False, highlight=False)
    if reply.outcome == "refused":
        raise typer.Exit(1)


@dead_letter_app.command("list")
def list_letters(
    bus: Bus = None,
    session: Session = None,
    prefix: Prefix = None,
    config: Config = None,
    assign: Assign = None,
) -> None:
    """List what was refused, oldest first."""
    from rich.table import Table
    from rich.text import Text

    from schemas.topics import Topics
    from streamer.dead_letter import letters
    from streamer.service import ensure_topics, open_existing_bus

    settings = settings_from(config, assign, bus=bus, session=session, topics_prefix=prefix)
    console, _ = consoles()
    table = Table("number", "what", "from", "bytes", "reason", "detail", box=None)
    topics = Topics(settings.topics_prefix)
    with open_existing_bus(settings) as transport:
        ensure_topics(transport, topics)
        for letter in letters(transport, topics, session_id=settings.session):
            record = letter.record
            whole = record.scope == "record"
            table.add_row(
                str(letter.number),
                "record" if whole else f"{len(record.particles)} particles",
                f"{record.source_topic}[{record.source_partition}]@{record.source_offset}",
                str(record.payload_bytes),
                record.reason,
                Text(record.detail),
            )
    if table.row_count:
        console.print(table)
    else:
        console.print("no dead letters")


@dead_letter_app.command("show")
def show_letter(
    number: Annotated[int, typer.Argument(metavar="N", help="Number from the list.")],
    save: Annotated[
        Path | None,
        typer.Option("--save", metavar="FILE", help="Write the refused bytes to this file."),
    ] = None,
    bus: Bus = None,
    session: Session = None,
    prefix: Prefix = None,
    config: Config = None,
    assign: Assign = None,
) -> None:
    """Show one dead letter in full."""
    from schemas.topics import Topics
    from streamer.dead_letter import letters
    from streamer.errors import ConfigurationError
    from streamer.service import ensure_topics, open_existing_bus

    settings = settings_from(config, assign, bus=bus, session=session, topics_prefix=prefix)
    console, _ = consoles()
    topics = Topics(settings.topics_prefix)
    with open_existing_bus(settings) as transport:
        ensure_topics(transport, topics)
        for letter in letters(transport, topics, session_id=settings.session):
            if letter.number == number:
                text = json.dumps(letter.record.model_dump(mode="json"), indent=1)
                console.print(text, markup=False, highlight=False, soft_wrap=True)
                if save is not None:
                    save.write_bytes(letter.payload)
                return
    raise ConfigurationError(f"there is no letter {number}", "See abinitio-live dead-letter list")


@dead_letter_app.command("replay")
def replay_letters(
    numbers: Annotated[list[int], typer.Argument(metavar="N", help="Numbers from the list.")],
    bus: Bus = None,
    session: Session = None,
    prefix: Prefix = None,
    config: Config = None,
    assign: Assign = None,
) -> None:
    """Send refused records again, once what was wrong with them is mended."""
    from schemas.topics import Topics
    from streamer.dead_letter import letters, replay
    from streamer.errors import ConfigurationError
    from streamer.service import ensure_topics, open_existing_bus

    settings = settings_from(config, assign, bus=bus, session=session, topics_prefix=prefix)
    console, _ = consoles()
    topics = Topics(settings.topics_prefix)
    with open_existing_bus(settings) as transport:
        ensure_topics(transport, topics)
        found = {
            letter.number: letter
            for letter in letters(transport, topics, session_id=settings.session)
            if letter.number in numbers
        }
        if missing := sorted(set(numbers) - set(found)):
            raise ConfigurationError(
                f"there is no letter {missing[0]}", "See abinitio-live dead-letter list"
            )
        for number in numbers:
            replay(transport, topics, found[number])
            console.print(f"letter {number} sent again", highlight=False)


@app.command()
def doctor(
    bus: Bus = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help=help_with("Folder of a session, to be looked at too.", "none"),
        ),
    ] = None,
    session: Session = None,
    device: Device = None,
    metrics_port: MetricsPort = None,
    prefix: Prefix = None,
    config: Config = None,
    assign: Assign = None,
) -> None:
    """Check the bus, folders, checkpoint and machine, and say how to mend what is wrong."""
    from rich.text import Text

    from streamer.doctor import examine

    settings = settings_from(
        config,
        assign,
        bus=bus,
        out=out,
        session=session,
        device=device,
        metrics__port=metrics_port,
        topics_prefix=prefix,
    )
    console, _ = consoles()
    marks = {"good": ("ok", "green"), "warning": ("note", "yellow"), "bad": ("BAD", "bold red")}
    bad = 0
    for finding in examine(settings):
        word, style = marks[finding.level]
        line = Text.assemble((f"{word:>5}  ", style), f"{finding.what}: {finding.words}")
        console.print(line, soft_wrap=True)
        bad += finding.level == "bad"
    raise typer.Exit(1 if bad else 0)
