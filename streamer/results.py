"""What a session leaves in its output folder when it ends: maps, particles, pictures, a report.

`report.json` is written last, so a script that waits for it finds everything else in place. Its
keys and units are a promise to such scripts.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from reconstruct.io.atomic import replace_atomically
from reconstruct.io.cs_write import write_cs
from reconstruct.io.star_write import write_star
from reconstruct.io.table import ParticleTable, table_from_arrays
from reconstruct.quality import RESOLUTION_KIND
from reconstruct.types import Optics, Phase, Snapshot, StepReport
from schemas.particles import particle_ids
from streamer.caption import (
    Caption,
    caption_of,
    few_words,
    no_resolution_words,
    symmetry_words,
)
from streamer.config import Settings
from streamer.findings import with_all_views
from streamer.observe import Observer
from streamer.publish import software_version
from streamer.series import LATEST_NAMES, write_class_maps
from streamer.state import SessionState

__all__ = ["ReportKeeper", "Usage", "write_results"]

_LIBRARIES = ("numpy", "scipy", "numba", "kafka-python", "mrcfile", "gemmi", "pydantic")


@dataclass(frozen=True)
class Usage:
    """When a process began to work, to tell what it took."""

    wall_s: float = field(default_factory=time.monotonic)

    def so_far(self) -> dict[str, float]:
        """Give wall seconds, CPU seconds (threads and children included) and peak memory."""
        own = resource.getrusage(resource.RUSAGE_SELF)
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_s = own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
        unit_bytes = 1 if sys.platform == "darwin" else 1024
        return {
            "wall_seconds": round(time.monotonic() - self.wall_s, 3),
            "cpu_seconds": round(cpu_s, 3),
            "peak_memory_bytes": max(own.ru_maxrss, children.ru_maxrss) * unit_bytes,
        }


class ReportKeeper(Observer):
    """Keeps the step reports of this process for the timeline."""

    def __init__(self) -> None:
        self.reports: list[StepReport] = []

    def stepped(self, report: StepReport, state: SessionState) -> None:
        """Keep one."""
        self.reports.append(report)


def write_results(
    settings: Settings,
    state: SessionState,
    *,
    usage: Usage,
    reports: Sequence[StepReport] = (),
    stopped: str = "",
    table: ParticleTable | None = None,
    n_input: int | None = None,
    device: Mapping[str, str] | None = None,
) -> Path:
    """Write the results of an ended session; return the path of ``report.json``.

    Parameters
    ----------
    reports
        Steps for the timeline picture.
    stopped
        That it was stopped early, in words, if it was.
    table
        The particles as they came, so that every incoming column is kept; by default what the
        session knows about them.
    n_input
        Particles in the input, when known.
    device
        What was asked for, what was used, and its name.
    """
    out = settings.out
    classes: list[dict[str, Any]] = []
    files = ["report.json"]
    phase: Phase = state.phase
    symmetry = symmetry_words(
        settings.engine.symmetry, state.imposed_group, state.phase, state.verdicts
    )
    used = 0
    if state.engine is not None and state.step:
        snapshot, _ = with_all_views(
            state.engine.snapshot(), state.engine.assignments(), group=state.imposed_group
        )
        classes = _write_maps(out, snapshot, settings.session)
        files += [file for one in classes for file in (one["file"], *one["half_maps"])]
        used, written = _write_particles(out, state, table, n_classes=len(snapshot.classes))
        files += written
        caption = caption_of(snapshot, title=settings.session, symmetry=symmetry, stopped=stopped)
        phase = caption.phase or phase
        if settings.snapshots.pictures:
            files += _write_pictures(out, snapshot, reports, caption)
    report = _report(settings, state, classes, usage=usage, used=used, n_input=n_input)
    report["symmetry"]["message"] = symmetry
    files += [name for name in LATEST_NAMES if (out / name).is_symlink()]
    report = {
        "session": settings.session,
        "outcome": "stopped_early" if stopped else "ended",
        "message": stopped,
        "phase": phase,
        **report,
        "device": dict(device or {}),
        "files": sorted(files),
    }
    with replace_atomically(out / "report.json") as path:
        path.write_text(json.dumps(report, indent=1) + "\n")
    return out / "report.json"


def _write_maps(out: Path, snapshot: Snapshot, session_id: str) -> list[dict[str, Any]]:
    classes = []
    for index, item in enumerate(snapshot.classes):
        paths = write_class_maps(
            out, item, index=index, snapshot=snapshot, session_id=session_id, over=True
        )
        classes.append(
            {
                "class": index + 1,
                "file": paths["map"].name,
                "half_maps": [paths["half1"].name, paths["half2"].name],
                "particles": int(item.particles),
                "occupancy": round(float(item.occupancy), 5),
                "resolution_angstrom": item.resolution_angstrom
                and round(float(item.resolution_angstrom), 3),
                "resolution_kind": RESOLUTION_KIND,
                "no_resolution": no_resolution_words(item, over=True) or None,
                "warning": (few_words(item.particles) if np.any(item.volume) else "no map") or None,
                "phase": item.phase,
            }
        )
    return classes


def _write_particles(
    out: Path, state: SessionState, table: ParticleTable | None, *, n_classes: int
) -> tuple[int, list[str]]:
    """Write ``particles.star`` and, for particles without a class, ``particles_unused.star``.

    Returns
    -------
    How many have a class, and the names of the files.
    """
    assert state.engine is not None
    table = _table_of(state) if table is None else table
    ids = particle_ids(table.image_names)
    assignments = state.engine.assignments()
    known = assignments.particle_ids[assignments.class_index >= 0]
    unused = not np.isin(ids, known).all()
    files = ["particles.star", *(["particles_unused.star"] if unused else [])]
    used = write_star(
        out / "particles.star",
        table,
        assignments,
        row_ids=ids,
        unused_path=out / "particles_unused.star" if unused else None,
    )
    if table.uid is not None:
        write_cs(out / "particles.cs", table, assignments, row_ids=ids, n_classes=n_classes)
        files.append("particles.cs")
    return used, files


def _table_of(state: SessionState) -> ParticleTable:
    """Make a table of what the session knows about its particles."""
    assert state.geometry is not None
    rows = state.roster.rows_from(0)
    return table_from_arrays(
        state.roster.names("image_name"),
        micrograph_names=[name or "unknown" for name in state.roster.names("micrograph_name")],
        defocus_u_angstrom=rows["defocus_u_angstrom"],
        defocus_v_angstrom=rows["defocus_v_angstrom"],
        defocus_angle_rad=rows["defocus_angle_rad"],
        phase_shift_rad=rows["phase_shift_rad"],
        optics_group=rows["optics_group"],
        optics=tuple(
            Optics(group.voltage_kv, group.spherical_aberration_mm, group.amplitude_contrast)
            for group in state.optics
        ),
        pixel_size_angstrom=state.geometry.pixel_size_angstrom,
        box=state.geometry.box,
    )


def _write_pictures(
    out: Path, snapshot: Snapshot, reports: Sequence[StepReport], caption: Caption
) -> list[str]:
    """Write the pictures; give the names of their files."""
    from streamer.pictures import snapshot_png  # matplotlib: only when pictures are wanted
    from streamer.timeline import timeline_png

    pictures = {"picture.png": snapshot_png(snapshot, caption)}
    if reports:
        pictures["timeline.png"] = timeline_png(reports, caption)
    for name, png in pictures.items():
        with replace_atomically(out / name) as path:
            path.write_bytes(png)
    return list(pictures)


def _report(
    settings: Settings,
    state: SessionState,
    classes: list[dict[str, Any]],
    *,
    usage: Usage,
    used: int,
    n_input: int | None,
) -> dict[str, Any]:
    books = state.balance()
    left_out = books.left_out(settings.engine.particles_to_use)
    return {
        "symmetry": {"wanted": settings.engine.symmetry, "imposed": state.imposed_group},
        "classes": classes,
        "particles": {
            "input": n_input if n_input is not None else books.received,
            "received": books.received,
            "trained": books.trained,
            "quarantined": dict(sorted(state.ledger.quarantined.items())),
            "duplicate": books.duplicate,
            "in_flight": books.in_flight - left_out,
            "left_out": left_out,  # received = trained + quarantined + duplicate + these two
            "used": used,
        },
        "verdicts": [state.verdicts[key] for key in sorted(state.verdicts)],
        "records_dead_lettered": dict(sorted(state.ledger.dead_lettered.items())),
        "steps": state.step,
        "particles_presented": state.presented,
        "snapshots": state.ledger.snapshots,
        "last_snapshot": state.last_snapshot_id,
        **usage.so_far(),
        "settings": settings.model_dump(mode="json"),
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    versions = {"abinitio-live": software_version(), "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions
