"""One small valid sample of every record, built through the public constructors."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from schemas.arrays import Array
from schemas.assignments import AssignmentBatch
from schemas.control import ControlReply, ControlRequest, SessionStatus
from schemas.dead_letter import DeadLetter, QuarantinedParticle, dead_letter
from schemas.envelope import Envelope, Record, new_envelope
from schemas.events import SessionEvent
from schemas.particles import (
    OpticsGroup,
    ParticleBatch,
    ParticleGeometry,
    StackReference,
    inline_batch,
    reference_batch,
)
from schemas.volumes import ClassManifest, VolumeSnapshot, snapshot_id

CREATED_AT_NS = 1_700_000_000_000_000_001
Sample = tuple[Record, dict[str, Array]]

OPTICS = OpticsGroup(
    name="opticsGroup1", voltage_kv=300.0, spherical_aberration_mm=2.7, amplitude_contrast=0.1
)


def envelope(kind: type[Record], **changes: Any) -> Envelope:
    made = new_envelope(
        kind,
        "session-1",
        producer="tests",
        record_id="rec-1",
        created_at_ns=CREATED_AT_NS,
    )
    return Envelope.model_validate(made.model_dump() | changes)


def names(count: int) -> list[str]:
    return [f"{row + 1:06d}@Extract/job012/mic_{row % 3}.mrcs" for row in range(count)]


def columns(count: int) -> dict[str, Array]:
    return {
        "defocus_u_angstrom": np.linspace(15_000, 16_000, count),
        "defocus_v_angstrom": np.linspace(14_000, 15_000, count),
        "defocus_angle_rad": np.linspace(0, 1, count),
    }


def inline(
    count: int = 5, box: int = 16, pixel_type: Literal["float16", "float32"] = "float16"
) -> tuple[ParticleBatch, dict[str, Array]]:
    pixels = np.random.default_rng(count).standard_normal((count, box, box), dtype=np.float32)
    return inline_batch(
        envelope(ParticleBatch),
        pixels,
        geometry=ParticleGeometry(box=box, pixel_size_angstrom=3.0),
        optics_groups=[OPTICS],
        image_names=names(count),
        micrograph_names=[f"mic_{row % 3}.mrc" for row in range(count)],
        rows=columns(count),
        pixel_type=pixel_type,
    )


def reference(count: int = 5) -> tuple[ParticleBatch, dict[str, Array]]:
    return reference_batch(
        envelope(ParticleBatch),
        [StackReference(path=f"Extract/mic_{i}.mrcs", size_bytes=1024 + i) for i in range(3)],
        geometry=ParticleGeometry(box=64, pixel_size_angstrom=3.0),
        optics_groups=[OPTICS],
        image_names=names(count),
        rows=columns(count) | {"stack": np.arange(count) % 3, "frame": np.arange(count)},
    )


def volumes(classes: int = 2, box: int = 16, *, inline_maps: bool = True) -> Sample:
    digest = "0" * 64
    record = VolumeSnapshot(
        envelope=envelope(VolumeSnapshot),
        snapshot_id=snapshot_id("session-1", 12),
        parent_snapshot_id=None,
        step=12,
        phase="intermediate",
        config_digest=digest,
        software_version="0.1.0",
        particles_seen=1200,
        particles_presented=1300,
        output_folder="/data/session-1/out",
        classes=tuple(
            ClassManifest(
                class_index=index,
                path=f"class_{index + 1:03d}.mrc",
                sha256=digest,
                half1_path=f"class_{index + 1:03d}_half1.mrc",
                half1_sha256=digest,
                half2_path=f"class_{index + 1:03d}_half2.mrc",
                half2_sha256=digest,
                box=box,
                pixel_size_angstrom=3.0,
                particles=600,
                resolution_angstrom=None if index else 21.5,
                resolution_kind="half_map_fsc_0.143",
                occupancy=0.5,
                effective_particles=480.5,
            )
            for index in range(classes)
        ),
    )
    rng = np.random.default_rng(7)
    arrays: dict[str, Array] = {
        "projections": rng.integers(0, 256, (classes, 3, 8, 8), dtype=np.uint8),
        "slices": rng.integers(0, 256, (classes, 3, 8, 8), dtype=np.uint8),
        "fsc": np.ones((classes, box // 2), dtype=np.float32),
    }
    if inline_maps:
        arrays["volumes"] = rng.standard_normal((classes, box, box, box), dtype=np.float32)
    return record, arrays


def assignments(
    count: int = 6, kind: Literal["euler", "matrix"] = "matrix"
) -> tuple[AssignmentBatch, dict[str, Array]]:
    record = AssignmentBatch(
        envelope=envelope(AssignmentBatch),
        snapshot_id=snapshot_id("session-1", 12),
        step=12,
        rotation_kind=kind,
        total_rows=count,
        image_names=tuple(names(count)),
    )
    rotation = np.tile(np.eye(3, dtype=np.float32), (count, 1, 1))
    arrays: dict[str, Array] = {
        "particle_id": np.arange(count, dtype=np.uint64) + np.uint64(2**63),
        "class_index": np.arange(count, dtype=np.int32) % 2 - 1,
        "rotation": rotation if kind == "matrix" else rotation[:, 0],
        "shift_angstrom": np.ones((count, 2), dtype=np.float32),
        "max_probability": np.full(count, 0.5, dtype=np.float32),
        "log_likelihood": np.full(count, 12.5, dtype=np.float64),
        "half": np.arange(count, dtype=np.uint8) % 2 + 1,
    }
    return record, arrays


def event() -> Sample:
    return (
        SessionEvent(
            envelope=envelope(SessionEvent),
            kind="class_born",
            message="Class 2 was born.",
            step=3,
            class_index=1,
            values={"occupancy": 0.25},
        ),
        {},
    )


def request() -> Sample:
    return ControlRequest(envelope=envelope(ControlRequest), action="pause"), {}


def reply() -> Sample:
    status = SessionStatus(
        state="paused",
        phase="initial",
        step=3,
        particles_received=10,
        particles_trained=6,
        particles_quarantined=1,
        particles_duplicate=1,
        particles_in_flight=2,
    )
    return (
        ControlReply(
            envelope=envelope(ControlReply),
            request_id="req-1",
            action="pause",
            outcome="done",
            status=status,
        ),
        {},
    )


def refused() -> Sample:
    return dead_letter(
        envelope(DeadLetter),
        b"not a record",
        reason="bad_magic",
        detail="starts with b'not '",
        source_topic="abinitio.particles",
        source_partition=0,
        source_offset=17,
        source_key=b"\xff\x00key",
        particles=[
            QuarantinedParticle(row=2, image_name="3@a.mrcs", reason="nan_pixels", detail="1 NaN")
        ],
        max_payload_bytes=1000,
    )


SAMPLES: dict[str, Sample] = {
    "inline": inline(),
    "inline_float32": inline(pixel_type="float32"),
    "reference": reference(),
    "volumes": volumes(),
    "preview_only": volumes(inline_maps=False),
    "assignments": assignments(),
    "assignments_euler": assignments(kind="euler"),
    "event": event(),
    "request": request(),
    "reply": reply(),
    "refused": refused(),
}
