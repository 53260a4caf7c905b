"""Say in words what is wrong with an input file and what to do about it.

``InputFileError`` is for what stops a run at its start; where a session must go on, the caller
turns ``reason`` and ``detail`` into a rejection.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

__all__ = ["FileReason", "InputFileError"]

FileReason = Literal[
    "aberrations",
    "box",
    "empty",
    "frame_beyond_stack",
    "malformed",
    "missing_column",
    "missing_file",
    "missing_stack",
    "mixed_contrast",
    "mixed_pixel_size",
    "modified_ctf",
    "pixel_size",
    "subtomograms",
    "truncated",
    "unsupported",
]

# What a file that somebody else is still writing may look like for a moment.
PASSING_REASONS: frozenset[str] = frozenset(
    {"empty", "malformed", "missing_file", "missing_stack", "truncated"}
)


class InputFileError(Exception):
    """A file that cannot be used.

    Attributes
    ----------
    path
        The file.
    detail
        What is wrong, naming the column, row or value.
    remedy
        What the user can do.
    reason
        One word for counters and rejections.
    """

    def __init__(self, path: Path | str, detail: str, *, remedy: str, reason: FileReason) -> None:
        super().__init__(f"{path}: {detail}. {remedy}.")
        self.path = Path(path)
        self.detail = detail
        self.remedy = remedy
        self.reason: FileReason = reason

    @property
    def may_pass(self) -> bool:
        """Whether a later read of a live file may succeed."""
        return self.reason in PASSING_REASONS
