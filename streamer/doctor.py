"""`doctor`: look at everything a session depends on, and say how to mend what is wrong.

Each check gives one line; nothing is made or changed, except that a probe file is written into
folders that exist and removed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from reconstruct.backend import describe_devices
from schemas.topics import Topics
from streamer.checkpoint import CheckpointStore
from streamer.config import Settings
from streamer.engines import check_engine_settings, for_this_installation, open_device
from streamer.errors import ServiceError
from streamer.service import open_bus, writable_folder
from streamer.transports import sqlite_path
from streamer.transports.errors import TransportError

__all__ = ["Finding", "examine"]

_FREE_BYTES = 10 << 30
_BATCH_BYTES = 1 << 20

Level = Literal["good", "warning", "bad"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    level: Level
    words: str


def examine(settings: Settings) -> Iterator[Finding]:
    """Give the findings, one by one."""
    yield from _machine()
    yield from _engine(settings)
    if settings.model_fields_set & {"out", "state"}:
        yield from _folders(settings)
        yield _state(settings)
    else:  # a folder that happens to have the default's name may be of another session
        words = f"give --out DIR to have a folder checked (the default is {settings.out})"
        yield Finding("output", "good", words)
    if settings.model_fields_set & {"bus", "roots"}:
        yield from _bus(settings)
        yield from _roots(settings)
    else:
        words = "run and demo need none; give --bus URL to have one checked for serve and attach"
        yield Finding("bus", "good", words)


def _bus(settings: Settings) -> Iterator[Finding]:
    path = sqlite_path(settings.bus)
    if path is not None and not path.exists():
        if _can_make(path, up_to=path.resolve().parent):
            yield Finding("bus", "good", f"{settings.bus} is not there yet: it will be made")
        else:
            words = f"{settings.bus} cannot be made: make its folder or mend its permissions"
            yield Finding("bus", "bad", words)
        return
    try:
        with open_bus(settings) as transport:
            transport.check()
            yield Finding("bus", "good", f"{settings.bus} answers")
            limit = transport.max_record_bytes
            level: Level = "good" if limit >= _BATCH_BYTES // 2 else "warning"
            yield Finding("record limit", level, f"{limit / 2**20:.2f} MiB per record")
            for name in Topics(settings.topics_prefix).all:
                try:
                    with transport.consumer([name]) as consumer:
                        low, end = consumer.low_watermark(name), consumer.end_offset(name)
                        partitions = len(consumer.partitions)
                except TransportError:
                    yield Finding(name, "warning", "no such topic yet: it will be made")
                    continue
                if name.endswith(".particles") and partitions > 1:
                    yield Finding(
                        name, "warning", f"{partitions} partitions: order is only kept within one"
                    )
                else:
                    yield Finding(name, "good", f"offsets {low} to {end}")
    except TransportError as error:
        yield Finding("bus", "bad", str(error))


def _folders(settings: Settings) -> Iterator[Finding]:
    for what, folder in (("output", settings.out), ("state", settings.state_folder)):
        if not folder.exists():
            if _can_make(folder):
                yield Finding(what, "good", f"{folder} is not there yet: it will be made")
            else:
                words = f"{folder} cannot be made: give another with --out, or change permissions"
                yield Finding(what, "bad", words)
            continue
        try:
            writable_folder(folder)
        except ServiceError as error:
            yield Finding(what, "bad", str(error))
            continue
        free = shutil.disk_usage(folder).free
        words = f"{folder} is writable, {free / 2**30:.0f} GiB free"
        if free < _FREE_BYTES:
            yield Finding(what, "warning", words + ": checkpoints need a few GiB")
        else:
            yield Finding(what, "good", words)


def _can_make(path: Path, *, up_to: Path | None = None) -> bool:
    """Whether the nearest folder above that exists, or ``up_to``, can be written into."""
    above = up_to or next(one for one in path.absolute().parents if one.exists())
    return above.is_dir() and os.access(above, os.W_OK | os.X_OK)


def _roots(settings: Settings) -> Iterator[Finding]:
    if not settings.roots:
        yield Finding(
            "roots", "warning", "none: serve uses only pixels sent inline; name folders with --root"
        )
    for root in settings.roots:
        good = root.is_dir() and os.access(root, os.R_OK | os.X_OK)
        words = f"{root} can be read" if good else f"{root} is no readable folder: mount it"
        yield Finding("root", "good" if good else "bad", words)


def _state(settings: Settings) -> Finding:
    folder: Path = settings.state_folder
    if not any(folder.glob("checkpoint-*.ckpt")):
        return Finding("checkpoint", "good", "none: the session would begin")
    try:
        checkpoint = CheckpointStore(folder).load()
    except ServiceError as error:
        return Finding("checkpoint", "bad", str(error))
    assert checkpoint is not None
    meta = checkpoint.meta
    if meta["session"] != settings.session:
        words = (
            f"{folder} holds session {meta['session']}, not {settings.session}: give --session "
            f"{meta['session']} to go on with it, or another --out"
        )
        return Finding("checkpoint", "bad", words)
    words = f"session {meta['session']}, step {meta['step']}, {meta['trained']} particles trained"
    if checkpoint.notes:
        return Finding("checkpoint", "warning", f"{words}; {checkpoint.notes[0]}")
    return Finding("checkpoint", "good", words)


def _machine() -> Iterator[Finding]:
    memory = psutil.virtual_memory()
    words = f"{os.cpu_count()} CPUs, {memory.available / 2**30:.0f} GiB of memory available"
    yield Finding("machine", "good" if memory.available > 2 << 30 else "warning", words)
    for one in describe_devices():
        if one.usable and one.device != "cpu":
            yield Finding("GPU", "good", f"{one.device} is {one.name}: {one.detail}")
        elif not one.usable:
            words = f"none can be used: {for_this_installation(one.detail)}"
            yield Finding("GPU", "warning", words)


def _engine(settings: Settings) -> Iterator[Finding]:
    try:
        check_engine_settings(settings.engine)
        backend = open_device(settings.device)
    except ServiceError as error:
        yield Finding("engine", "bad", str(error))
        return
    words = f"would run on {backend.device} ({backend.name}); asked for {settings.device}"
    yield Finding("engine", "good", words)
