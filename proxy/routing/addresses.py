"""Addresses of a vendor's API, as its answers tell them, and where callers find the same here. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import urlsplit

from proxy.routing.paths import capture_name


class Addresses:
    """Of the operations of one family."""

    __slots__ = ("_known",)

    def __init__(self, paths: Iterable[tuple[str, str]]) -> None:
        """Pairs of templates: the path at the vendor, the path here. Of two that fit, the first counts."""
        self._known = [(re.compile("/".join(map(_segment, at.split("/")))), here) for at, here in paths]

    def here(self, url: str, base_paths: Iterable[str], endpoint: str) -> str | None:
        """The URL at a public endpoint of ours; None: it leads to nothing that is served here."""
        there = urlsplit(url)
        for base in base_paths:
            if not there.path.startswith(base):
                continue
            for pattern, here in self._known:
                found = pattern.fullmatch(there.path[len(base) :])
                if found is not None:
                    for name, value in found.groupdict().items():
                        here = here.replace(f"{{{name}}}", value)
                    return f"{endpoint}{here}" + (f"?{there.query}" if there.query else "")
        return None


def _segment(text: str) -> str:
    name = capture_name(text)
    return re.escape(text) if name is None else f"(?P<{name}>[^/]+)"
