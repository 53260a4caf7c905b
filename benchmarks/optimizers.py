"""Settings beside each other, online EM and gradient descent first: the same particles and seeds.

Promise: one process, one set, every seed under every rule; CPU-seconds are this process's own
around the engine's work, maps are compared with the truth in both hands at FSC 0.5.

    python -m benchmarks.optimizers --seeds 3 --particles 3000
    python -m benchmarks.optimizers --rules em sgd:0.7 sgd:0.4:0.9      (rate, momentum)
    python -m benchmarks.optimizers --rules em noise_source=residuals,noise_initial_weight=500
"""

from __future__ import annotations

import argparse
import ast
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.sets import StandardSet, load
from reconstruct.engine import Engine
from reconstruct.quality import align_to_truth
from reconstruct.types import EngineSettings, ParticleImages

__all__ = ["main", "rule"]

CONVERGED_ANGSTROM = 30.0  # FSC 0.5 with the truth; failed starts end at 38 A and above


def rule(words: str, base: EngineSettings) -> EngineSettings:
    """Settings for ``em``, ``sgd:rate``, ``sgd:rate:momentum`` or ``name=value,name=value``."""
    if "=" in words:
        pairs = (pair.partition("=")[::2] for pair in words.split(","))
        return replace(base, **{name: _value(value) for name, value in pairs})
    name, *numbers = words.split(":")
    if name == "em":
        return replace(base, optimizer="em")
    rate = float(numbers[0]) if numbers else base.learning_rate
    momentum = float(numbers[1]) if len(numbers) > 1 else base.momentum
    return replace(base, optimizer="sgd", learning_rate=rate, momentum=momentum)


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except ValueError:
        return text


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--set", default="ribosome")
    parser.add_argument("--particles", type=int, default=3000)
    parser.add_argument("--snr", type=float, default=0.1)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--starts", type=int, default=4, help="random starts in the race")
    parser.add_argument("--replay", type=int, default=1)
    parser.add_argument("--rules", nargs="+", default=["em", "sgd:0.4", "sgd:0.7", "sgd:0.4:0.9"])
    options = parser.parse_args(arguments)
    data = Path(os.environ.get("ABINITIO_DATA", "../shared/data"))
    chosen = load(options.set, data, n_particles=options.particles)
    chosen = replace(chosen, settings=replace(chosen.settings, snr=options.snr))
    particles = chosen.particles().particle_images()
    print(
        f"{options.set}: {options.particles} particles, SNR {options.snr:g}, {options.starts} "
        f"starts, {options.replay} replay; {_processor()}, {os.cpu_count()} cores"
    )
    print("rule                         seed    nats   L  truth A  claim A   CPU s")
    for words in options.rules:
        found = []
        for seed in range(options.seeds):
            base = EngineSettings(
                seed=seed, race_starts=options.starts, replay_passes=options.replay
            )
            found.append(_run(words, rule(words, base), particles, chosen))
        good = sum(resolution < CONVERGED_ANGSTROM for resolution in found)
        print(
            f"{words:<28} converged {good} of {options.seeds}, median {np.median(found):.1f} A",
            flush=True,
        )


def _run(
    words: str, settings: EngineSettings, particles: ParticleImages, chosen: StandardSet
) -> float:
    engine = Engine(settings, chosen.geometry)
    began = time.process_time()
    engine.add(particles)
    reports = []
    while engine.ready:
        reports.append(engine.step())
    reports += list(engine.finish())
    spent_s = time.process_time() - began
    one = engine.snapshot().classes[0]
    truth = align_to_truth(
        one.volume, chosen.species[0].volume, chosen.geometry.pixel_size_angstrom
    ).resolution_angstrom
    nats = float(np.mean([report.evidence_per_particle for report in reports[-5:]]))
    claim = "-" if one.resolution_angstrom is None else f"{one.resolution_angstrom:.1f}"
    print(
        f"{words:<28} {settings.seed:>4} {nats:>7.1f} {engine.step_radius:>3} {truth:>8.1f} "
        f"{claim:>8} {spent_s:>7.1f}",
        flush=True,
    )
    return truth


if __name__ == "__main__":
    main()
