"""Poses written as STAR and .cs keep what came in and read back as they were."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gemmi
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from reconstruct.io.cs import read_cs
from reconstruct.io.cs_write import write_cs
from reconstruct.io.star import read_star
from reconstruct.io.star_text import parse_star
from reconstruct.io.star_write import write_star
from reconstruct.io.table import ParticleTable, table_from_arrays
from reconstruct.types import Assignments, Optics


def assignments(ids: list[int], classes: list[int], seed: int = 0) -> Assignments:
    n = len(ids)
    random = np.random.default_rng(seed)
    return Assignments(
        particle_ids=np.array(ids, dtype=np.uint64),
        class_index=np.array(classes, dtype=np.int32),
        rotations=Rotation.random(n, random_state=seed).as_matrix().astype(np.float32),
        shifts_angstrom=random.normal(0, 5, (n, 2)).astype(np.float32),
        max_probability=random.uniform(0, 1, n).astype(np.float32),
        log_likelihood=random.normal(1e5, 1e3, n).astype(np.float32),
        half=random.integers(1, 3, n).astype(np.int32),
    )


def plain_table(n: int) -> ParticleTable:
    defocus = np.linspace(10000, 20000, n)
    return table_from_arrays(
        [f"{k + 1:06d}@my stack.mrcs" for k in range(n)],
        micrograph_names=[f"m{k // 2}.mrc" for k in range(n)],
        defocus_u_angstrom=defocus + 100,
        defocus_v_angstrom=defocus,
        defocus_angle_rad=np.full(n, 0.5),
        phase_shift_rad=np.full(n, 0.25),
        optics_group=np.arange(n, dtype=np.int32) % 2,
        optics=(Optics(300.0, 2.7, 0.1), Optics(200.0, 1.4, 0.07)),
        pixel_size_angstrom=1.5,
        box=64,
    )


INCOMING = """data_optics
loop_
_rlnOpticsGroup
_rlnOpticsGroupName
_rlnMtfFileName
_rlnVoltage
_rlnSphericalAberration
_rlnAmplitudeContrast
_rlnImagePixelSize
4 'group four' mtf_k2.star 300.0 2.7 0.1 2.0

data_particles
loop_
_rlnImageName
_rlnMicrographName
_rlnDefocusU
_rlnDefocusV
_rlnDefocusAngle
_rlnOpticsGroup
_rlnClassNumber
_rlnAutopickFigureOfMerit
_rlnOriginX
000001@a.mrcs "m 1.mrc" 15000.10 14000.2 30 4 9 0.51080 7
000002@a.mrcs "m 1.mrc" 15000.10 14000.2 30 4 9 0.5992 7
000003@a.mrcs m2.mrc 15000.10 14000.2 30 4 9 1e-3 7
"""


def incoming_table(folder: Path) -> ParticleTable:
    path = folder / "in.star"
    path.write_text(INCOMING)
    return read_star(path, stacks="defer")


def test_every_incoming_column_is_kept_and_answers_are_added(tmp_path: Path) -> None:
    table = incoming_table(tmp_path)
    found = assignments([13, 11, 12], [0, 1, 2])
    out = tmp_path / "out.star"
    written = write_star(out, table, found, row_ids=np.array([11, 12, 13], dtype=np.uint64))
    assert written == 3
    before = parse_star(tmp_path / "in.star", INCOMING.encode())
    after = parse_star(out, out.read_bytes())
    answered = {"rlnClassNumber", "rlnOriginX"}
    for tag, values in before["particles"].items():
        if tag not in answered:
            assert after["particles"][tag] == values
    for tag, values in before["optics"].items():
        assert after["optics"][tag] == values
    assert after["optics"]["rlnImageDimensionality"] == ["2"]
    assert after["particles"]["rlnClassNumber"] == ["2", "3", "1"]
    shift_px = float(found.shifts_angstrom[1, 0]) / 2.0
    assert float(after["particles"]["rlnOriginX"][0]) == pytest.approx(shift_px, abs=1e-5)
    back = read_star(out, stacks="defer")
    order = [1, 2, 0]
    assert back.rotations is not None
    assert back.shifts_angstrom is not None
    np.testing.assert_allclose(back.rotations, found.rotations[order], atol=1e-6)
    np.testing.assert_allclose(back.shifts_angstrom, found.shifts_angstrom[order], atol=1e-5)
    np.testing.assert_array_equal(back.half, found.half[order])
    for tag, values in (
        ("rlnMaxValueProbDistribution", found.max_probability),
        ("rlnLogLikeliContribution", found.log_likelihood),
    ):
        read = np.array(after["particles"][tag], dtype=float)
        np.testing.assert_allclose(read, values[order], rtol=1e-4)


def test_particles_without_a_class_go_to_their_own_file_as_they_came(tmp_path: Path) -> None:
    table = incoming_table(tmp_path)
    found = assignments([11, 12], [0, -1])
    used, unused = tmp_path / "used.star", tmp_path / "unused.star"
    ids = np.array([11, 12, 13], dtype=np.uint64)
    assert write_star(used, table, found, row_ids=ids, unused_path=unused) == 1
    assert read_star(used, stacks="defer").image_names == ["000001@a.mrcs"]
    left = read_star(unused, stacks="defer")
    assert left.image_names == ["000002@a.mrcs", "000003@a.mrcs"]
    assert left.rotations is None
    assert left.columns["rlnClassNumber"] == ["9", "9"]


def test_particles_without_a_metadata_file_become_a_complete_star_file(tmp_path: Path) -> None:
    table = plain_table(5)
    out = tmp_path / "out.star"
    ids = np.arange(5, dtype=np.uint64)
    write_star(out, table, assignments([0, 1, 2, 3, 4], [0] * 5), row_ids=ids)
    back = read_star(out, stacks="defer")
    assert back.image_names == table.image_names
    assert back.micrograph_names == table.micrograph_names
    assert (back.optics, back.box, back.pixel_size_angstrom) == (table.optics, 64, 1.5)
    np.testing.assert_array_equal(back.optics_group, table.optics_group)
    np.testing.assert_array_equal(back.frame, table.frame)
    np.testing.assert_allclose(back.defocus_u_angstrom, table.defocus_u_angstrom)
    np.testing.assert_allclose(back.defocus_angle_rad, 0.5, atol=1e-5)
    np.testing.assert_allclose(back.phase_shift_rad, 0.25, atol=1e-5)


def test_single_table_input_is_written_in_two_tables(tmp_path: Path) -> None:
    text = (
        "data_\nloop_\n_rlnImageName\n_rlnDefocusU\n_rlnDefocusV\n_rlnDefocusAngle\n_rlnVoltage\n"
        "_rlnSphericalAberration\n_rlnAmplitudeContrast\n_rlnMagnification\n"
        "_rlnDetectorPixelSize\n"
        "1@a.mrcs 1 2 3 300 2.7 0.1 10000 1.5\n2@a.mrcs 1 2 3 200 2.7 0.1 10000 1.5\n"
    )
    path = tmp_path / "old.star"
    path.write_text(text)
    table = read_star(path, stacks="defer")
    out = tmp_path / "new.star"
    write_star(out, table, assignments([1, 2], [0, 0]), row_ids=np.array([1, 2], dtype=np.uint64))
    back = read_star(out, stacks="defer")
    assert back.layout == "relion-3.1"
    assert [back.optics[k].voltage_kv for k in back.optics_group] == [300.0, 200.0]
    assert back.columns["rlnMagnification"] == ["10000", "10000"]


def test_nothing_used_gives_a_file_with_columns_and_no_rows(tmp_path: Path) -> None:
    out = tmp_path / "out.star"
    none = assignments([], [])
    assert write_star(out, plain_table(3), none, row_ids=np.arange(3, dtype=np.uint64)) == 0
    block = gemmi.cif.read(str(out)).find_block("particles")
    loop = block[0].loop
    assert loop is not None
    assert "_rlnAngleRot" in loop.tags
    assert loop.length() == 0


def test_rows_beyond_one_write_are_all_there(tmp_path: Path) -> None:
    n = 20_001
    out = tmp_path / "out.star"
    ids = np.arange(n, dtype=np.uint64)
    write_star(out, plain_table(n), assignments(list(range(n)), [0] * n), row_ids=ids)
    names = parse_star(out, out.read_bytes())["particles"]["rlnImageName"]
    assert len(set(names)) == n


@pytest.mark.parametrize("n_classes", [1, 3])
def test_cs_output_reads_back(tmp_path: Path, n_classes: int) -> None:
    table = replace(plain_table(4), uid=np.array([40, 30, 20, 10], dtype=np.uint64))
    found = assignments([3, 1, 0], [0, n_classes - 1, 0])
    out = tmp_path / "poses.cs"
    ids = np.arange(4, dtype=np.uint64)
    assert write_cs(out, table, found, row_ids=ids, n_classes=n_classes) == 3
    records = np.load(out, allow_pickle=False)
    np.testing.assert_array_equal(records["uid"], [40, 30, 10])
    blob = np.zeros(
        4,
        dtype=[
            ("uid", "<u8"),
            ("blob/path", "S16"),
            ("blob/idx", "<u4"),
            ("blob/shape", "<u4", (2,)),
            ("blob/psize_A", "<f4"),
            *[
                (f"ctf/{name}", "<f4")
                for name in ("accel_kv", "cs_mm", "amp_contrast", "df1_A", "df2_A", "df_angle_rad")
            ],
        ],
    )
    blob["uid"] = [10, 20, 30, 40]
    blob["blob/path"] = b"stack.mrcs"
    blob["blob/shape"] = 64
    blob["blob/psize_A"] = 1.5
    np.save(tmp_path / "blob.npy", blob, allow_pickle=False)
    back = read_cs(out, passthrough=[tmp_path / "blob.npy"], stacks="defer")
    order = [2, 1, 0]
    assert back.rotations is not None
    assert back.shifts_angstrom is not None
    np.testing.assert_allclose(back.rotations, found.rotations[order], atol=1e-5)
    np.testing.assert_allclose(back.shifts_angstrom, found.shifts_angstrom[order], atol=1e-5)
    np.testing.assert_array_equal(back.half, found.half[order])
    np.testing.assert_array_equal(back.class_index, found.class_index[order])


def test_cs_output_needs_uids(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no uid"):
        write_cs(
            tmp_path / "x.cs",
            plain_table(2),
            assignments([0], [0]),
            row_ids=np.arange(2, dtype=np.uint64),
            n_classes=1,
        )
