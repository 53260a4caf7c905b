"""The picture of one snapshot: maps, FSC, class sizes and views on one page, as PNG bytes.

Promise: rendering keeps no state between calls and never touches pyplot, so any thread may draw;
maps are shown with bright protein and one percentile-clipped grey range per class.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from reconstruct.types import ClassSnapshot, FloatArray, Snapshot
from streamer.caption import NO_CAPTION, SEPARATOR, Caption, few_words, no_resolution_words
from streamer.drawing import (
    GRID,
    INK,
    MUTED,
    WARNING,
    Page,
    class_colour,
    resolution_words,
)
from streamer.panels import draw_fsc, draw_sizes, draw_views, is_limited, unassigned
from streamer.preview import central_slices, fourier_resize, grey_levels, projections

__all__ = ["snapshot_png"]

_MARGIN = 40
_HEADER = 120
_FOOTER = 44
_GAP = 4  # between tiles of one kind
_MAX_TILE_SOURCE = 256  # no picture tile is larger, so no more pixels are resampled
_MOST_IN_HEADER = 10  # resolutions that fit side by side
_PROJECTION_NAMES = ("along z", "along y", "along x")
_AT_REST = "This class has no map: what it held went to others, or was noise."
_FREE = " A new species may take it."
_SLICE_NAMES = ("xy, z = 0", "xz, y = 0", "yz, x = 0")


@dataclass(frozen=True)
class _Layout:
    """Where things go; pixels."""

    width: int
    height: int
    tile: int
    row_height: int
    label_width: int
    views_width: int
    side_left: int  # left edge of the panel with curves
    side_width: int


def snapshot_png(snapshot: Snapshot, caption: Caption = NO_CAPTION) -> bytes:
    """Draw a snapshot.

    Parameters
    ----------
    snapshot
        What the engine returned; one to about ten classes read well.
    caption
        What is said beside the maps.

    Returns
    -------
        A PNG file, 2000 pixels wide (1700 for one class).
    """
    single = len(snapshot.classes) == 1
    layout = _single_layout() if single else _table_layout(len(snapshot.classes))
    page = Page(layout.width, layout.height)
    _draw_header(page, snapshot, caption)
    if single:
        _draw_single(page, layout, snapshot, caption)
    else:
        _draw_table(page, layout, snapshot, caption)
    _draw_footer(page, snapshot)
    return page.png()


def _single_layout() -> _Layout:
    tile = 280
    side_left = _MARGIN + 3 * tile + 2 * _GAP + 100
    width = 1700
    return _Layout(
        width=width,
        height=_HEADER + 2 * (tile + 40) + _FOOTER + 10,
        tile=tile,
        row_height=tile + 40,
        label_width=0,
        views_width=480,
        side_left=side_left,
        side_width=width - _MARGIN - side_left,
    )


def _table_layout(n_classes: int) -> _Layout:
    width = 2000
    tile = 168 if n_classes <= 4 else 150 if n_classes <= 6 else 126
    row_height = max(tile + 14, 400 // max(n_classes, 1))
    views_width = round(1.55 * tile)
    label_width = 158
    columns = 6 * tile + 4 * _GAP + 20
    side_left = _MARGIN + label_width + columns + 24 + views_width + 90
    return _Layout(
        width=width,
        height=_HEADER + 34 + n_classes * row_height + _FOOTER + 10,
        tile=tile,
        row_height=row_height,
        label_width=label_width,
        views_width=views_width,
        side_left=side_left,
        side_width=width - _MARGIN - side_left,
    )


def _draw_header(page: Page, snapshot: Snapshot, caption: Caption) -> None:
    single = len(snapshot.classes) == 1
    few = few_words(snapshot.classes[0].particles) if single else ""
    total = f"{snapshot.particles_seen:,} particles"
    page.text(_MARGIN, 50, few or total, size=21, bold=True, colour=WARNING if few else INK)
    phase = caption.stands(snapshot.phase, [one.phase for one in snapshot.classes])
    facts = [f"step {snapshot.step:,}", f"{phase} phase"]
    if snapshot.particles_presented > snapshot.particles_seen:
        facts.append(f"{snapshot.particles_presented:,} presentations")
    page.text(_MARGIN, 78, SEPARATOR.join(facts), size=11, colour=MUTED)
    colour = WARNING if caption.warns else MUTED
    page.text(_MARGIN, 102, caption.remarks, size=11, colour=colour)
    right = page.width - _MARGIN
    if single:
        resolution = snapshot.classes[0].resolution_angstrom
        words = resolution_words(resolution, none=caption.no_resolution)
        page.text(right, 50, words, size=21, bold=True, across="right")
        limited = resolution is not None and is_limited(snapshot.classes[0])
        limited = limited and not caption.flattered
        words = "resolution or better" if limited else "resolution"
        words += f"  ·  {caption.title}" if caption.title else ""
        page.text(right, 78, words, size=11, colour=MUTED, across="right")
    else:
        page.text(right, 50, caption.title or " ", size=13, colour=INK, across="right")
        _draw_resolutions(page, right, snapshot, caption)
    page.line([_MARGIN, page.width - _MARGIN], [114, 114], colour=GRID, width=1.2)


def _draw_resolutions(page: Page, right: float, snapshot: Snapshot, caption: Caption) -> None:
    """The resolution of every class in a line, or of the best one where a line has no room."""
    resolutions = [item.resolution_angstrom for item in snapshot.classes]
    if len(resolutions) > _MOST_IN_HEADER:
        best = min((value for value in resolutions if value is not None), default=None)
        words = caption.no_best if best is None else f"best resolution {resolution_words(best)}"
        page.text(right, 78, words, size=11, colour=MUTED, across="right")
        return
    step = min(150, (page.width - 2 * _MARGIN - 700) // max(len(resolutions), 1))
    for index, resolution_angstrom in enumerate(resolutions):
        place = right - step * (len(resolutions) - 1 - index)
        words = f"{index + 1}:  {resolution_words(resolution_angstrom, none=caption.none)}"
        page.text(place, 78, words, size=11, colour=class_colour(index), across="right")
    first = right - step * len(resolutions) + 10
    page.text(first, 78, "Resolution of class", size=11, colour=MUTED, across="right")


def _draw_footer(page: Page, snapshot: Snapshot) -> None:
    geometry = snapshot.geometry
    words = (
        f"Box {geometry.box} px at {geometry.pixel_size_angstrom:.3g} Å/px = "
        f"{geometry.box_angstrom:.0f} Å.  Protein is bright; grey is clipped per class at the "
        "1st and 99.7th percentile.  Resolution: half-map FSC = 0.143, given once it can be "
        "trusted.  Coverage: 100 % is an even spread.  The hand is not determined."
    )
    if len(snapshot.classes) > 1:
        words += "  Occupancy: a class's part in explaining the latest particles."
    page.text(_MARGIN, page.height - 18, words, size=8.5, colour=MUTED)


def _draw_single(page: Page, layout: _Layout, snapshot: Snapshot, caption: Caption) -> None:
    item = snapshot.classes[0]
    rows = (
        ("Projections", _PROJECTION_NAMES, projections(item.volume)),
        ("Central slices", _SLICE_NAMES, central_slices(item.volume)),
    )
    for row, (heading, names, planes) in enumerate(rows):
        top = _HEADER + 34 + row * layout.row_height
        _draw_tiles(page, _MARGIN, top, layout.tile, planes)
        for column, name in enumerate(names):
            left = _MARGIN + column * (layout.tile + _GAP)
            words = f"{heading} {name}" if column == 0 else name
            page.text(left, top - 9, words, size=10, colour=MUTED)
    _draw_scale_bar(page, _MARGIN, _HEADER + 34, layout.tile, snapshot)
    top = _HEADER + 34
    height = layout.tile - 32
    draw_fsc(page, layout.side_left, top, layout.side_width, height, snapshot)
    below = _HEADER + 34 + layout.row_height
    page.heading(layout.side_left, below - 9, "Views, rot across, tilt down")
    left, top = layout.side_left, below + 12
    draw_views(page, left, top, layout.views_width, item, none=caption.no_views)
    left = layout.side_left + layout.views_width + 40
    for line, (value, what) in enumerate(_single_facts(snapshot)):
        page.text(left, below + 50 + line * 58, value, size=15, bold=True)
        page.text(left, below + 70 + line * 58, what, size=9.5, colour=MUTED)


def _single_facts(snapshot: Snapshot) -> list[tuple[str, str]]:
    item = snapshot.classes[0]
    facts = [
        (f"{item.particles:,}", "particles in the map"),
        (f"{item.effective_particles:,.0f}", "effective particles"),
    ]
    unused = unassigned(snapshot)
    if unused:
        facts.append((f"{unused:,}", "not used"))
    return facts


def _draw_table(page: Page, layout: _Layout, snapshot: Snapshot, caption: Caption) -> None:
    left_tiles = _MARGIN + layout.label_width
    left_slices = left_tiles + 3 * layout.tile + 2 * _GAP + 20
    left_views = left_slices + 3 * layout.tile + 2 * _GAP + 24
    top = _HEADER + 34
    for start, names in ((left_tiles, _PROJECTION_NAMES), (left_slices, _SLICE_NAMES)):
        kind = "projection" if start == left_tiles else "slice"
        for column, name in enumerate(names):
            words = f"{kind} {name}" if column == 0 else name
            page.text(start + column * (layout.tile + _GAP), top - 9, words, size=9, colour=MUTED)
    page.text(left_views, top - 9, "views, rot across, tilt down", size=9, colour=MUTED)
    for index, item in enumerate(snapshot.classes):
        row = top + index * layout.row_height
        _draw_label(page, row, layout, index, item, caption)
        if not np.any(item.volume):  # black squares would look like maps that went wrong
            words = _AT_REST if caption.over else _AT_REST + _FREE
            page.text(left_tiles, row + layout.tile / 2 + 2, words, size=10, colour=MUTED)
            continue
        _draw_tiles(page, left_tiles, row, layout.tile, projections(item.volume))
        _draw_tiles(page, left_slices, row, layout.tile, central_slices(item.volume))
        inset = (layout.tile - layout.views_width / 2) / 2
        place = row + inset - 8
        draw_views(page, left_views, place, layout.views_width, item, none=caption.no_views)
    awake = [i for i, item in enumerate(snapshot.classes) if np.any(item.volume)]
    scaled = top + (awake[0] if awake else 0) * layout.row_height
    _draw_scale_bar(page, left_tiles, scaled, layout.tile, snapshot)
    n_bars = len(snapshot.classes) + (1 if unassigned(snapshot) else 0)
    body = len(snapshot.classes) * layout.row_height
    bars_height = min(30 * n_bars, body // 3)
    fsc_height = min(body - bars_height - 130, round(0.75 * layout.side_width))
    draw_fsc(page, layout.side_left, top, layout.side_width, fsc_height, snapshot)
    bars_top = top + fsc_height + 86
    draw_sizes(page, layout.side_left, bars_top, layout.side_width, bars_height, snapshot)


def _draw_label(
    page: Page, row: float, layout: _Layout, index: int, item: ClassSnapshot, caption: Caption
) -> None:
    colour = class_colour(index)
    page.line([_MARGIN, _MARGIN], [row, row + layout.tile], colour=colour, width=4)
    left = _MARGIN + 12
    centre = row + layout.tile / 2
    page.text(left, centre - 22, f"Class {index + 1}", size=12.5, colour=colour, bold=True)
    resolution = item.resolution_angstrom
    resting = not np.any(item.volume)  # such a class has no map
    missing = "no resolution" if caption.over else caption.none
    words = resolution_words(resolution, none="at rest" if resting else missing)
    page.text(left, centre + 2, words, size=13, colour=MUTED if resolution is None else INK)
    few = "too few to trust" if few_words(item.particles) and not resting else ""
    why = "no map" if resting else no_resolution_words(item, over=caption.over)
    lines = [
        (few or why, WARNING if few else MUTED),
        (f"{item.particles:,} particles", MUTED),
        (f"occupancy {100 * item.occupancy:.0f} %", MUTED),
    ]
    for number, (words, colour) in enumerate(line for line in lines if line[0]):
        page.text(left, centre + 22 + 17 * number, words, size=9, colour=colour)


def _draw_tiles(page: Page, left: float, top: float, tile: int, planes: FloatArray) -> None:
    """Three planes in a row, on one grey range."""
    grey = grey_levels(fourier_resize(planes, _MAX_TILE_SOURCE))
    for column in range(3):
        page.image(left + column * (tile + _GAP), top, tile, tile, grey[column])


def _draw_scale_bar(page: Page, left: float, top: float, tile: int, snapshot: Snapshot) -> None:
    """A round length, about a quarter of the box, in the lower left corner of a tile."""
    box_angstrom = snapshot.geometry.box_angstrom
    target = box_angstrom / 3
    decade = 10.0 ** math.floor(math.log10(target))
    length_angstrom = max(factor * decade for factor in (1, 2, 5) if factor * decade <= target)
    pixels = tile * length_angstrom / box_angstrom
    x, y = left + 10, top + tile - 12
    page.line([x, x + pixels], [y, y], colour="white", width=3)
    words = f"{length_angstrom / 10:g} nm" if length_angstrom >= 100 else f"{length_angstrom:g} Å"
    page.text(x, y - 7, words, size=9, colour="white")
