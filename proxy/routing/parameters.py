"""What a route allows in request bodies: the rules under `parameters:` of routes.yaml.

Owns the few conditions that rules are made of, and what a refusal says. Pure. A rule refuses a body that
meets all of its conditions:

    refuse: [top_p]                                        top_p is there
    range: {n: [1, 5]}                                     n is outside
    one_of: {"messages[].role": [user]}                    a role is another one
    not_empty: ["messages[].content"]                      a content is missing, or nothing is in it
    not_together: [{n: [2, 5], temperature: [0, 0.05]}]    n is inside, and temperature is inside

`null` counts as not there. What lies elsewhere than a rule expects it (a `messages` that is no list) is the
upstream's to refuse.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, NamedTuple

import orjson

EACH = "[]"  # behind a member's name: each element of the list that it is


class Refusal(NamedTuple):
    text: str
    param: str  # as in `messages[1].role`


# -- conditions ----------------------------------------------------------------------------------

Operands = tuple[Any, ...]
Meets = Callable[[Any], bool]


def _outside(low: Decimal, high: Decimal) -> Meets:
    return lambda value: value is not None and not ((n := _number(value)) is not None and low <= n <= high)


def _inside(low: Decimal, high: Decimal) -> Meets:
    return lambda value: (n := _number(value)) is not None and low <= n <= high


def _other(*words: str) -> Meets:
    return lambda value: value is not None and (value if type(value) is str else _text(value)) not in words


def _number(value: Any) -> Decimal | int | None:
    if type(value) is float:
        return Decimal(str(value))
    return value if type(value) is int else None


def _text(value: Any) -> str:
    return orjson.dumps(value, default=repr).decode()


def _between(low: Decimal, high: Decimal) -> str:
    return str(low) if low == high else f"a number between {low} and {high}"


class Kind(NamedTuple):
    """One sort of condition: which values meet it, and what a refusal for it alone says; both of operands."""

    meets: Callable[..., Meets]
    says: Callable[..., str]
    of_numbers: bool = False


KINDS = {
    "there": Kind(lambda: lambda value: value is not None, lambda: "is not supported here"),
    "outside": Kind(_outside, lambda *bounds: f"must be {_between(*bounds)}", of_numbers=True),
    "inside": Kind(_inside, lambda *bounds: f"must not be {_between(*bounds)}", of_numbers=True),
    "other": Kind(_other, lambda *words: f"must be one of {', '.join(words)}"),
    "empty": Kind(lambda: lambda value: value in (None, "", [], {}), lambda: "must not be empty"),
}


@dataclass(frozen=True, slots=True)
class Condition:
    """`at` is a path such as `temperature`, `response_format.type` or `messages[].role`."""

    kind: str
    at: str
    operands: Operands = ()
    steps: tuple[str, ...] = field(init=False)
    meets: Meets = field(init=False, compare=False, repr=False)
    minds_absence: bool = field(init=False)  # else it is not looked at where its member is not there

    def __post_init__(self) -> None:
        meets = KINDS[self.kind].meets(*self.operands)
        object.__setattr__(self, "steps", tuple(self.at.replace(EACH, f".{EACH}").split(".")))
        object.__setattr__(self, "meets", meets)
        object.__setattr__(self, "minds_absence", meets(None))

    def met_at(self, doc: Mapping[str, Any]) -> str | None:
        """The place of the first value that meets it; None: no value does."""
        if self.steps[0] not in doc and not self.minds_absence:
            return None
        found = _place(doc, self.steps, 0, self.meets)
        return None if found is None else found[1:]

    def in_words(self) -> str:
        """What it is about, where it is not alone."""
        if self.kind != "inside":
            return f"'{self.at}'"
        low, high = self.operands
        return f"'{self.at}' of {low}" if low == high else f"'{self.at}' from {low} to {high}"


def _place(value: Any, steps: tuple[str, ...], depth: int, meets: Meets) -> str | None:
    """Where below `value` a condition is met first, as in `.messages[1].role`; None: nowhere."""
    if depth == len(steps):
        return "" if meets(value) else None
    step = steps[depth]
    if step == EACH:
        for i, element in enumerate(value if type(value) is list else ()):
            found = _place(element, steps, depth + 1, meets)
            if found is not None:
                return f"[{i}]{found}"
    elif type(value) is dict:
        found = _place(value.get(step), steps, depth + 1, meets)
        if found is not None:
            return f".{step}{found}"
    return None


# -- rules ---------------------------------------------------------------------------------------

Rule = tuple[Condition, ...]


def in_words(rule: Rule, at: str = "") -> str:
    """What a rule wants, as callers are told; `at` is the place that they had wrong."""
    if len(rule) == 1:
        return f"'{at or rule[0].at}' {KINDS[rule[0].kind].says(*rule[0].operands)}."
    return f"{' and '.join(condition.in_words() for condition in rule)} cannot be used together."


@dataclass(frozen=True, slots=True)
class Parameters:
    """What a route does to the members of a request body: `drop` are cut out, what `rules` meet is a 400."""

    drop: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()
    within_context: bool = False  # the input and the output that is asked for, together
    guarded: tuple[str, ...] = field(init=False)  # members that rules are about: none may be there twice
    numbers: frozenset[str] = field(init=False)  # those that are read as numbers

    def __post_init__(self) -> None:
        plain = [c for rule in self.rules for c in rule if len(c.steps) == 1]
        object.__setattr__(self, "guarded", tuple(dict.fromkeys(c.at for c in plain)))
        object.__setattr__(self, "numbers", frozenset(c.at for c in plain if KINDS[c.kind].of_numbers))

    @classmethod
    def from_document(cls, data: Mapping[str, Any]) -> Parameters:
        """`rules` are lists of [kind, path, operands]; the bounds of numbers are decimal text."""
        rules = tuple(tuple(_condition(*row) for row in rule) for rule in data["rules"])
        return cls(tuple(data["drop"]), rules, data["within_context"])

    def refusal(self, doc: Mapping[str, Any]) -> Refusal | None:
        """What is wrong with a body by the first rule that refuses it."""
        for rule in self.rules:
            first = rule[0].met_at(doc)
            if first is not None and all(other.met_at(doc) is not None for other in rule[1:]):
                return Refusal(in_words(rule, first), first)
        return None


def _condition(kind: str, at: str, operands: list[str]) -> Condition:
    return Condition(kind, at, tuple(map(Decimal, operands) if KINDS[kind].of_numbers else operands))
