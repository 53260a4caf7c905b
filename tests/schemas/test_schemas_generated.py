"""The generated schemas are current, and the AsyncAPI document hangs together."""

from __future__ import annotations

import json
from typing import Any

import pytest

from schemas.codec import RECORD_TYPES
from schemas.generate import GENERATED_FOLDER, generated_files
from schemas.topics import Topics

FILES = generated_files()
ASYNCAPI: dict[str, Any] = json.loads(FILES["asyncapi.json"])


def references(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return own + [found for child in node.values() for found in references(child)]
    if isinstance(node, list):
        return [found for child in node for found in references(child)]
    return []


def resolve(document: Any, reference: str) -> Any:
    assert reference.startswith("#/"), reference
    node = document
    for step in reference[2:].split("/"):
        node = node[step.replace("~1", "/").replace("~0", "~")]
    return node


def test_the_generated_files_are_current() -> None:
    on_disk = {path.name: path.read_text() for path in GENERATED_FOLDER.iterdir()}
    assert on_disk == FILES, "run: python -m schemas.generate"


@pytest.mark.parametrize("name", FILES)
def test_every_reference_resolves(name: str) -> None:
    document = json.loads(FILES[name])
    for reference in references(document):
        assert isinstance(resolve(document, reference), dict)


def test_the_asyncapi_document_has_its_required_parts() -> None:
    assert ASYNCAPI["asyncapi"] == "3.0.0"
    assert {"title", "version"} <= set(ASYNCAPI["info"])
    for channel in ASYNCAPI["channels"].values():
        assert set(channel["parameters"]) == {"prefix"}
        assert channel["messages"]
    for operation in ASYNCAPI["operations"].values():
        assert operation["action"] in {"send", "receive"}
        channel = resolve(ASYNCAPI, operation["channel"]["$ref"])
        allowed = [message["$ref"] for message in channel["messages"].values()]
        for message in operation["messages"]:
            # an operation must point at messages of its own channel
            assert message["$ref"].startswith(operation["channel"]["$ref"] + "/messages/")
            assert resolve(ASYNCAPI, message["$ref"])["$ref"] in allowed


def test_the_addresses_are_the_topics() -> None:
    addresses = {channel["address"] for channel in ASYNCAPI["channels"].values()}
    assert {address.replace("{prefix}", "abc") for address in addresses} == set(Topics("abc").all)


def test_every_record_type_travels_on_some_channel() -> None:
    carried = {name for channel in ASYNCAPI["channels"].values() for name in channel["messages"]}
    assert carried == set(RECORD_TYPES) == set(ASYNCAPI["components"]["messages"])
    for message in ASYNCAPI["components"]["messages"].values():
        assert resolve(ASYNCAPI, message["payload"]["$ref"])["type"] == "object"
        assert resolve(ASYNCAPI, message["headers"]["$ref"])["required"]
