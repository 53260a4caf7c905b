"""Contrast transfer function of the microscope, for many particles at once.

Convention (RELION): with ``dz`` the defocus along the direction of ``k`` (positive is underfocus),

    gamma = -pi lambda dz k^2 + pi/2 Cs lambda^3 k^4 - phase_shift - atan(Q0 / sqrt(1 - Q0^2))
    ctf = -sin(gamma)

so ``ctf(0) = +Q0`` without a phase plate and particles are **bright**. The functions only use
operations that NumPy hands on to the arrays' own library, so CuPy arrays stay on the device.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from reconstruct.types import FloatArray, Optics

__all__ = ["ctf_values", "electron_wavelength_angstrom"]

_PLANCK_ANGSTROM_SQRT_VOLT = 12.2643247  # h / sqrt(2 m e), Angstrom V^(1/2)
_RELATIVITY_PER_VOLT = 0.978466e-6  # e / (2 m c^2), 1/V
_ANGSTROM_PER_MM = 1e7


def electron_wavelength_angstrom(voltage_kv: float) -> float:
    """Relativistic wavelength of electrons accelerated by ``voltage_kv``."""
    volts = voltage_kv * 1e3
    return _PLANCK_ANGSTROM_SQRT_VOLT / math.sqrt(volts * (1.0 + volts * _RELATIVITY_PER_VOLT))


def ctf_values(
    kx: FloatArray,
    ky: FloatArray,
    *,
    defocus_u_angstrom: FloatArray,
    defocus_v_angstrom: FloatArray,
    defocus_angle_rad: FloatArray,
    phase_shift_rad: FloatArray,
    optics: Optics,
) -> npt.NDArray[np.float32]:
    """Evaluate the CTF of ``n`` particles at ``m`` frequencies.

    All arrays live in one library (all NumPy or all CuPy). The phase reaches thousands of radians,
    hence float64 until the sine is taken.

    Parameters
    ----------
    kx, ky
        (m,) spatial frequencies in 1/Angstrom.
    defocus_u_angstrom, defocus_v_angstrom
        (n,) largest and smallest defocus.
    defocus_angle_rad
        (n,) angle between the x axis and the direction of ``defocus_u``.
    phase_shift_rad
        (n,) shift of a phase plate; 0 without one.
    optics
        Microscope constants shared by all ``n`` particles.

    Returns
    -------
    (n, m) float32 CTF.
    """
    wavelength = electron_wavelength_angstrom(optics.voltage_kv)
    spherical = optics.spherical_aberration_mm * _ANGSTROM_PER_MM
    q0 = optics.amplitude_contrast
    kx = kx.astype(np.float64)
    ky = ky.astype(np.float64)
    u = defocus_u_angstrom.astype(np.float64)
    v = defocus_v_angstrom.astype(np.float64)
    angle = 2.0 * defocus_angle_rad.astype(np.float64)
    constant = -phase_shift_rad.astype(np.float64) - math.asin(q0)  # asin q = atan(q / sqrt(1-q^2))
    k2 = kx * kx + ky * ky

    # k^2 cos 2(theta - angle) splits into products of a particle's and a frequency's part, so the
    # whole phase is one matrix product instead of several (n, m) temporaries.
    per_frequency = np.stack(
        [
            -math.pi * wavelength * k2,
            -math.pi * wavelength * (kx * kx - ky * ky),
            -math.pi * wavelength * (2.0 * kx * ky),
            0.5 * math.pi * spherical * wavelength**3 * k2 * k2,
            np.ones_like(k2),
        ]
    )  # (5, m)
    half_difference = 0.5 * (u - v)
    per_particle = np.stack(
        [
            0.5 * (u + v),
            half_difference * np.cos(angle),
            half_difference * np.sin(angle),
            np.ones_like(u),
            constant,
        ],
        axis=1,
    )  # (n, 5)
    gamma = per_particle @ per_frequency  # (n, m) float64
    result: npt.NDArray[np.float32] = (-np.sin(gamma)).astype(np.float32)
    return result
