"""Point groups: their operators, and what imposing one does to poses and to statistics.

Convention owned here: an operator ``S`` acts on volume coordinates (x, y, z), ``V(S @ x) = V(x)``,
so the poses ``A`` and ``A @ S`` give the same image. The standard axes are RELION's:

- ``Cn``: the n-fold axis along z;
- ``Dn``: the n-fold axis along z, a 2-fold axis along x;
- ``T``: a 3-fold axis along z, a 2-fold axis along (0, sqrt(2/3), sqrt(1/3));
- ``O``: 4-fold axes along x, y and z;
- ``I1``, ``I2``: 2-fold axes along x, y and z; the 5-fold axes nearest to z lie in the plane
  yz (I1) or xz (I2). ``I`` is ``I2``, as in RELION; a quarter turn about z leads from one to
  the other.

cryoSPARC puts the 2-fold axis of ``Dn`` along y; the other axes that it documents are the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from reconstruct import kernels_symmetry
from reconstruct.rotations import matrix_from_vector
from reconstruct.update import symmetric_plane

__all__ = [
    "ACCEPTED_NAMES",
    "Group",
    "asymmetric_unit",
    "changed_statistics",
    "is_subgroup",
    "parse_group",
    "rotate_poses",
    "rotate_statistics",
    "shift_poses",
    "shift_statistics",
    "storable_statistics",
    "symmetrise_statistics",
]

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

ACCEPTED_NAMES = "C1 to C99, D1 to D99, T, O or I"

_GOLDEN = (1 + np.sqrt(5)) / 2
_TIE = 1e-6  # of a trace: rotations on the border of an asymmetric unit belong to it


@dataclass(frozen=True)
class Group:
    """A point group in its standard orientation."""

    name: str
    operators: Float64  # (m, 3, 3), identity first

    @property
    def order(self) -> int:
        """Number of operators."""
        return len(self.operators)


@lru_cache(maxsize=64)
def parse_group(name: str) -> Group:
    """Give the group of a name such as ``C1``, ``D7`` or ``O``; case does not matter.

    Raises
    ------
    ValueError
        The name is none of the accepted ones, which the message lists.
    """
    wanted = name.strip().upper()
    match = re.fullmatch(r"([CD])([1-9][0-9]?)|(T|O|I|I1|I2)", wanted)
    if match is None:
        raise ValueError(f"symmetry must be {ACCEPTED_NAMES}, not {name!r}")
    kind, fold, cubic = match.groups()
    z = (0.0, 0.0, 1.0)
    if kind:
        generators = [_turn(z, int(fold))]
        if kind == "D":
            generators.append(_turn((1.0, 0.0, 0.0), 2))
    elif cubic == "T":
        generators = [_turn(z, 3), _turn((0.0, np.sqrt(2.0), 1.0), 2)]
    elif cubic == "O":
        generators = [_turn(z, 4), _turn((1.0, 1.0, 1.0), 3)]
    else:
        five = (0.0, 1.0, _GOLDEN) if cubic == "I1" else (1.0, 0.0, _GOLDEN)
        generators = [_turn(z, 2), _turn((1.0, 1.0, 1.0), 3), _turn(five, 5)]
    operators = _closure(np.stack(generators))
    operators.flags.writeable = False
    return Group(wanted, operators)


def _turn(axis: tuple[float, float, float], fold: int) -> Float64:
    unit = np.array(axis) / np.linalg.norm(axis)
    turned: Float64 = matrix_from_vector(unit[None] * (2 * np.pi / fold))[0]
    return turned


def _closure(generators: Float64) -> Float64:
    """All products of the generators, identity first, in the order in which they are found."""
    found = np.eye(3)[None]
    fresh = found
    while len(fresh):
        products = np.einsum("nij,gjk->ngik", fresh, generators).reshape(-1, 3, 3)
        fresh = products[:0]
        for product in products:
            known = np.concatenate([found, fresh])
            if np.abs(known - product).max(axis=(1, 2)).min() > 1e-6:
                fresh = np.concatenate([fresh, product[None]])
        found = np.concatenate([found, fresh])
    # Whole and half elements are made exact, so that O and D2 map the grid on itself.
    doubled = np.round(2 * found)
    return np.where(np.abs(2 * found - doubled) < 1e-9, doubled / 2 + 0.0, found)


def is_subgroup(part: str, whole: str) -> bool:
    """Whether ``whole`` has a subgroup of the kind ``part``, in whatever orientation."""
    part, whole = (_plain(name) for name in (part, whole))
    if part in {whole, "C1"}:
        return True
    cubic = {
        "T": {"C2", "C3", "D2"},
        "O": {"C2", "C3", "C4", "D2", "D3", "D4", "T"},
        "I": {"C2", "C3", "C5", "D2", "D3", "D5", "T"},
    }
    if whole in cubic:
        return part in cubic[whole]
    if part in cubic:
        return False
    divides = int(whole[1:]) % int(part[1:]) == 0
    if whole[0] == "D":
        return part == "C2" or divides
    return part[0] == "C" and divides


def _plain(name: str) -> str:
    upper = parse_group(name).name
    return {"I1": "I", "I2": "I", "D1": "C2"}.get(upper, upper)


def asymmetric_unit(
    rotations: npt.NDArray[np.floating], operators: Float64
) -> npt.NDArray[np.bool_]:
    """Mark the rotations that are the nearest to the identity among their equals ``A @ S``.

    Of a near-uniform grid it keeps a near-uniform 1/m. The unit is one of poses ``A``: a random
    turn of the kept grid must multiply from the left (``turn @ A``), since from the right it would
    turn the axes of the group as well.

    Parameters
    ----------
    rotations
        (n, 3, 3) matrices A.
    operators
        (m, 3, 3), identity first.

    Returns
    -------
    (n,) mask.
    """
    traces = rotations.reshape(-1, 9) @ operators.transpose(0, 2, 1).reshape(-1, 9).T
    kept: npt.NDArray[np.bool_] = traces[:, 0] >= traces.max(axis=1) - _TIE
    return kept


def rotate_poses(rotations: npt.NDArray[np.floating], axes: Float64) -> Float64:
    """Express poses in a frame that ``axes`` (3, 3) takes the volume to, ``x_new = axes @ x``."""
    turned: Float64 = np.asarray(rotations, dtype=np.float64) @ axes.T
    return turned


def shift_poses(
    rotations: npt.NDArray[np.floating],
    shifts: npt.NDArray[np.floating],
    displacement: Float64,
) -> Float64:
    """Particle shifts (n, 2) after the volume was moved by ``displacement`` (3,), same units."""
    moved: Float64 = shifts + (np.asarray(rotations, np.float64) @ displacement)[:, :2]
    return moved


def symmetrise_statistics(crop: Float32, operators: Float64) -> Float32:
    """Average statistics over a group, in its standard orientation and about the origin.

    N and D alike are interpolated trilinearly, which damps the map towards the edge of its box as
    one insertion does, unless the operators map the grid on itself (C2, C4, D2, D4, O). So
    average a copy when a map is made: averages of averages grow blunt.
    Beyond the sphere of radius ``reach`` the result is 0.

    Parameters
    ----------
    crop
        (g, g, reach + 1, 3) Re N, Im N, D on a centred half cube with its plane x = 0 completed
        (``update.symmetric_plane``).
    operators
        (m, 3, 3), a whole group.
    """
    return _mean_over(crop, operators)


def rotate_statistics(crop: Float32, axes: Float64) -> Float32:
    """Statistics of the volume in a frame that ``axes`` takes it to, ``x_new = axes @ x``."""
    return _mean_over(crop, axes.T[None])


def shift_statistics(crop: Float32, displacement_pixels: Float64, *, padded: int) -> Float32:
    """Statistics of the volume moved by ``displacement_pixels`` (3,) x, y, z.

    Parameters
    ----------
    padded
        Edge of the padded box in pixels (``MapGrid.padded``).
    """
    reach = crop.shape[2] - 1
    axis = np.arange(-reach, reach + 1)
    ramps = [np.exp(-2j * np.pi / padded * axis * step) for step in displacement_pixels]
    phase = ramps[2][:, None, None] * ramps[1][None, :, None] * ramps[0][None, None, reach:]
    moved = (crop[..., 0] + 1j * crop[..., 1]) * phase
    return np.stack([moved.real, moved.imag, crop[..., 2]], axis=-1).astype(np.float32)


def changed_statistics(held: Float32, change: Callable[[Float32], Float32]) -> Float32:
    """Statistics (g, g, reach + 2, 3) as a learner holds them, after ``change`` of their crop."""
    reach = (held.shape[0] - 1) // 2
    return storable_statistics(change(symmetric_plane(held, reach)))


def storable_statistics(crop: Float32) -> Float32:
    """Undo ``update.symmetric_plane``: statistics (g, g, reach + 2, 3) that a learner may hold.

    The plane x = 0 holds each sample and its Friedel mate again when it is read, so half of it is
    stored; beyond ``reach`` there is nothing.
    """
    stored = np.zeros((*crop.shape[:2], crop.shape[2] + 1, 3), np.float32)
    stored[:, :, :-1] = crop
    stored[:, :, 0] *= 0.5
    return stored


def _mean_over(crop: Float32, matrices: Float64) -> Float32:
    """Mean over matrices M of the Friedel-completed statistics at M @ k."""
    g, reach = crop.shape[0], crop.shape[2] - 1
    full = np.zeros((g, g, g, 4), np.float32)  # four channels: each corner is one 128-bit load
    full[:, :, reach:, :3] = crop
    full[:, :, :reach, :3] = crop[::-1, ::-1, reach:0:-1]
    full[:, :, :reach, 1] *= -1
    out = np.zeros((g, g, reach + 1, 4), np.float32)
    kernels_symmetry.mean_over(
        full.reshape(-1), g, np.ascontiguousarray(matrices.reshape(-1, 9), dtype=np.float32), out
    )
    return np.ascontiguousarray(out[..., :3])
