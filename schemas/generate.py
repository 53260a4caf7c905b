"""Write the JSON Schemas and the AsyncAPI 3 document into ``schemas/generated/``.

Run ``python -m schemas.generate`` after changing a model; a test fails while the files are stale.
The schemas describe the JSON header of a record; ``x-arrays`` lists the binary arrays beside it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from pydantic.json_schema import models_json_schema

from schemas.codec import RECORD_TYPES
from schemas.envelope import CONTENT_TYPE, HEADER_NAMES, Record
from schemas.topics import DEFAULT_PREFIX, Topics

__all__ = ["GENERATED_FOLDER", "generated_files", "main"]

GENERATED_FOLDER: Final = Path(__file__).resolve().parent / "generated"

_PREFIX: Final = "{prefix}"
_MARK: Final = "0PREFIX0"  # a legal prefix that stands for the parameter

# topic property of Topics, schema ids that travel on it, what the service does with it
_CHANNELS: Final = (
    ("particles", ("PART",), "receive"),
    ("control", ("CTRL",), "receive"),
    ("control_replies", ("CRPL",), "send"),
    ("volumes", ("VOLS",), "send"),
    ("assignments", ("ASGN",), "send"),
    ("events", ("EVNT",), "send"),
    ("dead_letter", ("DEAD",), "send"),
)


def generated_files() -> dict[str, str]:
    """Give every generated file: name and text."""
    files = {
        f"{schema_id}.schema.json": _json_schema(kind) for schema_id, kind in RECORD_TYPES.items()
    }
    files["asyncapi.json"] = _asyncapi()
    return {name: json.dumps(content, indent=2) + "\n" for name, content in files.items()}


def main() -> None:
    """Write the files and remove those that are no longer generated."""
    GENERATED_FOLDER.mkdir(exist_ok=True)
    files = generated_files()
    for stale in GENERATED_FOLDER.glob("*.json"):
        if stale.name not in files:
            stale.unlink()
    for name, text in files.items():
        (GENERATED_FOLDER / name).write_text(text, encoding="utf-8")


def _json_schema(kind: type[Record]) -> dict[str, Any]:
    """Give the JSON Schema of one record's header, with its arrays."""
    schema = kind.model_json_schema()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "x-schema-id": kind.SCHEMA_ID,
        "x-version": f"{kind.MAJOR}.{kind.MINOR}",
        "x-arrays": _arrays(kind),
        **schema,
    }


def _arrays(kind: type[Record]) -> dict[str, Any]:
    """Describe the arrays that travel beside the header."""
    return {
        name: {
            "dtypes": list(spec.dtypes),
            "shape": spec.shape_text,
            "required": spec.required,
            "description": spec.description,
        }
        for name, spec in kind.ARRAYS.items()
    }


def _asyncapi() -> dict[str, Any]:
    """Give the AsyncAPI document: channels, operations, messages and their schemas."""
    topics = Topics(_MARK)
    _, definitions = models_json_schema(
        [(kind, "validation") for kind in RECORD_TYPES.values()],
        ref_template="#/components/schemas/{model}",
    )
    channels = {
        name: {
            "address": getattr(topics, name).replace(_MARK, _PREFIX),
            "description": str(getattr(Topics, name).__doc__),
            "parameters": {"prefix": {"$ref": "#/components/parameters/prefix"}},
            "messages": {
                schema_id: {"$ref": f"#/components/messages/{schema_id}"} for schema_id in kinds
            },
        }
        for name, kinds, _ in _CHANNELS
    }
    operations = {
        f"{action}_{name}": {
            "action": action,
            "channel": {"$ref": f"#/channels/{name}"},
            "messages": [{"$ref": f"#/channels/{name}/messages/{one}"} for one in kinds],
        }
        for name, kinds, action in _CHANNELS
    }
    operations["receive_control"]["reply"] = {"channel": {"$ref": "#/channels/control_replies"}}
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "abinitio-live",
            "version": "1.0.0",
            "description": "Records of the streaming ab-initio reconstruction. The payload schemas "
            "describe the JSON header inside the binary record; x-arrays lists its arrays. "
            "The key of every record is the session id.",
        },
        "defaultContentType": CONTENT_TYPE,
        "channels": channels,
        "operations": operations,
        "components": {
            "parameters": {
                "prefix": {"description": "Topic prefix.", "default": DEFAULT_PREFIX},
            },
            "messages": {kind.SCHEMA_ID: _message(kind) for kind in RECORD_TYPES.values()},
            "schemas": {"Headers": _headers(), **definitions["$defs"]},
        },
    }


def _message(kind: type[Record]) -> dict[str, Any]:
    """Give one message of the AsyncAPI document."""
    return {
        "name": kind.SCHEMA_ID,
        "title": kind.__name__,
        "summary": str(kind.__doc__),
        "contentType": CONTENT_TYPE,
        "headers": {"$ref": "#/components/schemas/Headers"},
        "payload": {"$ref": f"#/components/schemas/{kind.__name__}"},
        "x-arrays": _arrays(kind),
    }


def _headers() -> dict[str, Any]:
    """Give the schema of the Kafka headers."""
    return {
        "type": "object",
        "description": "The envelope as CloudEvents headers (Kafka binding, binary mode).",
        "required": list(HEADER_NAMES),
        "properties": {name: {"type": "string"} for name in HEADER_NAMES},
    }


if __name__ == "__main__":
    main()
