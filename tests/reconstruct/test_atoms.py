"""Atomic models become the particle that the file describes, assemblies included."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from benchmarks.sets import RECIPES, load
from reconstruct.io.atoms import read_atoms
from reconstruct.io.errors import InputFileError

PDB = """\
ATOM      1  N   GLY A   1      10.000  20.000  30.000  1.00  0.00           N
ATOM      2  CA  GLY A   1      12.000  20.000  30.000  1.00  0.00           C
ATOM      3  HA  GLY A   1      12.500  21.000  30.000  1.00  0.00           H
ATOM      4  O   GLY B   1      10.000  24.000  30.000  0.50  0.00           O
HETATM    5  O   HOH A   2      90.000  90.000  90.000  1.00  0.00           O
END
"""


def test_water_and_hydrogen_are_left_out_and_the_mass_is_centred(tmp_path: Path) -> None:
    path = tmp_path / "model.pdb"
    path.write_text(PDB)
    atoms = read_atoms(path)
    assert atoms.weights.tolist() == [7.0, 6.0, 4.0]
    np.testing.assert_allclose(atoms.weights @ atoms.positions_angstrom, 0.0, atol=1e-9)
    np.testing.assert_allclose(
        atoms.positions_angstrom[1] - atoms.positions_angstrom[0], [2.0, 0.0, 0.0], atol=1e-9
    )


def test_a_gzipped_model_and_a_choice_of_chains(tmp_path: Path) -> None:
    path = tmp_path / "model.pdb.gz"
    path.write_bytes(gzip.compress(PDB.encode()))
    assert read_atoms(path, chains=("B",)).weights.tolist() == [4.0]
    with pytest.raises(InputFileError, match="no atoms"):
        read_atoms(path, chains=("Z",))


def test_an_assembly_that_is_not_there_is_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "model.pdb"
    path.write_text(PDB)
    with pytest.raises(InputFileError, match="assembly '7'"):
        read_atoms(path, assembly="7")


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.cif"
    path.write_text("this is not mmCIF")
    with pytest.raises(InputFileError, match="not an atomic model"):
        read_atoms(path)


@pytest.mark.data
def test_the_virus_is_built_from_its_sixty_operators(data_dir: Path) -> None:
    path = data_dir / "models" / "biotite_1f2n.cif"
    whole = read_atoms(path, assembly="1")
    assert len(whole.weights) == 60 * len(read_atoms(path).weights)
    inertia = whole.positions_angstrom.T @ (
        whole.weights[:, None] * whole.positions_angstrom
    )  # a multiple of 1 for an icosahedral particle
    eigenvalues = np.linalg.eigvalsh(inertia)
    assert eigenvalues[0] == pytest.approx(eigenvalues[2], rel=1e-3)


@pytest.mark.data
@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_standard_set_can_be_simulated(name: str, data_dir: Path) -> None:
    standard = load(name, data_dir, n_particles=20, seed=1)
    made = standard.particles()
    assert made.images.shape == (20, standard.geometry.box, standard.geometry.box)
    assert np.isfinite(made.images).all()
    volume = standard.species[0].volume
    rim = max(np.abs(volume[0]).max(), np.abs(volume[:, 0]).max(), np.abs(volume[:, :, 0]).max())
    assert rim < 0.1 * volume.max()  # the particle fits its box
