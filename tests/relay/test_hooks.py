"""A customer's hook never goes upstream, and a vendor's callback is a hint that nobody can make up."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from proxy.dialects.base import OperationSpec
from proxy.dialects.owned import Callback
from proxy.errors import DuplicateMember, Overloaded, ParameterRefused, StationFault, UnknownPath
from proxy.metering.members import read_members
from proxy.relay.hooks import HINTS_PER_SECOND, Hooks, challenge_in
from proxy.routing.callbacks import Callbacks
from proxy.routing.foreign import networks

SPEC = OperationSpec("mj.imagine")
MIDJOURNEY = Callback(("notifyHook", "notify_hook"))
URL = "https://station.example"
HOOK = "https://hooks.example.com/mj?x=1"
CALL = "0199aabbccdd7eeff00112233445566a"


class Control:
    def __init__(self) -> None:
        self.now_ms = 1_800_000_000_000
        self.hints: list[str] = []
        self.is_away = False

    def tell(self, op: str, args: dict[str, Any]) -> bool:
        assert op == "hint"
        if not self.is_away:
            self.hints.append(args["call"])
        return not self.is_away


@pytest.fixture
def control() -> Control:
    return Control()


@pytest.fixture
def hooks(control) -> Hooks:
    hooks = Hooks(control.tell, lambda: control.now_ms)
    hooks.know(b"s" * 32)
    return hooks


def submit(content: bytes, *, url: str = URL, allow: tuple[str, ...] = ()) -> Any:
    members = read_members(content, SPEC.guarded)
    table = SimpleNamespace(callbacks=Callbacks(url, networks(allow)))
    return SimpleNamespace(
        operation=SPEC, content=content, coded=b"gzip", doc=members.doc, spans=members.spans, upload=None,
        hook="", id=CALL, query="", snapshot=SimpleNamespace(table=table),
    )  # fmt: skip


def taken(hooks: Hooks, x: Any) -> Any:
    hooks.note(x, MIDJOURNEY)
    if x.hook:
        hooks.replace(x, MIDJOURNEY)
    return x


BODY = (
    b'{ "prompt" : "a \\"notifyHook\\": cat",\n  "base64Array":[],"notifyHook" :\t"'
    + HOOK.encode()
    + b'", "model":"mj" }'
)


def test_only_the_value_of_the_hook_changes(hooks):
    x = taken(hooks, submit(BODY))
    assert x.hook == HOOK
    before, _, after = BODY.partition(orjson.dumps(HOOK))
    assert x.content.startswith(before) and x.content.endswith(after) and x.coded == b""
    ours = orjson.loads(x.content)["notifyHook"]
    assert ours.startswith(f"{URL}/callbacks/") and x.content == before + orjson.dumps(ours) + after
    assert x.content[slice(*x.spans["model"])] == b'"mj"'


def test_without_an_endpoint_for_vendors_the_member_is_cut_out_and_nothing_else_moves(hooks):
    x = taken(hooks, submit(BODY, url=""))
    assert x.hook == HOOK
    assert x.content == (b'{ "prompt" : "a \\"notifyHook\\": cat",\n  "base64Array":[],"model":"mj" }')


def test_a_worker_that_does_not_know_the_secret_gives_vendors_nothing_to_call(control):
    x = taken(Hooks(control.tell, lambda: 0), submit(BODY))
    assert x.hook == HOOK and b"callbacks" not in x.content and HOOK.encode() not in x.content


@pytest.mark.parametrize(
    "name",
    ["notifyHook", "notify_hook", "NOTIFYHOOK", "notifyhook", "notify\\u0048ook", "\\u006eotifyHook",
     "notifyHoo\u212a"],
)  # fmt: skip
def test_a_hook_is_found_in_any_spelling_that_an_upstream_may_understand(hooks, name):
    x = taken(hooks, submit(f'{{"prompt":"p","{name}":"{HOOK}"}}'.encode(), url=""))
    assert (x.hook, x.content) == (HOOK, b'{"prompt":"p"}')


@pytest.mark.parametrize(
    "content", [b'{"prompt":"notifyHook"}', b'{"notifyHook":null,"notify_hook":""}', b"{}"]
)
def test_without_a_hook_the_body_stays_as_it_came(hooks, content):
    x = taken(hooks, submit(content))
    assert (x.hook, x.content, x.coded) == ("", content, b"gzip")


@pytest.mark.parametrize(
    "url",
    ['"ftp://example.com/"', '"http://127.0.0.1/"', '"http://2130706433/"', '"http://u:p@example.com/"',
     '"http://169.254.169.254/latest"', '"http://[::1]/"', '"example.com"', "7", "[1]", "true", "false",
     '"https://example.com/' + "a" * 2048 + '"'],
)  # fmt: skip
def test_a_hook_that_nobody_should_call_is_refused(hooks, url):
    with pytest.raises(ParameterRefused) as refused:
        taken(hooks, submit(f'{{"notifyHook":{url}}}'.encode()))
    assert (refused.value.status, refused.value.param) == (400, "notifyHook")


def test_what_the_operator_allows_may_be_a_hook(hooks):
    content = b'{"notifyHook":"http://127.0.0.1:9000/"}'
    assert taken(hooks, submit(content, allow=("127.0.0.0/8",))).hook == "http://127.0.0.1:9000/"


@pytest.mark.parametrize("second", ["notifyHook", "notify_hook", "NotifyHook"])
def test_two_hooks_are_refused(hooks, second):
    content = f'{{"notifyHook":"{HOOK}","{second}":"https://other.example/"}}'.encode()
    with pytest.raises(DuplicateMember):
        taken(hooks, submit(content))


def test_a_hook_in_the_query_is_one_and_the_body_stays_as_it_came(hooks):
    x = submit(b'{"prompt":"p"}')
    x.query = "a=1&Notify_Hook=https%3A%2F%2Fhooks.example.com%2F%3Fx%3D1&b="
    assert taken(hooks, x).hook == "https://hooks.example.com/?x=1"
    assert (x.content, x.coded) == (b'{"prompt":"p"}', b"gzip")
    x = submit(b"{}")
    x.query = "notifyHook=http%3A%2F%2F10.0.0.1%2F"
    with pytest.raises(ParameterRefused):
        taken(hooks, x)
    x = submit(BODY)
    x.query = "notifyHook=https%3A%2F%2Fother.example%2F"
    with pytest.raises(DuplicateMember):
        taken(hooks, x)


def test_a_forms_hook_is_left_out_of_what_goes_upstream(hooks):
    x = submit(b"{}")
    x.upload, x.doc = SimpleNamespace(dropped=("logit_bias",)), {"notify_hook": HOOK, "prompt": "p"}
    assert (taken(hooks, x).hook, x.upload.dropped) == (HOOK, ("logit_bias", "notify_hook"))


def token_of(hooks: Hooks, call: str = CALL) -> str:
    x = submit(BODY)
    x.id = call
    return orjson.loads(taken(hooks, x).content)["notifyHook"].rpartition("/")[2]


def test_a_vendors_callback_hints_at_the_call_that_it_was_given_for(hooks, control):
    hooks.hear(token_of(hooks))
    assert control.hints == [CALL]


def test_a_token_is_the_same_at_every_node_and_another_at_every_station(hooks, control):
    other = Hooks(control.tell, lambda: control.now_ms)
    with pytest.raises(StationFault):
        other.hear(token_of(hooks))
    other.know(b"s" * 32)
    other.hear(token_of(hooks))
    other.know(b"t" * 32)
    with pytest.raises(UnknownPath):
        other.hear(token_of(hooks))


def test_nobody_can_make_up_a_token(hooks, control):
    token = token_of(hooks)
    forged = [token[:n] + ("A" if token[n] != "A" else "B") + token[n + 1 :] for n in range(len(token))]
    for made_up in (
        *forged,
        token + "=",
        token + "A",
        token[:-1],
        "",
        "é",
        "%2e",
        token[:20] + "!" + token[20:],
    ):
        with pytest.raises(UnknownPath):
            hooks.hear(made_up)
    assert control.hints == []


def test_while_control_is_away_vendors_are_told_to_call_again(hooks, control):
    token = token_of(hooks)
    control.is_away = True
    for _ in range(2):
        with pytest.raises(StationFault):
            hooks.hear(token)
    control.is_away = False
    hooks.hear(token)
    assert control.hints == [CALL]


@pytest.mark.parametrize(
    ("body", "challenge"),
    [(b'{"challenge":"abc"}', "abc"), (b'{"challenge":7}', None), (b'["challenge"]', None), (b"", None),
     (b'{"task_id":"1"}', None), (b"{", None), (b'{"challenge":"' + b"x" * 600 + b'"}', None)],
)  # fmt: skip
def test_a_vendor_that_asks_whether_somebody_is_here_gets_its_challenge_back(body, challenge):
    assert challenge_in(body) == challenge


def test_one_call_is_hinted_at_once_a_second_and_a_worker_passes_on_a_bounded_number(hooks, control):
    token = token_of(hooks)
    for _ in range(5):
        hooks.hear(token)
    assert control.hints == [CALL]
    control.now_ms += 1000
    hooks.hear(token)
    assert control.hints == [CALL] * 2
    control.now_ms += 1000
    with pytest.raises(Overloaded):
        for n in range(HINTS_PER_SECOND + 1):
            hooks.hear(token_of(hooks, f"{n:032x}"))
    assert len(control.hints) == 2 + HINTS_PER_SECOND
    control.now_ms += 1000
    hooks.hear(token)
