"""The named sets that benchmarks and tests share, simulated from the truth in the data folder.

Convention: a recipe returns the particles' truth maps and symmetry with the settings, so that the
same name and seed mean the same particles everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import mrcfile
import numpy as np
import numpy.typing as npt

from reconstruct.density import fit_volume
from reconstruct.simulate import Simulated, SimulationSettings, Species, simulate_set
from reconstruct.types import Geometry

__all__ = ["StandardSet", "load", "ribosome"]


@dataclass(frozen=True)
class StandardSet:
    """A recipe: what to simulate, and what should come back."""

    name: str
    species: tuple[Species, ...]
    geometry: Geometry
    symmetry: str
    settings: SimulationSettings

    def particles(self) -> Simulated:
        """Simulate the set."""
        return simulate_set(self.species, self.geometry, settings=self.settings)


def ribosome(data: Path, *, n_particles: int = 10_000, seed: int = 0) -> StandardSet:
    """70S ribosome: 64 px at 5 A, SNR 0.1, 300 kV, defocus 1.0-2.5 um, shifts +-3 px, C1."""
    geometry = Geometry(box=64, pixel_size_angstrom=5.0)
    # The file's header has no pixel size; 5 A is what its source says.
    volume = _map(data / "maps" / "clean70SRibosome_vol_65p.mrc", geometry, pixel_size_angstrom=5.0)
    settings = SimulationSettings(n_particles=n_particles, seed=seed, max_shift_angstrom=15.0)
    return StandardSet("ribosome", (Species(volume),), geometry, "C1", settings)


def _map(path: Path, geometry: Geometry, *, pixel_size_angstrom: float) -> npt.NDArray[np.float32]:
    with mrcfile.open(path, permissive=True) as file:
        data = np.asarray(file.data, dtype=np.float32)
    return fit_volume(data, pixel_size_angstrom=pixel_size_angstrom, geometry=geometry)


RECIPES = {"ribosome": ribosome}


def load(name: str, data: Path, *, n_particles: int, seed: int = 0) -> StandardSet:
    """Find a recipe by name."""
    return RECIPES[name](data, n_particles=n_particles, seed=seed)
