"""Kernels of every kind under one fixture, and arguments that exercise them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from reconstruct.fourier import HalfPlane, make_half_plane
from reconstruct.rotations import child_offsets, random_rotations
from reconstruct.update import MapGrid

__all__ = ["Implementation", "PoseCase", "pose_case"]

BOX, RADIUS, CLASSES, SCALE = 32, 9, 2, 2.0


@dataclass(frozen=True)
class Implementation:
    """One set of kernels and the way to its arrays."""

    name: str
    kernels: Any
    put: Callable[[Any], Any]  # NumPy array to the kernels' array
    get: Callable[[Any], npt.NDArray[Any]]
    paired: bool = False  # whether its cubes hold each value with the next along x

    def cubes(self, plain: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Cubes (m, g, g, g, 2) as these kernels take them."""
        if not self.paired:
            return plain
        following = np.zeros_like(plain)
        following[:, :, :, :-1] = plain[:, :, :, 1:]
        return np.concatenate([plain, following], axis=-1)

    def call(
        self, kernel: str, *arguments: Any, out: tuple[int, ...], **extra: Any
    ) -> list[npt.NDArray[Any]]:
        """Run a kernel on copies of the arguments; return those at the places ``out``."""
        moved = [self.put(one.copy()) if isinstance(one, np.ndarray) else one for one in arguments]
        getattr(self.kernels, kernel)(*moved, **extra)
        return [self.get(moved[place]) for place in out]


@dataclass(frozen=True)
class PoseCase:
    """Particles with cells that share rotations and shifts, as the search makes them."""

    plane: HalfPlane
    grid: MapGrid
    cubes: npt.NDArray[np.float32]  # (K, g, g, g, 2)
    a_re: npt.NDArray[np.float32]
    a_im: npt.NDArray[np.float32]
    c2: npt.NDArray[np.float32]
    rotation: npt.NDArray[np.float32]  # (b, capacity, 9)
    rotation_id: npt.NDArray[np.int32]
    shift: npt.NDArray[np.float32]
    shift_id: npt.NDArray[np.int32]
    class_index: npt.NDArray[np.int32]
    weight: npt.NDArray[np.float32]
    count: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.float32]  # (8, 9)
    log_prior: npt.NDArray[np.float32]


def pose_case(particles: int = 5, capacity: int = 12, seed: int = 0) -> PoseCase:
    """Random cubes, spectra and cells; the first particle has one cell, the last all."""
    rng = np.random.default_rng(seed)
    plane = make_half_plane(BOX, RADIUS)
    grid = MapGrid(BOX, SCALE, 12.0)
    g = 2 * grid.reach(RADIUS) + 1
    n = len(plane.kx) + 3  # rows longer than what is used

    def normal(*shape: int) -> npt.NDArray[np.float32]:
        return rng.standard_normal(shape).astype(np.float32)

    rotations = random_rotations(rng, 5).reshape(-1, 9).astype(np.float32)
    shifts = rng.uniform(-3, 3, (4, 2)).astype(np.float32)
    of_rotation = rng.integers(0, CLASSES, 5).astype(np.int32)
    rotation_id = rng.integers(0, 5, (particles, capacity)).astype(np.int32)
    shift_id = rng.integers(0, 4, (particles, capacity)).astype(np.int32)
    count = np.linspace(1, capacity, particles).astype(np.int32)
    weight = rng.uniform(0, 1, (particles, capacity)).astype(np.float32)
    weight[:, 1::4] = 0  # cells without weight
    weight *= np.arange(capacity) < count[:, None]
    return PoseCase(
        plane=plane,
        grid=grid,
        cubes=0.3 * normal(CLASSES, g, g, g, 2),
        a_re=normal(particles, n),
        a_im=normal(particles, n),
        c2=rng.uniform(0, 1, (particles, n)).astype(np.float32),
        rotation=rotations[rotation_id],
        rotation_id=rotation_id,
        shift=shifts[shift_id],
        shift_id=shift_id,
        class_index=of_rotation[rotation_id],
        weight=weight / weight.sum(axis=1, keepdims=True),
        count=count,
        offsets=child_offsets(0.3).reshape(8, 9).astype(np.float32),
        log_prior=np.log(np.array([0.7, 0.3], np.float32)),
    )
