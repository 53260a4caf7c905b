"""The CTF agrees with the numeric vectors of the conventions, for many particles at once."""

from __future__ import annotations

import math

import numpy as np
import pytest

from reconstruct.ctf import ctf_values, electron_wavelength_angstrom
from reconstruct.types import Optics

OPTICS = Optics(voltage_kv=300.0, spherical_aberration_mm=2.7, amplitude_contrast=0.1)
KX = np.array([0.0, 0.05, 0.0, 0.1])
KY = np.array([0.0, 0.0, 0.05, 0.1])


def evaluate(u: float, v: float, angle_degrees: float, phase_degrees: float) -> np.ndarray:
    return ctf_values(
        KX,
        KY,
        defocus_u_angstrom=np.array([u]),
        defocus_v_angstrom=np.array([v]),
        defocus_angle_rad=np.deg2rad([angle_degrees]),
        phase_shift_rad=np.deg2rad([phase_degrees]),
        optics=OPTICS,
    )[0]


def test_wavelength_at_300_kv() -> None:
    assert electron_wavelength_angstrom(300.0) == pytest.approx(0.019687615, abs=1e-9)


@pytest.mark.parametrize(
    ("phase_degrees", "expected"),
    [
        (0.0, [0.100000, 0.690885, 0.744660, -0.395460]),
        (90.0, [0.994987, -0.722964, -0.667444, 0.918483]),
    ],
)
def test_ctf_matches_the_conformance_vectors(phase_degrees: float, expected: list[float]) -> None:
    np.testing.assert_allclose(evaluate(15_000, 14_000, 30, phase_degrees), expected, atol=2e-6)


def test_swapping_the_defoci_is_a_quarter_turn_of_the_angle() -> None:
    np.testing.assert_allclose(
        evaluate(15_000, 14_000, 30, 0), evaluate(14_000, 15_000, 120, 0), atol=1e-6
    )


def test_particles_are_evaluated_each_with_their_own_values() -> None:
    u = np.array([10_000.0, 15_000.0], dtype=np.float32)
    both = ctf_values(
        KX,
        KY,
        defocus_u_angstrom=u,
        defocus_v_angstrom=u - 1_000,
        defocus_angle_rad=np.deg2rad([0.0, 30.0]),
        phase_shift_rad=np.zeros(2),
        optics=OPTICS,
    )
    assert both.shape == (2, 4)
    assert both.dtype == np.float32
    np.testing.assert_allclose(both[1], evaluate(15_000, 14_000, 30, 0), atol=1e-6)
    np.testing.assert_allclose(both[0], evaluate(10_000, 9_000, 0, 0), atol=1e-6)


def test_the_phase_keeps_float64_precision_at_high_defocus_and_frequency() -> None:
    k, dz = 0.5, 50_000.0
    wavelength = electron_wavelength_angstrom(300.0)
    phase = (
        -math.pi * wavelength * dz * k**2
        + 0.5 * math.pi * 2.7e7 * wavelength**3 * k**4
        - math.atan(0.1 / math.sqrt(1 - 0.01))
    )
    value = ctf_values(
        np.array([k]),
        np.array([0.0]),
        defocus_u_angstrom=np.array([dz]),
        defocus_v_angstrom=np.array([dz]),
        defocus_angle_rad=np.zeros(1),
        phase_shift_rad=np.zeros(1),
        optics=OPTICS,
    )
    assert value[0, 0] == pytest.approx(-math.sin(phase), abs=1e-6)


@pytest.mark.gpu
def test_arrays_on_the_device_stay_there_and_agree() -> None:
    cupy = pytest.importorskip("cupy")
    if not cupy.cuda.is_available():
        pytest.skip("no CUDA device")
    u = cupy.asarray([15_000.0])
    value = ctf_values(
        cupy.asarray(KX),
        cupy.asarray(KY),
        defocus_u_angstrom=u,
        defocus_v_angstrom=u - 1_000.0,
        defocus_angle_rad=cupy.asarray(np.deg2rad([30.0])),
        phase_shift_rad=cupy.zeros(1),
        optics=OPTICS,
    )
    assert isinstance(value, cupy.ndarray)
    np.testing.assert_allclose(cupy.asnumpy(value)[0], evaluate(15_000, 14_000, 30, 0), atol=1e-6)
