"""Compile a text as the command line does, with this build's dialects and a few fixed prices."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from proxy.compiler import builtin_families
from proxy.dialects import DIALECTS
from proxy.errors import ConfigError
from proxy.routing import section
from proxy.routing.loader import Compiled, Vendors, load
from proxy.routing.loader.parameters import compiled
from proxy.routing.parameters import Parameters
from proxy.routing.table import Table

OFFICIAL_USD = {
    "gpt-4o-mini": {"input": 150_000_000, "output": 600_000_000},
    "text-embedding-3-small": {"input": 20_000_000},
    "claude-sonnet-4*": {"input": 3_000_000_000, "output": 15_000_000_000},
}

# The least that can be served; tests put sections of their own behind it.
UPSTREAMS = """\
upstreams:
  openai:
    dialect: openai
    mirrors: {direct: {url: "https://api.openai.com"}}
    credentials: {main: "${env:OPENAI_API_KEY}"}
"""
MODELS = """\
models:
  gpt-4o-mini: {candidates: [{upstream: openai}]}
"""
MINIMAL = UPSTREAMS + MODELS
ENVIRON = {"OPENAI_API_KEY": "sk-canary-1"}


def official(currency: str, rates: Mapping[str, Decimal]) -> dict[str, dict[str, Any]]:
    rate = Decimal(1) if currency == "USD" else rates["USD"]
    return {
        name: {figure: int(nanos * rate) for figure, nanos in price.items()}
        for name, price in OFFICIAL_USD.items()
    }


def compile_text(
    text: str, environ: Mapping[str, str] | None = None, files: Mapping[str, str] | None = None
) -> Compiled:
    def read_file(name: str) -> str:
        if files is None or name not in files:
            raise FileNotFoundError(name)
        return files[name]

    environ = ENVIRON if environ is None else environ
    return load(text, "routes.yaml", environ, read_file, Vendors(DIALECTS, official, builtin_families()))


def table(text: str, environ: Mapping[str, str] | None = None) -> Table:
    return Table.from_document(compile_text(text, environ).document)


def mistakes(text: str, environ: Mapping[str, str] | None = None) -> list[str]:
    """Without the file's name; [] for a good file."""
    try:
        compile_text(text, environ)
    except ConfigError as e:
        assert all(line.startswith("routes.yaml:") for line in e.mistakes)
        return [line.removeprefix("routes.yaml:") for line in e.mistakes]
    return []


def warnings(text: str, environ: Mapping[str, str] | None = None) -> list[str]:
    return [line.removeprefix("routes.yaml:") for line in compile_text(text, environ).warnings]


def rules(**words: Any) -> Parameters:
    """`parameters:` of a route, whose scalars are texts as in a file."""
    row = compiled(section.Parameters.model_validate(words))
    assert row is not None
    return Parameters.from_document(row)
