"""Code stays small enough to be read at one sitting."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from tests.architecture.source import ROOT, modules, tree

FUNCTION_LINES_MAX = 60
MODULE_LINES_MAX = 400
ARGUMENTS_MAX = 6  # without self

# "path:function" or "path" -> why it may be larger.
EXCEPTIONS: dict[str, str] = {"proxy/errors.py": "a list: each refusal is a few lines, and there is one list"}


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for path in modules():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{path.relative_to(ROOT)}:{node.name}", node


def argument_count(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    a = function.args
    names = [arg.arg for arg in (*a.posonlyargs, *a.args, *a.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def too_large() -> dict[str, str]:
    found = {}
    for path in modules():
        lines = len(path.read_text().splitlines())
        if lines > MODULE_LINES_MAX:
            found[str(path.relative_to(ROOT))] = f"{lines} lines"
    for name, function in functions():
        lines = (function.end_lineno or 0) - function.lineno + 1
        if lines > FUNCTION_LINES_MAX:
            found[name] = f"{lines} lines"
        if argument_count(function) > ARGUMENTS_MAX:
            found[name] = f"{argument_count(function)} arguments"
    return found


def test_nothing_is_larger_than_can_be_read_at_once():
    assert {name: why for name, why in too_large().items() if name not in EXCEPTIONS} == {}


def test_no_exception_outlives_its_reason():
    assert set(EXCEPTIONS) - set(too_large()) == set()
