"""Groups are closed and lie on the documented axes; imposing one does what the physics asks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.symmetric_maps import blobs
from reconstruct.fourier import centred_rfftn
from reconstruct.projection import image_plane, make_projector, project
from reconstruct.rotations import matrix_from_vector, random_rotations, rotation_grid
from reconstruct.symmetry import (
    asymmetric_unit,
    is_subgroup,
    parse_group,
    rotate_poses,
    rotate_statistics,
    shift_poses,
    shift_statistics,
    storable_statistics,
    symmetrise_statistics,
)
from reconstruct.types import Geometry
from reconstruct.update import symmetric_plane

ORDERS = {"C1": 1, "C7": 7, "D1": 2, "D2": 4, "D7": 14, "T": 12, "O": 24, "I": 60, "I1": 60}
GOLDEN = (1 + np.sqrt(5)) / 2


def member(name: str, axis: tuple[float, float, float], fold: int) -> bool:
    unit = np.array(axis) / np.linalg.norm(axis)
    turn = matrix_from_vector(unit[None] * (2 * np.pi / fold))[0]
    return bool(np.abs(parse_group(name).operators - turn).max(axis=(1, 2)).min() < 1e-9)


@pytest.mark.parametrize(("name", "order"), ORDERS.items())
def test_a_group_is_closed_and_starts_with_the_identity(name: str, order: int) -> None:
    operators = parse_group(name).operators
    assert operators.shape == (order, 3, 3)
    assert np.array_equal(operators[0], np.eye(3))
    assert np.allclose(np.linalg.det(operators), 1)
    products = np.einsum("aij,bjk->abik", operators, operators).reshape(-1, 1, 3, 3)
    assert np.abs(products - operators).max(axis=(2, 3)).min(axis=1).max() < 1e-9


@given(st.sampled_from("CD"), st.integers(1, 99))
def test_cyclic_and_dihedral_groups_have_their_order(kind: str, fold: int) -> None:
    assert parse_group(f"{kind}{fold}").order == (fold if kind == "C" else 2 * fold)


def test_the_axes_are_those_of_relion() -> None:
    assert member("C5", (0, 0, 1), 5)
    assert member("D7", (1, 0, 0), 2)
    assert member("T", (0, 0, 1), 3)
    assert member("T", (0, 0.816496580927726, 0.577350269189626), 2)
    assert all(member("O", axis, 4) for axis in ((1, 0, 0), (0, 1, 0), (0, 0, 1)))
    for name in ("I", "I1", "I2"):
        assert all(member(name, axis, 2) for axis in ((1, 0, 0), (0, 1, 0), (0, 0, 1)))
    assert member("I1", (0, 1, GOLDEN), 5)
    assert member("I2", (1, 0, GOLDEN), 5)
    assert member("I", (1, 0, GOLDEN), 5)
    assert not member("I1", (1, 0, GOLDEN), 5)


@pytest.mark.parametrize("name", ["", "c", "C0", "C100", "D", "D-2", "Q", "I3", "C4 D2", "O1"])
def test_an_unknown_name_is_refused_with_the_accepted_ones(name: str) -> None:
    with pytest.raises(ValueError, match="C1 to C99, D1 to D99, T, O or I"):
        parse_group(name)


def test_case_and_blanks_do_not_matter() -> None:
    assert parse_group(" d7 ").name == "D7"


def test_subgroups_by_name_agree_with_the_operators() -> None:
    """Where a standard orientation holds another group's operators, the name must say so."""
    names = [f"{kind}{n}" for kind in "CD" for n in range(2, 9)] + ["T", "O", "I"]
    for whole in names:
        for part in names:
            small, large = parse_group(part).operators, parse_group(whole).operators
            inside = np.abs(small[:, None] - large).max(axis=(2, 3)).min(axis=1).max() < 1e-9
            if inside:
                assert is_subgroup(part, whole), (part, whole)
            if is_subgroup(part, whole):
                assert len(large) % len(small) == 0, "Lagrange"
    assert is_subgroup("C2", "D7")
    assert is_subgroup("D3", "I")
    assert not is_subgroup("O", "I")
    assert not is_subgroup("D2", "C4")


@pytest.mark.parametrize("name", ["C2", "C7", "D2", "D7", "T", "O", "I"])
def test_an_asymmetric_unit_covers_every_orbit_with_its_share_of_the_grid(name: str) -> None:
    operators = parse_group(name).operators
    grid = rotation_grid(4608)
    kept = grid[asymmetric_unit(grid, operators)]
    assert len(kept) == pytest.approx(len(grid) / len(operators), rel=0.05)
    some = random_rotations(np.random.default_rng(1), 300)

    def distances(centres: np.ndarray, group: np.ndarray) -> np.ndarray:
        orbit = np.einsum("nij,mjk->nmik", some, group).reshape(len(some), -1, 9)
        traces = (orbit.reshape(-1, 9) @ centres.reshape(-1, 9).T).max(axis=1)
        best = traces.reshape(len(some), -1).max(axis=1)
        return np.degrees(np.arccos(np.clip((best - 1) / 2, -1, 1)))

    full = distances(grid, np.eye(3)[None])
    unit = distances(kept, operators)
    assert unit.mean() < full.mean() + 0.5  # degrees
    assert unit.max() < full.max() + 3


@pytest.mark.parametrize("name", ["C2", "D7", "O", "I"])
def test_no_orbit_is_kept_twice(name: str) -> None:
    operators = parse_group(name).operators
    some = random_rotations(np.random.default_rng(2), 200)
    orbits = np.einsum("nij,mjk->nmik", some, operators).reshape(-1, 3, 3)
    kept = asymmetric_unit(orbits, operators).reshape(len(some), -1)
    assert (kept.sum(axis=1) == 1).all()


def half_statistics(volume: np.ndarray, reach: int) -> np.ndarray:
    """N and D as ``update.symmetric_plane`` gives them, on the box's own Fourier grid."""
    centre = volume.shape[0] // 2
    span = slice(centre - reach, centre + reach + 1)
    half = centred_rfftn(volume)[span, span, : reach + 1]
    return np.stack([half.real, half.imag, np.abs(half)], axis=-1).astype(np.float32)


def agreement(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of two statistics' N inside the sphere, where rotation keeps what it takes."""
    reach = a.shape[2] - 1
    axis = np.arange(-reach, reach + 1)
    r2 = axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis[None, None, reach:] ** 2
    inside = (r2 < (reach - 1) ** 2) & (r2 > 0)
    x = a[..., 0][inside] + 1j * a[..., 1][inside]
    y = b[..., 0][inside] + 1j * b[..., 1][inside]
    return float((x * np.conj(y)).real.sum() / np.sqrt((abs(x) ** 2).sum() * (abs(y) ** 2).sum()))


PARTICLE = Geometry(box=48, pixel_size_angstrom=4.0)


def padded_blobs(name: str, seed: int, rotation: np.ndarray | None = None) -> np.ndarray:
    rng = np.random.default_rng(seed)
    inner = blobs(name, rng, geometry=PARTICLE, rotation=rotation)
    return np.pad(inner, 24)


@pytest.mark.parametrize("name", ["C3", "D7", "T", "O", "I"])
def test_statistics_of_a_symmetric_map_stay_as_they_are(name: str) -> None:
    crop = half_statistics(padded_blobs(name, 3), 20)
    same = symmetrise_statistics(crop, parse_group(name).operators)
    assert same.shape == crop.shape
    assert agreement(crop, same) > 0.985
    assert agreement(crop, symmetrise_statistics(crop, parse_group("C5").operators)) < 0.95


@pytest.mark.parametrize("name", ["C4", "D2", "O"])
def test_operators_that_keep_the_grid_average_without_blur(name: str) -> None:
    crop = half_statistics(padded_blobs("C1", 4), 20)
    operators = parse_group(name).operators
    once = symmetrise_statistics(crop, operators)
    twice = symmetrise_statistics(once, operators)
    inside = np.abs(once[..., 2]) > 0
    assert np.allclose(once[inside], twice[inside], atol=2e-3 * np.abs(once).max())


def test_averaging_an_asymmetric_map_makes_it_symmetric() -> None:
    volume = padded_blobs("C1", 5)
    copies = [
        padded_blobs("C1", 5, rotation=operator.T) for operator in parse_group("D3").operators
    ]
    wanted = half_statistics(np.mean(copies, axis=0), 20)
    got = symmetrise_statistics(half_statistics(volume, 20), parse_group("D3").operators)
    assert agreement(wanted, got) > 0.985
    assert agreement(wanted, half_statistics(volume, 20)) < 0.9


def test_poses_and_statistics_follow_the_volume_into_another_frame() -> None:
    rng = np.random.default_rng(6)
    axes, pose = random_rotations(rng, 2)
    old = padded_blobs("C1", 7)
    new = padded_blobs("C1", 7, rotation=axes.T)  # x_new = axes @ x
    plane = image_plane(len(old))
    low = plane.x**2 + plane.y**2 < 20**2
    before = project(make_projector(old), pose[None], plane)[:, low]
    after = project(make_projector(new), rotate_poses(pose[None], axes), plane)[:, low]
    scale = np.abs(before).max()
    assert np.abs(before - after).max() < 0.01 * scale
    other = project(make_projector(new), pose[None], plane)[:, low]
    assert np.abs(before - other).max() > 0.1 * scale
    turned = rotate_statistics(half_statistics(old, 20), axes)
    assert agreement(turned, half_statistics(new, 20)) > 0.985


def test_poses_and_statistics_follow_the_volume_to_another_centre() -> None:
    move = np.array([2.0, -3.0, 1.0])
    old = padded_blobs("C1", 8)
    new = np.roll(old, (1, -3, 2), axis=(0, 1, 2))
    shifted = shift_statistics(half_statistics(old, 20), move, padded=len(old))
    wanted = half_statistics(new, 20)
    assert np.allclose(shifted, wanted, atol=1e-3 * np.abs(wanted).max())
    pose = random_rotations(np.random.default_rng(9), 1)
    plane = image_plane(len(old))
    low = plane.x**2 + plane.y**2 < 20**2
    x, y = plane.x[low], plane.y[low]
    before = project(make_projector(old), pose, plane)[0, low]
    after = project(make_projector(new), pose, plane)[0, low]
    # the image that was centred by t = 0 is, for the moved volume, centred by the new shift
    t = shift_poses(pose, np.zeros((1, 2)), move)[0]
    centred = before * np.exp(-2j * np.pi / len(old) * (x * t[0] + y * t[1]))
    assert np.abs(centred - after).max() < 0.01 * np.abs(after).max()


def test_stored_statistics_read_back_as_they_were() -> None:
    crop = half_statistics(padded_blobs("C1", 9), 12)
    stored = storable_statistics(crop)
    assert stored.shape == (25, 25, 14, 3)
    assert np.allclose(symmetric_plane(stored, 12), crop, atol=1e-4 * np.abs(crop).max())
