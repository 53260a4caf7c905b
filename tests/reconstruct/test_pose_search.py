"""The setting chooses the search, and an audit counts what it discarded without changing it."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from reconstruct import pose_search
from reconstruct.backend import cpu_backend
from reconstruct.engine import Engine
from reconstruct.memory import memory_need
from reconstruct.pose_search import add_counts, audit_search, find_poses
from reconstruct.search_plan import make_plan
from reconstruct.types import EngineSettings, SearchCount, StepReport
from reconstruct.update import MapGrid
from tests.reconstruct.small_sets import GEOMETRY, cube_of, plane, simulated, weighted

SETTINGS = EngineSettings(
    max_resolution_angstrom=32.0,
    race_starts=2,
    race_particles=60,
    race_epochs=2,
    minibatch_initial=50,
    minibatch_final=90,
    replay_passes=2,
    pose_search="branch_and_bound",
)
SAME_EVIDENCE_NATS = 1.0  # per particle: two searches of one set; a failed map is tens below


@pytest.fixture(scope="module")
def workers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


@functools.cache
def run(settings: EngineSettings) -> tuple[Engine, tuple[StepReport, ...]]:
    engine = Engine(settings, GEOMETRY)
    reports = []
    engine.add(simulated(260).particle_images().span(slice(0, 110)))
    while engine.ready:
        reports.append(engine.step())
    reports.extend(engine.finish())
    return engine, tuple(reports)


def totals(reports: tuple[StepReport, ...]) -> dict[str, SearchCount]:
    return {one.kind: one for one in add_counts(one for r in reports for one in r.searches)}


def test_the_setting_chooses_the_search_and_the_reports_say_so() -> None:
    found = totals(run(SETTINGS)[1])
    assert set(found) == {"branch_and_bound", "local", "audit"}
    assert found["branch_and_bound"].cells > 73_728 * found["branch_and_bound"].particles
    assert 0 < found["audit"].particles < 0.1 * found["branch_and_bound"].particles
    other = totals(run(replace(SETTINGS, pose_search="exhaustive"))[1])
    assert set(other) == {"exhaustive", "local"}
    assert other["exhaustive"].particles == found["branch_and_bound"].particles
    assert other["local"].cells < 0.1 * other["exhaustive"].cells


def test_both_searches_lead_to_the_map() -> None:
    evidence = []
    for kind in ("branch_and_bound", "exhaustive"):
        engine, _ = run(replace(SETTINGS, pose_search=kind))  # type: ignore[arg-type]
        evidence.append(float(engine.assignments().log_likelihood.mean()))
    assert abs(evidence[0] - evidence[1]) < SAME_EVIDENCE_NATS


def test_an_audit_changes_nothing_that_is_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    volume = run(SETTINGS)[0].snapshot().classes[0].volume
    monkeypatch.setattr(pose_search, "AUDITED_SHARE", 0.0)
    engine, reports = run.__wrapped__(SETTINGS)
    assert "audit" not in totals(reports)
    np.testing.assert_array_equal(engine.snapshot().classes[0].volume, volume)


def test_a_session_taken_up_again_gives_the_same_bits() -> None:
    settings = replace(SETTINGS, replay_passes=0, race_starts=1)
    whole = run(settings)[0].snapshot().classes[0].volume
    engine = Engine(settings, GEOMETRY)
    engine.add(simulated(260).particle_images().span(slice(0, 110)))
    engine.step()
    engine.step()
    meta, arrays = engine.dump()
    engine = Engine.load(settings, GEOMETRY, meta, arrays, engine.dump_store(0))
    while engine.ready:
        engine.step()
    for _ in engine.finish():
        pass
    np.testing.assert_array_equal(engine.snapshot().classes[0].volume, whole)


def _arguments(workers: ThreadPoolExecutor, particles: int = 40) -> dict[str, Any]:
    return {
        "batch": weighted(simulated(120, snr=0.3), plane()).span(slice(0, particles)),
        "cubes": cube_of("whole", snr=0.3)[None],
        "plane": plane(),
        "plan": make_plan(9, box=GEOMETRY.box, max_shift_pixels=2.0),
        "scale": 2.0,
        "log_class_weights": np.zeros(1, np.float32),
        "turn": np.eye(3),
        "group": "C1",
        "workers": workers,
        "backend": cpu_backend(),
    }


def test_an_audit_finds_what_was_discarded(workers: ThreadPoolExecutor) -> None:
    arguments = _arguments(workers)
    poses, _ = find_poses("branch_and_bound", first=40, **arguments, audit_seed=(0, 0))
    rows = np.array([1, 3, 8, 20])
    assert audit_search(found=poses, rows=rows, **arguments).violations == 0
    poses.score[[3, 20, 21]] -= 3  # as if their best cells had been discarded
    audit = audit_search(found=poses, rows=rows, **arguments)
    assert (audit.kind, audit.particles, audit.violations) == ("audit", 4, 2)
    assert audit.cells > 73_728


def test_half_sets_are_searched_against_their_own_maps(workers: ThreadPoolExecutor) -> None:
    arguments = _arguments(workers, 12)
    own = arguments["cubes"]
    for kind in ("exhaustive", "branch_and_bound"):
        alone, _ = find_poses(kind, first=12, **arguments, audit_seed=(0, 0))  # type: ignore[arg-type]
        both = {**arguments, "cubes": np.concatenate([np.zeros_like(own), own])}
        split, _ = find_poses(kind, first=5, **both, audit_seed=(0, 0))  # type: ignore[arg-type]
        np.testing.assert_array_equal(split.evidence[5:], alone.evidence[5:])
        assert np.all(split.score[:5, 0] == 0)  # an empty map explains nothing


def test_who_is_audited_follows_from_the_seed(
    workers: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pose_search, "AUDITED_SHARE", 0.2)
    arguments = _arguments(workers)

    def audited(seed: int) -> int:
        _, counts = find_poses("branch_and_bound", first=40, **arguments, audit_seed=(seed, 0))
        return sum(one.particles for one in counts if one.kind == "audit")

    first = [audited(seed) for seed in range(3)]
    assert [audited(seed) for seed in range(3)] == first
    assert len(set(first)) > 1


def test_counts_of_one_kind_are_added() -> None:
    counts = [
        SearchCount("audit", 2, 10, 1),
        SearchCount("branch_and_bound", 5, 100),
        SearchCount("audit", 3, 20, 1),
        SearchCount("local", 0, 0),
    ]
    assert add_counts(counts) == (
        SearchCount("audit", 5, 30, 2),
        SearchCount("branch_and_bound", 5, 100),
    )


def test_an_unknown_search_is_refused() -> None:
    with pytest.raises(ValueError, match="pose_search must be exhaustive or branch_and_bound"):
        EngineSettings(pose_search="guess")  # type: ignore[arg-type]


def test_the_memory_of_the_bound_is_planned_for() -> None:
    grid = MapGrid(32, 2.0, 12.0)
    needs = [
        memory_need(
            replace(SETTINGS, pose_search=kind),  # type: ignore[arg-type]
            grid,
            max_radius=10,
            max_shift_pixels=2.0,
        ).search
        for kind in ("exhaustive", "branch_and_bound")
    ]
    assert needs[1] > needs[0]
