"""RELION, where it is installed, reads what the simulator writes and agrees on every convention."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from reconstruct.io.mrc import read_volume
from reconstruct.io.simulated import TRUTH_STAR, write_set
from reconstruct.quality import fourier_shell_correlation
from reconstruct.simulate import SimulationSettings, Species, simulate
from reconstruct.structures import demo_particle
from reconstruct.types import Geometry

GEOMETRY = Geometry(box=32, pixel_size_angstrom=10.0)


@pytest.mark.skipif(
    shutil.which("relion_reconstruct") is None, reason="RELION is not installed (apt: relion)"
)
def test_relion_reconstructs_the_truth_from_the_written_poses(tmp_path: Path) -> None:
    """A wrong sign of angles, shifts, CTF or contrast would lose the map (or invert it)."""
    truth = demo_particle(GEOMETRY)
    settings = SimulationSettings(
        n_particles=600,
        snr=2.0,
        astigmatism_angstrom=2_000.0,
        phase_shift_rad=0.3,
        max_shift_angstrom=30.0,
        seed=1,
    )
    write_set(tmp_path, simulate((Species(truth),), GEOMETRY, settings=settings))
    subprocess.run(
        ["relion_reconstruct", "--i", TRUTH_STAR, "--o", "map.mrc", "--ctf"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        timeout=120,
    )
    found = read_volume(tmp_path / "map.mrc", GEOMETRY.pixel_size_angstrom).data
    fsc = fourier_shell_correlation(found.astype("float32"), truth)
    assert fsc[2:12].min() > 0.9
