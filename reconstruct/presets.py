"""Named sets of settings for samples that need others than the defaults.

A preset is only a starting point: whatever a user sets explicitly wins over it. What each is for is
said here once, and shown by the command line and in docs/parameters.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reconstruct.types import EngineSettings

__all__ = ["PRESETS", "Preset"]


@dataclass(frozen=True)
class Preset:
    """Values for some of the engine's settings, and when to use them.

    Raises
    ------
    TypeError, ValueError
        There is no such setting, or a value is out of its range.
    """

    purpose: str
    settings: Mapping[str, Any]

    def __post_init__(self) -> None:
        """Refuse a preset that no session could have."""
        EngineSettings(**self.settings)


PRESETS: Mapping[str, Preset] = {
    "high-symmetry": Preset(
        purpose="D, T, O or I particles: starts in C1, names the group and takes it up",
        settings={
            "symmetry": "auto",
            "race_starts": 6,  # near-spherical particles have more local minima
            "max_resolution_angstrom": 9.0,
        },
    ),
    "junk-removal": Preset(
        purpose="many poor particles: several coarse classes, cheap, to keep some and drop others",
        settings={
            "n_classes": 5,
            "class_similarity": 0.0,  # junk and particles are not alike
            "max_resolution_angstrom": 16.0,
            "race_starts": 3,
            "replay_passes": 1,
        },
    ),
    "small-membrane-protein": Preset(
        purpose="under 150 kDa or in a micelle: low contrast, and little but the micelle at 20 Å",
        settings={
            "minibatch_final": 600,
            "max_resolution_angstrom": 8.0,
            "n_classes": 2,  # one for empty micelles
        },
    ),
}
