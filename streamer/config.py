"""Settings of the service: flags over environment over TOML file over preset over defaults.

One pydantic model owns every setting, its range and its sentence of help. The engine's own
parameters are defined once, in `reconstruct.types.EngineSettings`, and nested here unchanged.
Environment names start with ABINITIO_ and nest with two underscores (ABINITIO_ENGINE__N_CLASSES).
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import tomllib
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from reconstruct.presets import PRESETS
from reconstruct.types import EngineSettings
from streamer.errors import ConfigurationError

__all__ = [
    "BatchSettings",
    "CheckpointSettings",
    "KafkaSettings",
    "LimitSettings",
    "MetricsSettings",
    "Settings",
    "SnapshotSettings",
    "load_settings",
    "training_changes",
    "training_digest",
    "training_settings",
    "with_flag",
]

_file_content: ContextVar[Mapping[str, Any]] = ContextVar("_file_content", default={})  # noqa: B039
_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class KafkaSettings(_Section):
    """How to reach a broker that wants encryption or a login."""

    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    sasl_username: str | None = None
    sasl_password: SecretStr | None = None


class CheckpointSettings(_Section):
    """When to save the state, whichever comes first."""

    every_particles: int = Field(default=20_000, ge=1)
    every_s: float = Field(default=60.0, gt=0)
    keep: int = Field(default=3, ge=1, le=100)


class SnapshotSettings(_Section):
    """When to publish volumes: an early look, then steadily.

    The cadence counts particles and steps, never seconds, so that a session restarted after a
    crash publishes the same snapshots as one that was never interrupted. Maps travel inside the
    record where the whole of it fits the bus; with ``always`` a warning says when they do not.
    """

    first_particles: int = Field(default=300, ge=1)
    every_particles: int = Field(default=2_000, ge=1)
    every_steps: int = Field(default=40, ge=1)
    inline_volumes: Literal["auto", "always", "never"] = "auto"
    pictures: bool = True


class BatchSettings(_Section):
    """How much to take from the log at once."""

    max_records: int = Field(default=64, ge=1)
    max_bytes: int = Field(default=64 << 20, ge=1 << 16)
    max_wait_s: float = Field(default=0.25, gt=0, le=60)


class MetricsSettings(_Section):
    """Where Prometheus and the live page find this process."""

    enabled: bool = True
    host: str = "127.0.0.1"
    port: int = Field(default=9109, ge=0, le=65535)


class LimitSettings(_Section):
    """Bounds that keep one bad record or one slow stop from spoiling a session."""

    max_record_bytes: int = Field(default=64 << 20, ge=1 << 10)
    dead_letter_bytes: int = Field(default=1 << 20, ge=0)
    crashes_per_record: int = Field(default=3, ge=1)
    recent_records: int = Field(default=10_000, ge=0)
    stop_budget_s: float = Field(default=60.0, gt=0)
    skip_gap: bool = False


class Settings(BaseSettings):
    """Everything a user may set about one session."""

    model_config = SettingsConfigDict(
        env_prefix="ABINITIO_", env_nested_delimiter="__", frozen=True, extra="forbid"
    )

    preset: str | None = None
    bus: str = "sqlite:///abinitio-live.sqlite"
    topics_prefix: _Name = "abinitio"
    session: _Name = "default"
    out: Path = Path("out")
    state: Path | None = None
    roots: tuple[Path, ...] = ()
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda|cuda:\d{1,3})$")
    engine: EngineSettings = EngineSettings()
    kafka: KafkaSettings = KafkaSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    snapshots: SnapshotSettings = SnapshotSettings()
    batch: BatchSettings = BatchSettings()
    metrics: MetricsSettings = MetricsSettings()
    limits: LimitSettings = LimitSettings()

    @field_validator("preset")
    @classmethod
    def _known_preset(cls, value: str | None) -> str | None:
        if value is not None and value not in PRESETS:
            raise ValueError(f"must be one of {', '.join(PRESETS)}")
        return value

    @field_validator("bus")
    @classmethod
    def _known_kind_of_bus(cls, value: str) -> str:
        if not re.match(r"kafka://[^/]+|sqlite:///.+|memory://.+", value):
            raise ValueError("must be kafka://host:port, sqlite:///path/to/bus.db or memory://name")
        return value

    @field_validator("engine", mode="before")
    @classmethod
    def _known_engine_names(cls, value: object) -> object:
        known = {field.name for field in fields(EngineSettings)}
        if isinstance(value, Mapping) and (unknown := sorted(set(value) - known)):
            raise ValueError(_no_setting(f"engine.{unknown[0]}"))
        return value

    @property
    def state_folder(self) -> Path:
        """Where checkpoints live: beside the results unless set."""
        return self.state if self.state is not None else self.out / "state"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags first, then the environment, then `load_settings`' file, then the preset."""
        del dotenv_settings, file_secret_settings
        given = (init_settings, env_settings, _FileSource(settings_cls))
        return (*given, _PresetSource(settings_cls, given))


class _FileSource(PydanticBaseSettingsSource):
    """What `load_settings` read from the TOML file."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Give one field's value, as the base class asks."""
        del field
        return _file_content.get().get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        return dict(_file_content.get())


class _PresetSource(PydanticBaseSettingsSource):
    """What the preset says that was named by the sources before it."""

    def __init__(
        self, settings_cls: type[BaseSettings], before: tuple[PydanticBaseSettingsSource, ...]
    ) -> None:
        super().__init__(settings_cls)
        self._before = before

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Give one field's value, as the base class asks."""
        del field
        return self().get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        names = (source().get("preset") for source in self._before)
        name = next((name for name in names if name is not None), None)
        preset = PRESETS.get(name) if isinstance(name, str) else None
        return {} if preset is None else {"engine": dict(preset.settings)}


def load_settings(file: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Put the settings together and refuse wrong ones in one line.

    Parameters
    ----------
    file
        TOML file; tables are the sections (``[engine]``, ``[checkpoint]``...).
    overrides
        Flags by dotted name (``"engine.n_classes"``); None values count as not given.

    Raises
    ------
    ConfigurationError
        A value, a name or the file is wrong; the message names it and its source.
    """
    nested: dict[str, Any] = {}
    for name, value in (overrides or {}).items():
        if value is None:
            continue
        section, _, leaf = name.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[leaf] = value
    token = _file_content.set(_read_toml(file))
    try:
        return Settings(**nested)
    except ValidationError as error:
        raise ConfigurationError(_first_problem(error), _REMEDY) from error
    finally:
        _file_content.reset(token)


# Flags whose name is not the setting's, so that an error names what was typed.
_FLAGS = {
    "engine.n_classes": "--classes",
    "engine.max_resolution_angstrom": "--max-resolution",
    "engine.replay_passes": "--passes",
    "engine.particles_to_use": "--particles",
    "metrics.port": "--metrics-port",
}


def with_flag(message: str) -> str:
    """Name the flag as well in a message that begins with the name of an engine's setting."""
    name, _, rest = message.removeprefix("engine.").partition(" ")
    flag = _FLAGS.get(f"engine.{name}")
    return message if flag is None else f"{flag} (setting engine.{name}) {rest}"


_NO_SETTING = "there is no setting"
_REMEDY = "Correct the flag, the ABINITIO_ variable or the line of the settings file"


def _read_toml(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"no settings file {file}", "Give an existing TOML file"
        ) from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(
            f"cannot read settings file {file}: {error}", "Correct the file"
        ) from error


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        given = problem["input"]
        leaf = f".{next(iter(given))}" if isinstance(given, Mapping) and given else ""
        return _no_setting(where + leaf)
    if message.startswith(_NO_SETTING):
        return message
    given = problem["input"]
    shown = f" (given: {given!r})" if isinstance(given, str | int | float | bool) else ""
    more = error.error_count() - 1
    rest = f", and {more} more" if more else ""
    flagged = with_flag(message)
    if flagged != message:
        return flagged + rest
    name = f"setting {where or 'of the service'}"
    if flag := _FLAGS.get(where):
        name = f"{flag} ({name})"
    return f"{name}: {message}{shown}{rest}"


def _no_setting(name: str) -> str:
    """Say that there is no such setting, and which one may be meant."""
    names = _setting_names(Settings)
    ends = {known.rpartition(".")[2]: known for known in names}
    near = difflib.get_close_matches(name, names, n=1)
    if not near:  # the right name without its section, or in a wrong one
        leaf = name.rpartition(".")[2]
        near = [ends[end] for end in difflib.get_close_matches(leaf, ends, n=1)]
    meant = f"; did you mean {near[0]}?" if near else f"; sections are {_sections()}"
    return f"{_NO_SETTING} {name}{meant}"


def _setting_names(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Give every setting by its dotted name."""
    names: list[str] = []
    for name, info in model.model_fields.items():
        kind = info.annotation
        if kind is EngineSettings:
            names += [f"{prefix}{name}.{field.name}" for field in fields(EngineSettings)]
        elif isinstance(kind, type) and issubclass(kind, BaseModel):
            names += _setting_names(kind, f"{prefix}{name}.")
        else:
            names.append(prefix + name)
    return names


def _sections() -> str:
    sections = {name.partition(".")[0] for name in _setting_names(Settings) if "." in name}
    return ", ".join(sorted(sections))


def training_digest(settings: Settings) -> str:
    """Digest of what decides the model, so that a checkpoint is never continued with other values.

    Where results go, how often they are shown and how much spare time earlier particles get may
    change between two runs of one session; the engine's other parameters may not.
    """
    text = json.dumps(training_settings(settings), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def training_settings(settings: Settings) -> dict[str, Any]:
    """Give what decides the model, by name: what `training_digest` is the digest of."""
    # A GPU rounds otherwise than a CPU, and a session promises the same bits after any crash: the
    # kind of device belongs to the model. Which of several GPUs does not.
    kind = settings.device.partition(":")[0]
    engine = asdict(settings.engine)
    del engine["stream_replays"]  # a session that lags behind must be able to go on without
    return {"device": kind, **engine}


def training_changes(settings: Settings, before: Mapping[str, Any]) -> list[str]:
    """Say which of the `training_settings` are others than ``before``, with both values."""
    now = json.loads(json.dumps(training_settings(settings)))
    changes = []
    for name in sorted({*now, *before}):
        if name in now and name in before and now[name] == before[name]:
            continue
        old, new = (json.dumps(one[name]) if name in one else "unknown" for one in (before, now))
        setting = name if name == "device" else f"engine.{name}"
        changes.append(with_flag(f"{setting} was {old}, is {new}"))
    return changes
