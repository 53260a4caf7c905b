"""References are followed only below the roots, and a bad stack costs only its own rows."""

from __future__ import annotations

from pathlib import Path

import mrcfile
import numpy as np
import pytest

from reconstruct.io.atomic import sha256_file
from reconstruct.types import ParticleImages
from schemas.arrays import Array
from schemas.envelope import new_envelope
from schemas.particles import (
    OpticsGroup,
    ParticleBatch,
    ParticleGeometry,
    StackReference,
    reference_batch,
)
from streamer.references import Rejection, fetch_images, particles_from_batch, resolve_stack

BOX = 16


def make_stack(path: Path, frames: int = 3, box: int = BOX, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with mrcfile.new(path, overwrite=True) as out:
        data = np.random.default_rng(seed).normal(size=(frames, box, box))
        out.set_data(data.astype(np.float32))
    return path


def reference(
    path: Path | str, *, at: Path | None = None, sha256: str | None = None
) -> StackReference:
    size = (at or Path(path)).stat().st_size
    return StackReference(path=str(path), size_bytes=size, sha256=sha256)


def batch(
    stacks: list[StackReference], stack: list[int], frame: list[int]
) -> tuple[ParticleBatch, dict[str, Array]]:
    n = len(stack)
    return reference_batch(
        new_envelope(ParticleBatch, "s", producer="test"),
        stacks,
        geometry=ParticleGeometry(box=BOX, pixel_size_angstrom=2.0),
        optics_groups=[
            OpticsGroup(
                name="o", voltage_kv=300.0, spherical_aberration_mm=2.7, amplitude_contrast=0.1
            )
        ],
        image_names=[f"p{k}" for k in range(n)],
        rows={
            "defocus_u_angstrom": np.full(n, 1e4),
            "defocus_v_angstrom": np.full(n, 1e4),
            "stack": np.array(stack),
            "frame": np.array(frame),
        },
    )


def test_relative_and_absolute_paths_inside_a_root_are_followed(tmp_path: Path) -> None:
    path = make_stack(tmp_path / "root" / "job" / "a.mrcs")
    roots = [tmp_path / "elsewhere", tmp_path / "root"]
    assert resolve_stack(reference("job/a.mrcs", at=path), roots) == path
    assert resolve_stack(reference(path), roots) == path
    inside = reference("job/../job/a.mrcs", at=path)
    assert resolve_stack(inside, roots) == path


@pytest.mark.parametrize("way", ["dots", "absolute", "file link", "folder link", "no roots"])
def test_no_path_leads_out_of_the_roots(tmp_path: Path, way: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    secret = make_stack(tmp_path / "outside" / "a.mrcs")
    name = {
        "dots": "../outside/a.mrcs",
        "absolute": str(secret),
        "file link": "link.mrcs",
        "folder link": "folder/a.mrcs",
        "no roots": str(secret),
    }[way]
    (root / "link.mrcs").symlink_to(secret)
    (root / "folder").symlink_to(secret.parent)
    roots = [] if way == "no roots" else [root]
    found = resolve_stack(reference(name, at=secret), roots)
    assert isinstance(found, Rejection)
    assert found.reason == "path_outside_roots"
    helps = way in ("absolute", "no roots")
    assert (f"start serve with --root {secret.parent}, " in found.detail) == helps
    if helps:
        assert resolve_stack(reference(name, at=secret), [secret.parent]) == secret


def test_without_roots_a_relative_path_needs_the_folder_it_starts_from() -> None:
    found = resolve_stack(StackReference(path="a.mrcs", size_bytes=1), [])
    assert isinstance(found, Rejection)
    assert "start serve with --root DIR, the folder that its paths start from" in found.detail


def test_a_root_with_a_common_prefix_is_another_folder(tmp_path: Path) -> None:
    path = make_stack(tmp_path / "data2" / "a.mrcs")
    (tmp_path / "data").mkdir()
    found = resolve_stack(reference(path), [tmp_path / "data"])
    assert isinstance(found, Rejection)


def test_links_within_the_roots_and_linked_roots_are_fine(tmp_path: Path) -> None:
    path = make_stack(tmp_path / "root" / "a.mrcs")
    (tmp_path / "root" / "b.mrcs").symlink_to(path)
    (tmp_path / "alias").symlink_to(tmp_path / "root")
    assert resolve_stack(reference("b.mrcs", at=path), [tmp_path / "alias"]) == path


def test_a_loop_of_links_and_a_folder_are_missing_stacks(tmp_path: Path) -> None:
    (tmp_path / "loop.mrcs").symlink_to(tmp_path / "loop.mrcs")
    (tmp_path / "folder.mrcs").mkdir()
    for name in ("loop.mrcs", "folder.mrcs", "none.mrcs"):
        found = resolve_stack(StackReference(path=name, size_bytes=1), [tmp_path])
        assert isinstance(found, Rejection)
        assert found.reason == "missing_stack"


def test_another_size_or_digest_is_a_changed_file(tmp_path: Path) -> None:
    path = make_stack(tmp_path / "a.mrcs")
    good = reference(path, sha256=sha256_file(path))
    assert resolve_stack(good, [tmp_path]) == path
    make_stack(path, seed=1)
    changed = resolve_stack(good, [tmp_path])
    assert isinstance(changed, Rejection)
    assert (changed.reason, "digest" in changed.detail) == ("stack_changed", True)
    make_stack(path, frames=4)
    changed = resolve_stack(good, [tmp_path])
    assert isinstance(changed, Rejection)
    assert (changed.reason, "bytes" in changed.detail) == ("stack_changed", True)


def test_a_bad_stack_costs_only_its_own_rows(tmp_path: Path) -> None:
    good = make_stack(tmp_path / "good.mrcs")
    wrong_box = make_stack(tmp_path / "wrong.mrcs", box=BOX + 2)
    short = make_stack(tmp_path / "short.mrcs")
    short.write_bytes(short.read_bytes()[:-4])
    text = tmp_path / "text.mrcs"
    text.write_text("not an image")
    stacks = [
        reference("good.mrcs", at=good),
        reference("wrong.mrcs", at=wrong_box),
        reference("short.mrcs", at=short),
        reference("text.mrcs", at=text),
        StackReference(path="gone.mrcs", size_bytes=1),
        StackReference(path="/etc/hostname", size_bytes=1),
    ]
    record, arrays = batch(stacks, [0, 1, 2, 3, 4, 5, 0, 0, 6, -1], [2, 0, 0, 0, 0, 0, 3, -1, 0, 0])
    fetched = fetch_images(record, arrays, allowed_roots=[tmp_path])
    assert {row: problem.reason for row, problem in fetched.problems.items()} == {
        1: "wrong_box",
        2: "stack_truncated",
        3: "stack_malformed",
        4: "missing_stack",
        5: "path_outside_roots",
        6: "frame_beyond_stack",
        7: "frame_beyond_stack",
        8: "unknown_stack",
        9: "unknown_stack",
    }
    with mrcfile.open(good) as opened:
        np.testing.assert_array_equal(fetched.images[0], opened.data[2])


def test_a_whole_batch_is_taken_or_rejected_with_its_first_problem(tmp_path: Path) -> None:
    path = make_stack(tmp_path / "a.mrcs")
    record, arrays = batch([reference(path)], [0, 0], [1, 0])
    taken = particles_from_batch(record, arrays, allowed_roots=[tmp_path])
    assert isinstance(taken, ParticleImages)
    assert len(taken) == 2
    record, arrays = batch([reference(path)], [0, 0], [1, 9])
    refused = particles_from_batch(record, arrays, allowed_roots=[tmp_path])
    assert isinstance(refused, Rejection)
    assert refused.reason == "frame_beyond_stack"
    assert refused.detail.startswith("row 1")
