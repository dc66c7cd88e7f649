"""YAML text -> a tree of texts in which every key and value knows its line and column.

Owns what of YAML is understood: mappings, lists and texts. No tags, anchors, aliases or merge keys; a
key stands once; scalars are never typed here. The tree is built from parser events, without recursion:
libyaml's composer overruns the C stack on deep nesting, and its aliases are how small files grow big.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from proxy.routing.loader.mistakes import Mistakes, Path, Place

TEXT_CHARACTERS_MAX = 2 << 20  # 10,000 models with their prices take about one million
DEPTH_MAX = 32  # the schema itself is nine deep
NODES_MAX = 200_000  # 10,000 models with their prices are about 130,000 nodes

_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(slots=True, eq=False)
class Node:
    """A value in the file; exactly one of the three is set, none for a value that was left empty."""

    place: Place
    text: str | None = None
    items: list[Node] | None = None
    members: dict[str, Member] | None = None

    @property
    def is_empty(self) -> bool:
        return self.text is None and self.items is None and self.members is None

    def child(self, step: str | int) -> Node | None:
        """The value below a key or an index, or None."""
        if self.members is not None and step in self.members:
            return self.members[str(step)].value
        if self.items is not None and isinstance(step, int) and step < len(self.items):
            return self.items[step]
        return None

    def place_of(self, path: Path, *, of_key: bool = False) -> Place:
        """Where the value of a path stands, or its key; of the deepest part of the path that is there.

        Steps that are not in the file (a default, the name of an alternative) are passed over.
        """
        node, place = self, self.place
        for step in path:
            child = node.child(step)
            if child is not None:
                place = node.members[str(step)].key if of_key and node.members is not None else child.place
                node = child
        return place

    def text_at(self, path: Path) -> str:
        """What is written at a path, references as they are; "" where there is no text."""
        node: Node | None = self
        for step in path:
            node = node.child(step) if node is not None else None
        return (node.text or "") if node is not None else ""


@dataclass(slots=True)
class Member:
    key: Place
    value: Node


@dataclass(slots=True)
class _Open:
    """A collection whose end has not been seen."""

    node: Node
    key: str | None = None
    key_place: Place = field(default=(0, 0))


def parse(text: str, mistakes: Mistakes) -> Node | None:
    """The root of the tree; None when the text is no YAML at all. Structural mistakes are collected."""
    if len(text) > TEXT_CHARACTERS_MAX:
        mistakes.at((1, 1), f"the file is larger than {TEXT_CHARACTERS_MAX >> 20} MiB")
        return None
    text = text.removeprefix("\ufeff")
    unprintable = _UNPRINTABLE.search(text)
    if unprintable:
        mistakes.at(_place_of(text, unprintable.start()), "a character that YAML does not allow")
        return None
    try:
        return _build(text, mistakes)
    except _TooMuchError as e:
        mistakes.at(e.place, e.what)
    except yaml.MarkedYAMLError as e:
        place = _place(e.problem_mark or e.context_mark)
        mistakes.at(place, _syntax(text, place, e))
    return None


def _place(mark: Any) -> Place:
    return (mark.line + 1, mark.column + 1) if mark else (1, 1)


class _TooMuchError(Exception):
    def __init__(self, place: Place, what: str) -> None:
        self.place = place
        self.what = what


def _build(text: str, mistakes: Mistakes) -> Node | None:
    root: Node | None = None
    stack: list[_Open] = []
    count = 0
    for event in iter(yaml.CSafeLoader(text).get_event, None):
        kind = type(event)
        if kind in _ENDS:
            stack.pop()
            continue
        place = _place(event.start_mark)
        if kind in _NODES:
            node = _node(event, place, mistakes)
        elif kind is yaml.DocumentStartEvent and root is not None:
            mistakes.broken(place, "a second document in the file")
            break
        else:
            continue
        count += 1
        if count > NODES_MAX:
            raise _TooMuchError(place, f"more than {NODES_MAX} values in one file")
        if stack:
            _attach(stack[-1], node, mistakes)
        else:
            root = node
        if kind in _STARTS:
            stack.append(_Open(node))
            if len(stack) > DEPTH_MAX:
                raise _TooMuchError(place, f"nested more than {DEPTH_MAX} deep")
    return root


_STARTS = (yaml.MappingStartEvent, yaml.SequenceStartEvent)
_ENDS = (yaml.MappingEndEvent, yaml.SequenceEndEvent)
_NODES = (yaml.ScalarEvent, *_STARTS, yaml.AliasEvent)


def _node(event: Any, place: Place, mistakes: Mistakes) -> Node:
    kind = type(event)
    if kind is yaml.AliasEvent:
        mistakes.broken(place, "aliases (*name) are not understood: write the value out")
        return Node(place)
    if event.anchor:
        mistakes.broken(place, "anchors (&name) are not understood: write the value out where it is needed")
    elif event.tag:
        mistakes.broken(place, "tags (!name) are not understood")
    if kind is yaml.ScalarEvent:
        return Node(place, text=event.value if event.value or event.style else None)
    return Node(place, members={}) if kind is yaml.MappingStartEvent else Node(place, items=[])


def _attach(parent: _Open, node: Node, mistakes: Mistakes) -> None:
    """Put a finished value or a begun collection where it belongs; in a mapping, every other one is a key."""
    owner = parent.node
    if owner.items is not None:
        owner.items.append(node)
        return
    assert owner.members is not None
    if parent.key is None:
        parent.key, parent.key_place = _key(node, mistakes), node.place
        return
    known = owner.members.get(parent.key)
    if known is not None:
        mistakes.broken(parent.key_place, f"'{parent.key}' is here twice: first in line {known.key[0]}")
    else:
        owner.members[parent.key] = Member(parent.key_place, node)
    parent.key = None


def _key(node: Node, mistakes: Mistakes) -> str:
    if node.text is None:
        mistakes.broken(node.place, "a key must be a text")
        return f"?{node.place}"
    if node.text == "<<":
        mistakes.broken(node.place, "merge keys (<<) are not understood: write the values out")
    return node.text


def _place_of(text: str, offset: int) -> Place:
    before = text[:offset]
    return (before.count("\n") + 1, offset - (before.rfind("\n") + 1) + 1)


def _syntax(text: str, place: Place, error: yaml.MarkedYAMLError) -> str:
    lines = text.split("\n")
    line = lines[place[0] - 1] if place[0] <= len(lines) else ""
    if "\t" in line[: place[1]]:
        return "a tab: YAML is indented with spaces"
    what = str(error.problem or error.context or "not YAML")
    if error.context and error.problem:
        what = f"{error.problem} ({error.context})"
    return f"not YAML: {what}"
