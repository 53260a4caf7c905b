"""The engine as the service makes it: settings checked, a device chosen, before the first particle.

Promise: what would stop every batch of a session stops the program at its start instead, in one
line with a remedy.
"""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from reconstruct.types import EngineSettings, Geometry
from streamer.config import Settings, with_flag
from streamer.errors import ConfigurationError

if TYPE_CHECKING:
    from reconstruct.backend import Backend
    from reconstruct.engine import Engine

__all__ = [
    "LIVE_REPLAYS",
    "DeviceEngines",
    "check_engine_settings",
    "check_geometry",
    "for_this_installation",
    "open_device",
    "with_spare_time",
]


LIVE_REPLAYS = 2.0  # earlier particles for each new one; see docs/decisions/spare-time.md


@dataclass(frozen=True)
class DeviceEngines:
    """Makes engines on one device; a `streamer.state.EngineFactory`."""

    backend: Backend

    def __call__(self, settings: EngineSettings, geometry: Geometry) -> Engine:
        """Make a new engine."""
        from reconstruct.engine import Engine  # late, since it compiles kernels

        return Engine(settings, geometry, device=self.backend)

    def load(
        self,
        settings: EngineSettings,
        geometry: Geometry,
        meta: Mapping[str, Any],
        arrays: Mapping[str, npt.NDArray[Any]],
        rows: Mapping[str, npt.NDArray[Any]],
    ) -> Engine:
        """Make one that goes on where the dump was made."""
        from reconstruct.engine import Engine

        return Engine.load(settings, geometry, meta, arrays, rows, device=self.backend)


def with_spare_time(settings: Settings) -> Settings:
    """Let a live session show earlier particles again, unless it is set how many.

    A microscope brings a few particles a second, a session learns from hundreds: without them it
    would wait, and its maps would be those of one look at each particle until the stream ends.
    """
    if settings.engine.stream_replays is not None:
        return settings
    engine = replace(settings.engine, stream_replays=LIVE_REPLAYS)
    return settings.model_copy(update={"engine": engine})


def for_this_installation(problem: str) -> str:
    """Give what is said of a device with the command that adds GPU support here.

    The package's own name is of no use where the program runs from a clone.
    """
    from reconstruct.backend import GPU_EXTRA

    root = Path(__file__).resolve().parents[1]
    if not (root / "pyproject.toml").exists():
        return problem
    here = f"{shlex.quote(sys.executable)} -m pip install -e {shlex.quote(f'{root}[gpu]')}"
    return problem.replace(GPU_EXTRA, here)


def open_device(device: str) -> Backend:
    """Open the device of the settings.

    Raises
    ------
    ConfigurationError
        It cannot be used.
    """
    from reconstruct.backend import DeviceError, make_backend

    try:
        return make_backend(device)
    except DeviceError as error:
        raise ConfigurationError(
            f"--device {device}: {for_this_installation(str(error))}",
            "Give --device cpu or auto; see abinitio-live doctor",
        ) from error


def check_engine_settings(settings: EngineSettings) -> None:
    """Refuse what no box and pixel size could make right.

    Raises
    ------
    ConfigurationError
        A value is out of its range or the symmetry is unknown.
    """
    from reconstruct.adopting import AUTO
    from reconstruct.symmetry import ACCEPTED_NAMES, parse_group

    for name, value in asdict(settings).items():
        if isinstance(value, float) and not math.isfinite(value):
            words = with_flag(f"engine.{name} must be a number, not {value}")
            raise ConfigurationError(words, _REMEDY)
    if settings.symmetry == AUTO:
        return
    try:
        group = parse_group(settings.symmetry)
    except ValueError as error:
        raise ConfigurationError(
            f"symmetry must be {ACCEPTED_NAMES}, not {settings.symmetry!r}",
            f"Give one of them, or {AUTO}, which finds the group out",
        ) from error
    if group.name in ("I1", "I2"):  # the engine's own rule, said before the first particle
        raise ConfigurationError(
            f"symmetry {settings.symmetry} names an orientation of I",
            "Give --symmetry I, whose axes are those of I2",
        )


def check_geometry(settings: EngineSettings, geometry: Geometry) -> str:
    """Refuse settings that this box and pixel size cannot honour; say what is clamped, if any.

    Raises
    ------
    ConfigurationError
        They cannot; the message has the limit.
    """
    from reconstruct.layout import MOST_SHELLS, make_layout

    try:
        shells = make_layout(settings, geometry).max_radius
    except ValueError as error:
        raise ConfigurationError(with_flag(str(error)), _REMEDY) from error
    edge = geometry.box_angstrom
    if int(edge / settings.finest_angstrom) <= shells:
        return ""
    return with_flag(
        f"max_resolution_angstrom {settings.finest_angstrom:g} is finer than this box and pixel "
        f"size allow, or than {MOST_SHELLS} shells; {edge / shells:.1f} A is used"
    )


_REMEDY = "Correct the flag, the ABINITIO_ variable or the line of the settings file"
