"""Options that several commands have, and help that reads the same for all of them.

Conventions owned here: a value is shown as what it is to a person (FILE, DIR, N, SECONDS), a flag
without one; a default stands at the end of its sentence, as `help_with` writes it. Defaults are
told here and set in `streamer.config`; a test compares the two, since importing the settings would
make ``--help`` slow.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

__all__ = [
    "FLAG",
    "Application",
    "Assign",
    "Bus",
    "Classes",
    "Config",
    "DataRoot",
    "Device",
    "MaxResolution",
    "MetricsPort",
    "NeglectAberrations",
    "Out",
    "PoseSearch",
    "Prefix",
    "Preset",
    "Seed",
    "Session",
    "Symmetry",
    "at_least",
    "help_with",
]

FLAG = ""  # the metavar of an option that takes no value


def help_with(words: str, default: object) -> str:
    """Give an option's help with its default at the end."""
    return f"{words} [dim]\\[default: {default}][/dim]"


def at_least(least: int) -> Callable[[int | None], int | None]:
    """Give the callback that refuses a smaller number, in words."""

    def check(value: int | None) -> int | None:
        if value is not None and value < least:
            raise typer.BadParameter(f"{value} is not at least {least}")
        return value

    return check


class _Command(TyperCommand):
    """A command whose help names no types."""

    def get_params(self, ctx: Any) -> Any:
        """Give the parameters, as the base class does."""
        params: list[Any] = [*super().get_params(ctx)]
        for param in params:
            if param.param_type_name == "argument":  # its metavar stands before it already
                param.display_type_rich = _nothing
        return params

    def get_help_option(self, ctx: Any) -> Any:
        """Give the option, as the base class does."""
        return _as_flag(super().get_help_option(ctx))


class _Group(TyperGroup):
    """The same for a command that has commands."""

    def get_help_option(self, ctx: Any) -> Any:
        """Give the option, as the base class does."""
        return _as_flag(super().get_help_option(ctx))


def _nothing(ctx: Any) -> None:
    del ctx


def _as_flag(option: Any) -> Any:
    if option is not None:
        option.metavar = FLAG
    return option


class Application(typer.Typer):
    """An application, or a part of one, whose commands show their help in this program's way."""

    def __init__(self, **more: Any) -> None:
        super().__init__(cls=_Group, no_args_is_help=True, rich_markup_mode="rich", **more)

    def command(self, name: str | None = None, **more: Any) -> Callable[[Any], Any]:
        """Register a command."""
        return super().command(name, cls=_Command, **more)


Config = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Settings file (TOML).")
]
Assign = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="Any setting, e.g. engine.replay_passes=1; repeatable."
    ),
]
Bus = Annotated[
    str | None,
    typer.Option(
        "--bus",
        metavar="URL",
        help=help_with(
            "kafka://host:9092, or sqlite:///path/bus.db on one machine.",
            "sqlite:///abinitio-live.sqlite",
        ),
    ),
]
Preset = Annotated[
    str | None,
    typer.Option(
        "--preset",
        metavar="NAME",
        help="Settings for a kind of sample: small-membrane-protein, high-symmetry or "
        "junk-removal.",
    ),
]
Session = Annotated[
    str | None,
    typer.Option(
        "--session", metavar="NAME", help=help_with("Name of the acquisition.", "default")
    ),
]
Prefix = Annotated[
    str | None,
    typer.Option("--prefix", metavar="NAME", help=help_with("Prefix of the topics.", "abinitio")),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help=help_with("Folder for the results.", "out")),
]
Classes = Annotated[
    int | None,
    typer.Option(
        "--classes", metavar="N", help=help_with("How many different structures to look for.", 1)
    ),
]
Symmetry = Annotated[
    str | None,
    typer.Option(
        "--symmetry",
        metavar="GROUP",
        help=help_with("Point group: C1, C4, D7, T, O, I …, or auto.", "C1"),
    ),
]
MaxResolution = Annotated[
    float | None,
    typer.Option(
        "--max-resolution",
        metavar="ANGSTROM",
        help=help_with(
            "Finest detail to use, in Å; a smaller number is finer, and slower.",
            "12, or 9.6 with T, O or I",
        ),
    ),
]
PoseSearch = Annotated[
    str | None,
    typer.Option(
        "--pose-search",
        metavar="METHOD",
        help=help_with("exhaustive or branch_and_bound.", "exhaustive"),
    ),
]
Seed = Annotated[
    int | None,
    typer.Option("--seed", metavar="N", help=help_with("Seed of every random choice.", 0)),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="DEVICE",
        help=help_with("cpu, cuda, cuda:1, or auto: a GPU if there is one.", "auto"),
    ),
]
DataRoot = Annotated[
    Path | None,
    typer.Option(
        "--data-root",
        metavar="DIR",
        help=help_with("Folder that stack paths start from.", "the file's own, or one above it"),
    ),
]
NeglectAberrations = Annotated[
    bool,
    typer.Option(
        "--neglect-aberrations",
        metavar=FLAG,
        help="Use files with beam tilt, higher-order aberrations or magnification matrices.",
    ),
]
MetricsPort = Annotated[
    int | None,
    typer.Option(
        "--metrics-port",
        metavar="PORT",
        help=help_with("Port of the metrics; 0 takes a free one.", 9109),
    ),
]
