"""An engine's changing state as plain values: a JSON-able dict and arrays under stable names.

The names are those in checkpoint files. What a store holds that never changes is not part of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy.typing as npt

from reconstruct.learner import Learner
from reconstruct.learner_state import dump_learner
from reconstruct.noise import NoiseSpectra
from reconstruct.store import ParticleStore
from reconstruct.types import Optics

__all__ = [
    "Arrays",
    "check_version",
    "learner_arrays",
    "pack",
    "plain_fields",
    "take_fields",
    "unpack_optics",
    "unpack_store",
]

Arrays = dict[str, npt.NDArray[Any]]

VERSION = 5


def pack(
    counters: Mapping[str, int | float | bool | str],
    *,
    optics: Sequence[Optics],
    noise: NoiseSpectra,
    store: ParticleStore,
    learners: Sequence[Learner],
    more: Mapping[str, npt.NDArray[Any]],
) -> tuple[dict[str, Any], Arrays]:
    """Copy everything that changes."""
    meta: dict[str, Any] = {
        "version": VERSION,
        **counters,
        "optics": [
            [one.voltage_kv, one.spherical_aberration_mm, one.amplitude_contrast] for one in optics
        ],
        "learners": [],
    }
    arrays: Arrays = {**noise.dump(), **more}
    arrays |= {f"store.{name}": array for name, array in store.dump().items()}
    for number, learner in enumerate(learners):
        learner_meta, of_learner = dump_learner(learner)
        meta["learners"].append(learner_meta)
        for name, array in of_learner.items():
            arrays[f"learner{number}.{name}"] = array
    return meta, arrays


def plain_fields(holder: object) -> dict[str, Any]:
    """Fields of a dataclass of numbers and tuples of numbers, as JSON has them."""
    return {name: list(v) if isinstance(v, tuple) else v for name, v in vars(holder).items()}


def take_fields(holder: object, meta: Mapping[str, Any]) -> None:
    """Give ``holder`` the fields that ``plain_fields`` returned."""
    for name, value in meta.items():
        setattr(holder, name, tuple(value) if isinstance(value, list) else value)


def check_version(meta: Mapping[str, Any]) -> None:
    """Refuse a state that another version wrote.

    Raises
    ------
    ValueError
        The state is of another version.
    """
    if meta["version"] != VERSION:
        raise ValueError(f"engine state of version {meta['version']}, this program reads {VERSION}")


def unpack_optics(meta: Mapping[str, Any]) -> list[Optics]:
    """Optics groups in the order that the store's rows count them."""
    return [
        Optics(voltage, spherical, amplitude) for voltage, spherical, amplitude in meta["optics"]
    ]


def unpack_store(arrays: Mapping[str, npt.NDArray[Any]], store: ParticleStore) -> None:
    """Give the store's rows what was known of each particle."""
    prefix = "store."
    store.restore({n[len(prefix) :]: a for n, a in arrays.items() if n.startswith(prefix)})


def learner_arrays(arrays: Mapping[str, npt.NDArray[Any]], number: int) -> Arrays:
    """Arrays of learner ``number`` under its own names."""
    prefix = f"learner{number}."
    return {name[len(prefix) :]: a for name, a in arrays.items() if name.startswith(prefix)}
