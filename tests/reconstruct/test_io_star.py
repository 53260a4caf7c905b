"""STAR files in every layout are read right or refused in words."""

from __future__ import annotations

from pathlib import Path

import mrcfile
import numpy as np
import pytest

from reconstruct.io.errors import InputFileError
from reconstruct.io.star import read_star
from reconstruct.io.star_text import parse_star, quoted, unquoted
from reconstruct.io.table import ParticleTable
from reconstruct.types import Optics

OPTICS = {
    "rlnOpticsGroup": ["1"],
    "rlnOpticsGroupName": ["opticsGroup1"],
    "rlnVoltage": ["300.0"],
    "rlnSphericalAberration": ["2.7"],
    "rlnAmplitudeContrast": ["0.1"],
    "rlnImagePixelSize": ["2.0"],
    "rlnImageSize": ["8"],
    "rlnImageDimensionality": ["2"],
}
PARTICLES = {
    "rlnImageName": ["000001@a.mrcs", "000003@a.mrcs", "000002@b.mrcs"],
    "rlnMicrographName": ["a.mrc", "a.mrc", "b.mrc"],
    "rlnDefocusU": ["15000", "15100.5", "1.6e4"],
    "rlnDefocusV": ["14000", "14100", "15000"],
    "rlnDefocusAngle": ["30", "-60", "90"],
    "rlnPhaseShift": ["0", "90", "45"],
    "rlnOpticsGroup": ["1", "1", "1"],
}


def loop(name: str, columns: dict[str, list[str]], *, numbered: bool = True) -> str:
    tags = "".join(
        f"_{tag} #{k}\n" if numbered else f"_{tag}\n" for k, tag in enumerate(columns, 1)
    )
    rows = "".join(" ".join(row) + "\n" for row in zip(*columns.values(), strict=True))
    return f"data_{name}\n\nloop_\n{tags}{rows}\n"


def star(
    optics: dict[str, list[str]] | None = None, particles: dict[str, list[str]] | None = None
) -> str:
    return loop("optics", {**OPTICS, **(optics or {})}) + loop(
        "particles", {**PARTICLES, **(particles or {})}
    )


def read(folder: Path, text: str, **options: str) -> ParticleTable:
    path = folder / "particles.star"
    path.write_text(text, encoding="utf-8")
    return read_star(path, stacks="defer", **options)  # type: ignore[arg-type]


def write_stack(path: Path, frames: int = 3, box: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with mrcfile.new(path) as out:
        out.set_data(np.zeros((frames, box, box), dtype=np.float32))


def test_units_become_angstrom_and_radians_and_numbers_start_from_0(tmp_path: Path) -> None:
    table = read(tmp_path, star())
    assert table.layout == "relion-3.1"
    assert table.image_names == PARTICLES["rlnImageName"]
    assert [path.name for path in table.stacks] == ["a.mrcs", "b.mrcs"]
    np.testing.assert_array_equal(table.stack_index, [0, 0, 1])
    np.testing.assert_array_equal(table.frame, [0, 2, 1])
    np.testing.assert_allclose(table.defocus_u_angstrom, [15000, 15100.5, 16000])
    np.testing.assert_allclose(table.defocus_angle_rad, np.radians([30, -60, 90]), rtol=1e-6)
    np.testing.assert_allclose(table.phase_shift_rad, np.radians([0, 90, 45]), rtol=1e-6)
    assert table.optics == (Optics(300.0, 2.7, 0.1),)
    assert (table.pixel_size_angstrom, table.box) == (2.0, 8)


def test_blocks_may_come_in_either_order_with_comments_quotes_and_crlf(tmp_path: Path) -> None:
    particles = {**PARTICLES, "rlnGroupName": ["'a b'", '""', "x#y"]}
    text = (
        "# a comment\n\n# version 30001\n"
        + loop("particles", particles, numbered=False)
        + "\n# another\n"
        + loop("optics", OPTICS)
        + "# the end"
    )
    table = read(tmp_path, text.replace("\n", "\r\n"))
    assert len(table) == 3
    assert table.columns["rlnGroupName"] == ["'a b'", '""', "x#y"]
    assert [unquoted(v) for v in table.columns["rlnGroupName"]] == ["a b", "", "x#y"]


def test_optics_as_a_plain_list_are_read(tmp_path: Path) -> None:
    pairs = "data_optics\n" + "".join(f"_{tag} {v[0]}\n" for tag, v in OPTICS.items())
    assert read(tmp_path, pairs + loop("particles", PARTICLES)).optics == (Optics(300.0, 2.7, 0.1),)


def test_names_outside_ascii_survive(tmp_path: Path) -> None:
    names = ["1@Größe~~/é.mrcs", "2@Größe~~/é.mrcs", "3@x.mrcs"]
    table = read(tmp_path, star(particles={"rlnImageName": names}))
    assert table.image_names == names


def test_groups_are_joined_by_number_not_by_row(tmp_path: Path) -> None:
    optics = {tag: values * 2 for tag, values in OPTICS.items()}
    optics |= {"rlnOpticsGroup": ["7", "3"], "rlnVoltage": ["200", "300"]}
    table = read(tmp_path, star(optics, {"rlnOpticsGroup": ["3", "7", "3"]}))
    voltages = [table.optics[k].voltage_kv for k in table.optics_group]
    assert voltages == [300.0, 200.0, 300.0]


def test_single_table_layout_has_pixel_size_from_magnification(tmp_path: Path) -> None:
    particles = {tag: v for tag, v in PARTICLES.items() if tag != "rlnOpticsGroup"}
    particles |= {
        "rlnVoltage": ["300", "300", "200"],
        "rlnSphericalAberration": ["2.7"] * 3,
        "rlnAmplitudeContrast": ["0.1"] * 3,
        "rlnMagnification": ["40000"] * 3,
        "rlnDetectorPixelSize": ["5.0"] * 3,
        "rlnOriginX": ["2", "0", "0"],
        "rlnOriginY": ["-1", "0", "0"],
    }
    table = read(tmp_path, loop("", particles))
    assert table.layout == "relion-3.0"
    assert table.pixel_size_angstrom == pytest.approx(1.25)
    assert [table.optics[k].voltage_kv for k in table.optics_group] == [300.0, 300.0, 200.0]
    assert table.shifts_angstrom is not None
    np.testing.assert_allclose(table.shifts_angstrom[0], [2.5, -1.25])
    assert table.box is None


def test_a_stack_with_an_index_0_is_counted_from_0_and_said_once(tmp_path: Path) -> None:
    names = ["000000@a.mrcs", "000002@a.mrcs", "000002@b.mrcs"]
    table = read(tmp_path, star(particles={"rlnImageName": names}))
    np.testing.assert_array_equal(table.frame, [0, 2, 1])
    assert sum("counted from 0" in note for note in table.notes) == 1


def test_priors_are_read(tmp_path: Path) -> None:
    table = read(
        tmp_path,
        star(
            particles={
                "rlnAngleRot": ["30", "0", "0"],
                "rlnAngleTilt": ["50", "0", "0"],
                "rlnAnglePsi": ["70", "0", "0"],
                "rlnOriginXAngst": ["1.5", "0", "0"],
                "rlnOriginYAngst": ["-3", "0", "0"],
                "rlnRandomSubset": ["1", "2", "1"],
                "rlnClassNumber": ["1", "2", "3"],
            }
        ),
    )
    assert table.rotations is not None
    np.testing.assert_allclose(table.rotations[0, 0], [-0.279454, 0.923721, -0.262003], atol=1e-6)
    assert table.shifts_angstrom is not None
    np.testing.assert_allclose(table.shifts_angstrom[0], [1.5, -3.0])
    assert table.half is not None
    assert table.class_index is not None
    np.testing.assert_array_equal(table.half, [1, 2, 1])
    np.testing.assert_array_equal(table.class_index, [0, 1, 2])


def test_neutral_aberrations_pass(tmp_path: Path) -> None:
    neutral = {
        "rlnBeamTiltX": ["0.000000"],
        "rlnBeamTiltY": ["0"],
        "rlnOddZernike": ["[0,0,0]"],
        "rlnMagMat00": ["1.000000"],
        "rlnMagMat01": ["0"],
        "rlnMagMat10": ["0"],
        "rlnMagMat11": ["1.0"],
        "rlnCtfDataAreCtfPremultiplied": ["0"],
    }
    assert len(read(tmp_path, star(neutral))) == 3


@pytest.mark.parametrize(
    ("optics", "particles", "reason", "words"),
    [
        ({"rlnImageDimensionality": ["3"]}, {}, "subtomograms", "subtomograms"),
        ({}, {"rlnTomoName": ["t", "t", "t"]}, "subtomograms", "subtomograms"),
        ({"rlnBeamTiltX": ["0.1"]}, {}, "aberrations", "rlnBeamTiltX"),
        ({"rlnBeamTiltY": ["-1e-4"]}, {}, "aberrations", "rlnBeamTiltY"),
        ({}, {"rlnBeamTiltX": ["0", "0.5", "0"]}, "aberrations", "rlnBeamTiltX"),
        ({"rlnOddZernike": ["[0,0,0.1]"]}, {}, "aberrations", "rlnOddZernike"),
        ({"rlnEvenZernike": ["[0,-2]"]}, {}, "aberrations", "rlnEvenZernike"),
        ({"rlnMagMat01": ["0.001"]}, {}, "aberrations", "rlnMagMat01"),
        ({"rlnCtfDataAreCtfPremultiplied": ["1"]}, {}, "modified_ctf", "multiplied"),
        ({"rlnCtfDataArePhaseFlipped": ["1"]}, {}, "modified_ctf", "phase-flipped"),
        ({"rlnImagePixelSize": ["0"]}, {}, "pixel_size", "not a positive number"),
        ({"rlnOpticsGroup": ["2"]}, {}, "malformed", "optics group 1 is not in data_optics"),
        ({}, {"rlnDefocusU": ["1", "x", "3"]}, "malformed", "rlnDefocusU, row 2: 'x'"),
        ({}, {"rlnImageName": ["a", "b", "c"]}, "malformed", "row 1: 'a'"),
        ({}, {"rlnImageName": ["1@a", "-2@a", "3@"]}, "malformed", "row 2"),
        ({}, {"rlnImageName": ["1@a", "2@a", "99999999999@a"]}, "malformed", "row 3"),
        ({}, {"rlnClassNumber": ["1", "2", "nan"]}, "malformed", "rlnClassNumber, row 3"),
        ({}, {"rlnOpticsGroup": ["1", "1.5", "1"]}, "malformed", "rlnOpticsGroup, row 2"),
        ({}, {"rlnOpticsGroup": ["1", "1", "9e99"]}, "malformed", "rlnOpticsGroup, row 3"),
    ],
)
def test_what_cannot_be_honoured_is_refused_in_words(
    tmp_path: Path,
    optics: dict[str, list[str]],
    particles: dict[str, list[str]],
    reason: str,
    words: str,
) -> None:
    with pytest.raises(InputFileError) as error:
        read(tmp_path, star(optics, particles))
    assert error.value.reason == reason
    assert words in error.value.detail
    assert "particles.star" in str(error.value)


def test_aberrations_can_be_neglected_on_request_but_never_silently(tmp_path: Path) -> None:
    table = read(tmp_path, star({"rlnBeamTiltX": ["0.1"]}), aberrations="neglect")
    assert any("rlnBeamTiltX" in note for note in table.notes)


def test_mixed_pixel_sizes_are_refused_only_if_particles_use_them(tmp_path: Path) -> None:
    optics = {tag: values * 2 for tag, values in OPTICS.items()}
    optics |= {"rlnOpticsGroup": ["1", "2"], "rlnImagePixelSize": ["1.25", "1.24"]}
    assert read(tmp_path, star(optics)).pixel_size_angstrom == 1.25
    with pytest.raises(InputFileError, match=r"mixed pixel sizes, from 1\.24 to 1\.25 A"):
        read(tmp_path, star(optics, {"rlnOpticsGroup": ["1", "1", "2"]}))


@pytest.mark.parametrize("tag", ["rlnImageName", "rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle"])
def test_a_missing_particle_column_is_named(tmp_path: Path, tag: str) -> None:
    particles = {name: values for name, values in PARTICLES.items() if name != tag}
    with pytest.raises(InputFileError, match=tag) as error:
        read(tmp_path, loop("optics", OPTICS) + loop("particles", particles))
    assert error.value.reason == "missing_column"


@pytest.mark.parametrize(
    "tag", ["rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast", "rlnOpticsGroup"]
)
def test_a_missing_optics_column_is_named(tmp_path: Path, tag: str) -> None:
    optics = {name: values for name, values in OPTICS.items() if name != tag}
    with pytest.raises(InputFileError, match=tag):
        read(tmp_path, loop("optics", optics) + loop("particles", PARTICLES))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("  \n\n", "empty"),
        ("hello world\n", "line 1"),
        ("data_\nloop_\n_rlnImageName\n_rlnDefocusU\n1@a 2\n2@a\n", "line 2 has an incomplete row"),
        ("data_\nloop_\n_rlnImageName\n_rlnImageName\n1@a 2@a\n", "line 2"),
        ("data_x\n", "no table has the column rlnImageName"),
        ("data_particles\nloop_\n_rlnImageName\n\n", "holds no particles"),
    ],
)
def test_broken_text_is_refused_with_its_place(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InputFileError, match=words):
        read(tmp_path, text)


def test_bytes_that_are_no_text_are_refused_with_their_line(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="line 2 is not text"):
        parse_star(tmp_path / "x.star", b"data_\n\xff\xfe\n")


@pytest.mark.parametrize(
    "value", ["", "a b", "_x", "#1", "data_1", "loop_", 'a"b c', "plain", "[1]"]
)
def test_quoted_text_reads_back(tmp_path: Path, value: str) -> None:
    text = f"data_\nloop_\n_a\n_b\n{quoted(value)} 1\n"
    assert unquoted(parse_star(tmp_path, text.encode())[""]["a"][0]) == value


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="cannot be read"):
        read_star(tmp_path / "none.star")


def test_stacks_beside_the_star_file_are_found(tmp_path: Path) -> None:
    path = tmp_path / "job" / "particles.star"
    for name in ("a.mrcs", "b.mrcs"):
        write_stack(tmp_path / "job" / name)
    path.write_text(star())
    table = read_star(path)
    assert table.stacks[0] == tmp_path / "job" / "a.mrcs"
    assert any(str(tmp_path / "job") in note for note in table.notes)


def test_stacks_below_a_project_root_are_found(tmp_path: Path) -> None:
    path = tmp_path / "Extract" / "job018" / "particles.star"
    names = [f"{k}@Extract/job018/Movies/a.mrcs" for k in (1, 2, 3)]
    write_stack(tmp_path / "Extract/job018/Movies/a.mrcs")
    path.write_text(star(particles={"rlnImageName": names}))
    assert read_star(path).stacks == (tmp_path / "Extract/job018/Movies/a.mrcs",)


def test_data_root_overrides(tmp_path: Path) -> None:
    for name in ("a.mrcs", "b.mrcs"):
        write_stack(tmp_path / name, box=6)
        write_stack(tmp_path / "other" / name)
    path = tmp_path / "particles.star"
    path.write_text(star())
    assert read_star(path, tmp_path / "other").stacks[0] == tmp_path / "other" / "a.mrcs"
    with pytest.raises(InputFileError, match="6 x 6 px, not 8 x 8"):
        read_star(path)


def test_missing_stack_is_named_with_the_roots_tried(tmp_path: Path) -> None:
    path = tmp_path / "job" / "particles.star"
    write_stack(tmp_path / "job" / "a.mrcs")
    path.write_text(star())
    with pytest.raises(InputFileError) as error:
        read_star(path)
    assert error.value.reason == "missing_stack"
    assert "b.mrcs" in error.value.detail
    assert str(tmp_path / "job") in error.value.detail
    assert str(tmp_path) in error.value.detail


def test_box_comes_from_the_stack_when_the_file_does_not_say(tmp_path: Path) -> None:
    for name in ("a.mrcs", "b.mrcs"):
        write_stack(tmp_path / name, box=12)
    optics = {tag: v for tag, v in OPTICS.items() if tag != "rlnImageSize"}
    path = tmp_path / "particles.star"
    path.write_text(loop("optics", optics) + loop("particles", PARTICLES))
    assert read_star(path).box == 12
