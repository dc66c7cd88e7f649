"""Which pattern a name belongs to: exact first, then the most literal characters.

Owns the meaning of `*` in model names, everywhere in routes.yaml. Pure and linear: no regular
expression, so no pattern and no name can make it slow.
"""

from __future__ import annotations

from collections.abc import Iterable

NAME_CHARACTERS_MAX = 256  # a longer model name is nobody's; bounds the memo's memory
MEMO_ENTRIES_MAX = 4096  # names come from clients: the memo is emptied when it is full


def is_glob(pattern: str) -> bool:
    return "*" in pattern


def literal_characters(pattern: str) -> int:
    """How specific a pattern is."""
    return len(pattern) - pattern.count("*")


def matches(pattern: str, name: str) -> bool:
    """`*` stands for any run of characters, also none; everything else for itself."""
    if "*" not in pattern:
        return pattern == name
    head, *middle, tail = pattern.split("*")
    if len(name) < len(head) + len(tail) or not name.startswith(head) or not name.endswith(tail):
        return False
    at, end = len(head), len(name) - len(tail)
    for part in middle:  # the leftmost place is always the best one
        at = name.find(part, at, end)
        if at < 0:
            return False
        at += len(part)
    return True


def overlap(a: str, b: str) -> bool:
    """True if some name matches both patterns."""
    reachable = {(0, 0)}
    for i in range(len(a) + 1):
        for j in range(len(b) + 1):
            if (i, j) not in reachable:
                continue
            star_a, star_b = a[i : i + 1] == "*", b[j : j + 1] == "*"
            if star_a:
                reachable.add((i + 1, j))
            if star_b:
                reachable.add((i, j + 1))
            if i < len(a) and j < len(b):
                if star_a:
                    reachable.add((i, j + 1))
                elif star_b:
                    reachable.add((i + 1, j))
                elif a[i] == b[j]:
                    reachable.add((i + 1, j + 1))
    return (len(a), len(b)) in reachable


def ties(patterns: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of globs that are equally specific and claim a common name."""
    by_size: dict[int, list[str]] = {}
    for pattern in patterns:
        if is_glob(pattern):
            by_size.setdefault(literal_characters(pattern), []).append(pattern)
    found = []
    for group in by_size.values():
        for i, a in enumerate(group):
            head = a.split("*", 1)[0]
            for b in group[i + 1 :]:
                other = b.split("*", 1)[0]
                if (head.startswith(other) or other.startswith(head)) and overlap(a, b):
                    found.append((a, b))
    return found


class Globs:
    """A set of patterns that answers which of them a name belongs to."""

    __slots__ = ("_exact", "_globs", "_memo")

    def __init__(self, patterns: Iterable[str]) -> None:
        every = list(patterns)
        self._globs = sorted((p for p in every if "*" in p), key=literal_characters, reverse=True)
        self._exact = frozenset(every).difference(self._globs)
        self._memo: dict[str, str | None] = {}

    def find(self, name: str) -> str | None:
        """The pattern for this name, or None."""
        if name in self._exact:
            return name
        if not self._globs or len(name) > NAME_CHARACTERS_MAX:
            return None
        if name in self._memo:
            return self._memo[name]
        found = next((p for p in self._globs if matches(p, name)), None)
        if len(self._memo) >= MEMO_ENTRIES_MAX:
            self._memo.clear()
        self._memo[name] = found
        return found
