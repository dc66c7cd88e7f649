"""Rules for parameters: each word of the file refuses what it says, names the place, and passes the rest."""

from __future__ import annotations

from typing import Any

import pytest

from tests.routing.compiling import MINIMAL, rules, table

ASK = {"messages": [{"role": "user", "content": "Hi"}]}


def refused(doc: dict[str, Any], **words: Any) -> tuple[str, str] | None:
    """(what is said, parameter)"""
    return rules(**words).refusal(doc)


@pytest.mark.parametrize("value", [0, 1, 0.5, 1.0, 1e-3, None])
def test_a_number_within_its_range_passes(value: object) -> None:
    assert refused({"temperature": value}, range={"temperature": ["0", "1"]}) is None


@pytest.mark.parametrize("value", [-0.1, 1.0000001, 2, 2**63, 1e300, "1", "", True, False, [1], {}])
def test_what_is_no_number_within_its_range_is_refused(value: object) -> None:
    said = "'temperature' must be a number between 0 and 1."
    assert refused({"temperature": value}, range={"temperature": ["0", "1"]}) == (said, "temperature")


def test_a_range_of_one_number_says_which() -> None:
    assert refused({"top_p": 1.0}, range={"top_p": ["1", "1"]}) is None
    assert refused({"top_p": 0.9}, range={"top_p": ["1", "1"]}) == ("'top_p' must be 1.", "top_p")


@pytest.mark.parametrize("value", ["", 0, False, [], {}, "x"])
def test_what_is_not_supported_is_refused_whatever_it_is(value: object) -> None:
    assert refused({"stop": value}, refuse=["stop"]) == ("'stop' is not supported here.", "stop")


def test_null_counts_as_not_there() -> None:
    words = {"refuse": ["stop"], "one_of": {"voice": ["alloy"]}, "range": {"n": ["1", "5"]}}
    assert refused({"stop": None, "voice": None, "n": None}, **words) is None


ROLES = {"messages[].role": ["system", "user", "assistant"]}


@pytest.mark.parametrize("role", ["tool", "User", "", 1, None])
def test_each_element_of_a_list_is_looked_at_and_the_first_bad_one_named(role: object) -> None:
    messages = [{"role": "system"}, {"role": "user"}, {"role": role}, {"role": "no matter"}]
    place = "messages[2].role" if role is not None else "messages[3].role"
    said = f"'{place}' must be one of system, user, assistant."
    assert refused({"messages": messages}, one_of=ROLES) == (said, place)


def test_words_may_be_numbers_too() -> None:
    assert refused({"dimensions": 256}, one_of={"dimensions": ["256", "1024"]}) is None
    assert refused({"dimensions": 257}, one_of={"dimensions": ["256", "1024"]}) is not None


@pytest.mark.parametrize("message", [{"content": ""}, {"content": None}, {"content": []}, {}])
def test_what_must_not_be_empty_must_be_there(message: dict[str, Any]) -> None:
    words = {"not_empty": ["messages", "messages[].content"]}
    said = "'messages[1].content' must not be empty."
    messages = [{"content": [{"type": "text"}]}, message]
    assert refused({"messages": messages}, **words) == (said, "messages[1].content")
    assert refused({"messages": []}, **words) == ("'messages' must not be empty.", "messages")
    assert refused({}, **words) == ("'messages' must not be empty.", "messages")


@pytest.mark.parametrize("content", [" ", "0", 0, False, {"a": 1}])
def test_what_only_looks_empty_passes(content: object) -> None:
    assert refused({"messages": [{"content": content}]}, not_empty=["messages[].content"]) is None


@pytest.mark.parametrize("messages", [None, "text", {}, 4, ["text", None, [], 1]])
def test_what_has_another_shape_is_left_to_the_upstream(messages: object) -> None:
    assert refused({"messages": messages}, one_of=ROLES, not_empty=["messages[].content"]) is None


SEVERAL_NEARLY_GREEDY = [{"n": ["2", "5"], "temperature": ["0", "0.05"]}]


@pytest.mark.parametrize(
    ("n", "temperature", "passes"),
    [(1, 0, True), (2, 0.06, True), (5, None, True), (None, 0, True), (2, 0, False), (5, 0.05, False)],
)
def test_fields_may_be_refused_together_only(n: object, temperature: object, passes: bool) -> None:
    found = refused({"n": n, "temperature": temperature}, not_together=SEVERAL_NEARLY_GREEDY)
    said = "'n' from 2 to 5 and 'temperature' from 0 to 0.05 cannot be used together."
    assert found == (None if passes else (said, "n"))


def test_together_may_mean_any_value() -> None:
    words: dict[str, Any] = {"not_together": [{"temperature": "any", "top_p": "any"}]}
    assert refused({"temperature": 0}, **words) is None
    said = "'temperature' and 'top_p' cannot be used together."
    assert refused({"temperature": 0, "top_p": 1}, **words) == (said, "temperature")


def test_the_members_of_a_body_that_rules_are_about_are_known() -> None:
    policy = rules(
        drop=["user"],
        refuse=["stop"],
        range={"n": ["1", "5"]},
        one_of=ROLES,
        not_together=SEVERAL_NEARLY_GREEDY,
    )
    assert policy.guarded == ("stop", "n", "temperature")
    assert policy.numbers == {"n", "temperature"}


def test_a_file_says_it_in_these_words() -> None:
    route = (
        table(
            MINIMAL
            + """
routes:
  - path: /v1/chat/completions
    parameters:
      drop: [user]
      refuse: [tools]
      range: {temperature: [0, 1], n: [1, 5]}
      one_of: {"messages[].role": [system, user, assistant]}
      not_empty: [messages, "messages[].content"]
      not_together: [{n: [2, 5], temperature: [0, 0.05]}]
      within_context: true
"""
        )
        .match("POST", "/v1/chat/completions")
        .route
    )
    assert route.parameters == rules(
        drop=["user"],
        refuse=["tools"],
        range={"temperature": ["0", "1"], "n": ["1", "5"]},
        one_of=ROLES,
        not_empty=["messages", "messages[].content"],
        not_together=SEVERAL_NEARLY_GREEDY,
        within_context="true",
    )
    assert route.parameters is not None and route.parameters.within_context
    assert route.parameters.refusal(ASK) is None
