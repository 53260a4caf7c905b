"""Typography, colours and the pixel page that every picture of this project shares.

Promise: no global Matplotlib state is read for style or changed; positions are pixels from the top
left corner of the page.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

__all__ = [
    "CLASS_COLOURS",
    "GRID",
    "INK",
    "MUTED",
    "WARNING",
    "Page",
    "class_colour",
    "resolution_ticks",
    "resolution_words",
    "style_axes",
]

INK = "#1b2530"
MUTED = "#66727f"
WARNING = "#b3261e"
GRID = "#dfe4e8"
CLASS_COLOURS = (
    "#2f6db5",
    "#e07b1a",
    "#2c9a57",
    "#c8383b",
    "#7d5bb5",
    "#149cab",
    "#b08512",
    "#d5579b",
    "#6b7d2e",
    "#7a5a44",
)

_DPI = 100
_FONT = "DejaVu Sans"  # ships with Matplotlib, so pictures look the same everywhere
_NICE_RESOLUTIONS_ANGSTROM = (
    *(200.0, 100.0, 50.0, 40.0, 30.0, 25.0, 20.0, 17.0, 15.0, 13.0, 12.0, 11.0, 10.0, 9.0, 8.0),
    *(7.0, 6.0, 5.0, 4.5, 4.0, 3.5, 3.0, 2.5, 2.0, 1.5, 1.0),
)
# Matplotlib's font and text caches are shared between figures; drawing takes tens of milliseconds
# a snapshot, so one at a time is the cheap way to be safe.
_DRAWING = threading.Lock()


def class_colour(index: int) -> str:
    """Colour of a class, 0-based; repeats after ten."""
    return CLASS_COLOURS[index % len(CLASS_COLOURS)]


def resolution_words(resolution_angstrom: float | None, *, none: str = "not yet") -> str:
    """Resolution for people: ``13.8 Å``, or ``none`` for one that is not there."""
    return none if resolution_angstrom is None else f"{resolution_angstrom:.1f} Å"


def resolution_ticks(lowest: float, highest: float, *, count: int) -> tuple[list[float], list[str]]:
    """Places and labels for an axis linear in 1/Å that reads in Å.

    Parameters
    ----------
    lowest, highest
        Ends of the axis in 1/Å.
    count
        About how many ticks fit; two are never closer than the axis divided by this.
    """
    places: list[float] = []
    labels: list[str] = []
    closest = (highest - lowest) / count
    for resolution_angstrom in _NICE_RESOLUTIONS_ANGSTROM:
        place = 1.0 / resolution_angstrom
        if place < lowest or place > highest * (1 + 1e-9):
            continue
        if places and place - places[-1] < closest:
            continue
        places.append(place)
        labels.append(f"{resolution_angstrom:g}")
    return places, labels


def style_axes(axes: Axes, *, grid: Literal["x", "y", "both"] = "y") -> None:
    """Thin left and bottom axes, a light grid behind the data, small muted tick labels."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#9aa5b0")
        axes.spines[side].set_linewidth(0.8)
    axes.set_facecolor("white")
    axes.set_axisbelow(True)
    axes.grid(True, axis=grid, color=GRID, linewidth=0.7)
    axes.tick_params(length=3, width=0.8, color="#9aa5b0", labelsize=9, labelcolor=MUTED)
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        label.set_fontfamily(_FONT)


class Page:
    """A white page measured in pixels from the top left, with a canvas for text and images."""

    def __init__(self, width: int, height: int) -> None:
        self.width = width
        self.height = height
        self.figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor="white")
        self.canvas = self.axes(0, 0, width, height)
        self.canvas.set_axis_off()
        self._fit_canvas()

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Add axes whose frame is the given box."""
        bottom = self.height - top - height
        box = (
            left / self.width,
            bottom / self.height,
            width / self.width,
            height / self.height,
        )
        return self.figure.add_axes(box)

    def text(
        self,
        left: float,
        top: float,
        words: str,
        *,
        size: float = 10,
        colour: str = INK,
        bold: bool = False,
        across: Literal["left", "center", "right"] = "left",
        down: Literal["top", "center", "bottom", "baseline"] = "baseline",
    ) -> Text:
        """Write words; ``left`` and ``top`` are the anchor that ``across`` and ``down`` name."""
        return self.canvas.text(
            left,
            top,
            words,
            fontsize=size,
            color=colour,
            fontweight="bold" if bold else "normal",
            fontfamily=_FONT,
            ha=across,
            va=down,
            parse_math=False,
        )

    def heading(self, left: float, top: float, words: str) -> None:
        """Write the bold heading of a panel, its baseline at ``top``."""
        self.text(left, top, words, size=11, bold=True)

    def line(self, xs: Sequence[float], ys: Sequence[float], *, colour: str, width: float) -> None:
        """Draw a polyline."""
        self.canvas.plot(xs, ys, color=colour, linewidth=width, solid_capstyle="butt")

    def image(
        self, left: float, top: float, width: float, height: float, pixels: npt.NDArray[np.uint8]
    ) -> None:
        """Show grey (n, m) or RGBA (n, m, 4) bytes with row 0 at the bottom."""
        self.canvas.imshow(
            pixels,
            cmap="gray",
            vmin=0,
            vmax=255,
            origin="lower",
            extent=(left, left + width, top + height, top),
            interpolation="bicubic" if pixels.ndim == 2 else "bilinear",
            aspect="auto",
        )
        self._fit_canvas()

    def png(self) -> bytes:
        """Render."""
        buffer = io.BytesIO()
        with _DRAWING:
            FigureCanvasAgg(self.figure)  # a Figure keeps the canvas made for it
            self.figure.savefig(
                buffer,
                format="png",
                dpi=_DPI,
                metadata={"Software": None},
                pil_kwargs={"compress_level": 2},
            )
        return buffer.getvalue()

    def _fit_canvas(self) -> None:
        self.canvas.set_xlim(0, self.width)
        self.canvas.set_ylim(self.height, 0)
