"""Two classes of one complex: one map of all their particles, told apart by a difference map.

Classes that share most of their structure are not worth two independent maps: each would have half
of the particles, and at most frequencies what differs between them would be noise, which decides
about particles all the same. Siblings hold statistics of their own, so nothing that is added up is
lost, but their maps are the map of both together plus a difference, which only ``splitting`` makes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from reconstruct.backend import Backend
from reconstruct.update import symmetric_plane

__all__ = ["Siblings", "class_crop", "dump_siblings", "move", "restore_siblings"]

Complex64 = npt.NDArray[np.complex64]
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Siblings:
    """Two classes and what sets each of them off from the map of both."""

    classes: tuple[int, int]
    differences: Complex64  # (2, g, g, r + 1) centred half cubes, as ``update.quotient`` makes maps


def class_crop(
    statistics: Any,
    halves: tuple[int, ...],
    k: int,
    *,
    reach: int,
    siblings: Siblings | None,
    backend: Backend,
) -> Float32:
    """Statistics (g, g, reach + 1, 3) that the map of class ``k`` is made from, on the host.

    Those of some half-sets together; of siblings the sum of both classes, its numerator moved by
    the difference, so that the quotient comes out as the map of both plus the difference.
    """
    sibling = siblings is not None and k in siblings.classes
    held = siblings.classes if siblings is not None and sibling else (k,)
    places = [(h, j) for h in halves for j in held]
    total = sum((statistics[place] for place in places[1:]), statistics[places[0]])
    crop = symmetric_plane(backend.asnumpy(total), reach)
    if siblings is None or not sibling:
        return crop
    move(crop, siblings.differences[siblings.classes.index(k)])
    return crop


def move(statistics: Float32, difference: Complex64) -> None:
    """Add a difference (g, g, r + 1) to the map that statistics (g, g, .., 3) of a class hold."""
    reach, own = (statistics.shape[0] - 1) // 2, difference.shape[2] - 1
    common = min(own, reach)
    mine, its = (slice(r - common, r + common + 1) for r in (reach, own))
    moved = statistics[mine, mine, : common + 1]
    part = difference[its, its, : common + 1]
    moved[..., 0] += moved[..., 2] * part.real
    moved[..., 1] += moved[..., 2] * part.imag


def dump_siblings(siblings: Siblings | None) -> dict[str, npt.NDArray[np.generic]]:
    """Arrays of a checkpoint: none where no classes are siblings."""
    if siblings is None:
        return {}
    flat = siblings.differences.view(np.float32).copy()
    return {"sibling_classes": np.array(siblings.classes, np.int64), "sibling_differences": flat}


def restore_siblings(arrays: dict[str, npt.NDArray[Any]]) -> Siblings | None:
    """What ``dump_siblings`` returned."""
    if "sibling_classes" not in arrays:
        return None
    first, second = (int(k) for k in arrays["sibling_classes"])
    flat = np.ascontiguousarray(arrays["sibling_differences"], np.float32)
    return Siblings((first, second), flat.view(np.complex64))
