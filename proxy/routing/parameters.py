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

from collections.abc import Callable, Iterator, Mapping
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


def _is_outside(value: Any, bounds: Operands) -> bool:
    number = _number(value)
    return value is not None and (number is None or not bounds[0] <= number <= bounds[1])


def _is_inside(value: Any, bounds: Operands) -> bool:
    number = _number(value)
    return number is not None and bool(bounds[0] <= number <= bounds[1])


def _is_other(value: Any, words: Operands) -> bool:
    return value is not None and (value if type(value) is str else orjson.dumps(value).decode()) not in words


def _number(value: Any) -> Decimal | None:
    return Decimal(str(value)) if type(value) is int or type(value) is float else None


def _between(bounds: Operands) -> str:
    low, high = bounds
    return str(low) if low == high else f"a number between {low} and {high}"


class Kind(NamedTuple):
    """One sort of condition: when a value meets it, and what a refusal for it alone says of the value."""

    is_met: Callable[[Any, Operands], bool]
    says: Callable[[Operands], str]
    of_numbers: bool = False


KINDS = {
    "there": Kind(lambda value, _: value is not None, lambda _: "is not supported here"),
    "outside": Kind(_is_outside, lambda bounds: f"must be {_between(bounds)}", of_numbers=True),
    "inside": Kind(_is_inside, lambda bounds: f"must not be {_between(bounds)}", of_numbers=True),
    "other": Kind(_is_other, lambda words: f"must be one of {', '.join(words)}"),
    "empty": Kind(lambda value, _: value in (None, "", [], {}), lambda _: "must not be empty"),
}


@dataclass(frozen=True, slots=True)
class Condition:
    """`at` is a path such as `temperature`, `response_format.type` or `messages[].role`."""

    kind: str
    at: str
    operands: Operands = ()
    steps: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(self.at.replace(EACH, f".{EACH}").split(".")))

    def met_at(self, doc: Mapping[str, Any]) -> str | None:
        """The place of the first value that meets it; None: no value does."""
        is_met = KINDS[self.kind].is_met
        return next((at for at, value in _values(doc, self.steps, "") if is_met(value, self.operands)), None)

    def in_words(self) -> str:
        """What it is about, where it is not alone."""
        if self.kind != "inside":
            return f"'{self.at}'"
        low, high = self.operands
        return f"'{self.at}' of {low}" if low == high else f"'{self.at}' from {low} to {high}"


def _values(holder: Any, steps: tuple[str, ...], at: str) -> Iterator[tuple[str, Any]]:
    if not steps:
        yield at, holder
    elif steps[0] == EACH:
        for i, element in enumerate(holder if type(holder) is list else ()):
            yield from _values(element, steps[1:], f"{at}[{i}]")
    elif isinstance(holder, Mapping):
        yield from _values(holder.get(steps[0]), steps[1:], f"{at}.{steps[0]}" if at else steps[0])


# -- rules ---------------------------------------------------------------------------------------

Rule = tuple[Condition, ...]


def in_words(rule: Rule, at: str = "") -> str:
    """What a rule wants, as callers are told; `at` is the place that they had wrong."""
    if len(rule) == 1:
        return f"'{at or rule[0].at}' {KINDS[rule[0].kind].says(rule[0].operands)}."
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
