"""Pictures show what is in the snapshot: right way up, legible, quick, and without side effects."""

from __future__ import annotations

import io
import re
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import mrcfile
import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

from reconstruct.engine_events import symmetry_event
from reconstruct.types import ClassSnapshot, EngineEvent, Geometry, Snapshot, StepReport
from streamer.caption import Caption, caption_of, phase_told, stopped_words, symmetry_words
from streamer.drawing import Page, resolution_ticks, resolution_words
from streamer.findings import lasting
from streamer.panels import draw_fsc
from streamer.pictures import snapshot_png
from streamer.preview import (
    central_slices,
    fourier_resize,
    grey_levels,
    preview_arrays,
    projections,
)
from streamer.series import write_class_maps
from streamer.timeline import timeline_png
from streamer.views import fourier_coverage, orientation_coverage, view_density

BOX = 32
SLOWEST_PICTURE_S = 1.5  # of processor time: the machine may be shared


def blob(*, z: float, y: float, x: float, box: int = BOX) -> np.ndarray:
    grid = np.arange(box) - box // 2
    squared = (grid[:, None, None] - z) ** 2 + (grid[None, :, None] - y) ** 2 + (grid - x) ** 2
    return np.exp(-squared / 8).astype(np.float32)


def even_views(particles: int, *, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    tilt = np.arccos(rng.uniform(-1, 1, particles))
    rot = rng.uniform(-np.pi, np.pi, particles)
    edges = (np.linspace(0, np.pi, 19), np.linspace(-np.pi, np.pi, 37))
    return np.histogram2d(tilt, rot, bins=edges)[0]


def a_class(volume: np.ndarray, *, resolution: float | None = 20.0) -> ClassSnapshot:
    shells = np.arange(volume.shape[0] // 2 + 1)
    fsc = 1 / (1 + np.exp(shells - volume.shape[0] / 4))
    return ClassSnapshot(volume, volume, volume, fsc, resolution, 900, 0.5, 300.0, even_views(900))


def a_snapshot(n_classes: int, *, volume: np.ndarray | None = None) -> Snapshot:
    volume = blob(z=0, y=0, x=0) if volume is None else volume
    geometry = Geometry(volume.shape[0], 4.0)
    classes = tuple(a_class(volume, resolution=None if k == 1 else 18.0) for k in range(n_classes))
    return Snapshot(40, "intermediate", 900 * n_classes + 50, 4000, geometry, classes)


def reports(n: int, *, n_classes: int = 2) -> list[StepReport]:
    return [
        StepReport(
            step=step,
            phase="initial" if step < n / 2 else "final",
            new_particles=100,
            replayed_particles=0,
            particles_seen=100 * step,
            particles_presented=100 * step,
            temperature=1.0,
            radius_shells=(5,) * n_classes,
            resolution_angstrom=tuple([None if step < 3 else 40.0 - step / n] * n_classes),
            occupancy=(1 / n_classes,) * n_classes,
            evidence_per_particle=float(np.log1p(step)),
            stage_seconds={"search": 0.1},
            events=(EngineEvent("class_born", "words"),) if step == 5 else (),
        )
        for step in range(1, n + 1)
    ]


def pixels(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB"))


def test_planes_look_along_the_axis_they_name() -> None:
    volume = blob(z=-8, y=2, x=6)
    centre = BOX // 2
    where = [np.unravel_index(plane.argmax(), plane.shape) for plane in projections(volume)]
    assert where == [(centre + 2, centre + 6), (centre - 8, centre + 6), (centre - 8, centre + 2)]
    through = central_slices(blob(z=0, y=0, x=5))
    assert [plane.max() > 0.9 for plane in through] == [True, True, False]


def test_shrinking_keeps_the_place_and_the_mean() -> None:
    image = blob(z=0, y=4, x=-6, box=64)[32]
    small = fourier_resize(image, 32)
    assert np.unravel_index(small.argmax(), small.shape) == (16 + 2, 16 - 3)
    assert small.mean() == pytest.approx(image.mean(), rel=1e-6)
    assert fourier_resize(image, 64) is image


def test_contrast_survives_hot_pixels_and_flat_or_broken_maps() -> None:
    image = blob(z=0, y=0, x=0)[BOX // 2]
    hot = image.copy()
    hot[0, 0] = 1e6
    # The hot pixel takes one place in a thousand of the range, the rest stays as it was.
    difference = np.abs(grey_levels(hot).astype(int) - grey_levels(image))
    assert np.median(difference) <= 1
    assert grey_levels(hot)[BOX // 2, BOX // 2] == 255
    assert not grey_levels(np.full((4, 4), 3.0)).any()
    broken = np.full((4, 4), np.nan)
    assert not grey_levels(broken).any()


def test_previews_are_small_bytes_whatever_the_box_and_the_classes() -> None:
    large = preview_arrays(a_snapshot(1, volume=blob(z=0, y=0, x=0, box=160)))
    assert large["projections"].shape == large["slices"].shape == (1, 3, 128, 128)
    many = preview_arrays(a_snapshot(10, volume=blob(z=0, y=0, x=0, box=128)))
    assert sum(array.nbytes for array in many.values()) <= 512 * 1024
    assert all(array.dtype == np.uint8 for array in many.values())
    assert many["slices"][3, 0].max() == 255


def test_coverage_tells_even_views_from_one_view_and_from_a_belt() -> None:
    assert orientation_coverage(even_views(100_000)) > 0.98
    assert orientation_coverage(even_views(300)) > 0.8
    one = np.zeros((18, 36))
    one[5, 5] = 500
    assert orientation_coverage(one) < 0.05
    belt = np.zeros((18, 36))
    belt[8:10] = 100
    assert 0.1 < orientation_coverage(belt) < 0.4
    assert orientation_coverage(np.zeros((18, 36))) == 0


def test_fourier_coverage_asks_which_directions_were_measured() -> None:
    assert fourier_coverage(even_views(100_000)) > 0.98
    assert fourier_coverage(even_views(300)) > 0.85
    side_views = np.zeros((18, 36))
    side_views[8:10] = 100
    assert fourier_coverage(side_views) > 0.6
    top_views = even_views(50_000)
    top_views[3:] = 0
    assert fourier_coverage(top_views) < 0.1
    assert fourier_coverage(np.zeros((18, 36))) == 0


def test_a_view_and_its_opposite_count_as_one() -> None:
    northern = even_views(50_000)
    northern[9:] = 0
    assert orientation_coverage(northern) > 0.95


def test_view_density_is_one_everywhere_for_an_even_spread() -> None:
    density = view_density(even_views(400_000))
    assert np.abs(density - 1).max() < 0.1
    assert not view_density(np.zeros((18, 36))).any()


@pytest.mark.parametrize("n_classes", [1, 3, 10])
def test_a_picture_is_drawn_quickly_for_any_number_of_classes(n_classes: int) -> None:
    snapshot = a_snapshot(n_classes, volume=blob(z=0, y=0, x=0, box=64))
    snapshot_png(snapshot)  # fonts are read once per process
    spent_s = []
    for _ in range(2):  # the better one: other processes share the processor's caches
        start = time.process_time()
        png = snapshot_png(snapshot, Caption(title="Grid 4"))
        spent_s.append(time.process_time() - start)
    assert min(spent_s) < SLOWEST_PICTURE_S
    shown = pixels(png)
    assert shown.shape[1] in (1700, 2000)
    assert (shown[:5] == 255).all()
    assert shown.min() < 10


def test_protein_is_bright_and_up_is_up() -> None:
    volume = blob(z=0, y=10, x=-10)
    shown = pixels(snapshot_png(a_snapshot(1, volume=volume))).astype(int).sum(axis=2)
    tile = shown[138:418, 40:320]  # the projection along z: rows y, columns x
    row, column = np.unravel_index(tile[10:200, 10:].argmax(), (190, 270))
    assert row + 10 < 100
    assert column + 10 < 100


def test_the_same_snapshot_gives_the_same_bytes() -> None:
    snapshot = a_snapshot(2)
    assert snapshot_png(snapshot) == snapshot_png(snapshot)


def test_hostile_snapshots_are_still_drawn() -> None:
    flat = np.zeros((BOX, BOX, BOX), np.float32)
    nothing = ClassSnapshot(flat, flat, flat, np.zeros(17), None, 0, 0.0, 0.0, np.zeros((18, 36)))
    broken = ClassSnapshot(
        flat * np.nan, flat, flat, np.full(17, np.nan), None, 0, 0.0, 0.0, np.zeros((18, 36))
    )
    for classes in ((nothing,), (nothing, broken), (broken,)):
        png = snapshot_png(Snapshot(0, "waiting", 0, 0, Geometry(BOX, 4.0), classes))
        assert pixels(png).size
    assert pixels(snapshot_png(a_snapshot(1), Caption(title="$x_{1 & <b> \\frac"))).size


def drawn_fsc(snapshot: Snapshot) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Curves and dots of the FSC panel, as points (n, 2) of shell and FSC."""
    page = Page(400, 300)
    draw_fsc(page, 50, 30, 300, 200, snapshot)
    points = [
        np.column_stack([line.get_xdata() * snapshot.geometry.box_angstrom, line.get_ydata()])
        for line in page.figure.axes[-1].get_lines()
        if line.get_xdata()[-1] != 1  # the levels cross the whole panel
    ]
    return [line for line in points if len(line) > 1], [line for line in points if len(line) == 1]


def test_an_fsc_curve_ends_where_particles_entered_no_further_and_its_dot_lies_on_it() -> None:
    fsc = np.zeros(17)
    fsc[:9] = 1.0 - 0.05 * np.arange(9)
    crossing = np.zeros(17)
    crossing[:13] = np.clip(1.0 - 0.15 * np.arange(13), 0.05, 1)
    at_rest = np.eye(1, 17)[0]
    edge = 4.0 * BOX
    items = [
        replace(a_class(blob(z=0, y=0, x=0)), fsc=curve, resolution_angstrom=resolution)
        for curve, resolution in (
            (fsc, edge / 7.6), (fsc, edge / 8.9), (crossing, edge / 5.71), (at_rest, None),
        )
    ]  # fmt: skip
    curves, dots = drawn_fsc(replace(a_snapshot(1), classes=tuple(items)))
    assert [len(curve) for curve in curves] == [9, 9, 13]
    assert np.concatenate(curves)[:, 1].min() > 0
    assert [float(dot[0, 0]) for dot in dots] == pytest.approx([7.6, 8.0, 5.71])
    for curve, dot in zip(curves, dots, strict=True):
        assert dot[0, 1] == pytest.approx(np.interp(dot[0, 0], *curve.T))
    assert dots[2][0, 1] == pytest.approx(0.1435)


def test_threads_may_draw_at_once_and_nothing_global_changes() -> None:
    def settings() -> dict[str, object]:
        # Asking for the backend would make Matplotlib choose one and import pyplot.
        return {name: mpl.rcParams[name] for name in mpl.rcParams if name != "backend"}

    before = settings()
    had_pyplot = "matplotlib.pyplot" in sys.modules
    snapshot = a_snapshot(2)
    expected = snapshot_png(snapshot)
    drawn: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: drawn.append(snapshot_png(snapshot))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert drawn == [expected] * 3
    assert settings() == before
    assert ("matplotlib.pyplot" in sys.modules) == had_pyplot


def test_a_session_of_any_length_has_a_timeline() -> None:
    for n in (0, 1, 2, 60):
        assert pixels(timeline_png(reports(n))).shape[1] == 1600
    start = time.process_time()
    timeline_png(reports(9_000))
    assert time.process_time() - start < 2 * SLOWEST_PICTURE_S


def test_the_timeline_of_one_class_has_no_panel_of_shares() -> None:
    one = pixels(timeline_png(reports(30, n_classes=1)))
    two = pixels(timeline_png(reports(30, n_classes=2)))
    assert len(one) < len(two)


def test_a_resolution_known_at_one_step_only_is_seen() -> None:
    session = reports(2, n_classes=1)
    panel = np.s_[170:390, 1400:1456]  # the end of the panel, before the name of the curve
    blue = np.array([0x2F, 0x6D, 0xB5])

    def seen(last: float | None) -> bool:
        known = replace(session[-1], resolution_angstrom=(last,))
        return bool((pixels(timeline_png([session[0], known]))[panel] == blue).all(axis=-1).any())

    assert seen(20.0)
    assert not seen(None)


def test_a_class_born_late_is_drawn_from_then_on() -> None:
    session = reports(10, n_classes=1) + [
        StepReport(**{**vars(r), "step": r.step + 10, "particles_presented": 1000 + 100 * r.step})
        for r in reports(10, n_classes=2)
    ]
    assert pixels(timeline_png(session)).shape[1] == 1600


def test_ticks_read_in_angstrom_and_never_crowd() -> None:
    places, labels = resolution_ticks(0.0, 1 / 8, count=8)
    assert labels[-1] == "8"
    assert min(np.diff(places)) >= 1 / 8 / 8
    assert [float(label) for label in labels] == pytest.approx([1 / place for place in places])
    assert resolution_words(None) == "not yet"


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """All words that are written on pages from now on."""
    words: list[str] = []
    write = Page.text

    def text(self: Page, left: float, top: float, said: str, **more: Any) -> Any:
        words.append(said)
        return write(self, left, top, said, **more)

    def note(self: Axes, said: str, *place: Any, **more: Any) -> Any:
        words.append(said)
        return annotate(self, said, *place, **more)

    annotate = Axes.annotate
    monkeypatch.setattr(Page, "text", text)
    monkeypatch.setattr(Axes, "annotate", note)
    return words


@pytest.mark.parametrize("n_classes", [1, 3])
def test_pictures_say_that_a_session_was_stopped_and_what_was_imposed(
    written: list[str], n_classes: int
) -> None:
    snapshot = a_snapshot(n_classes)
    stopped = stopped_words(900, 3000, "intermediate")
    caption = caption_of(snapshot, title="g", symmetry="symmetry O imposed", stopped=stopped)
    snapshot_png(snapshot, caption)
    timeline_png(reports(8, n_classes=n_classes), caption)
    facts = [words for words in written if words.startswith("stopped early: 900 of 3,000")]
    assert len(facts) == 2
    assert all(words.endswith("learned from  ·  symmetry O imposed") for words in facts)


def test_how_far_a_stopped_run_had_come_is_said() -> None:
    assert stopped_words(0, 0, "waiting") == "stopped early, before the first particle"
    assert stopped_words(9, 3000, "initial") == "stopped early: 9 of 3,000 particles learned from"
    all_of_them = "stopped early: all 3,000 particles learned from"
    assert stopped_words(3000, 3000, "initial") == f"{all_of_them}, no map chosen"
    assert stopped_words(3000, 3000, "final") == f"{all_of_them}, not all replays made"


def test_a_long_name_leaves_room_for_what_stands_beside_it() -> None:
    title = caption_of(a_snapshot(1), title="x" * 90).title
    assert len(title) == 48
    assert title.endswith("…")


def test_a_map_of_few_particles_is_not_to_be_trusted(written: list[str]) -> None:
    few = replace(a_class(blob(z=0, y=0, x=0), resolution=None), particles=5)
    snapshot_png(replace(a_snapshot(1), classes=(few,), particles_seen=5))
    assert "5 particles: too few to trust" in written
    snapshot_png(a_snapshot(1))
    assert "950 particles" in written
    snapshot_png(replace(a_snapshot(2), classes=(few, a_class(few.volume))))
    assert written.count("too few to trust") == 1
    resting = replace(few, volume=np.zeros_like(few.volume))
    written.clear()
    snapshot_png(replace(a_snapshot(2), classes=(resting, a_class(few.volume))))
    assert {"at rest", "no map"} <= set(written)
    assert "too few to trust" not in written


def test_a_resolution_that_is_not_there_is_explained_once_no_more_comes(
    written: list[str],
) -> None:
    none = replace(a_class(blob(z=0, y=0, x=0), resolution=None), why_none="starts_disagree")
    for classes in ((none,), (none, none)):
        snapshot = replace(a_snapshot(1), classes=classes)
        snapshot_png(snapshot, caption_of(snapshot, title="", over=False))
        assert not any("disagree" in words for words in written)
        assert any("not yet" in words for words in written)
        written.clear()
        snapshot_png(snapshot, caption_of(snapshot, title=""))
        assert not any("not yet" in words for words in written)
        assert any("nearly a ball, no two starts agree" in words for words in written)
        timeline_png(
            [replace(reports(1)[0], resolution_angstrom=(None,))], caption_of(snapshot, title="")
        )
        why = "no resolution (nearly a ball, no two starts agree)"
        assert any(why in words for words in written)
        written.clear()


@pytest.mark.parametrize("n_classes", [1, 2, 8])
@pytest.mark.parametrize("over", [False, True])
def test_what_is_missing_when_a_session_is_over_is_not_still_to_come(
    written: list[str], n_classes: int, over: bool
) -> None:
    none = a_class(blob(z=0, y=0, x=0), resolution=None)
    none = replace(none, why_none="racing", view_histogram=np.zeros_like(none.view_histogram))
    snapshot = replace(a_snapshot(1), classes=(none,) * n_classes)
    caption = caption_of(snapshot, title="", over=over)
    snapshot_png(snapshot, caption)
    nothing = replace(reports(1, n_classes=n_classes)[0], resolution_angstrom=(None,) * n_classes)
    timeline_png([nothing], caption)
    assert any(re.search(r"\byet\b", words) for words in written) == (not over)
    assert ("no views" in written) == over
    header = "no resolution (no map chosen)" if over else "no resolution yet"
    assert any(header in words for words in written)


@pytest.mark.parametrize(
    ("over", "empty", "words"),
    [
        (False, False, "resolution not measured yet"),
        (False, True, "no map yet"),
        (True, False, "no resolution"),
        (True, True, "no map"),
    ],
)
def test_the_label_of_a_map_says_why_it_has_no_resolution(
    tmp_path: Path, over: bool, empty: bool, words: str
) -> None:
    snapshot = a_snapshot(1)
    item = replace(snapshot.classes[0], resolution_angstrom=None)
    if empty:
        item = replace(item, volume=np.zeros_like(item.volume))
    more: dict[str, Any] = {"index": 0, "snapshot": snapshot, "session_id": "s", "over": over}
    paths = write_class_maps(tmp_path, item, **more)
    with mrcfile.open(paths["map"]) as file:
        assert file.get_labels()[3] == f"{item.particles} particles, {words}"


def test_the_phase_of_a_session_is_final_once_each_class_is() -> None:
    assert phase_told("initial", ["initial"]) == "initial"
    assert phase_told("final", ["final", "intermediate"]) == "intermediate"
    assert phase_told("intermediate", ["final", "final"]) == "final"
    assert phase_told("final", []) == "final"


def test_rounds_of_the_first_map_are_not_called_replay(written: list[str]) -> None:
    session = reports(10, n_classes=1)
    last = session[-1]
    again = {"new_particles": 0, "replayed_particles": 200, "particles_seen": 1000}
    for phase, expected in (("initial", "first map"), ("final", "replay")):
        more = [
            replace(last, phase=phase, particles_presented=shown, **again)  # type: ignore[arg-type]
            for shown in range(1200, 2000, 200)
        ]
        written.clear()
        timeline_png([*session, *more])
        notes = [words for words in written if "replay" in words or "first map" in words]
        assert len(notes) == 1
        assert expected in notes[0]


def test_the_spare_time_of_a_stream_is_not_called_replay(written: list[str]) -> None:
    mixed = [
        replace(one, new_particles=0, replayed_particles=100) if one.step % 3 else one
        for one in reports(30, n_classes=1)
    ]
    timeline_png(mixed)
    timeline_png(mixed[:-1])  # it ends with some of it
    assert not [words for words in written if "replay" in words]


def test_a_symmetry_that_hardly_fits_is_told_so() -> None:
    assert symmetry_words("C1", "C1", "final", {}) == ""
    assert symmetry_words("auto", "C1", "final", {}) == ""
    assert symmetry_words("O", "C1", "initial", {}) == "symmetry O not imposed yet"
    for wanted in ("C1", "auto"):
        tried = "symmetry O only tried out so far"
        assert symmetry_words(wanted, "O", "initial", {}) == tried
    flattered = "symmetry O imposed, which flatters the resolution"
    assert symmetry_words("auto", "O", "final", {}) == flattered
    assert symmetry_words("O", "O", "initial", {}) == "symmetry O imposed"
    told = lasting(replace(reports(1)[0], events=(symmetry_event("O", 0.1, believed=False),)))
    assert (
        symmetry_words("O", "O", "final", told) == "symmetry O imposed, though its axes hardly fit"
    )
    told = lasting(replace(reports(1)[0], events=(symmetry_event("O", 0.8, believed=True),)))
    assert symmetry_words("O", "O", "final", told) == flattered


@pytest.mark.data
def test_real_maps_make_a_picture_with_contrast(data_dir: Path) -> None:
    volume = mrcfile.read(data_dir / "maps" / "ribosome80S_4ug0_80_4A.mrc").astype(np.float32)
    shown = pixels(snapshot_png(a_snapshot(1, volume=volume)))
    tile = shown[138:418, 40:320, 0]
    assert tile.std() > 40
    assert np.percentile(tile, 99) > 200
    assert np.percentile(tile, 10) < 40
