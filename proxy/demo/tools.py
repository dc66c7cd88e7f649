"""The functions that a caller offers: the demo calls the first one, and talks once it has the result.

Owns how the families describe functions and results; the arguments are made up from the JSON schema.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import orjson

from proxy.demo.answers import PIECE, TOPIC_WORDS, Answer

_DEPTH_MAX = 8  # of a schema that is followed
_SCHEMAS = ("parameters", "input_schema", "parametersJsonSchema", "parameters_json_schema")
_RESULTS = ("tool_result", "function_call_output")
_SAMPLES: dict[str, Any] = {"integer": 1, "number": 1.5, "boolean": True, "array": []}


def call(
    body: dict[str, Any], turns: list[dict[str, Any]], prompt: str, count: Callable[[str], int]
) -> Answer | None:
    """The call that answers `prompt`; None where none is offered, wanted or needed any more."""
    if not turns or _is_result(turns[-1]) or body.get("tool_choice") in ("none", {"type": "none"}):
        return None
    for name, schema in _functions(body.get("tools")):
        arguments = orjson.dumps(_sample(schema, prompt, 0)).decode()
        return Answer(PIECE.findall(arguments), count(name + arguments), is_cut=False, function=name)
    return None


def _functions(tools: object) -> Iterator[tuple[str, object]]:
    """Name and JSON schema of each, however its family nests them."""
    for tool in tools if isinstance(tools, list) else ():
        if isinstance(tool, dict):
            googles = tool.get("functionDeclarations") or tool.get("function_declarations")
            for declared in googles or [tool.get("function") or tool]:
                if isinstance(declared, dict) and isinstance(name := declared.get("name"), str):
                    schemas = (declared.get(key) for key in _SCHEMAS)
                    yield name, next(filter(None, schemas), None)


def _is_result(turn: dict[str, Any]) -> bool:
    parts = turn.get("parts") or turn.get("content")
    for one in (turn, *(parts if isinstance(parts, list) else ())):
        if isinstance(one, dict) and (one.get("type") in _RESULTS or "functionResponse" in one):
            return True
    return turn.get("role") == "tool"


def _sample(schema: object, prompt: str, depth: int) -> Any:
    """A value of `schema`; every text is the topic of `prompt`."""
    if not isinstance(schema, dict) or depth > _DEPTH_MAX:
        return {}
    if isinstance(schema.get("enum"), list) and schema["enum"]:
        return schema["enum"][0]
    kind = str(schema.get("type", "object")).lower()  # Gemini's are in capitals
    if kind == "object":
        members = schema.get("properties")
        members = members if isinstance(members, dict) else {}
        return {name: _sample(member, prompt, depth + 1) for name, member in members.items()}
    return _SAMPLES.get(kind, " ".join(prompt.split()[:TOPIC_WORDS]))
