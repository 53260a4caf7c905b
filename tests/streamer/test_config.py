"""Flags win over the environment, the environment over the file, the file over the defaults."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reconstruct.presets import PRESETS
from reconstruct.types import EngineSettings
from streamer.cli import settings_from
from streamer.config import load_settings, training_changes, training_digest, training_settings
from streamer.engines import LIVE_REPLAYS, with_spare_time
from streamer.errors import ConfigurationError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "session.toml"
    path.write_text(
        'session = "from-file"\n[engine]\nn_classes = 2\nseed = 5\nsymmetry = "O"\n'
        "[checkpoint]\nevery_s = 11\n"
    )
    return path


def test_flags_win_over_environment_over_file_over_defaults(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ABINITIO_ENGINE__N_CLASSES", "3")
    monkeypatch.setenv("ABINITIO_ENGINE__SEED", "6")
    settings = load_settings(file, {"engine.seed": 7, "engine.symmetry": None})
    assert settings.engine.seed == 7
    assert settings.engine.n_classes == 3
    assert settings.engine.symmetry == "O"
    assert settings.session == "from-file"
    assert settings.checkpoint.every_s == 11
    assert settings.checkpoint.keep == 3


def test_the_pose_search_is_taken_from_each_source(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = "branch_and_bound"
    assert load_settings(file).engine.pose_search == "exhaustive"
    assert settings_from(file, None, engine__pose_search=wanted).engine.pose_search == wanted
    assert settings_from(file, [f"engine.pose_search={wanted}"]).engine.pose_search == wanted
    monkeypatch.setenv("ABINITIO_ENGINE__POSE_SEARCH", wanted)
    assert load_settings(file).engine.pose_search == wanted
    monkeypatch.delenv("ABINITIO_ENGINE__POSE_SEARCH")
    file.write_text(f'[engine]\npose_search = "{wanted}"\n')
    assert load_settings(file).engine.pose_search == wanted


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"engine.n_classes": 0}, "--classes (setting engine.n_classes) must be above 0, not 0"),
        ({"engine.pose_search": "guess"}, "'exhaustive' or 'branch_and_bound'"),
        ({"engine.replay_passes": -1}, "--passes (setting engine.replay_passes) must be 0 or more"),
        ({"engine.race_starts": 0}, "setting engine: race_starts must be above 0, not 0"),
        ({"engine.clases": 2}, "no setting engine.clases; did you mean engine.n_classes?"),
        (
            {"snapshot.every_particles": 300},
            "no setting snapshot.every_particles; did you mean snapshots.every_particles?",
        ),
        ({"checkpoint.evry_s": 3}, "no setting checkpoint.evry_s; did you mean checkpoint.every_s"),
        ({"n_classes": 3}, "no setting n_classes; did you mean engine.n_classes?"),
        ({"snapshot": 300}, "no setting snapshot;"),
        ({"bus": "localhost:9092"}, "setting bus"),
        ({"session": "a/b"}, "setting session"),
        ({"checkpoint.every_s": -1}, "setting checkpoint.every_s"),
        ({"metrics.port": 99999}, "--metrics-port (setting metrics.port): "),
        ({"xyzzy": 1}, "no setting xyzzy; sections are batch, checkpoint, engine"),
    ],
)
def test_a_wrong_value_is_one_line_with_a_remedy(
    overrides: dict[str, object], expected: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_settings(None, overrides)
    line = str(caught.value)
    assert expected in line
    assert "\n" not in line
    assert "Correct the flag" in line


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no settings file .*absent\.toml"):
        load_settings(tmp_path / "absent.toml")
    (tmp_path / "broken.toml").write_text("[engine\n")
    with pytest.raises(ConfigurationError, match=r"broken\.toml"):
        load_settings(tmp_path / "broken.toml")


def test_the_password_never_shows() -> None:
    settings = load_settings(None, {"kafka.sasl_password": "hush"})
    assert "hush" not in repr(settings)


def test_settings_that_differ_are_named_with_both_values() -> None:
    before = json.loads(json.dumps(training_settings(load_settings())))
    assert training_changes(load_settings(None, {"checkpoint.every_s": 1}), before) == []
    given = {"engine.n_classes": 3, "engine.noise_model": "white", "device": "cuda:1"}
    before["given_up"] = 1  # by a later version
    assert training_changes(load_settings(None, given), before) == [
        'device was "auto", is "cuda"',
        "engine.given_up was 1, is unknown",
        "--classes (setting engine.n_classes) was 1, is 3",
        'engine.noise_model was "coloured", is "white"',
    ]


def test_only_the_engines_parameters_and_the_kind_of_device_decide_the_training_digest() -> None:
    plain = training_digest(load_settings())
    assert training_digest(load_settings(None, {"checkpoint.every_s": 1})) == plain
    assert training_digest(load_settings(None, {"engine.seed": 1})) != plain
    assert training_digest(load_settings(None, {"engine.stream_replays": 0})) == plain
    digests = {
        device: training_digest(load_settings(None, {"device": device}))
        for device in ("cpu", "cuda:0", "cuda:1")
    }
    assert digests["cuda:0"] == digests["cuda:1"] != digests["cpu"]


@pytest.mark.parametrize("where", ["flag", "environment", "file"])
def test_a_preset_is_below_everything_that_was_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    path = tmp_path / "session.toml"
    named = 'preset = "junk-removal"\n' if where == "file" else ""
    path.write_text(f"{named}[engine]\nrace_starts = 2\n")
    if where == "environment":
        monkeypatch.setenv("ABINITIO_PRESET", "junk-removal")
    monkeypatch.setenv("ABINITIO_ENGINE__REPLAY_PASSES", "4")
    flags = {"preset": "junk-removal" if where == "flag" else None, "engine.n_classes": 3}
    engine = load_settings(path, flags).engine
    assert (engine.race_starts, engine.replay_passes, engine.n_classes) == (2, 4, 3)
    assert engine.max_resolution_angstrom == 16.0
    assert engine.minibatch_initial == EngineSettings().minibatch_initial


def test_a_flag_may_name_another_preset_than_the_file(tmp_path: Path) -> None:
    path = tmp_path / "session.toml"
    path.write_text('preset = "junk-removal"\n')
    settings = load_settings(path, {"preset": "small-membrane-protein"})
    assert settings.preset == "small-membrane-protein"
    assert settings.engine == EngineSettings(**PRESETS["small-membrane-protein"].settings)
    assert load_settings().engine == EngineSettings()


def test_an_unknown_preset_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigurationError, match="high-symmetry, junk-removal, small-membrane"):
        load_settings(None, {"preset": "junk"})


def test_a_live_session_gives_its_spare_time_to_earlier_particles_unless_it_is_set() -> None:
    assert with_spare_time(load_settings()).engine.stream_replays == LIVE_REPLAYS
    for given in (0.0, 3.0):
        settings = load_settings(None, {"engine.stream_replays": given})
        assert with_spare_time(settings).engine.stream_replays == given
