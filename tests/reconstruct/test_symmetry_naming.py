"""The group of a converged map is named with its axes and centre; every other map is left alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.sets import load
from benchmarks.symmetric_maps import ball, blobs, degraded, disc, rod, shell
from reconstruct.rotations import random_rotations
from reconstruct.symmetry import parse_group
from reconstruct.symmetry_naming import centre_of_mass_pixels, decide, find_axes, name_symmetry

CONVERGED = 10.0  # shells at which the map's correlation with the truth is 0.5


def operators_fit(name: str, axes: np.ndarray, rotation: np.ndarray) -> float:
    """Largest angle in degrees between the named operators and the true ones, in the map's frame.

    The map is ``x_map = rotation.T @ x_standard``.
    """
    operators = parse_group(name).operators
    found = axes.T @ operators @ axes
    true = rotation.T @ operators @ rotation
    traces = np.einsum("aij,bij->ab", found, true).max(axis=1)
    return float(np.degrees(np.arccos(np.clip((traces - 1) / 2, -1, 1))).max())


@pytest.mark.parametrize("name", ["C2", "C4", "C7", "D2", "D3", "D7", "T", "O", "I"])
def test_a_turned_shifted_and_noisy_map_is_named_with_its_axes(name: str) -> None:
    rng = np.random.default_rng(10)
    rotation = random_rotations(rng, 1)[0]
    displacement = rng.uniform(-1.5, 1.5, 3)
    volume = blobs(name, rng, rotation=rotation, displacement_pixels=displacement)
    verdict = name_symmetry(degraded(volume, rng, radius=CONVERGED), radius=9)
    assert verdict.group == name
    assert verdict.score > 1.2 * verdict.runner_up_score
    assert name in verdict.message
    assert operators_fit(name, verdict.axes, rotation) < 4
    error = rotation @ (verdict.displacement_pixels - displacement)  # in the standard frame
    if name.startswith("C"):
        error = error[:2]  # along its axis, a Cn map has no centre
    assert np.linalg.norm(error) < 0.5


@pytest.mark.parametrize("name", ["C3", "C12", "D1", "D7", "O", "I1", "I2"])
def test_the_axes_of_a_group_that_the_user_names_are_found(name: str) -> None:
    rng = np.random.default_rng(16)
    rotation = random_rotations(rng, 1)[0]
    volume = blobs(name, rng, rotation=rotation, displacement_pixels=rng.uniform(-1.5, 1.5, 3))
    verdict = find_axes(degraded(volume, rng, radius=CONVERGED), name)
    assert verdict.group == name
    assert verdict.score > 0.6
    assert operators_fit(name, verdict.axes, rotation) < 4


def test_a_group_that_is_not_there_fits_badly() -> None:
    rng = np.random.default_rng(17)
    assert find_axes(blobs("C3", rng), "O").score < 0.2
    assert find_axes(blobs("C3", rng), "C1").group == "C1"


@pytest.mark.parametrize("name", ["O", "I"])
def test_a_hollow_shell_is_told_from_a_ball(name: str) -> None:
    rng = np.random.default_rng(11)
    volume = shell(name, rng, rotation=random_rotations(rng, 1)[0])
    assert name_symmetry(degraded(volume, rng, radius=CONVERGED), radius=9).group == name


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("shape", [ball, disc, rod])
def test_round_maps_have_every_symmetry_and_so_none(shape, seed: int) -> None:  # type: ignore[no-untyped-def]
    verdict = name_symmetry(shape(np.random.default_rng(seed)), radius=9)
    assert verdict.group == "C1"
    assert np.array_equal(verdict.axes, np.eye(3))


@pytest.mark.parametrize("seed", [1, 2])
def test_an_asymmetric_map_is_left_alone(seed: int) -> None:
    rng = np.random.default_rng(seed)
    verdict = name_symmetry(degraded(blobs("C1", rng), rng, radius=CONVERGED), radius=9)
    assert verdict.group == "C1"
    assert "No symmetry" in verdict.message


@pytest.mark.parametrize("name", ["C4", "D7", "O"])
def test_an_unconverged_map_is_left_alone(name: str) -> None:
    rng = np.random.default_rng(12)
    assert name_symmetry(degraded(blobs(name, rng), rng, radius=3.5), radius=9).group == "C1"


def test_below_nine_shells_nothing_is_said() -> None:
    verdict = name_symmetry(blobs("D7", np.random.default_rng(13)), radius=8)
    assert verdict.group == "C1"
    assert "8 shells" in verdict.message


def test_an_empty_map_is_left_alone() -> None:
    assert name_symmetry(np.zeros((48, 48, 48), np.float32), radius=9).group == "C1"


@pytest.mark.data
@pytest.mark.parametrize("name", ["beta_galactosidase", "groel", "ribosome", "trpv1", "virus"])
def test_real_molecules_are_named(name: str, data_dir: Path) -> None:
    recipe = load(name, data_dir, n_particles=1)
    rng = np.random.default_rng(14)
    volume = degraded(recipe.species[0].volume, rng, radius=CONVERGED)
    assert name_symmetry(volume, radius=9).group == recipe.symmetry


def test_the_largest_group_that_stands_out_is_chosen() -> None:
    scores = {"C2": 0.9, "C7": 0.8, "D7": 0.75, "C3": 0.4, "D3": 0.3, "O": 0.1}
    assert decide(scores, continuous_score=0.3) == "D7"
    assert decide({**scores, "D7": 0.39}, continuous_score=0.3) == "C1"  # C7 and C2 beat each other
    assert decide(scores, continuous_score=0.73) == "C1"
    assert decide({**scores, "C3": 0.7}, continuous_score=0.3) == "C1"
    assert decide({"C2": 0.6, "C3": 0.2}, continuous_score=0.1) == "C2"
    assert decide({}, continuous_score=0.0) == "C1"
    tetrahedral = {"C2": 0.92, "C3": 0.91, "D2": 0.9, "T": 0.89, "C4": 0.42, "D4": 0.41, "O": 0.41}
    assert decide(tetrahedral, continuous_score=0.1) == "T"


def test_the_centre_of_mass_ignores_noise_and_the_dark_rim() -> None:
    rng = np.random.default_rng(15)
    volume = blobs("O", rng, displacement_pixels=np.array([-2.0, 1.0, 3.0]))
    noisy = volume - 0.05 * volume.max() + 0.02 * volume.max() * rng.standard_normal(volume.shape)
    assert np.abs(centre_of_mass_pixels(noisy) - [2.0, -1.0, -3.0]).max() < 0.3
    assert np.array_equal(centre_of_mass_pixels(np.zeros((8, 8, 8))), np.zeros(3))
