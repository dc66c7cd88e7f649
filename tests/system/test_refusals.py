"""Every refusal: status, shape in the caller's dialect, whether to try again; and nothing goes upstream.

Behind each one a canary is sent on the same connection where it is kept open, else on a fresh one.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import pytest

from proxy.access.keyformat import make_key
from tests.fakes.raw_client import CUT, Answer, Left, RawClient, request
from tests.fakes.upstream_server import Pause, chunk, chunked_head
from tests.system.troubled import CHAT, HELLO, MESSAGES, Lane, Troubled
from tests.waiting import promised, wait_for

# -- what differs by dialect -----------------------------------------------------------------------


class Dialect(NamedTuple):
    """How its clients call: lane, path of a model, header of a key; and how they read an error."""

    kind: str
    path: str
    key: str
    check: Callable[[Answer, Refusal], None]

    def ask(self, client: RawClient, lane: Lane, model: str, key: str, *fields: str) -> Answer:
        auth = [self.key.format(key)] if key else []
        named = Lane(model, lane.server)
        path = self.path.format(model=model)
        return client.ask(request("POST", path, *auth, *fields, body=named.body(max_tokens=5)))


class Refusal(NamedTuple):
    """`kind` and `anthropic` are the `type` that OpenAI's and Anthropic's SDKs read."""

    status: int
    code: str
    kind: str = "invalid_request_error"
    anthropic: str = "invalid_request_error"
    azure: str = ""  # Azure's code, where it has one of its own
    param: str | None = None
    should_retry: str | None = "false"


def as_openai(answer: Answer, want: Refusal) -> None:
    error = answer.json().pop("error")
    assert error.pop("message")
    assert error == {"type": want.kind, "param": want.param, "code": want.code}


def as_azure(answer: Answer, want: Refusal) -> None:
    error = answer.json()["error"]
    assert error["code"] == (want.azure or want.code)
    assert error["innererror"] == {"code": want.code}
    assert error["message"] and error["type"] == want.kind


def as_anthropic(answer: Answer, want: Refusal) -> None:
    document = answer.json()
    assert document["type"] == "error"
    assert document["request_id"] == answer.header("request-id") == answer.header("x-request-id")
    assert document["error"].pop("message")
    assert document["error"] == {"type": want.anthropic}


DIALECTS = {
    "openai": Dialect("solo", CHAT, "authorization: Bearer {}", as_openai),
    "azure": Dialect(
        "solo", "/openai/deployments/{model}/chat/completions?api-version=2024-10-21", "api-key: {}", as_azure
    ),
    "anthropic": Dialect("claude", MESSAGES, "x-api-key: {}", as_anthropic),
}

AUTHENTICATION = {"kind": "invalid_request_error", "anthropic": "authentication_error"}
PERMISSION = {"kind": "invalid_request_error", "anthropic": "permission_error"}

# case -> what is wrong: with the key (`keys`), else with the model
REFUSED: dict[str, Refusal] = {
    "unknown key": Refusal(401, "invalid_api_key", **AUTHENTICATION, azure="401"),
    "mistyped key": Refusal(401, "invalid_api_key", **AUTHENTICATION, azure="401"),
    "key of another kind": Refusal(401, "invalid_api_key", **AUTHENTICATION, azure="401"),
    "endless key": Refusal(401, "invalid_api_key", **AUTHENTICATION, azure="401"),
    "no key": Refusal(401, "missing_api_key", **AUTHENTICATION, azure="401"),
    "revoked key": Refusal(401, "invalid_api_key", **AUTHENTICATION, azure="401"),
    "expired key": Refusal(401, "api_key_expired", **AUTHENTICATION),
    "frozen account": Refusal(403, "account_frozen", **PERMISSION),
    "address not allowed": Refusal(403, "address_not_allowed", **PERMISSION),
    "key without the model": Refusal(403, "model_not_permitted", **PERMISSION, param="model"),
    "key without the path": Refusal(403, "route_not_permitted", **PERMISSION),
    "key without the endpoint": Refusal(403, "route_not_permitted", **PERMISSION),
    "tier without the model": Refusal(403, "model_not_permitted", **PERMISSION, param="model"),
    "no balance": Refusal(429, "insufficient_quota", "insufficient_quota", "billing_error"),
    "balance too small": Refusal(429, "insufficient_quota", "insufficient_quota", "billing_error"),
    "unknown model": Refusal(
        404, "model_not_found", anthropic="not_found_error", azure="DeploymentNotFound", param="model"
    ),
    "unpriced model": Refusal(403, "model_not_priced", **PERMISSION, param="model"),
}
MODELS = {"unknown model": "no-such-model", "unpriced model": "wild-and-free"}


@pytest.fixture(scope="module")
def keys(troubled: Troubled) -> dict[str, str]:
    """A key that is refused for each reason."""
    long_ago = datetime.now(UTC) - timedelta(hours=1)
    revoked, frozen = troubled.customer(), troubled.customer()
    troubled.revoke(revoked)
    troubled.set_account_status(frozen, "frozen")
    return {
        "unknown key": make_key(bytes(range(32))),
        "mistyped key": troubled.key[:-1] + ("0" if troubled.key[-1] != "0" else "1"),
        "key of another kind": "hunter2",
        "endless key": "sk-" + "a" * 10_000,
        "no key": "",
        "revoked key": revoked,
        "expired key": troubled.customer(expires_at=long_ago),
        "frozen account": frozen,
        "address not allowed": troubled.customer(ip_allow=("203.0.113.0/24",)),
        "key without the model": troubled.customer(models=("lane-pair-*", "gpt-*")),
        "key without the path": troubled.customer(routes=("/v1/embeddings",)),
        "key without the endpoint": troubled.customer(endpoints=("plain",)),
        "tier without the model": troubled.customer(tier="None"),
        "no balance": troubled.customer(credit_nanos=0),
        "balance too small": troubled.customer(credit_nanos=1000),
    }


@pytest.fixture(scope="module")
def lanes(troubled: Troubled) -> dict[str, Lane]:
    """One lane that answers well for each dialect."""
    made = {name: troubled.lane(dialect.kind) for name, dialect in DIALECTS.items()}
    for lane in made.values():
        lane.script(HELLO)
    return made


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_is_in_the_callers_dialect_and_nothing_goes_upstream(
    troubled: Troubled, keys: dict[str, str], lanes: dict[str, Lane], case: str, dialect: str
) -> None:
    caller, lane, want = DIALECTS[dialect], lanes[dialect], REFUSED[case]
    before = len(lane.asked())
    address = f"x-forwarded-for: {troubled.address()}"
    key = keys.get(case, troubled.key)
    with troubled.connect() as client:
        answer = caller.ask(client, lane, MODELS.get(case, lane.model), key, address)
        assert answer.status == want.status, answer
        assert answer.header("content-type") == "application/json"
        assert answer.header("x-should-retry") == want.should_retry
        assert answer.header("access-control-allow-origin") == "*"
        assert len(answer.call) == 36
        assert not key or key[:200].encode() not in answer.body
        caller.check(answer, want)
        assert lane.asked()[before:] == []
        canary = caller.ask(client, lane, lane.model, troubled.key)
        assert (canary.status, len(lane.asked())) == (200, before + 1)


# -- keys that change ------------------------------------------------------------------------------


def test_a_key_works_until_it_is_revoked_and_two_seconds_later_no_more(troubled: Troubled) -> None:
    lane, key = troubled.lane(), troubled.customer()
    lane.script(HELLO)
    assert troubled.ask(lane.body(), key=key).status == 200
    troubled.revoke(key)
    wait_for(lambda: status(troubled, lane, key) == 401, "refused", within_s=promised(2.0))


def status(troubled: Troubled, lane: Lane, key: str) -> int:
    """Of one call; 0: it was running when its key was taken away."""
    try:
        return troubled.ask(lane.body(), key=key).status
    except Left:
        return 0


def test_the_streams_of_a_revoked_key_are_cut_and_billed_as_far_as_they_came(troubled: Troubled) -> None:
    lane, key = troubled.lane(), troubled.customer()
    lane.script([chunked_head(), chunk(b'data: {"choices":[{"delta":{"content":"Hi"}}]}\n\n'), Pause()])
    with troubled.connect() as client:
        client.send(request("POST", CHAT, f"authorization: Bearer {key}", body=lane.body(stream=True)))
        client.head()
        client.chunk()
        troubled.revoke(key)
        client.sock.settimeout(5.0)
        assert client.end() == CUT
    row = troubled.row_of(key)
    assert (row["state"], row["outcome"], row["cut"]) == ("settled", "cut", "revoked")
    assert row["provenance"] == "counted" and row["usage"]["output"] == 1


def test_a_frozen_account_may_call_again_when_it_is_active_again(troubled: Troubled) -> None:
    lane, key = troubled.lane(), troubled.customer()
    lane.script(HELLO)
    assert troubled.ask(lane.body(), key=key).status == 200
    troubled.set_account_status(key, "frozen")
    wait_for(lambda: status(troubled, lane, key) == 403, "frozen", within_s=promised(2.0))
    troubled.set_account_status(key, "active")
    wait_for(lambda: status(troubled, lane, key) == 200, "active", within_s=promised(2.0))


def test_an_allowed_address_is_that_of_the_client_behind_the_trusted_proxy(troubled: Troubled) -> None:
    lane, key = troubled.lane(), troubled.customer(ip_allow=("203.0.113.0/24",))
    lane.script(HELLO)
    assert troubled.ask(lane.body(), "x-forwarded-for: 203.0.113.7", key=key).status == 200
    # What the client itself wrote stands before what the proxy saw.
    forged = "x-forwarded-for: 203.0.113.7, 198.51.100.1"
    assert troubled.ask(lane.body(), forged, key=key).status == 403


def test_an_address_that_tries_keys_is_told_to_wait(troubled: Troubled) -> None:
    lane, address = troubled.lane(), troubled.address()
    answers = [
        troubled.ask(lane.body(), f"x-forwarded-for: {address}", key=make_key(bytes([n]) * 32))
        for n in range(21)
    ]
    assert [a.status for a in answers] == [401] * 20 + [429]
    assert 1 <= int(answers[-1].header("retry-after") or 0) <= 60
    assert lane.asked() == []


# -- limits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_rate_limit_says_when_to_come_back(
    troubled: Troubled, lanes: dict[str, Lane], dialect: str
) -> None:
    caller, lane = DIALECTS[dialect], lanes[dialect]
    key = troubled.customer(requests_per_minute=2)
    before = len(lane.asked())
    with troubled.connect() as client:
        _not_across_a_minute()
        answers = [caller.ask(client, lane, lane.model, key) for _ in range(3)]
    assert [a.status for a in answers] == [200, 200, 429]
    assert 1 <= int(answers[2].header("retry-after") or 0) <= 60
    azure = "RateLimitReached"
    want = Refusal(429, "rate_limit_exceeded", "requests", "rate_limit_error", azure, should_retry=None)
    caller.check(answers[2], want)
    assert answers[2].header("x-should-retry") is None  # a retry is just what helps
    if dialect == "anthropic":
        assert answers[2].header("anthropic-ratelimit-requests-limit") == "2"
        assert re.fullmatch(
            r"[-0-9]{10}T[:0-9]{8}Z", answers[2].header("anthropic-ratelimit-requests-reset") or ""
        )
    else:
        assert answers[2].header("x-ratelimit-limit-requests") == "2"
        assert answers[2].header("x-ratelimit-reset-requests") == f"{answers[2].header('retry-after')}s"
    assert len(lane.asked()) == before + 2


def _not_across_a_minute() -> None:
    """Windows are those of the wall clock: begin well within one."""
    left = 60 - time.time() % 60
    if left < 2:
        time.sleep(left)


def test_calls_at_once_are_limited_and_free_again_when_one_ends(troubled: Troubled) -> None:
    lane, key = troubled.lane(), troubled.customer(concurrency=1)
    pause = Pause()
    lane.script([chunked_head(), chunk(b": hi\n\n"), pause, chunk(b"data: [DONE]\n\n"), chunk(b"")])
    body = lane.body(stream=True)
    with troubled.connect() as client:
        client.send(request("POST", CHAT, f"authorization: Bearer {key}", body=body))
        client.head()
        refused = troubled.ask(body, key=key)
        assert (refused.status, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert refused.header("retry-after") == "1"
        assert len(lane.asked()) == 1
        pause.end()
        while client.chunk():
            pass
    wait_for(lambda: troubled.ask(body, key=key).status == 200, "free again")


@pytest.fixture(autouse=True, scope="module")
def nothing_is_held_or_wrong_afterwards(troubled: Troubled) -> Iterator[None]:
    yield
    assert troubled.violations() == []
