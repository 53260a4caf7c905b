"""The picture of a whole session: resolution, evidence and class occupancy against particles.

Convention owned here: the horizontal axis counts presentations, which equal the particles until
replay begins; better is always up, so resolution is drawn linear in 1/Å and labelled in Å.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from reconstruct.types import StepReport
from streamer.caption import NO_CAPTION, SEPARATOR, Caption, phase_told
from streamer.drawing import (
    GRID,
    INK,
    MUTED,
    WARNING,
    Page,
    class_colour,
    resolution_ticks,
    resolution_words,
    style_axes,
)

__all__ = ["timeline_png"]

_WIDTH = 1600
_LEFT = 92
_RIGHT = 150  # room for the names at the ends of the curves
_PANEL_HEIGHT = 230
_PANEL_STEP = 300
_FIRST_PANEL = 184
_LONGEST = 4_000  # steps drawn; more than the page has pixels is drawn for nothing
_PHASE_COLOURS = {
    "waiting": "#ffffff",
    "initial": "#fdf3e3",
    "intermediate": "#eef4fa",
    "final": "#ecf6ef",
}
# Events of these kinds are drawn as marks; phases have their own background.
_QUIET_EVENTS = frozenset({"phase", "resolution", "map_centred"})
_FEWEST_REPLAYS = 4  # steps without a new particle that are a replay of all
_MAX_MARKS = 12


def timeline_png(reports: Sequence[StepReport], caption: Caption = NO_CAPTION) -> bytes:
    """Draw a session's steps.

    Parameters
    ----------
    reports
        Every step so far, in order; none gives a page that says so.
    caption
        What is said beside the curves.

    Returns
    -------
        A PNG file, 1600 pixels wide.
    """
    shown = _thin(reports)
    n_classes = max((len(report.occupancy) for report in shown), default=0)
    n_panels = 3 if n_classes > 1 else 2
    page = Page(_WIDTH, _FIRST_PANEL + n_panels * _PANEL_STEP - 10)
    if not shown:
        page.text(_LEFT, 60, "No steps yet", size=21, bold=True)
        return page.png()
    last = shown[-1]
    _draw_header(page, last, caption)
    presented = np.array([report.particles_presented for report in shown])
    panels = [
        page.axes(_LEFT, _FIRST_PANEL + row * _PANEL_STEP, _WIDTH - _LEFT - _RIGHT, _PANEL_HEIGHT)
        for row in range(n_panels)
    ]
    headings = (
        "Resolution / Å, half-map FSC 0.143",
        "Evidence per particle / nat",
        "Class occupancy",
    )
    for row, axes in enumerate(panels):
        above = 30 if row == 0 else 10  # the first panel has the names of events in between
        page.heading(_LEFT, _FIRST_PANEL + row * _PANEL_STEP - above, headings[row])
        axes.set_xlim(0, max(int(presented[-1]), 1))
        _shade_phases(axes, shown, named=row == 0)
    _draw_resolution(panels[0], shown, presented, n_classes, none=caption.no_best)
    _draw_evidence(panels[1], shown, presented)
    if n_panels == 3:
        _draw_occupancy(panels[2], shown, presented, n_classes)
    for row, axes in enumerate(panels):
        _finish(axes, shown, named=row == 0)
    _mark_events(panels[0], reports)
    panels[-1].set_xlabel("Particles presented", fontsize=9.5, color=MUTED)
    return page.png()


def _thin(reports: Sequence[StepReport]) -> list[StepReport]:
    """Every n-th step and the last, so that a long session draws as fast as a short one."""
    stride = max(1, math.ceil(len(reports) / _LONGEST))
    shown = list(reports[::stride])
    if reports and shown[-1] is not reports[-1]:
        shown.append(reports[-1])
    return shown


def _draw_header(page: Page, last: StepReport, caption: Caption) -> None:
    page.text(_LEFT, 50, f"{last.particles_seen:,} particles", size=21, bold=True)
    phase = caption.stands(last.phase, last.class_phases)
    facts = [f"step {last.step:,}", f"{phase} phase"]
    known = [value for value in last.resolution_angstrom if value is not None]
    facts.append(f"best resolution {resolution_words(min(known))}" if known else caption.no_best)
    page.text(_LEFT, 78, SEPARATOR.join(facts), size=11, colour=MUTED)
    colour = WARNING if caption.warns else MUTED
    page.text(_LEFT, 102, caption.remarks, size=11, colour=colour)
    page.text(_WIDTH - 40, 50, caption.title or " ", size=13, across="right")
    page.line([_LEFT, _WIDTH - 40], [116, 116], colour=GRID, width=1.2)


def _shade_phases(axes: Axes, shown: Sequence[StepReport], *, named: bool) -> None:
    phases = [phase_told(report.phase, report.class_phases) for report in shown]
    start = 0
    for index, report in enumerate(shown):
        is_last = index == len(shown) - 1
        if is_last or phases[index + 1] != phases[index]:
            end = report.particles_presented
            axes.axvspan(start, end, color=_PHASE_COLOURS[phases[index]], linewidth=0, zorder=0)
            if named and end - start > 0.07 * shown[-1].particles_presented:
                _note(axes, (start + end) / 2, phases[index], offset=4)
            start = end


def _note(axes: Axes, place: float, words: str, *, offset: float) -> None:
    axes.annotate(
        words,
        (place, 0),
        xycoords=("data", "axes fraction"),
        xytext=(0, offset),
        textcoords="offset points",
        ha="center",
        fontsize=8.5,
        color=MUTED,
    )


def _draw_resolution(
    axes: Axes, shown: Sequence[StepReport], presented: np.ndarray, n_classes: int, *, none: str
) -> None:
    ends: list[tuple[float, str, str]] = []
    highest = 0.0
    lowest = math.inf
    for index in range(n_classes):
        places = np.array([_inverse(report, index) for report in shown])
        known = places[np.isfinite(places)]
        if not len(known):
            continue
        highest, lowest = max(highest, float(known.max())), min(lowest, float(known.min()))
        colour = class_colour(index)
        axes.plot(presented, places, color=colour, linewidth=2)
        alone = _alone(places)  # a line of one point is not seen
        axes.plot(presented[alone], places[alone], "o", color=colour, ms=5, clip_on=False)
        if math.isfinite(places[-1]):
            words = resolution_words(shown[-1].resolution_angstrom[index])
            name = words if n_classes == 1 else f"{index + 1}: {words}"
            ends.append((float(places[-1]), name, colour))
    if not highest:
        axes.set_yticks([])
        axes.text(0.5, 0.5, none, transform=axes.transAxes, ha="center", color=MUTED)
        return
    bottom, top = 0.9 * lowest, 1.06 * highest
    axes.set_ylim(bottom, top)
    axes.set_yticks(*resolution_ticks(bottom, top, count=8))
    _name_ends(axes, ends)


def _inverse(report: StepReport, index: int) -> float:
    values = report.resolution_angstrom
    value = values[index] if index < len(values) else None
    return math.nan if value is None else 1.0 / value


def _alone(places: np.ndarray) -> np.ndarray:
    """Indices of the known places with an unknown one, or none, on either side."""
    known = np.concatenate([[False], np.isfinite(places), [False]])
    return np.flatnonzero(known[1:-1] & ~known[:-2] & ~known[2:])


def _draw_evidence(axes: Axes, shown: Sequence[StepReport], presented: np.ndarray) -> None:
    evidence = np.array([report.evidence_per_particle for report in shown])
    axes.plot(presented, evidence, color="#b9c3cc", linewidth=0.9)
    # Batches scatter; the eye needs the trend. A running mean that shortens at both ends.
    half = max(1, len(evidence) // 40)
    sums = np.concatenate([[0.0], np.cumsum(evidence)])
    first = np.maximum(np.arange(len(evidence)) - half, 0)
    after = np.minimum(np.arange(len(evidence)) + half + 1, len(evidence))
    trend = (sums[after] - sums[first]) / (after - first)
    axes.plot(presented, trend, color=INK, linewidth=2)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    _name_ends(axes, [(float(trend[-1]), f"{trend[-1]:.3g} nat", INK)])


def _draw_occupancy(
    axes: Axes, shown: Sequence[StepReport], presented: np.ndarray, n_classes: int
) -> None:
    occupancy = np.zeros((n_classes, len(shown)))
    for column, report in enumerate(shown):
        occupancy[: len(report.occupancy), column] = report.occupancy
    colours = [class_colour(index) for index in range(n_classes)]
    axes.stackplot(presented, occupancy, colors=colours, alpha=0.85, linewidth=0)
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
    middles = np.cumsum(occupancy[:, -1]) - occupancy[:, -1] / 2
    _name_ends(
        axes,
        [
            (
                float(middles[index]),
                f"{index + 1}: {100 * occupancy[index, -1]:.0f} %",
                colours[index],
            )
            for index in range(n_classes)
        ],
    )


def _name_ends(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Write what each curve is at its right end, pushed apart where they would overlap."""
    low, high = axes.get_ylim()
    apart = (high - low) / _PANEL_HEIGHT * 16
    place = -math.inf
    for value, words, colour in sorted(ends):
        place = max(value, place + apart)
        axes.annotate(
            words,
            (1, place),
            xycoords=("axes fraction", "data"),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            fontsize=9.5,
            color=colour,
            fontweight="bold",
        )


def _finish(axes: Axes, shown: Sequence[StepReport], *, named: bool) -> None:
    style_axes(axes)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    for racing, words in ((True, "finding the first map"), (False, "all particles seen, replay")):
        again = _rounds(shown) if racing else _after_the_stream(shown)
        if not again:
            continue
        start = again[0].particles_presented - again[0].replayed_particles
        axes.axvline(start, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        if named and again[-1].particles_presented - start > 0.1 * axes.get_xlim()[1]:
            axes.annotate(
                words,
                (start, 1),
                xycoords=("data", "axes fraction"),
                xytext=(5, -12),
                textcoords="offset points",
                fontsize=8.5,
                color=MUTED,
            )


def _rounds(shown: Sequence[StepReport]) -> list[StepReport]:
    """Steps that showed the first map's particles again."""
    return [one for one in shown if not one.new_particles and one.phase == "initial"]


def _after_the_stream(shown: Sequence[StepReport]) -> list[StepReport]:
    """Steps that showed all particles again; a few at the end are a live session's spare time."""
    newest = max((i for i, one in enumerate(shown) if one.new_particles), default=-1)
    again = [one for one in shown[newest + 1 :] if one.phase != "initial"]
    return again if len(again) >= _FEWEST_REPLAYS else []


def _mark_events(axes: Axes, reports: Sequence[StepReport]) -> None:
    """Small flags above the first panel; the first dozen, since more cannot be read."""
    marks = [
        (report.particles_presented, event.kind.replace("_", " "))
        for report in reports
        for event in report.events
        if event.kind not in _QUIET_EVENTS
    ]
    span = max(axes.get_xlim()[1], 1)
    free = -math.inf
    for place, words in marks[:_MAX_MARKS]:
        axes.plot(place, 1.0, "v", color=INK, ms=6, transform=axes.get_xaxis_transform(),
                  clip_on=False)  # fmt: skip
        if place < free:
            continue
        free = place + span * 0.012 * (len(words) / 2 + 3)
        axes.annotate(
            words,
            (place, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 6),
            textcoords="offset points",
            ha="center",
            fontsize=8.5,
            color=INK,
        )
