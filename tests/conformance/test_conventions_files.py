"""Files from the wild are read with the right conventions or refused in words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from reconstruct.io.cs import read_cs
from reconstruct.io.errors import InputFileError
from reconstruct.io.mrc import read_header, read_stack, read_volume
from reconstruct.io.star import read_star
from reconstruct.io.star_text import parse_star
from reconstruct.io.star_write import write_star
from reconstruct.io.table import ParticleTable
from reconstruct.types import Assignments
from schemas.particles import particle_ids
from streamer.adapt import batches_from_table, images_from_table, particles_from_table
from streamer.contrast import contrast_of_table, decide_sign, measure_contrast
from streamer.references import fetch_images

pytestmark = pytest.mark.data

# file: particles, layout, A/px, box, optics groups, stacks, poses
READABLE = {
    "metadata/data_particles.star": (4501, "relion-3.1", 1.244531, 256, 1, 24, True),
    "metadata/esrf_tests_testdata_input_particles.star": (10, "relion-3.1", 3.0, 128, 1, 1, False),
    "metadata/test_data_optics_group_inter1965.star": (1, "relion-3.1", 1.04, 400, 1, 1, True),
    "metadata/testing_data_M_particles_sub10.star": (10, "relion-3.0", 3.9, None, 9, 9, True),
    "metadata/tests_data_relion31.star": (5, "relion-3.1", 2.806, 256, 1, 1, True),
    "metadata/tests_data_relion31.v2.star": (5, "relion-3.1", 2.806, 256, 1, 1, True),
    "real_apoferritin/Particles_64px.star": (1306, "relion-3.1", 3.0, 64, 1, 10, False),
    "real_other/empiar_10076_7.star": (7, "relion-3.0", 1.309998, 320, 1, 1, False),
    "real_other/sample_particles_relion30.star": (17, "relion-3.0", 1.338, 200, 2, 1, True),
    "real_other/sample_particles_relion31.star": (17, "relion-3.1", 1.4, 200, 2, 1, True),
    "real_other/trpv1_small_stack.star": (10, "relion-3.1", 4.88, 48, 1, 1, True),
}
REFUSED = {
    "metadata/tests_data_FinalRefinement-OriginalParticles-PfCRT.star": (
        "missing_column",
        "rlnAmplitudeContrast",
    ),
    "metadata/tests_data_relion31.6opticsgroups.star": ("aberrations", "rlnBeamTiltX"),
    "metadata/tests_data_relion5.star": ("aberrations", "rlnMagMat01"),
    "metadata/tests_saved_test_data_sample_relion_coord.star": ("missing_column", "rlnImageName"),
    "synthetic/toy_projections.star": ("missing_column", "rlnDetectorPixelSize"),
}


def test_every_star_file_at_hand_is_judged_here(data_dir: Path) -> None:
    found = {str(path.relative_to(data_dir)) for path in data_dir.glob("*/*.star")}
    assert found == READABLE.keys() | REFUSED.keys()


@pytest.mark.parametrize("name", READABLE)
def test_star_file_is_read_right(data_dir: Path, name: str) -> None:
    count, layout, pixel_size, box, groups, stacks, poses = READABLE[name]
    table = read_star(data_dir / name, stacks="defer")
    assert (len(table), table.layout, table.box) == (count, layout, box)
    assert table.pixel_size_angstrom == pytest.approx(pixel_size, abs=1e-4)
    assert (len(table.optics), len(table.stacks)) == (groups, stacks)
    assert (table.rotations is not None) is poses
    assert table.frame.min() == 0
    assert np.all((table.defocus_u_angstrom > 1e3) & (table.defocus_u_angstrom < 1e5))
    assert np.all(np.abs(table.defocus_angle_rad) <= np.pi)


@pytest.mark.parametrize("name", REFUSED)
def test_star_file_is_refused_in_words(data_dir: Path, name: str) -> None:
    reason, words = REFUSED[name]
    with pytest.raises(InputFileError) as error:
        read_star(data_dir / name, stacks="defer")
    assert error.value.reason == reason
    assert words in error.value.detail
    assert error.value.remedy


def test_tables_in_either_order_mean_the_same(data_dir: Path) -> None:
    first = read_star(data_dir / "metadata/tests_data_relion31.star", stacks="defer")
    second = read_star(data_dir / "metadata/tests_data_relion31.v2.star", stacks="defer")
    assert first.image_names == second.image_names
    assert first.optics == second.optics
    np.testing.assert_array_equal(first.defocus_u_angstrom, second.defocus_u_angstrom)
    assert first.rotations is not None
    assert second.rotations is not None
    np.testing.assert_array_equal(first.rotations, second.rotations)


def test_neglecting_aberrations_reads_relion_5_and_still_finds_mixed_sampling(
    data_dir: Path,
) -> None:
    table = read_star(
        data_dir / "metadata/tests_data_relion5.star", stacks="defer", aberrations="neglect"
    )
    assert len(table) == 17
    with pytest.raises(InputFileError, match=r"mixed pixel sizes, from 1\.24 to 1\.25 A"):
        read_star(
            data_dir / "metadata/tests_data_relion31.6opticsgroups.star",
            stacks="defer",
            aberrations="neglect",
        )


def test_stack_that_the_star_file_misnames_is_reported(data_dir: Path) -> None:
    with pytest.raises(InputFileError, match=r"batch_0_restacked\.mrc was found under none of"):
        read_star(data_dir / "real_other/trpv1_small_stack.star")


def test_star_and_cs_of_the_same_particles_agree(data_dir: Path) -> None:
    star = read_star(data_dir / "real_other/empiar_10076_7.star")
    cs = read_cs(data_dir / "real_other/empiar_10076_7.cs")
    assert (cs.box, cs.contrast_sign) == (star.box, -1)
    assert cs.pixel_size_angstrom == pytest.approx(star.pixel_size_angstrom, rel=1e-6)
    assert cs.stacks == star.stacks
    for field in ("frame", "stack_index"):
        np.testing.assert_array_equal(getattr(cs, field), getattr(star, field))
    for field in ("defocus_u_angstrom", "defocus_v_angstrom", "phase_shift_rad"):
        np.testing.assert_allclose(getattr(cs, field), getattr(star, field), rtol=1e-6)
    np.testing.assert_allclose(cs.defocus_angle_rad, star.defocus_angle_rad, atol=1e-5)
    assert cs.optics[0].amplitude_contrast == pytest.approx(star.optics[0].amplitude_contrast)
    rows = np.arange(7)
    np.testing.assert_array_equal(images_from_table(cs, rows), images_from_table(star, rows))


def test_exported_cs_paths_lose_their_mark(data_dir: Path) -> None:
    path = data_dir / "metadata/tests_data_cryosparc_J2_particles_exported.cs"
    table = read_cs(path, stacks="defer")
    assert (len(table), table.box, table.contrast_sign) == (22, 300, -1)
    assert table.pixel_size_angstrom == pytest.approx(1.345)
    assert all(not name.partition("@")[2].startswith(">") for name in table.image_names)
    assert table.rotations is None  # 2D alignments are no poses
    with pytest.raises(InputFileError, match=r"J1/imported/.*found under none of"):
        read_cs(path)


def test_empty_cs_is_refused_in_words(data_dir: Path) -> None:
    with pytest.raises(InputFileError, match="holds no particles"):
        read_cs(data_dir / "metadata/tests_data_4k_dataset.cs")


def test_relion_30_and_31_of_the_same_particles_agree(data_dir: Path) -> None:
    old = read_star(data_dir / "real_other/sample_particles_relion30.star")
    new = read_star(data_dir / "real_other/sample_particles_relion31.star")
    assert old.image_names == new.image_names
    assert old.rotations is not None
    assert new.rotations is not None
    same = np.arange(len(old)) != 14  # whoever made the files gave this row another pose
    np.testing.assert_allclose(old.rotations[same], new.rotations[same], atol=1e-6)
    voltages = [[t.optics[k].voltage_kv for k in t.optics_group] for t in (old, new)]
    assert voltages[0] == voltages[1]
    assert set(voltages[0]) == {200.0, 300.0}
    assert old.shifts_angstrom is not None
    assert new.shifts_angstrom is not None
    # the files state pixel sizes of 1.338 and 1.4 A and shifts in pixels and Angstrom
    np.testing.assert_allclose(
        old.shifts_angstrom[same], new.shifts_angstrom[same] * 1.338, atol=1e-3
    )


def apoferritin(data_dir: Path) -> ParticleTable:
    return read_star(data_dir / "real_apoferritin/Particles_64px.star")


def test_apoferritin_is_bright(data_dir: Path) -> None:
    table = apoferritin(data_dir)
    assert (len(table), len(set(table.micrograph_names))) == (1306, 10)
    contrast = contrast_of_table(table)
    assert contrast.sign == 1
    assert contrast.images == 1000
    assert decide_sign(contrast, None) == (1, "")
    inverted = measure_contrast(-images_from_table(table, np.arange(200)))
    assert inverted.difference < 0


def test_apoferritin_batches_keep_micrographs_whole_and_pixels_exact(data_dir: Path) -> None:
    table = apoferritin(data_dir)
    root = data_dir / "real_apoferritin"
    seen: list[str] = []
    begun: set[str] = set()
    for record, arrays in batches_from_table(
        table, 256, session_id="s", producer="test", payload="reference", reference_root=root
    ):
        assert record.count <= 256
        fetched = fetch_images(record, arrays, allowed_roots=[root])
        assert not fetched.problems
        rows = np.arange(len(seen), len(seen) + record.count)
        np.testing.assert_array_equal(fetched.images, particles_from_table(table, rows).images)
        assert begun.isdisjoint(record.micrograph_names)
        begun.update(record.micrograph_names)
        seen += record.image_names
    assert seen == table.image_names


def test_apoferritin_comes_back_with_poses_and_every_column(data_dir: Path, tmp_path: Path) -> None:
    table = apoferritin(data_dir)
    n = len(table)
    ids = particle_ids(table.image_names)
    assert len(np.unique(ids)) == n
    known = Assignments(
        particle_ids=ids[::-1],
        class_index=np.zeros(n, dtype=np.int32),
        rotations=np.tile(np.eye(3), (n, 1, 1)),
        shifts_angstrom=np.zeros((n, 2)),
        max_probability=np.ones(n),
        log_likelihood=np.zeros(n),
        half=np.ones(n, dtype=np.int32),
    )
    out = tmp_path / "particles.star"
    assert write_star(out, table, known, row_ids=ids) == n
    after = parse_star(out, out.read_bytes())["particles"]
    for tag, values in table.columns.items():
        assert after[tag] == values
    back = read_star(out, data_dir / "real_apoferritin")
    assert back.stacks == table.stacks


@pytest.mark.parametrize(
    ("name", "frames", "box"),
    [
        ("real_other/sample.mrcs", 17, 200),
        ("real_other/trpv1_small_stack.mrcs", 10, 48),
        ("real_other/empiar_10076_7.mrc", 7, 320),
        ("synthetic/hand.mrcs", 100, 64),
        ("synthetic/toy_projections.mrcs", 1000, 30),  # no magic word, no machine stamp
    ],
)
def test_stack_is_read(data_dir: Path, name: str, frames: int, box: int) -> None:
    assert read_header(data_dir / name).shape == (frames, box, box)
    images = read_stack(data_dir / name, [0, frames - 1])
    assert np.isfinite(images).all()
    assert images.std() > 0


@pytest.mark.parametrize(
    ("name", "box", "pixel_size"),
    [
        ("betaGal_3.54A_100.mrc", 100, 3.54),
        ("trpv1_48_4.88A.mrc", 48, 4.88),
        ("ribosome80S_4ug0_80_4A.mrc", 80, 4.0),
        ("emd_5625.map", 56, 4.23),
        ("EMD-3197.map", 20, 11.4),
    ],
)
def test_map_is_read(data_dir: Path, name: str, box: int, pixel_size: float) -> None:
    volume = read_volume(data_dir / "maps" / name)
    assert volume.data.shape == (box, box, box)
    assert volume.pixel_size_angstrom == pytest.approx(pixel_size, rel=1e-3)


def test_map_without_a_pixel_size_needs_one(data_dir: Path) -> None:
    path = data_dir / "maps/clean70SRibosome_vol_65p.mrc"
    with pytest.raises(InputFileError, match="no pixel size"):
        read_volume(path)
    assert read_volume(path, 5.0).data.shape == (65, 65, 65)
