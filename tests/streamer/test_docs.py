"""What the README and the guide tell a person to type is what the program understands."""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest
import typer

from reconstruct.presets import PRESETS
from reconstruct.types import EngineSettings
from streamer import cli, cli_bus, cli_sources
from streamer.config import load_settings
from streamer.quarantine import REASONS

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = ("README.md", "docs/guide.md", "docs/parameters.md", "deploy/README.md")
REGISTERED = (cli_bus, cli_sources)  # importing them registers their commands


def commands() -> list[tuple[str, str]]:
    found = []
    for name in DOCUMENTS:
        text = (ROOT / name).read_text(encoding="utf-8").replace("\\\n", " ")
        for line in re.findall(r"abinitio-live ([a-z][^`\n|#]*)", text):
            found.append((name, " ".join(line.split("  #")[0].split())))
    return found


@pytest.mark.parametrize(("name", "line"), sorted(set(commands())))
def test_every_command_shown_exists_with_its_flags(name: str, line: str) -> None:
    root = typer.main.get_command(cli.app)
    words = [word for word in shlex.split(line) if word != "…"]
    command = root
    while hasattr(command, "commands") and words and words[0] in command.commands:
        command = command.commands[words.pop(0)]
    if command is root:
        assert not re.match(r"[a-z-]+$", words[0]) or words[0] in ("grid4",), line
        return
    known = {flag for parameter in command.params for flag in parameter.opts}
    for word in words:
        if word.startswith("--"):
            assert word.split("=")[0] in known, f"{name}: {line}: {word}"


def test_the_readme_lists_every_command() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    root = typer.main.get_command(cli.app)
    for name, command in root.commands.items():
        if not command.hidden:
            assert f"abinitio-live {name}" in text, name


def test_the_settings_file_in_the_guide_is_accepted(tmp_path: Path) -> None:
    text = (ROOT / "docs/guide.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    path = tmp_path / "session.toml"
    path.write_text(block)
    settings = load_settings(path)
    assert settings.session == tomllib.loads(block)["session"]
    assert settings.engine.n_classes == 3


def test_the_guide_explains_every_reason_of_quarantine() -> None:
    text = (ROOT / "docs/guide.md").read_text(encoding="utf-8")
    assert [reason for reason in REASONS if f"`{reason}`" not in text] == []


def test_the_first_start_of_a_script_says_what_it_waits_for(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "pyproject.toml").touch()
    shutil.copy(ROOT / "scripts" / "environment", tmp_path / "scripts")
    tools = tmp_path / "bin"
    tools.mkdir()
    # A python3 that is new enough, makes an environment of itself, and installs nothing.
    (tools / "python3").write_text(
        '#!/bin/sh\nif [ "$2" = venv ]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; fi\n'
    )
    (tools / "python3").chmod(0o755)

    def start() -> list[str]:
        done = subprocess.run(
            ["bash", "-euc", ". scripts/environment"],
            cwd=tmp_path,
            env={"PATH": f"{tools}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == ""
        return done.stderr.splitlines()

    first, *phases = start()
    assert "a minute or two" in first
    assert [line.split(",")[0] for line in phases] == [f"setup: {n} of 3" for n in (1, 2, 3)]
    os.utime(tmp_path / "pyproject.toml", (0, 0))  # older than what was installed
    assert start() == []


def test_links_between_documents_lead_somewhere() -> None:
    for name in DOCUMENTS:
        text = (ROOT / name).read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            assert ((ROOT / name).parent / target).exists(), f"{name}: {target}"


def test_every_parameter_of_the_engine_is_documented_with_its_default() -> None:
    text = (ROOT / "docs/parameters.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| `([^`]*)` \|", text, re.MULTILINE))
    for field in fields(EngineSettings):
        assert field.name in rows, f"docs/parameters.md does not have {field.name}"
        shown = rows.pop(field.name)
        assert ast.literal_eval(shown) == field.default, f"{field.name}: {shown}"
    assert rows == {}, "documented and not there"


def test_every_preset_is_documented_with_what_it_sets() -> None:
    text = (ROOT / "docs/parameters.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([a-z-]+)` \| (.*) \|$", text, re.MULTILINE))
    for name, preset in PRESETS.items():
        values = dict(re.findall(r"`(\w+)=([^`]+)`", rows[name]))
        assert {key: ast.literal_eval(value) for key, value in values.items()} == preset.settings
        assert preset.purpose in rows[name]
