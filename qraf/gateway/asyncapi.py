"""The AsyncAPI 3 document of `qraf.v1`, made from the frames themselves."""

from __future__ import annotations

import inspect
from typing import Any, get_args

import msgspec

from qraf.frames import ClientFrame, ServerFrame
from qraf.gateway.problems import CODES
from qraf.gateway.protocol import CLOSE_CODES, JSON, MSGPACK

__all__ = ["asyncapi"]

_SCHEMA = "#/components/schemas/{name}"


def asyncapi(version: str, host: str) -> dict[str, Any]:
    """The document, for a server at `host`."""
    commands, answers = get_args(ClientFrame), get_args(ServerFrame)
    _, schemas = msgspec.json.schema_components([*commands, *answers], ref_template=_SCHEMA)
    kinds = commands + answers
    closes = "\n".join(f"- {code}: {text}" for code, text in sorted(CLOSE_CODES.items()))
    codes = "\n".join(f"- `{code}`: {title}" for code, (_, title) in sorted(CODES.items()))
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "QRAF stream protocol qraf.v1",
            "version": version,
            "description": "Text streams in, routed evidence and text stream out. Close codes; after an `error` "
            f"the reason of the close is its code:\n\n{closes}\n\nError codes:\n\n{codes}",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {
            "here": {
                "host": host,
                "protocol": "ws",
                "description": f"Subprotocol `{JSON}` (JSON text) or `{MSGPACK}` (the same maps, MessagePack, binary)",
            }
        },
        "channels": {
            "stream": {
                "address": "/v1/ws",
                "servers": [{"$ref": "#/servers/here"}],
                "messages": {_tag(kind): {"$ref": f"#/components/messages/{kind.__name__}"} for kind in kinds},
            }
        },
        "operations": {
            "command": _operation("receive", "What a client sends", commands),
            "answer": _operation("send", "What the server sends", answers),
        },
        "components": {"messages": {kind.__name__: _message(kind) for kind in kinds}, "schemas": schemas},
    }


def _operation(action: str, summary: str, kinds: tuple[type, ...]) -> dict[str, Any]:
    return {
        "action": action,
        "summary": summary,
        "channel": {"$ref": "#/channels/stream"},
        "messages": [{"$ref": f"#/channels/stream/messages/{_escaped(_tag(kind))}"} for kind in kinds],
    }


def _message(kind: type) -> dict[str, Any]:
    text = inspect.cleandoc(kind.__doc__ or "")
    return {
        "name": _tag(kind),
        "title": kind.__name__,
        "summary": text.partition("\n")[0],
        "description": text,
        "payload": {"$ref": _SCHEMA.format(name=kind.__name__)},
    }


def _tag(kind: Any) -> str:
    return str(kind.__struct_config__.tag)


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")
