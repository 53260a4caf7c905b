"""Class responsibilities: masses, the blur of class similarity and its annealing."""

from __future__ import annotations

import numpy as np
import pytest

from reconstruct.classes import blur_classes, class_mass, similarity_at
from reconstruct.search import Poses


def _poses(class_index: list[list[int]]) -> Poses:
    classes = np.array(class_index, np.int32)
    b, keep = classes.shape
    zeros = np.zeros((b, keep), np.int32)
    return Poses(
        rotation=np.zeros((b, keep, 9), np.float32),
        rotation_id=zeros,
        shift=np.zeros((b, keep, 2), np.float32),
        shift_id=zeros,
        class_index=classes,
        score=np.zeros((b, keep), np.float32),
        count=np.full(b, keep, np.int32),
        evidence=np.zeros(b, np.float32),
    )


POSES = _poses([[0, 0, 1], [2, 2, 2]])
WEIGHTS = np.array([[0.6, 0.3, 0.1], [0.5, 0.5, 0.0]], np.float32)


def test_mass_is_the_sum_of_a_class_s_weights() -> None:
    np.testing.assert_allclose(class_mass(POSES, WEIGHTS, 3), [[0.9, 0.1, 0], [0, 0, 1]], atol=1e-6)


def test_blur_shares_among_the_classes_in_question_only() -> None:
    blurred = blur_classes(POSES, WEIGHTS, 3, 0.5)
    mass = class_mass(POSES, blurred, 3)
    np.testing.assert_allclose(mass, [[0.7, 0.3, 0], [0, 0, 1]], atol=1e-6)
    assert blurred[0, 0] / blurred[0, 1] == pytest.approx(2.0)


def test_no_similarity_changes_nothing() -> None:
    assert blur_classes(POSES, WEIGHTS, 3, 0.0) is WEIGHTS


@pytest.mark.parametrize(
    ("presented", "expected"), [(0, 0.1), (1500, 0.1), (2250, 0.05), (3000, 0.0), (90_000, 0.0)]
)
def test_similarity_is_annealed_away(presented: float, expected: float) -> None:
    assert similarity_at(presented, 0.1, cold_presented=1500) == pytest.approx(expected)
