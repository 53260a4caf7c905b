"""Scores behind the naming of symmetry: which maps are named, which stay silent, and by how much.

Run from the repository root, with the data folder in ``ABINITIO_DATA``; the table is printed and
saved beside the other results (about three minutes on one core):

    python -m benchmarks.symmetry_naming --save benchmarks/results

Each map of a known group is turned, shifted and given noise so that it correlates with the truth
at 0.5 at the stated shell, as reconstructions do; discs, rods and balls stand for failed starts.
``ablation`` shows what the rule's parts are worth: the same scores judged with one part left out.
Silence on a map with symmetry counts as "silent", a supergroup or another group as "wrong".
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.sets import load
from benchmarks.symmetric_maps import ball, blobs, degraded, disc, rod, shell
from reconstruct.rotations import random_rotations
from reconstruct.symmetry import is_subgroup, parse_group
from reconstruct.symmetry_naming import Rule, decide, name_symmetry

__all__ = ["main"]

Float32 = npt.NDArray[np.float32]

MOLECULES = ("groel", "virus", "beta_galactosidase", "trpv1", "ribosome", "demo")
GROUPS = ("C1", "C2", "C3", "C5", "C7", "D2", "D4", "D7", "T", "O", "I")
SHELLS = (12.0, 9.0, 7.0, 5.0)


def maps(data: Path, seeds: int) -> Iterator[tuple[str, str, str, Float32]]:
    """Kind of map, true group, noise, map."""
    for molecule in MOLECULES:
        recipe = load(molecule, data, n_particles=1)
        truth = recipe.species[0].volume
        yield molecule, recipe.symmetry, "none", truth
        for radius in SHELLS:
            rng = np.random.default_rng(0)
            yield molecule, recipe.symmetry, f"{radius:.0f}", degraded(truth, rng, radius=radius)
    for seed in range(seeds):
        for make, groups in ((blobs, GROUPS), (shell, ("T", "O", "I"))):
            for name in groups:
                rng = np.random.default_rng([seed, parse_group(name).order])
                truth = make(
                    name,
                    rng,
                    rotation=random_rotations(rng, 1)[0],
                    displacement_pixels=rng.uniform(-1.5, 1.5, 3),
                )
                for radius in SHELLS:
                    noisy = degraded(truth, rng, radius=radius)
                    yield make.__name__, name, f"{radius:.0f}", noisy
        for shape in (disc, rod, ball):
            yield shape.__name__, "C1", "none", shape(np.random.default_rng(seed))


RULES: Mapping[str, Rule] = {
    "as it is": Rule(),
    "no least score": Rule(least=0.0),
    "least score 0.3": Rule(least=0.3),
    "any angle about an axis ignored": Rule(above_continuous=-9.0),
    "other groups ignored": Rule(above_others=0.0),
    "subgroups ignored": Rule(of_parts=0.0),
}


def outcome(named: str, truth: str) -> str:
    """``right``, ``silent``, ``part`` (a true subgroup) or ``wrong``."""
    if named == truth:
        return "right"
    if named == "C1":
        return "silent"
    return "part" if is_subgroup(named, truth) else "wrong"


def main() -> None:
    """Print the table and save it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--save", type=Path, help="folder of the result file")
    parser.add_argument("--seeds", type=int, default=2, help="maps of each kind made in code")
    parser.add_argument("--label", default=platform.machine(), help="machine, for the file's name")
    arguments = parser.parse_args()
    data = Path(os.environ.get("ABINITIO_DATA", "../shared/data"))
    lines = [
        f"rule: {Rule()}",
        "",
        f"{'map':20}{'truth':7}{'noise':7}{'named':7}{'score':>6}{'next':>10}{'any angle':>11}"
        f"{'s':>6}  outcome",
    ]
    counts: dict[str, Counter[str]] = {label: Counter() for label in RULES}
    for kind, truth, noise, volume in maps(data, arguments.seeds):
        began = time.process_time()
        verdict = name_symmetry(volume, radius=9)
        seconds = time.process_time() - began
        for label, rule in RULES.items():
            named = decide(verdict.scores, verdict.continuous_score, rule)
            counts[label][outcome(named, truth)] += 1
        lines.append(
            f"{kind:20}{truth:7}{noise:7}{verdict.group:7}{verdict.score:6.2f}"
            f"{verdict.runner_up:>5}{verdict.runner_up_score:5.2f}{verdict.continuous_score:11.2f}"
            f"{seconds:6.2f}  {outcome(verdict.group, truth)}"
        )
        print(lines[-1], flush=True)
    lines += ["", f"{'ablation':34}{'right':>7}{'silent':>8}{'part':>6}{'wrong':>7}"]
    lines += [
        f"{label:34}{count['right']:7}{count['silent']:8}{count['part']:6}{count['wrong']:7}"
        for label, count in counts.items()
    ]
    print("\n".join(lines[-len(RULES) - 1 :]))
    if arguments.save:
        path = arguments.save / f"symmetry-naming-{arguments.label}.txt"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
