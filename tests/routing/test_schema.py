"""The published JSON Schema is the one that the loader checks with.

`python tests/routing/test_schema.py` writes it anew.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

import proxy.routing
from proxy.routing import spec

PUBLISHED = Path(proxy.routing.__file__).parent / "routes.schema.json"
ROUTES = Path(__file__).resolve().parents[2] / "routes.yaml"


def rendered() -> str:
    return json.dumps(spec.json_schema(), indent=2) + "\n"


def test_the_published_schema_is_the_one_in_force():
    assert PUBLISHED.read_text() == rendered(), f"run: python {Path(__file__).name}"


def test_the_committed_file_names_the_schema():
    first = ROUTES.read_text().splitlines()[0]
    named = re.fullmatch(r"# yaml-language-server: \$schema=(.+)", first)
    assert named and (ROUTES.parent / named[1]) == PUBLISHED


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("Duration", ["100s", "1.5 min", "${env:T}"], ["100", "5 days"]),
        ("Money", ["2.5 USD", 3, "7"], ["-1 USD", "1 usd"]),
        ("PerTime", ["3/min"], ["3/h"]),
        ("Name", ["openai", "${env:N}"], ["open ai", ""]),
        ("Flag", [True, "false"], ["yes"]),
        ("Period", ["1 month", "day"], ["fortnight"]),
    ],
)
def test_editors_are_told_what_the_loader_takes(name, good, bad):
    from pydantic import TypeAdapter

    schema = TypeAdapter(getattr(spec, name)).json_schema()

    def accepts(value: object) -> bool:
        types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        kind = {bool: "boolean", int: "number", str: "string"}[type(value)]
        return kind in types and (
            not isinstance(value, str) or re.search(schema["pattern"], value) is not None
        )

    assert all(map(accepts, good))
    assert not any(map(accepts, bad))


def test_the_committed_file_has_only_members_of_the_schema():
    schema = spec.json_schema()
    data = yaml.safe_load(ROUTES.read_text())
    assert set(data) <= set(schema["properties"])


if __name__ == "__main__":
    PUBLISHED.write_text(rendered())
