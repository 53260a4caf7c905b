"""Each unfit particle is refused for its own reason, and only that particle."""

from __future__ import annotations

import numpy as np
import pytest

from streamer.quarantine import REASONS, Problem, judge_rows

N = 5


@pytest.fixture
def batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {
        "particle_id": np.arange(100, 100 + N, dtype=np.uint64),
        "defocus_u_angstrom": np.full(N, 15_000, np.float32),
        "defocus_v_angstrom": np.full(N, 14_000, np.float32),
        "defocus_angle_rad": np.zeros(N, np.float32),
        "phase_shift_rad": np.zeros(N, np.float32),
        "optics_group": np.zeros(N, np.int32),
        "images": rng.standard_normal((N, 8, 8)).astype(np.float16),
    }


def _judge(batch: dict[str, np.ndarray], known: set[int] | None = None, **more: object):
    rows = {name: array for name, array in batch.items() if name != "images"}
    ids = more.pop("expected_ids", np.arange(100, 100 + N, dtype=np.uint64))
    return judge_rows(
        rows,
        batch["images"],
        expected_ids=ids,
        known_ids=known or set(),
        n_optics_groups=1,
        **more,
    )


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("defocus_u_angstrom", 0, "defocus_zero"),
        ("defocus_v_angstrom", -5_000, "defocus_absurd"),
        ("defocus_v_angstrom", np.nan, "defocus_absurd"),
        ("defocus_u_angstrom", np.inf, "defocus_absurd"),
        ("defocus_u_angstrom", 1e7, "defocus_absurd"),
        ("defocus_angle_rad", np.nan, "angle_not_finite"),
        ("phase_shift_rad", np.inf, "angle_not_finite"),
        ("optics_group", 1, "unknown_optics_group"),
        ("optics_group", -1, "unknown_optics_group"),
        ("particle_id", 7, "wrong_identity"),
        ("images", 1.5, "constant_image"),
    ],
)
def test_one_bad_row_is_refused_alone(
    batch: dict[str, np.ndarray], column: str, value: float, reason: str
) -> None:
    batch[column][2] = value
    verdicts = _judge(batch)
    assert [(problem.row, problem.reason) for problem in verdicts.problems] == [(2, reason)]
    assert verdicts.problems[0].detail == REASONS[reason]
    assert verdicts.fit.tolist() == [0, 1, 3, 4]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_bad_pixel_is_enough(batch: dict[str, np.ndarray], value: float) -> None:
    batch["images"][4, 3, 3] = value
    verdicts = _judge(batch)
    assert [(problem.row, problem.reason) for problem in verdicts.problems] == [
        (4, "non_finite_pixels")
    ]


def test_absurd_pixels_are_refused(batch: dict[str, np.ndarray]) -> None:
    batch["images"] = batch["images"].astype(np.float32)
    batch["images"][0, 0, 0] = -1e30
    assert _judge(batch).problems[0].reason == "absurd_pixels"


def test_repeats_within_and_across_batches_are_duplicates(batch: dict[str, np.ndarray]) -> None:
    batch["particle_id"][3] = 101
    expected = batch["particle_id"].copy()
    verdicts = _judge(batch, known={104}, expected_ids=expected)
    assert verdicts.fit.tolist() == [0, 1, 2]
    assert verdicts.duplicates.tolist() == [3, 4]
    assert verdicts.problems == ()


def test_a_repeat_of_a_refused_particle_is_judged_anew(batch: dict[str, np.ndarray]) -> None:
    batch["particle_id"][1] = 100
    batch["defocus_u_angstrom"][0] = 0
    verdicts = _judge(batch, expected_ids=batch["particle_id"].copy())
    assert verdicts.fit.tolist() == [1, 2, 3, 4]
    assert [problem.row for problem in verdicts.problems] == [0]


def test_rows_whose_pixels_could_not_be_fetched_keep_their_reason(
    batch: dict[str, np.ndarray],
) -> None:
    batch["images"][1] = 0
    verdicts = _judge(batch, already={1: Problem(1, "frame_beyond_stack", "frame 9 of 3")})
    assert verdicts.problems == (Problem(1, "frame_beyond_stack", "frame 9 of 3"),)


def test_every_row_has_exactly_one_verdict(batch: dict[str, np.ndarray]) -> None:
    batch["defocus_u_angstrom"][:2] = 0
    batch["images"][1] = np.nan
    verdicts = _judge(batch, known={103})
    rows = [
        *verdicts.fit.tolist(),
        *verdicts.duplicates.tolist(),
        *(problem.row for problem in verdicts.problems),
    ]
    assert sorted(rows) == list(range(N))
