"""Which particles of a batch are fit to train, and why the others are not.

One bad particle never spoils its batch: each row gets its own verdict. Reasons are short slugs that
never change meaning, since metrics, dead letters and the guide name them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["REASONS", "Problem", "RowVerdicts", "find_problems", "judge_rows", "sort_rows"]

Array = npt.NDArray[Any]

REASONS: Mapping[str, str] = {
    "non_finite_pixels": "pixels that are NaN or infinite",
    "constant_image": "every pixel has the same value",
    "absurd_pixels": "pixel values beyond anything a normalised image holds",
    "defocus_zero": "defocus 0: no CTF was estimated",
    "defocus_absurd": "defocus that is not finite, negative or beyond 20 micrometres",
    "angle_not_finite": "astigmatism angle or phase shift that is not a number",
    "unknown_optics_group": "an optics group that the record does not define",
    "wrong_identity": "a particle id that does not come from the image name",
}
"""Every reason a particle can be quarantined for by its content, in words."""

DEFOCUS_LIMIT_ANGSTROM = 200_000.0
PIXEL_LIMIT = 1e6  # normalised images stay below 100; raw counts below 65,536


@dataclass(frozen=True)
class Problem:
    """One row that is not fit to train."""

    row: int
    reason: str
    detail: str


@dataclass(frozen=True)
class RowVerdicts:
    """The verdict on each row of a batch: fit, a duplicate, or a problem."""

    fit: npt.NDArray[np.intp]  # rows to train, in order
    duplicates: npt.NDArray[np.intp]  # rows that were accepted before
    problems: tuple[Problem, ...]


def judge_rows(
    arrays: Mapping[str, Array],
    images: Array,
    *,
    expected_ids: Array,
    known_ids: Collection[int],
    n_optics_groups: int,
    already: Mapping[int, Problem] | None = None,
) -> RowVerdicts:
    """Judge every row of a batch: `find_problems`, then `sort_rows`."""
    problems = find_problems(
        arrays,
        images,
        expected_ids=expected_ids,
        n_optics_groups=n_optics_groups,
        already=already,
    )
    return sort_rows(arrays["particle_id"], problems, known_ids=known_ids)


def find_problems(
    arrays: Mapping[str, Array],
    images: Array,
    *,
    expected_ids: Array,
    n_optics_groups: int,
    already: Mapping[int, Problem] | None = None,
) -> dict[int, Problem]:
    """Give what is wrong with the content of rows, by row; needs nothing of the session.

    Parameters
    ----------
    arrays
        The row columns of the wire format, one row per particle.
    images
        (n, box, box) pixels.
    expected_ids
        (n,) identities that follow from the image names.
    already
        Rows found wanting while their pixels were fetched.
    """
    ids = arrays["particle_id"]
    problems: dict[int, Problem] = dict(already or {})

    def refuse(bad: Array | np.bool, reason: str) -> None:
        for row in np.flatnonzero(bad).tolist():
            problems.setdefault(row, Problem(row, reason, REASONS[reason]))

    refuse(ids != expected_ids, "wrong_identity")
    group = arrays["optics_group"]
    refuse((group < 0) | (group >= n_optics_groups), "unknown_optics_group")
    defocus = np.stack([arrays["defocus_u_angstrom"], arrays["defocus_v_angstrom"]])
    refuse((defocus == 0).any(axis=0), "defocus_zero")
    refuse(~((defocus > 0) & (defocus <= DEFOCUS_LIMIT_ANGSTROM)).all(axis=0), "defocus_absurd")
    angles = np.stack([arrays["defocus_angle_rad"], arrays["phase_shift_rad"]])
    refuse(~np.isfinite(angles).all(axis=0), "angle_not_finite")
    magnitude, constant = _pixel_extremes(images)
    refuse(~np.isfinite(magnitude), "non_finite_pixels")
    refuse(magnitude > PIXEL_LIMIT, "absurd_pixels")
    refuse(constant, "constant_image")
    return problems


def sort_rows(
    ids: Array, problems: Mapping[int, Problem], *, known_ids: Collection[int]
) -> RowVerdicts:
    """Sort rows into fit, duplicate and quarantined.

    A repeat of an accepted particle is a duplicate whatever its content; a repeat of a refused one
    is judged anew, so that a mended particle gets in.

    Parameters
    ----------
    ids
        (n,) identities.
    problems
        From `find_problems`.
    known_ids
        Identities accepted so far in this session.
    """
    problems = dict(problems)
    fit: list[int] = []
    duplicates: list[int] = []
    here: set[int] = set()
    for row, identity in enumerate(ids.tolist()):
        if identity in known_ids or identity in here:
            if row not in problems or problems[row].reason != "wrong_identity":
                problems.pop(row, None)
                duplicates.append(row)
        elif row not in problems:
            here.add(identity)
            fit.append(row)
    return RowVerdicts(
        np.array(fit, np.intp),
        np.array(duplicates, np.intp),
        tuple(problems[row] for row in sorted(problems)),
    )


def _pixel_extremes(images: Array) -> tuple[Array, Array]:
    """Largest magnitude of each image in float64, not finite if any pixel is not; and constancy.

    float16 is judged by its bits, which order like magnitudes once the sign is masked: NumPy's own
    float16 comparisons cost more than decoding the record.
    """
    flat = images.reshape(len(images), -1)
    if flat.dtype == np.float16:
        bits = flat.view(np.uint16)
        largest = (bits & np.uint16(0x7FFF)).max(axis=1)
        return largest.view(np.float16).astype(np.float64), bits.min(axis=1) == bits.max(axis=1)
    low, high = flat.min(axis=1).astype(np.float64), flat.max(axis=1).astype(np.float64)
    return np.maximum(np.abs(low), np.abs(high)), low == high
