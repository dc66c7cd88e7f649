"""Which model a request is billed as, where the request has no member that is a model's name.

Owns the tables of declared operations for it and their reader. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from proxy.dialects.owned import found, text_of
from proxy.errors import ParameterRefused
from proxy.metering.scanner import Pointer
from proxy.routing.globs import matches

_BRACE = re.compile(r"\{([A-Za-z_][A-Za-z0-9_.-]*)(?:=([^{}]*))?\}")
_WORD = re.compile(r"[A-Za-z0-9._/-]{1,64}")  # of a request, in the name of a model


@dataclass(frozen=True, slots=True)
class Naming:
    """The first of `cases` that fits what is at `at` counts, else `otherwise`."""

    at: Pointer  # ("path" | "query" | "body", ...); (): there are no cases
    cases: tuple[tuple[str, str], ...]  # (text or glob, template)
    otherwise: str | None  # a template; None: refused

    def model(
        self, doc: Mapping[str, Any], captures: Mapping[str, str], query: Mapping[str, str], mode: str = ""
    ) -> str:
        """`mode` is the template that a route puts around it, or "". Raises ParameterRefused."""
        template = self.otherwise
        if self.at:
            said = text_of(at_request(self.at, doc, captures, query)) or ""
            template = next((name for glob, name in self.cases if matches(glob, said)), self.otherwise)
        if template is None:
            raise ParameterRefused(param=str(self.at[-1]))
        name = self._filled(template, doc, captures)
        return mode.replace("{name}", name) if mode else name

    def alternatives(self, mode: str = "") -> Iterator[tuple[str, str]]:
        """(what the request must say, the template that it is billed as); "": anything else."""
        for said, template in (*self.cases, *([("", self.otherwise)] if self.otherwise else [])):
            yield said, mode.replace("{name}", template) if mode else template

    @staticmethod
    def _filled(template: str, doc: Mapping[str, Any], captures: Mapping[str, str]) -> str:
        if "{" not in template:
            return template

        def fill(brace: re.Match[str]) -> str:
            at = brace[1]
            value = captures.get(at)
            if value is None:
                value = text_of(next(found(doc, tuple(at.split("."))), None)) or brace[2]
            if value is None or not _WORD.fullmatch(value):
                raise ParameterRefused(param=at)
            return value

        return _BRACE.sub(fill, template)


def at_request(
    at: Pointer, doc: Mapping[str, Any], captures: Mapping[str, str], query: Mapping[str, str]
) -> Any:
    """The first thing at a place of a request, or None."""
    source, *steps = at
    whole = doc if source == "body" else captures if source == "path" else query
    return next(found(whole, tuple(steps)), None)
