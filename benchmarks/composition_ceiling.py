"""How well two species can be told apart at all: by maximum likelihood, all else being known.

Promise: poses, shifts, CTF, both maps and the noise are the true ones, so that no program that has
to find them can do better than by luck. Printed per SNR and radius: the share of particles told
right, and the adjusted Rand index of the partition.

    python -m benchmarks.composition_ceiling --particles 4000 --snr 0.1 0.2 0.3
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.sets import StandardSet, load
from benchmarks.success import adjusted_rand_index
from reconstruct.fourier import image_spectra, make_half_plane
from reconstruct.simulate import simulate_set

__all__ = ["main", "told_apart"]

RADII = (8, 12, 16, 24)


def told_apart(
    chosen: StandardSet, snrs: Sequence[float], radii: Sequence[int]
) -> dict[float, list[tuple[float, float]]]:
    """Share told right and adjusted Rand index per SNR and radius, of a set of two species."""
    clean = replace(chosen.settings, snr=float("inf"))
    mixed = simulate_set(chosen.species, chosen.geometry, settings=clean)
    noisy = simulate_set(
        chosen.species, chosen.geometry, settings=replace(chosen.settings, snr=1.0)
    )
    plane = make_half_plane(chosen.geometry.box, max(radii))
    signal = image_spectra(mixed.images, plane)
    noise = image_spectra(noisy.images - mixed.images, plane)
    models = []
    for number, kind in enumerate(chosen.species):
        # The same seed has the same poses; each set has a gain of its own, which is taken out.
        alone = simulate_set((kind,), chosen.geometry, settings=clean).images
        mine = mixed.species == number
        gain = np.vdot(alone[mine], mixed.images[mine]) / np.linalg.norm(alone[mine]) ** 2
        models.append(image_spectra(alone * np.float32(gain), plane))
    results: dict[float, list[tuple[float, float]]] = {}
    for snr in snrs:
        scale = np.float32(np.sqrt(snr))
        left = [np.square(np.abs(scale * (signal - model) + noise)) for model in models]
        results[snr] = []
        for radius in radii:
            n = plane.count(radius)
            second = left[1][:, :n].sum(axis=1) < left[0][:, :n].sum(axis=1)
            right = float((second == (mixed.species == 1)).mean())
            results[snr].append((right, adjusted_rand_index(mixed.species, second)))
    return results


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module docstring."""
    parser = argparse.ArgumentParser(description="the best that any classification could reach")
    parser.add_argument("--set", default="composition")
    parser.add_argument("--particles", type=int, default=4000)
    parser.add_argument("--snr", type=float, nargs="+", default=[0.1, 0.2, 0.3])
    options = parser.parse_args(arguments)
    data = Path(os.environ.get("ABINITIO_DATA", "../shared/data"))
    chosen = load(options.set, data, n_particles=options.particles)
    print("SNR   " + "   ".join(f"radius {radius:>2}: right, ARI" for radius in RADII))
    for snr, found in told_apart(chosen, options.snr, RADII).items():
        print(f"{snr:<5g} " + "   ".join(f"{right:17.3f} {ari:5.3f}" for right, ari in found))


if __name__ == "__main__":
    main()
