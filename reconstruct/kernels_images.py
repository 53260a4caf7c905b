"""Compiled CPU loops over images and their coefficients: the CTF, normalisation.

``kernels_numpy`` has a plain twin of each.
"""

from __future__ import annotations

import math
from typing import Any

import numba

__all__ = ["ctf_rows", "normalise_images", "shell_sums"]

_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "cache": True,
    "fastmath": {"reassoc", "contract", "nsz", "arcp"},
    "error_model": "numpy",
}


@numba.njit(**_OPTIONS)
def ctf_rows(kx, ky, step, parameters, wavelength, cs_angstrom, amplitude, out):  # type: ignore[no-untyped-def]
    """CTF of each particle; the twin of ``ctf.ctf_values``.

    ``kx``, ``ky`` (n,) in shells of ``step`` 1/Angstrom; ``parameters`` (b, 4) defocus u and v in
    Angstrom, angle and phase shift in radians; ``wavelength``, ``cs_angstrom`` and ``amplitude``
    (b,); ``out`` (b, n) float32.
    """
    for i in range(out.shape[0]):
        u, v, angle, phase = parameters[i]
        mean, half = 0.5 * (u + v), 0.5 * (u - v)
        c2, s2 = math.cos(2 * angle), math.sin(2 * angle)
        linear = math.pi * wavelength[i] * step * step
        quartic = 0.5 * math.pi * cs_angstrom[i] * wavelength[i] ** 3 * step**4
        offset = phase + math.atan(amplitude[i] / math.sqrt(1 - amplitude[i] ** 2))
        for j in range(out.shape[1]):
            x, y = float(kx[j]), float(ky[j])
            k2 = x * x + y * y
            dz = mean * k2 + half * (c2 * (x * x - y * y) + s2 * 2 * x * y)
            out[i, j] = -math.sin(quartic * k2 * k2 - linear * dz - offset)


@numba.njit(**_OPTIONS)
def normalise_images(images, outside, out):  # type: ignore[no-untyped-def]
    """Background mean 0 and deviation 1: ``images`` (b, n, n), ``outside`` (n * n,) bool.

    A constant background keeps its scale. ``out`` (b, n, n) float32.
    """
    pixels = images.shape[1] * images.shape[2]
    for i in range(images.shape[0]):
        source, target = images[i].reshape(pixels), out[i].reshape(pixels)
        total, count = 0.0, 0
        for p in range(pixels):
            if outside[p]:
                total += source[p]
                count += 1
        mean = total / count
        square = 0.0
        for p in range(pixels):
            if outside[p]:
                square += (source[p] - mean) ** 2
        deviation = math.sqrt(square / count)
        gain = 1.0 / deviation if deviation > 0 else 1.0
        for p in range(pixels):
            target[p] = (source[p] - mean) * gain


@numba.njit(**_OPTIONS)
def shell_sums(a_re, a_im, c2, starts, out):  # type: ignore[no-untyped-def]
    """Sums over the coefficients of each shell into ``out`` (b, 3, shells).

    Of C^2 / noise, of its square, and of |A|^2. Shell s + 1 holds the coefficients from
    ``starts[s]`` (shells + 1, or more) to ``starts[s + 1]``.
    """
    for i in range(out.shape[0]):
        for s in range(out.shape[2]):
            transfer, square, power = 0.0, 0.0, 0.0
            for j in range(starts[s], starts[s + 1]):
                value = float(c2[i, j])
                transfer += value
                square += value * value
                power += float(a_re[i, j]) ** 2 + float(a_im[i, j]) ** 2
            out[i, 0, s], out[i, 1, s], out[i, 2, s] = transfer, square, power
