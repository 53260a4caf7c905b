"""What only happens on a device: the engine through CUDA text, memory, its particle store."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from reconstruct import learner as learner_module
from reconstruct import spherical
from reconstruct.backend import Backend, DeviceError, cpu_backend, describe_devices, make_backend
from reconstruct.engine import Engine
from reconstruct.fourier import make_half_plane
from reconstruct.learner_state import dump_learner, restore_learner
from reconstruct.memory import memory_need, plan_memory
from reconstruct.rotations import angle_between
from reconstruct.search import WeightedBatch
from reconstruct.snapshot import class_volume
from reconstruct.store import ParticleStore
from reconstruct.types import EngineSettings, Geometry, Optics, ParticleImages
from reconstruct.update import MapGrid
from reconstruct.weighting import Weigher
from tests.reconstruct import strict_arrays
from tests.reconstruct.cuda_host import HostLauncher, host_backend

MAP_CORRELATION = 0.99999  # after three updates; float32 sums in another order
OPTION_CORRELATION = 0.999  # after up to a dozen updates of few particles
EVIDENCE_TOLERANCE = 1e-4  # relative
SAME_POSE_DEGREES = 0.2  # arccos of float32 matrices is no better than 0.05
WEIGHT_TOLERANCE = 1e-4  # relative: the CTF in float32, divided by the noise

GEOMETRY = Geometry(box=32, pixel_size_angstrom=5.0)
SETTINGS = EngineSettings(
    max_resolution_angstrom=20.0,
    race_starts=1,
    minibatch_initial=16,
    minibatch_final=16,
    replay_passes=1,
)


def particles(count: int, seed: int = 0) -> ParticleImages:
    """Images of one off-centre blob in noise: enough for poses to matter."""
    rng = np.random.default_rng(seed)
    axis = np.arange(32) - 16
    centre = rng.uniform(-5, 5, (count, 2, 1, 1))
    distance = (axis[:, None] - centre[:, 1]) ** 2 + (axis[None, :] - centre[:, 0]) ** 2
    images = 3 * np.exp(-distance / 8) + rng.standard_normal((count, 32, 32))
    return ParticleImages(
        images=images.astype(np.float32),
        particle_ids=rng.integers(0, 2**63, count).astype(np.uint64),
        defocus_u_angstrom=rng.uniform(1e4, 2e4, count),
        defocus_v_angstrom=rng.uniform(1e4, 2e4, count),
        defocus_angle_rad=rng.uniform(0, 3, count),
        phase_shift_rad=np.zeros(count),
        optics_group=np.arange(count) % 2,
        optics=(Optics(300.0, 2.7, 0.1), Optics(200.0, 2.0, 0.07)),
    )


def skip_without_a_device() -> None:
    if not any(one.usable and one.device != "cpu" for one in describe_devices()):
        pytest.skip("no CUDA device")


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Backend:
    return host_backend(HostLauncher(tmp_path_factory.mktemp("cuda_host")))


def trained(device: str | Backend, settings: EngineSettings = SETTINGS) -> Engine:
    engine = Engine(settings, GEOMETRY, device=device)
    engine.add(particles(24))
    reports = []
    while engine.ready:
        reports.append(engine.step())
    reports.extend(engine.finish())
    assert len(reports) >= 3
    return engine


def test_the_engine_through_cuda_text_agrees_with_the_cpu(
    host: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reconstruct.class_search.SCOUT_MARGIN", 1e6)  # a device has no scouts
    settings = replace(SETTINGS, n_classes=2)
    cpu, device = trained("cpu", settings), trained(host, settings)
    for one, other in zip(cpu.snapshot().classes, device.snapshot().classes, strict=True):
        correlation = np.corrcoef(one.volume.ravel(), other.volume.ravel())[0, 1]
        assert correlation > MAP_CORRELATION
    known, found = cpu.assignments(), device.assignments()
    np.testing.assert_array_equal(found.class_index, known.class_index)
    np.testing.assert_allclose(
        found.log_likelihood, known.log_likelihood, rtol=EVIDENCE_TOLERANCE, atol=0.01
    )
    turned = np.degrees(angle_between(found.rotations.astype(float), known.rotations.astype(float)))
    assert np.median(turned) < SAME_POSE_DEGREES


def test_the_opposite_of_a_start_is_that_of_the_cpu(host: Backend) -> None:
    maps = []
    for device in ("cpu", host):
        engine = trained(device)
        made = spherical.make_opposite(engine._learners[0], engine._new_learner(9))
        maps.append(class_volume(made, 0).ravel())
    assert np.corrcoef(*maps)[0, 1] > MAP_CORRELATION


def test_random_poses_carry_no_evidence(host: Backend) -> None:
    poisoned = _Poisoned()
    engine = Engine(SETTINGS, GEOMETRY, device=replace(host, xp=poisoned))
    engine.add(particles(24))
    report = engine.step()
    assert report.evidence_per_particle == 0
    assert np.all(np.isfinite(engine.snapshot().classes[0].volume))


class _Poisoned:
    """The host's stand-in for a device, whose fresh memory holds NaN."""

    def __getattr__(self, name: str) -> Any:
        return getattr(strict_arrays.xp, name)

    @staticmethod
    def empty(shape: Any, dtype: Any) -> Any:
        values = strict_arrays.xp.empty(shape, dtype)
        values.view(np.uint8).fill(0xFF)
        return values


def test_split_references_masks_and_symmetry_stay_on_the_device(host: Backend) -> None:
    settings = replace(SETTINGS, race_starts=2, race_particles=16, race_epochs=2)
    cpu, device = trained("cpu", settings), trained(host, settings)
    volumes = []
    for engine in (cpu, device):
        learner = engine._learners[0]
        assert learner.split
        learner._fit_masks(engine._workers)
        learner.group = "C2"
        learner._renew(engine._workers, 16)
        volumes.append(engine.snapshot().classes[0].volume.ravel())
    assert np.corrcoef(*volumes)[0, 1] > MAP_CORRELATION


def test_a_state_made_on_a_device_goes_on_there_and_on_the_cpu(host: Backend) -> None:
    engine = trained(host)
    meta, arrays = engine.dump()
    for device in (host, "cpu"):
        taken_up = Engine.load(
            SETTINGS, GEOMETRY, meta, arrays, engine.dump_store(0), device=device
        )
        one, other = engine.snapshot().classes[0], taken_up.snapshot().classes[0]
        correlation = np.corrcoef(one.volume.ravel(), other.volume.ravel())[0, 1]
        assert correlation > MAP_CORRELATION


@pytest.mark.gpu
def test_a_device_repeats_its_bits_and_agrees_with_the_cpu() -> None:
    skip_without_a_device()
    first, second, cpu = trained("cuda"), trained("cuda"), trained("cpu")
    volumes = [engine.snapshot().classes[0].volume for engine in (first, second, cpu)]
    np.testing.assert_array_equal(volumes[0], volumes[1])
    # scores of the coarse pass are in TF32, so that single particles may differ
    assert np.corrcoef(volumes[0].ravel(), volumes[2].ravel())[0, 1] > 0.99


@pytest.mark.gpu
@pytest.mark.parametrize("count", [7, 1000, 3_000_001])
def test_arrays_of_any_size_come_back_from_a_device(count: int) -> None:
    skip_without_a_device()
    backend = make_backend("cuda")
    values = np.random.default_rng(count).standard_normal((count, 2), dtype=np.float32)
    there = backend.asarray(values[:, ::-1], np.float64)
    np.testing.assert_array_equal(backend.asnumpy(there), values[:, ::-1])
    np.testing.assert_array_equal(backend.asnumpy(there[::2]), values[::2, ::-1])


@pytest.mark.parametrize(
    ("kept", "most"), [(0, None), (1, None), (2, None), (100, None), (100, 6), (1, 6)]
)
def test_rows_come_from_the_device_or_else_from_the_host(
    host: Backend, kept: int, most: int | None
) -> None:
    plane = make_half_plane(32, 8)
    segment_bits = 2
    budget = kept * (8 * len(plane.kx) << segment_bits)
    store = ParticleStore(len(plane.kx))
    rng = np.random.default_rng(0)
    weighers = [
        Weigher(
            backend,
            plane,
            box_angstrom=160.0,
            budget_bytes=budget,
            most=most,
            segment_bits=segment_bits,
        )
        for backend in (host, cpu_backend())
    ]
    for count in (3, 1, 13):  # cuts that do not match the segments
        spectra = rng.standard_normal((count, len(plane.kx), 2)).astype(np.float32)
        rows = {
            "spectra": spectra.view(np.complex64)[..., 0],
            "particle_ids": np.arange(count, dtype=np.uint64),
            "optics_group": rng.integers(0, 2, count).astype(np.int32),
            "ctf": np.tile([15e3, 14e3, 0.3, 0.1], (count, 1)),
        }
        store.append(rows)
        for weigher in weighers:
            weigher.append(rows["spectra"])
    assert weighers[0].count == min(17, kept << segment_bits, most or 17)
    wanted = np.array([16, 0, 5, 4, 11, 3])
    optics = (Optics(300.0, 2.7, 0.1), Optics(200.0, 2.0, 0.07))
    variance = rng.uniform(0.5, 2.0, (2, 9))
    device, cpu = (
        weigher.weigh(store, wanted, 6, optics=optics, noise_variance=variance)
        for weigher in weighers
    )
    for name in ("a_re", "a_im", "c2"):
        np.testing.assert_allclose(
            host.asnumpy(getattr(device, name)),
            getattr(cpu, name),
            rtol=WEIGHT_TOLERANCE,
            atol=1e-5,
        )


def test_a_chunk_that_does_not_fit_is_halved_until_it_does(host: Backend) -> None:
    backend = replace(host, memory=lambda: (8 * 100 * 64, 1 << 40))
    done: list[int] = []
    refused: list[int] = []

    def work(rows: slice) -> None:
        if rows.stop - rows.start > 20:
            refused.append(rows.stop - rows.start)
            raise MemoryError
        done.extend(range(rows.start, rows.stop))

    with ThreadPoolExecutor(1) as workers:
        backend.run_chunks(work, 130, bytes_per_row=100, workers=workers)
    assert done == list(range(130))
    assert refused == [64, 32]


def test_a_particle_that_never_fits_is_an_error(host: Backend) -> None:
    def work(rows: slice) -> None:
        raise MemoryError

    with ThreadPoolExecutor(1) as workers, pytest.raises(MemoryError):
        host.run_chunks(work, 4, bytes_per_row=1, workers=workers)


def plan(settings: EngineSettings, free: int, box: int = 128) -> str:
    backend = replace(cpu_backend(), memory=lambda: (free, free))
    geometry = Geometry(box, 2.0)
    radius = int(geometry.box_angstrom / settings.finest_angstrom)
    found = plan_memory(
        backend,
        settings,
        geometry,
        grid=MapGrid(box, 2.0, box / 3),
        max_radius=radius,
        max_shift_pixels=box / 16,
    )
    return found.line


def test_memory_that_a_session_needs_is_said() -> None:
    line = plan(EngineSettings(), 64 << 30)
    assert "needs" in line
    assert "particles of" in line


def test_a_session_that_does_not_fit_is_told_what_would() -> None:
    settings = EngineSettings(n_classes=10, max_resolution_angstrom=5.0)
    with pytest.raises(DeviceError, match=r"use n_classes (\d) or max_resolution_angstrom") as told:
        plan(settings, 2 << 30)
    words = str(told.value).split()
    classes = int(words[words.index("n_classes") + 1])
    resolution = float(words[words.index("max_resolution_angstrom") + 1].rstrip(","))
    assert plan(replace(settings, n_classes=classes), 2 << 30)
    assert plan(replace(settings, max_resolution_angstrom=resolution), 2 << 30)


def test_the_statistics_are_as_large_as_foretold() -> None:
    engine = trained("cpu")
    learner = engine._learners[0]
    learner._reserve(engine.max_radius)
    need = memory_need(SETTINGS, engine.grid, max_radius=engine.max_radius, max_shift_pixels=2.0)
    assert need.statistics == learner.statistics.nbytes
    assert need.particle == engine._store.spectra(np.arange(1)).nbytes


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cuda0", ""])
def test_an_unknown_device_is_refused(name: str) -> None:
    with pytest.raises(DeviceError, match="none of auto, cpu, cuda, cuda:n"):
        make_backend(name)


def test_a_device_that_is_not_there_is_refused_with_a_remedy() -> None:
    if any(one.usable and one.device != "cpu" for one in describe_devices()):
        pytest.skip("there is a CUDA device")
    with pytest.raises(DeviceError, match=r"abinitio-live\[gpu\]|no CUDA device"):
        make_backend("cuda")
    assert make_backend("auto").device == "cpu"
    assert [one.usable for one in describe_devices()] == [True, False]


@pytest.mark.parametrize(
    "change",
    [
        {"optimizer": "sgd", "momentum": 0.5, "n_classes": 2},
        {"nonnegativity": "on", "presentations_per_shell": 8},
        {"centring": "off"},
        {"stream_replays": 2.0, "minibatch_final": 8},
        {"nonnegativity": "auto", "replay_passes": 4},
        {"initial_ess_fraction": 0.5},
        {"noise_source": "residuals", "noise_initial_weight": 1.0, "replay_passes": 4},
        {"store_particles": 16, "store_precision": "float16", "race_particles": 16},
    ],
    ids=["sgd", "cut", "still", "again", "judged", "hot", "residuals", "bounded"],
)
def test_every_option_works_on_a_device_as_on_the_cpu(
    host: Backend, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    monkeypatch.setattr("reconstruct.store.RECENT", 2)
    monkeypatch.setattr("reconstruct.positivity.JUDGE_EVERY", 4)
    monkeypatch.setattr("reconstruct.centring.LEAST_PIXELS", 0.0)
    monkeypatch.setattr("reconstruct.centring.FEWEST", 8)
    monkeypatch.setattr("reconstruct.centring.ERRORS", 0.5)
    base = replace(SETTINGS, race_particles=16, race_epochs=2)
    settings = replace(base, **change)
    cpu, device = trained("cpu", settings), trained(host, settings)
    one, other = cpu.snapshot().classes[0].volume, device.snapshot().classes[0].volume
    assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > OPTION_CORRELATION
    plain = trained("cpu", replace(base, n_classes=settings.n_classes))
    if change.get("nonnegativity") != "auto":
        assert not np.array_equal(one, plain.snapshot().classes[0].volume)


def test_references_that_wait_are_restored_as_the_device_has_them(host: Backend) -> None:
    learner = trained(host)._leader
    learner.stale = 1  # else they would be made from the statistics
    assert learner.cubes is not None
    before = host.asnumpy(learner.cubes).copy()
    meta, arrays = dump_learner(learner)
    learner.cubes = None
    restore_learner(learner, meta, arrays)
    assert np.array_equal(host.asnumpy(learner.cubes), before)


@pytest.mark.parametrize(
    "device", ["cuda text on the host", pytest.param("cuda", marks=pytest.mark.gpu)]
)
def test_minibatches_that_wait_are_searched_together_with_the_same_bits(
    device: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device == "cuda":
        skip_without_a_device()
    backend = device if device == "cuda" else request.getfixturevalue("host")
    searched: list[int] = []
    find = learner_module.find_poses

    def counted(kind: Any, batch: WeightedBatch, *args: Any, **settings: Any) -> Any:
        searched.append(len(batch))
        return find(kind, batch, *args, **settings)

    monkeypatch.setattr(learner_module, "find_poses", counted)
    monkeypatch.setattr("reconstruct.noise.NOISE_PARTICLES", 8)  # known before they come
    found = []
    for waiting in (3, 1):
        engine = trained(backend)
        engine._leader.schedule = replace(engine._leader.schedule, renew_share=4.0)
        engine._leader.breadth.compared_at = float("inf")  # comparisons are searches, too
        searched.clear()
        for start in range(0, 48, 16 * waiting):
            engine.add(particles(48, seed=1).span(slice(start, start + 16 * waiting)))
            while engine.ready:
                engine.step()
        found.append((engine.dump()[1], [*searched]))
    (together, at_once), (one_by_one, apart) = found
    assert at_once == [16, 32]  # once the noise is known to stay
    assert apart == [16] * 3
    assert together.keys() == one_by_one.keys()
    for name, values in together.items():
        np.testing.assert_array_equal(values, one_by_one[name], err_msg=name)
