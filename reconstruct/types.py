"""What goes into the engine and what comes out: plain arrays with names, shapes and units.

Conventions, stated once (tests/reconstruct/test_euler.py has numeric vectors):

- axis order of arrays is (class, particle, z, y, x); angles are radians, lengths Angstrom;
- a rotation ``A`` is the RELION ZYZ matrix that maps the volume frame to the image frame, so the
  central slice of an image samples the volume's transform at ``A.T @ (x, y, 0)``;
- translating an image by ``+shift`` (x, y) centres its particle (``rlnOriginX/YAngst``);
- particles are bright: protein has higher values than solvent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

__all__ = [
    "Assignments",
    "Centring",
    "ClassSnapshot",
    "EngineEvent",
    "EngineSettings",
    "FloatArray",
    "Geometry",
    "IntArray",
    "NoiseKind",
    "NoiseSource",
    "Nonnegativity",
    "Optics",
    "OptimizerName",
    "ParticleImages",
    "Phase",
    "PoseSearch",
    "SearchCount",
    "SearchKind",
    "Snapshot",
    "StepReport",
    "StorePrecision",
    "WhyNone",
]

FloatArray = npt.NDArray[np.floating]
IntArray = npt.NDArray[np.integer]
Centring = Literal["on", "off"]
NoiseKind = Literal["coloured", "white"]
NoiseSource = Literal["outside", "residuals"]
Nonnegativity = Literal["auto", "on", "off"]
OptimizerName = Literal["em", "sgd"]
StorePrecision = Literal["float32", "float16"]
Phase = Literal["waiting", "initial", "intermediate", "final"]
WhyNone = Literal[
    "racing",
    "sharing",
    "few_particles",
    "noise",
    "starts_disagree",
    "in_doubt",
    "near_ball",
    "halves_disagree",
]
PoseSearch = Literal["exhaustive", "branch_and_bound"]
SearchKind = Literal["exhaustive", "branch_and_bound", "local", "audit"]


@dataclass(frozen=True)
class Optics:
    """Microscope constants shared by the particles of one optics group."""

    voltage_kv: float
    spherical_aberration_mm: float
    amplitude_contrast: float


@dataclass(frozen=True)
class Geometry:
    """The sampling that every particle of one session shares."""

    box: int
    pixel_size_angstrom: float

    @property
    def box_angstrom(self) -> float:
        """Edge of the particle image in Angstrom: radius ``r`` is a resolution of edge / r."""
        return self.box * self.pixel_size_angstrom


@dataclass(frozen=True)
class ParticleImages:
    """Checked particles on their way into the engine; every array has one row per particle."""

    images: FloatArray  # (n, box, box) float16 or float32, bright protein
    particle_ids: npt.NDArray[np.uint64]  # (n,) stable 64-bit identity; decides the half-set
    defocus_u_angstrom: FloatArray  # (n,) positive is underfocus
    defocus_v_angstrom: FloatArray  # (n,)
    defocus_angle_rad: FloatArray  # (n,)
    phase_shift_rad: FloatArray  # (n,)
    optics_group: IntArray  # (n,) index into ``optics``
    optics: tuple[Optics, ...]

    def __len__(self) -> int:
        return len(self.images)

    def span(self, rows: slice) -> ParticleImages:
        """The particles ``rows``, as views."""
        columns = {name: getattr(self, name)[rows] for name in vars(self) if name != "optics"}
        return ParticleImages(**columns, optics=self.optics)


@dataclass(frozen=True)
class EngineSettings:
    """What a user may set; the defaults are what a user would pick.

    Raises
    ------
    ValueError
        A value outside its range; the message names the parameter and the range.
    """

    n_classes: int = 1
    symmetry: str = "C1"  # or "auto": named in the C1 map, then taken up
    max_resolution_angstrom: float | None = None  # None: 12, or 9.6 where T, O or I is named
    initial_resolution_angstrom: float | None = None  # None: start at radius 5, as measured best
    mask_diameter_angstrom: float | None = None  # None: 0.85 of the box
    max_shift_angstrom: float | None = None  # None: 1/16 of the box
    race_starts: int | None = None  # random starts raced on the first particles; None: ``starts``
    race_particles: int = 1000
    race_epochs: int = 3  # times the race presents them
    start_stretch: float | None = None  # of numbers of the start; None: by the first particles
    initial_presentations: int = 1500  # in small minibatches, with the shortest memory
    presentations_per_shell: int = 300  # between two growths of the working radius, at least
    minibatch_initial: int = 50  # particles per update while cold; twice as many for classes
    minibatch_final: int = 300  # after; twice as many for several classes
    particles_to_use: int | None = None  # None: all
    stream_replays: float | None = None  # earlier particles for each new one; None: 0, serve 2
    replay_passes: int | None = None  # None: 2, and up to 8 for fewer than 5,000 particles
    class_similarity: float = 0.1
    initial_ess_fraction: float = 0.0  # of candidate poses that carry weight at first; 0: T = 1
    optimizer: OptimizerName = "em"
    learning_rate: float = 0.4  # sgd: of the first 100 updates, falling after them
    momentum: float = 0.0  # sgd: share of the last step that is taken again
    nonnegativity: Nonnegativity = "off"  # of the maps that particles are scored against
    centring: Centring = "on"  # of maps on their particles' boxes
    noise_model: NoiseKind = "coloured"
    noise_source: NoiseSource = "outside"
    noise_prior_weight: float = 50.0  # images' worth of all groups' mean in each group's spectrum
    noise_initial_weight: float = 5000.0  # images' worth of the outside estimate beside residuals
    store_particles: int | None = None  # trained particles kept for replay; None: all
    store_precision: StorePrecision = "float32"
    pose_search: PoseSearch = "exhaustive"  # faster at equal accuracy, as measured
    seed: int = 0

    @property
    def finest_angstrom(self) -> float:
        """Finest detail used: of ball-like particles the fine shells tell the views."""
        if self.max_resolution_angstrom is not None:
            return self.max_resolution_angstrom
        return 9.6 if self.cubic else 12.0

    @property
    def starts(self) -> int:
        """Random starts that are raced: a map of several classes may be found again alone."""
        if self.race_starts is not None:
            return self.race_starts
        return 4 if self.n_classes == 1 else 2

    @property
    def cubic(self) -> bool:
        """Whether a cubic group is named, as of particles that may be nearly balls."""
        return self.symmetry.strip().upper() in _CUBIC

    def __post_init__(self) -> None:
        """Refuse values that no run can honour."""
        positive = {
            "n_classes": self.n_classes,
            "max_resolution_angstrom": self.max_resolution_angstrom,
            "initial_presentations": self.initial_presentations,
            "presentations_per_shell": self.presentations_per_shell,
            "minibatch_initial": self.minibatch_initial,
            "race_starts": self.race_starts,
            "race_particles": self.race_particles,
            "race_epochs": self.race_epochs,
            "minibatch_final": self.minibatch_final,
            "initial_resolution_angstrom": self.initial_resolution_angstrom,
            "mask_diameter_angstrom": self.mask_diameter_angstrom,
            "particles_to_use": self.particles_to_use,
            "learning_rate": self.learning_rate,
        }
        for name, value in positive.items():
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, not {value}")
        if self.start_stretch is not None and not self.start_stretch >= 1:
            raise ValueError(f"start_stretch must be 1 or more, not {self.start_stretch}")
        if self.max_shift_angstrom is not None and not self.max_shift_angstrom >= 0:
            raise ValueError(f"max_shift_angstrom must be 0 or more, not {self.max_shift_angstrom}")
        if self.stream_replays is not None and not 0 <= self.stream_replays <= MOST_REPLAYS:
            raise ValueError(
                f"stream_replays must be from 0 to {MOST_REPLAYS}, not {self.stream_replays}"
            )
        if self.store_particles is not None and self.store_particles < self.race_particles:
            raise ValueError(
                f"store_particles must be at least race_particles ({self.race_particles}), "
                f"not {self.store_particles}"
            )
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more, not {self.seed}")
        for name, kind in _CHOICES.items():
            if getattr(self, name) not in get_args(kind):
                raise ValueError(
                    f"{name} must be {' or '.join(get_args(kind))}, not {getattr(self, name)}"
                )
        for name in ("noise_prior_weight", "noise_initial_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be 0 or more, not {getattr(self, name)}")
        if not self.learning_rate <= 1:
            raise ValueError(f"learning_rate must be at most 1, not {self.learning_rate}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be 0 to below 1, not {self.momentum}")
        if not 0 <= self.initial_ess_fraction <= 1:
            raise ValueError(
                f"initial_ess_fraction must be 0 to 1, not {self.initial_ess_fraction}"
            )
        if not 0 <= self.class_similarity <= 1:
            raise ValueError(f"class_similarity must be 0 to 1, not {self.class_similarity}")
        if self.replay_passes is not None and self.replay_passes < 0:
            raise ValueError(f"replay_passes must be 0 or more, not {self.replay_passes}")


MOST_REPLAYS = 10.0  # of earlier particles for each new one
_CUBIC = frozenset({"T", "O", "I"})
_CHOICES: Mapping[str, object] = {
    "centring": Centring,
    "noise_model": NoiseKind,
    "noise_source": NoiseSource,
    "nonnegativity": Nonnegativity,
    "optimizer": OptimizerName,
    "pose_search": PoseSearch,
    "store_precision": StorePrecision,
}


@dataclass(frozen=True)
class EngineEvent:
    """Something worth telling a person: a phase, a warning, a class born, a verdict."""

    kind: str  # "phase", "race", "contrast_inverted", "resolution", ...
    message: str  # one sentence in words
    class_index: int | None = None
    values: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class SearchCount:
    """What one kind of pose search did in one update."""

    kind: SearchKind
    particles: int
    cells: int  # scored, of all particles together
    violations: int = 0  # of an audit: particles whose best pose the session's search discarded


@dataclass(frozen=True)
class StepReport:
    """What one update did."""

    step: int  # updates made so far, this one included
    phase: Phase
    new_particles: int  # trained for the first time in this step
    replayed_particles: int  # presented again in this step
    particles_seen: int  # distinct particles trained so far
    particles_presented: int  # presentations so far, replays included
    temperature: float  # of the pose posterior of the leading start; 1: the posterior itself
    radius_shells: tuple[int, ...]  # per class
    resolution_angstrom: tuple[float | None, ...]  # per class; None until it can be said honestly
    occupancy: tuple[float, ...]  # per class, sums to 1
    evidence_per_particle: float  # nats against noise only, before learning from the minibatch
    stage_seconds: Mapping[str, float]
    symmetry: str = "C1"  # the group that poses and maps are in now
    class_phases: tuple[Phase, ...] = ()  # per class
    events: tuple[EngineEvent, ...] = ()
    searches: tuple[SearchCount, ...] = ()


@dataclass(frozen=True)
class ClassSnapshot:
    """One class's map and what is known about it."""

    volume: FloatArray  # (box, box, box) float32
    half1: FloatArray  # (box, box, box) float32
    half2: FloatArray  # (box, box, box) float32
    fsc: FloatArray  # (shells,) half-map FSC; index is the radius in shells, [0] is 1
    resolution_angstrom: float | None  # half-map FSC 0.143; None until it can be trusted
    particles: int  # particles whose best class this is
    occupancy: float  # share of the posterior mass
    effective_particles: float  # particles' worth of information that the statistics hold
    view_histogram: FloatArray  # (18, 36) counts over tilt (0..pi) x rot (-pi..pi)
    phase: Phase = "waiting"
    overlap: tuple[float, ...] = ()  # (K,) share of its particles that class j explains better
    why_none: WhyNone | None = None  # why there is no resolution, where there is none


@dataclass(frozen=True)
class Snapshot:
    """Every class at one step."""

    step: int
    phase: Phase
    particles_seen: int
    particles_presented: int
    geometry: Geometry
    classes: tuple[ClassSnapshot, ...]
    held_out_gain: tuple[float, float] | None = None  # of evidence, relative, with its error
    converged: bool = False  # new particles are explained no better than those before them


@dataclass(frozen=True)
class Assignments:
    """What is known about each particle; rows in order of arrival."""

    particle_ids: npt.NDArray[np.uint64]  # (n,)
    class_index: IntArray  # (n,) 0-based; -1: not used (not yet trained, or head of stream is full)
    rotations: FloatArray  # (n, 3, 3) A
    shifts_angstrom: FloatArray  # (n, 2) x, y
    max_probability: FloatArray  # (n,) largest posterior weight of one pose
    log_likelihood: FloatArray  # (n,) evidence against noise only, nats
    half: IntArray  # (n,) 1 or 2
