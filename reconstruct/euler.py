"""Convert between rotation matrices, RELION Euler angles and cryoSPARC pose vectors.

Convention owned here: ``A(rot, tilt, psi)`` is the ZYZ matrix that maps the volume frame to the
image frame, and a cryoSPARC pose ``r`` is the axis-angle vector with ``expm([r]x) = A.T``.
All angles are radians; degrees exist only in STAR files.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.spatial.transform import Rotation

__all__ = [
    "euler_from_matrix",
    "matrix_from_euler",
    "matrix_from_pose_vector",
    "pose_vector_from_matrix",
]

Float64Array = npt.NDArray[np.float64]

POLE_SINE = 1e-7  # below this sine of the tilt only rot + psi (or rot - psi) is defined


def matrix_from_euler(euler_rad: npt.ArrayLike) -> Float64Array:
    """Return ``A`` for Euler angles.

    Parameters
    ----------
    euler_rad
        (..., 3) rot, tilt, psi in radians.

    Returns
    -------
    (..., 3, 3) matrices that map the volume frame to the image frame.
    """
    angles = np.asarray(euler_rad, dtype=np.float64)
    rot, tilt, psi = np.moveaxis(angles, -1, 0)
    in_plane = _rotation_about_z(psi)
    about_y = np.zeros((*tilt.shape, 3, 3))
    about_y[..., 0, 0] = about_y[..., 2, 2] = np.cos(tilt)
    about_y[..., 0, 2] = -np.sin(tilt)
    about_y[..., 2, 0] = np.sin(tilt)
    about_y[..., 1, 1] = 1.0
    return np.asarray(in_plane @ about_y @ _rotation_about_z(rot), dtype=np.float64)


def euler_from_matrix(rotations: npt.ArrayLike) -> Float64Array:
    """Return rot, tilt, psi of ``A``, with tilt in [0, pi].

    At the poles only one combination of rot and psi is defined; rot is then 0.

    Parameters
    ----------
    rotations
        (..., 3, 3) matrices that map the volume frame to the image frame.

    Returns
    -------
    (..., 3) rot, tilt, psi in radians.
    """
    a = np.asarray(rotations, dtype=np.float64)
    sine = np.hypot(a[..., 2, 0], a[..., 2, 1])
    polar = sine < POLE_SINE
    tilt = np.arctan2(sine, a[..., 2, 2])
    rot = np.where(polar, 0.0, np.arctan2(a[..., 2, 1], a[..., 2, 0]))
    psi = np.where(
        polar,
        np.arctan2(a[..., 0, 1], a[..., 1, 1]),
        np.arctan2(a[..., 1, 2], -a[..., 0, 2]),
    )
    return np.stack([rot, tilt, psi], axis=-1)


def matrix_from_pose_vector(pose_rad: npt.ArrayLike) -> Float64Array:
    """Return ``A`` for cryoSPARC pose vectors.

    Parameters
    ----------
    pose_rad
        (n, 3) axis-angle vectors in radians.

    Returns
    -------
    (n, 3, 3) matrices that map the volume frame to the image frame.
    """
    vectors = np.asarray(pose_rad, dtype=np.float64).reshape(-1, 3)
    return np.asarray(Rotation.from_rotvec(vectors).inv().as_matrix(), dtype=np.float64)


def pose_vector_from_matrix(rotations: npt.ArrayLike) -> Float64Array:
    """Return the cryoSPARC pose vectors of ``A``.

    Parameters
    ----------
    rotations
        (n, 3, 3) matrices that map the volume frame to the image frame.

    Returns
    -------
    (n, 3) axis-angle vectors in radians, of length 0 to pi.
    """
    matrices = np.asarray(rotations, dtype=np.float64).reshape(-1, 3, 3)
    return np.asarray(Rotation.from_matrix(matrices).inv().as_rotvec(), dtype=np.float64)


def _rotation_about_z(angle_rad: Float64Array) -> Float64Array:
    """Return the (..., 3, 3) change of frame for an axis system turned about z."""
    matrix = np.zeros((*angle_rad.shape, 3, 3))
    matrix[..., 0, 0] = matrix[..., 1, 1] = np.cos(angle_rad)
    matrix[..., 0, 1] = np.sin(angle_rad)
    matrix[..., 1, 0] = -np.sin(angle_rad)
    matrix[..., 2, 2] = 1.0
    return matrix
