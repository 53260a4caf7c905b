"""Read atomic models (PDB, mmCIF, also gzipped) as plain arrays to simulate densities from.

Convention: positions are in Angstrom with the centre of mass at the origin; a weight is the atom's
number of electrons, which at these resolutions stands in for its scattering strength.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gemmi
import numpy as np
import numpy.typing as npt

from reconstruct.io.errors import InputFileError

__all__ = ["Atoms", "read_atoms"]


@dataclass(frozen=True)
class Atoms:
    """The atoms of one particle, without water and hydrogen."""

    positions_angstrom: npt.NDArray[np.float64]  # (a, 3) x, y, z
    weights: npt.NDArray[np.float64]  # (a,)


def read_atoms(
    path: Path | str, *, assembly: str | None = None, chains: tuple[str, ...] = ()
) -> Atoms:
    """Read the first model of a file.

    Parameters
    ----------
    path
        ``.pdb``, ``.cif``, or either with ``.gz``.
    assembly
        Name of the biological assembly to build with the file's operators ("1"); by default the
        chains are taken as they are in the file.
    chains
        Keep only these chains; by default all. An assembly names its copies anew (A1, A2, ...).

    Raises
    ------
    InputFileError
        The file cannot be read, has no such assembly, or nothing is left.
    """
    try:
        structure = gemmi.read_structure(str(path))
    except (RuntimeError, ValueError, OSError) as error:
        raise InputFileError(
            Path(path),
            f"not an atomic model ({error})",
            remedy="Give it a PDB or mmCIF file",
            reason="malformed",
        ) from error
    if len(structure) == 0:
        raise _empty(path)
    model = structure[0]
    if assembly is not None:
        known = {each.name: each for each in structure.assemblies}
        if assembly not in known:
            raise InputFileError(
                Path(path),
                f"no assembly {assembly!r}; the file has {', '.join(known) or 'none'}",
                remedy="Name one that is there, or none",
                reason="unsupported",
            )
        naming = gemmi.HowToNameCopiedChain.AddNumber
        model = gemmi.make_assembly(known[assembly], model, naming)
    found = [
        (*atom.pos.tolist(), float(atom.element.atomic_number) * atom.occ)
        for chain in model
        if not chains or chain.name in chains
        for residue in chain
        if not residue.is_water()
        for atom in residue
        if not atom.is_hydrogen()
    ]
    if not found:
        raise _empty(path)
    table = np.array(found, dtype=np.float64)
    positions, weights = table[:, :3], table[:, 3]
    return Atoms(positions - np.average(positions, axis=0, weights=weights), weights)


def _empty(path: Path | str) -> InputFileError:
    return InputFileError(
        Path(path), "no atoms are left", remedy="Check the chains asked for", reason="empty"
    )
