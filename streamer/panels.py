"""The panels beside the maps: FSC curves, class sizes and the map of views.

Convention owned here: an FSC axis is linear in 1/Å and labelled in Å; a curve ends where particles
have entered no further, and a claimed resolution is a dot on it. Views are a Mollweide map with rot
across, tilt down, and darker where views are denser per solid angle.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from matplotlib.colors import LinearSegmentedColormap

from reconstruct.quality import RESOLUTION_FSC
from reconstruct.types import ClassSnapshot, FloatArray, Snapshot
from streamer.drawing import MUTED, Page, class_colour, resolution_ticks, style_axes
from streamer.views import fourier_coverage, orientation_coverage, view_density

__all__ = ["draw_fsc", "draw_sizes", "draw_views", "fsc_curve", "is_limited", "unassigned"]

_VIEW_COLOURS = LinearSegmentedColormap.from_list(
    "views", ["#f4f7fa", "#a9cbe6", "#4f93c9", "#1f5a9b", "#0d2d5e", "#06152f"]
)
_VIEW_TOP = 4.0  # times an even spread; denser than that extends the scale


def draw_fsc(
    page: Page, left: float, top: float, width: float, height: float, snapshot: Snapshot
) -> None:
    """Half-map FSC of every class that has one, with a dot where a resolution is claimed.

    The curve of a class without one is dashed: its half-maps are not independent yet, or in doubt.
    """
    told = any(item.resolution_angstrom is not None for item in snapshot.classes)
    page.heading(left, top - 9, "Half-map FSC" if told else "Half-map FSC (no resolution)")
    axes = page.axes(left, top + 6, width, height - 6)
    last = max(_last_shell(item.fsc) for item in snapshot.classes)
    edge_angstrom = snapshot.geometry.box_angstrom
    for level in (0.5, 0.143):
        axes.axhline(level, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
        axes.annotate(
            f"{level:g}",
            (0, level),
            xycoords=("axes fraction", "data"),
            xytext=(4, 3),
            textcoords="offset points",
            ha="left",
            fontsize=8.5,
            color=MUTED,
        )
    for index, item in enumerate(snapshot.classes):
        shells, fsc = fsc_curve(item.fsc)
        if len(shells) < 2:  # a class at rest
            continue
        colour = class_colour(index)
        dashes = "solid" if item.resolution_angstrom is not None else (0, (2, 2))
        axes.plot(shells / edge_angstrom, fsc, color=colour, linewidth=1.8, linestyle=dashes)
        if item.resolution_angstrom is not None:
            # It was measured when the class last learned, perhaps a shell before the curve was.
            shell = min(edge_angstrom / item.resolution_angstrom, float(shells[-1]))
            axes.plot(
                shell / edge_angstrom,
                float(np.interp(shell, shells, fsc)),
                "o",
                color=colour,
                ms=6,
                mec="white",
                clip_on=False,
            )
    highest = (last + 0.5) / edge_angstrom
    axes.set_xlim(0, highest)
    axes.set_ylim(-0.08, 1.04)
    axes.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    places, labels = resolution_ticks(0, highest, count=max(4, round(width / 52)))
    axes.set_xticks(places, labels)
    axes.set_xlabel("Resolution / Å  (axis linear in 1/Å)", fontsize=9, color=MUTED)
    style_axes(axes, grid="both")


def draw_sizes(
    page: Page, left: float, top: float, width: float, height: float, snapshot: Snapshot
) -> None:
    """Particles per class, and those in none."""
    page.heading(left, top - 9, "Class sizes")
    sizes = [item.particles for item in snapshot.classes]
    names = [f"{index + 1}" for index in range(len(sizes))]
    colours = [class_colour(index) for index in range(len(sizes))]
    unused = unassigned(snapshot)
    if unused:
        sizes, names, colours = [*sizes, unused], [*names, "none"], [*colours, "#b8c1c9"]
    axes = page.axes(left, top, width, height)
    rows = np.arange(len(sizes))
    axes.barh(rows, sizes, color=colours, height=0.66)
    largest = max(*sizes, 1)
    total = max(sum(sizes), 1)
    for row, size in enumerate(sizes):
        axes.annotate(
            f"{size:,}  ({100 * size / total:.0f} %)",
            (size, row),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=MUTED,
        )
    axes.set_xlim(0, largest * 1.4)
    axes.set_ylim(len(sizes) - 0.4, -0.6)
    axes.set_xticks([])
    axes.set_yticks(rows, names)
    style_axes(axes, grid="x")
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="y", length=0)


def draw_views(
    page: Page, left: float, top: float, width: float, item: ClassSnapshot, *, none: str
) -> None:
    """Mollweide map of the views: darker is more views per solid angle; ``none`` if it is empty."""
    density = view_density(item.view_histogram)
    ceiling = max(_VIEW_TOP, float(density.max()))
    height = width / 2
    page.image(left, top, width, height, _mollweide(density / ceiling, round(width)))
    for tilt_degrees in (30, 60, 90, 120, 150):
        theta = _mollweide_angle(math.radians(90 - tilt_degrees))
        y = top + height / 2 * (1 - math.sin(theta))
        half = width / 2 * math.cos(theta)
        middle = left + width / 2
        page.line([middle - half, middle + half], [y, y], colour="#8fa1b355", width=0.6)
    angles = np.linspace(-np.pi / 2, np.pi / 2, 91)
    for fraction in (-1, -2 / 3, -1 / 3, 0, 1 / 3, 2 / 3, 1):
        xs = left + width / 2 * (1 + fraction * np.cos(angles))
        ys = top + height / 2 * (1 - np.sin(angles))
        outline = abs(fraction) == 1
        page.line(
            xs.tolist(),
            ys.tolist(),
            colour="#9aa5b0" if outline else "#8fa1b355",
            width=1 if outline else 0.6,
        )
    covered = orientation_coverage(item.view_histogram)
    filled = fourier_coverage(item.view_histogram)
    words = f"views {100 * covered:.0f} %, Fourier space {100 * filled:.0f} %"
    if not item.view_histogram.any():
        words = none
    page.text(left + width / 2, top + height + 15, words, size=9, colour=MUTED, across="center")


def fsc_curve(fsc: FloatArray) -> tuple[npt.NDArray[np.int64], FloatArray]:
    """Give the shells that particles have entered, and the curve there."""
    filled = np.flatnonzero(fsc)  # shells that none has entered are exact zeros
    shells = np.arange(int(filled[-1]) + 1 if len(filled) else 0)
    return shells, fsc[: len(shells)]


def unassigned(snapshot: Snapshot) -> int:
    """Particles seen that are in no class."""
    return max(0, snapshot.particles_seen - sum(item.particles for item in snapshot.classes))


def is_limited(item: ClassSnapshot) -> bool:
    """Whether the curve ends above the threshold: the map is at least as good as it says."""
    return float(item.fsc[_last_shell(item.fsc)]) >= RESOLUTION_FSC


def _last_shell(fsc: FloatArray) -> int:
    """Last shell of the curve; 1 where there is none."""
    return max(1, len(fsc_curve(fsc)[0]) - 1)


def _mollweide_angle(latitude_rad: float) -> float:
    """Auxiliary angle of a parallel: 2t + sin 2t = pi sin(latitude), by Newton's method."""
    theta = latitude_rad
    for _ in range(20):
        slope = 2 + 2 * math.cos(2 * theta)
        theta -= (2 * theta + math.sin(2 * theta) - math.pi * math.sin(latitude_rad)) / slope
    return theta


def _mollweide(shares: FloatArray, width: int) -> npt.NDArray[np.uint8]:
    """Colour a (tilts, rots) array of 0..1 as an ellipse; RGBA bytes, row 0 at the bottom."""
    x = (np.arange(width) + 0.5) / width * 2 - 1
    y = (np.arange(width // 2) + 0.5) / (width // 2) * 2 - 1
    inside = x[None, :] ** 2 + y[:, None] ** 2 <= 1
    theta = np.arcsin(y)[:, None]
    latitude = np.arcsin(np.clip((2 * theta + np.sin(2 * theta)) / np.pi, -1, 1))
    longitude = np.clip(x[None, :] / np.cos(theta), -1, 1) * np.pi
    tilts, rots = shares.shape
    # Bilinear between cell centres, wrapping in rot and holding the last row at the poles.
    row = np.clip((np.pi / 2 - latitude) / np.pi * tilts - 0.5, 0, tilts - 1)
    column = (longitude + np.pi) / (2 * np.pi) * rots - 0.5
    row0 = np.minimum(row.astype(np.int64), tilts - 2)
    column0 = np.floor(column).astype(np.int64)
    down, across = row - row0, column - column0
    upper = (
        shares[row0, column0 % rots] * (1 - across) + shares[row0, (column0 + 1) % rots] * across
    )
    lower = (
        shares[row0 + 1, column0 % rots] * (1 - across)
        + shares[row0 + 1, (column0 + 1) % rots] * across
    )
    coloured: npt.NDArray[np.uint8] = _VIEW_COLOURS(upper * (1 - down) + lower * down, bytes=True)
    coloured[..., 3] = np.where(inside, 255, 0)
    return coloured
