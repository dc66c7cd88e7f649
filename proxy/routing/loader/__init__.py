"""routes.yaml text -> the document of a compiled table, or every mistake at once.

Owns the order of the steps; the only place that knows yaml. Reads no file and no environment by itself:
both are arguments. Runs in the command line and in the child process in which control compiles, never
in a worker.
"""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from proxy.routing.loader.checks import check
from proxy.routing.loader.compiling import document
from proxy.routing.loader.draft import Draft
from proxy.routing.loader.families import Builtin
from proxy.routing.loader.mistakes import Mistakes
from proxy.routing.loader.references import ReadFile, References
from proxy.routing.loader.shape import shape
from proxy.routing.loader.tree import parse
from proxy.routing.loader.vendors import Vendors

__all__ = ["Compiled", "Vendors", "load"]


@dataclass(frozen=True, slots=True)
class Compiled:
    """A file without mistakes."""

    document: dict[str, Any] = field(repr=False)  # plain JSON for Table.from_document; holds secrets
    warnings: list[str]  # FILE:LINE:COL: path: what
    files: list[str]  # that ${file:...} named: to be watched


def load(
    text: str,
    filename: str,
    environ: Mapping[str, str],
    read_file: ReadFile,
    vendors: Vendors,
) -> Compiled:
    """Parse, validate, cross-check and compile. `filename` is what mistakes are reported under.

    Raises ConfigError with every mistake that can be told, in the order of the file.
    """
    mistakes, warnings = Mistakes(filename), Mistakes(filename)
    references = References(environ, read_file, mistakes)
    with _collector_paused():
        compiled = _compile(text, references, vendors, warnings)
    if mistakes:
        raise mistakes.error()
    # The hash names the content; the same text with other secrets is another table.
    compiled["content_hash"] = hashlib.sha256(orjson.dumps(compiled, option=orjson.OPT_SORT_KEYS)).hexdigest()
    compiled["generation"] = 0
    return Compiled(compiled, warnings.lines(), references.files)


def _compile(text: str, references: References, vendors: Vendors, warnings: Mistakes) -> dict[str, Any]:
    """The document, of no use when there were mistakes. What it was made from is gone on return."""
    mistakes = references.mistakes
    root = parse(text, mistakes)
    if root is None:
        if not mistakes:
            mistakes.at((1, 1), "the file is empty")
        return {}
    builtin = Builtin(vendors.families)
    builtin.put_under(root, mistakes)
    shaped = shape(references.expand(root), root, mistakes)
    if shaped is None:
        return {}
    vendors = replace(vendors, dialects={**builtin.families(shaped.spec.tasks), **vendors.dialects})
    draft = Draft(shaped, root, references, vendors, mistakes, warnings)
    check(draft)
    return document(draft)


@contextmanager
def _collector_paused() -> Iterator[None]:
    """A tree of 200,000 nodes without cycles: looking for garbage would take longer than parsing."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
