"""Responsibilities of the classes: what each holds of a particle, blurred while they are alike.

CryoSPARC's class similarity: early on, a particle that several classes could explain is shared more
evenly among them than the posterior says, so that no class runs away with all of them. The blur is
annealed away with the particles presented.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from reconstruct.search import Poses

__all__ = ["blur_classes", "class_mass", "similarity_at"]

Float32 = npt.NDArray[np.float32]


def class_mass(poses: Poses, weights: Float32, n_classes: int) -> Float32:
    """Posterior mass (b, K) of each class."""
    of_class = poses.class_index[:, :, None] == np.arange(n_classes)
    mass: Float32 = (weights[:, :, None] * of_class).sum(axis=1)
    return mass


def blur_classes(poses: Poses, weights: Float32, n_classes: int, similarity: float) -> Float32:
    """Move ``similarity`` of each particle's mass evenly onto the classes that kept a cell.

    Within a class the weights of poses keep their proportions; rows still sum to 1.

    Parameters
    ----------
    weights
        (b, keep) posterior weights, 0 for cells that are not valid.
    similarity
        0 leaves the posterior as it is, 1 makes all classes that kept a cell equal.
    """
    if similarity <= 0 or n_classes == 1:
        return weights
    mass = class_mass(poses, weights, n_classes)
    kept = mass > 0
    even = kept / np.maximum(kept.sum(axis=1, keepdims=True), 1)
    wanted = (1 - similarity) * mass + similarity * even
    gain = np.where(kept, wanted / np.where(kept, mass, 1), 0).astype(np.float32)
    blurred: Float32 = weights * np.take_along_axis(gain, poses.class_index.astype(np.intp), axis=1)
    return blurred


def similarity_at(presented: float, similarity: float, *, cold_presented: int) -> float:
    """Class similarity in force: as set while cold, annealed to 0 over as many particles again."""
    share = min(1.0, max(0.0, 2.0 - presented / cold_presented))
    return similarity * share
