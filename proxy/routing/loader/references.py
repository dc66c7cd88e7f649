"""`${env:NAME}`, `${env:NAME?}` and `${file:PATH}`: what stands outside of the file.

Owns how references are written and what becomes of a missing one. Values are looked up through
arguments, and never shown: a mistake names the reference, not what it stands for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from proxy.routing.loader.mistakes import Mistakes, Path
from proxy.routing.loader.tree import Node

_REFERENCE = re.compile(r"\$\{([^}]*)\}")
_KNOWN = re.compile(r"(?:env:(?P<env>[A-Za-z_][A-Za-z0-9_]*)|file:(?P<file>[^?]+))(?P<optional>\?)?")

BROKEN = "x"  # stands in for what a mistake was reported about
ABSENT = "http://absent.invalid"  # stands in for a missing optional value: a text, and a URL that is nowhere

ReadFile = Callable[[str], str]


def has_reference(text: str) -> bool:
    return _REFERENCE.search(text) is not None


@dataclass(slots=True)
class References:
    """Looks references up, and remembers which files were read and what was missing."""

    environ: Mapping[str, str]
    read_file: ReadFile
    mistakes: Mistakes
    files: list[str] = field(default_factory=list)
    missing: dict[str, list[str]] = field(default_factory=dict)  # upstream -> what it lacks
    unusable: set[str] = field(default_factory=set)  # upstreams that lack more than a credential

    def expand(self, node: Node | None, path: Path = ()) -> Any:
        """The plain value of a tree: texts, lists, mappings, None where nothing was written.

        A credential whose optional reference is missing is left out.
        """
        if node is None:
            return None
        if node.members is not None:
            return {
                key: value
                for key, member in node.members.items()
                if not self._is_absent_credential(
                    value := self.expand(member.value, (*path, key)), (*path, key)
                )
            }
        if node.items is not None:
            return [self.expand(item, (*path, i)) for i, item in enumerate(node.items)]
        if node.text is None or "${" not in node.text:
            return node.text
        return self._expand_text(node, path)

    @staticmethod
    def _is_absent_credential(value: Any, path: Path) -> bool:
        if len(path) != 4 or path[0] != "upstreams" or path[2] != "credentials":
            return False
        return bool((value.get("secret") if isinstance(value, dict) else value) == ABSENT)

    def _expand_text(self, node: Node, path: Path) -> str:
        assert node.text is not None
        absent = False

        def stand_in(found: re.Match[str]) -> str:
            nonlocal absent
            value = self._look_up(found[1], node, path)
            absent = absent or value is None
            return value or ""

        text = _REFERENCE.sub(stand_in, node.text)
        if "${" in _REFERENCE.sub("", node.text):
            self.mistakes.broken(node.place, "a reference without its closing brace", path)
        return ABSENT if absent else text

    def _look_up(self, inside: str, node: Node, path: Path) -> str | None:
        """None: it is optional and missing."""
        known = _KNOWN.fullmatch(inside)
        if known is None:
            what = "a reference is written ${env:NAME}, ${env:NAME?} or ${file:PATH}"
            self.mistakes.broken(node.place, what, path)
            return BROKEN
        value = self.environ.get(known["env"]) if known["env"] else self._read(known["file"], node, path)
        if value:
            return value
        name = f"env:{known['env']}" if known["env"] else f"file:{known['file']}"
        what = (
            f"{known['env']} is not set" if known["env"] else f"the file {known['file']} is missing or empty"
        )
        is_upstreams = len(path) > 2 and path[0] == "upstreams"
        if known["optional"] and is_upstreams:
            self._lack(path, what)
            return None
        hint = f" (with ${{{name}?}} the upstream is disabled then)" if is_upstreams else ""
        only = ", and only an upstream can do without" if known["optional"] else ""
        self.mistakes.broken(node.place, what + only + hint * (not only), path)
        return BROKEN

    def _lack(self, path: Path, what: str) -> None:
        upstream = str(path[1])
        self.missing.setdefault(upstream, []).append(what)
        if path[2] != "credentials":
            self.unusable.add(upstream)

    def _read(self, name: str, node: Node, path: Path) -> str | None:
        if name not in self.files:
            self.files.append(name)
        try:
            return self.read_file(name).rstrip("\r\n")
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as e:
            reason = e.strerror if isinstance(e, OSError) else "it is not text"
            self.mistakes.broken(node.place, f"the file {name} cannot be read: {reason}", path)
            return BROKEN
