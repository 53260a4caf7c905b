"""Ground of the wire models: immutability, bounded field types and tolerance of newer minors.

Every model is frozen and refuses unknown fields; only a reader that already knows that the record
has a newer minor version passes `TOLERATE_UNKNOWN` and gets unknown fields dropped. Numbers are
strict (no text, no booleans, no NaN or infinity): callers turn NumPy scalars into Python ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationInfo,
    model_validator,
)

__all__ = [
    "MAX_ROWS",
    "TOLERATE_UNKNOWN",
    "Box",
    "ClassIndex",
    "Count",
    "FiniteFloat",
    "Fraction",
    "Identifier",
    "Label",
    "Message",
    "Name",
    "Phase",
    "PixelSizeAngstrom",
    "PositiveFloat",
    "Sha256",
    "TimestampNs",
    "Values",
    "WireModel",
]

MAX_ROWS: Final = 65_536
"""Most rows (particles) in one record."""

TOLERATE_UNKNOWN: Final[Mapping[str, bool]] = MappingProxyType({"tolerate_unknown": True})
"""Validation context of a reader that meets a newer minor version."""

_MAX_COUNT: Final = 2**53  # what a JSON number carries exactly in every language


def _freeze(values: Mapping[str, float]) -> Mapping[str, float]:
    return MappingProxyType(dict(values))


Box = Annotated[int, Field(strict=True, ge=16, le=1024)]
ClassIndex = Annotated[int, Field(strict=True, ge=0, le=1023)]
Count = Annotated[int, Field(strict=True, ge=0, le=_MAX_COUNT)]
FiniteFloat = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Fraction = Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)]
PositiveFloat = Annotated[float, Field(strict=True, gt=0, le=1e9, allow_inf_nan=False)]
PixelSizeAngstrom = Annotated[float, Field(strict=True, gt=0, le=100, allow_inf_nan=False)]
TimestampNs = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
Identifier = Annotated[str, Field(max_length=200, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]*$")]
Label = Annotated[str, Field(max_length=64, pattern=r"^[a-z0-9][a-z0-9_.]*$")]
Message = Annotated[str, Field(max_length=4096)]
Name = Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^[^\x00-\x1f\x7f]+$")]
Phase = Literal["waiting", "initial", "intermediate", "final"]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Values = Annotated[
    Mapping[Name, FiniteFloat],
    Field(max_length=256),
    AfterValidator(_freeze),
    PlainSerializer(dict, return_type=dict[str, float]),
]


class WireModel(BaseModel):
    """A frozen model that refuses unknown fields unless the reader was told to drop them."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

    @model_validator(mode="before")
    @classmethod
    def _drop_unknown(cls, data: Any, info: ValidationInfo) -> Any:
        """Drop fields this version does not know when the reader met a newer minor."""
        if info.context is TOLERATE_UNKNOWN and isinstance(data, dict):
            return {name: value for name, value in data.items() if name in cls.model_fields}
        return data
