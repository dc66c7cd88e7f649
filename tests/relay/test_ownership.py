"""What a request names is its account's or nobody's, and the call goes where it lives."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from proxy.channel import ChannelDown
from proxy.dialects.base import OperationSpec
from proxy.dialects.owned import (
    DEEP,
    FAILED,
    IDS_MAX,
    SUCCEEDED,
    Callback,
    IdIn,
    IdOut,
    Listing,
    Many,
    Task,
)
from proxy.errors import (
    BindingLookupUnavailable,
    CredentialsCooling,
    IdsApart,
    MalformedRequest,
    ParameterRefused,
    UnknownId,
)
from proxy.ledger import entry
from proxy.ledger.bindings import DUE, GONE, Binding
from proxy.ledger.entry import Attempt, Bind, Observed
from proxy.relay import ownership as module
from proxy.relay.linking import Links
from proxy.relay.ownership import Fate, Ownership
from proxy.snapshot import Snapshot
from tests.routing.compiling import compile_text

ROUTES = """
upstreams:
  one:
    dialect: openai
    mirrors: {direct: {url: "https://one.example"}, cdn: {url: "https://cdn.example"}}
    credentials: {main: "${env:OPENAI_API_KEY}", old: {secret: "${env:OPENAI_API_KEY}", retired: true}}
  two:
    dialect: openai
    mirrors: {direct: {url: "https://two.example"}}
    credentials: {main: "${env:OPENAI_API_KEY}"}
models:
  gpt-4o-mini: {candidates: [{upstream: two, as: mini-there}]}
"""
SPEC = OperationSpec(
    "chat", ids_in=(IdIn(("path", "id")), IdIn(("body", DEEP, "file_id"))),
    ids_out=(IdOut("file", (("id",),)),), lists=Listing("file"), billed=False,
)  # fmt: skip


class Channel:
    """Control, as far as this module talks to it."""

    def __init__(self) -> None:
        self.bindings: list[Binding] = []
        self.asked: list[list[str]] = []
        self.told: list[dict[str, Any]] = []
        self.is_down = False

    async def call_again(self, op: str, args: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        if self.is_down:
            raise ChannelDown
        assert op == "binding"
        self.asked.append(args["ids"])
        found: dict[str, list[Any]] = {}
        for b in self.bindings:
            if b.account == args["account"] and b.vendor_id in args["ids"]:
                found.setdefault(b.vendor_id, []).append(b.as_dict())
        return {"found": found}

    def notify(self, op: str, args: dict[str, Any]) -> bool:
        self.told.append(args)
        return True


class Journal:
    def __init__(self) -> None:
        self.entries: list[Any] = []

    def append(self, payload: bytes, then: Any, *, settle: bool = False) -> None:
        assert settle  # a full disk must not lose whose an id is
        self.entries.append(entry.decode(payload))


@pytest.fixture
def channel() -> Channel:
    return Channel()


@pytest.fixture
def journal() -> Journal:
    return Journal()


@pytest.fixture
def owner(channel, journal) -> Ownership:
    return Ownership(channel, journal, lambda: 1_800_000_000_000, Links())  # type: ignore[arg-type]


def call(doc: dict[str, Any] | None = None, *, account: int = 7, method: str = "GET", **captures: str) -> Any:
    snapshot = Snapshot.from_document(compile_text(ROUTES).document)
    return SimpleNamespace(
        operation=SPEC, doc=doc or {}, captures=captures, query="", content=b"", method=method, begin=None,
        path="/v1/files/" + captures.get("id", ""), snapshot=snapshot, model="", is_stream=False,
        standing=None, route=SimpleNamespace(operation="chat", candidates=()), bound=None, sighting=None,
        ownership=None, hosting=None, hook="", endpoint=SimpleNamespace(url="http://x.test"),
        key=SimpleNamespace(account_id=account, key_id=1, mirror="cdn"),
        attempts=[Attempt("one", "direct", "main", "ok", 200)],
    )  # fmt: skip


def at(vendor_id: str, upstream: str = "one", credential: str = "main", account: int = 7) -> Binding:
    return Binding(vendor_id, "file", account, upstream, "direct", credential)


async def claim(owner: Ownership, x: Any) -> Any:
    await owner.claim(x, owner.names(x))
    return x


async def test_a_bound_id_is_asked_for_once_and_fixes_the_credential(owner, channel):
    channel.bindings = [at("file-1", credential="old")]
    for _ in range(3):
        x = await claim(owner, call(id="file-1"))
    assert channel.asked == [["file-1"]]
    choices = owner.choices(x)
    assert (choices[0].mirror.name, choices[0].credential.name) == ("cdn", "old")
    assert {c.upstream.name for c in choices} == {"one"}


@pytest.mark.parametrize("account", [7, 8])
async def test_an_unbound_and_a_foreign_id_are_refused_alike(owner, channel, account):
    channel.bindings = [at("file-1", account=account - 1)]
    with pytest.raises(UnknownId) as refused:
        await claim(owner, call({"input": [{"file_id": "file-1"}]}, account=account))
    assert (refused.value.status, refused.value.param) == (404, "file_id")


async def test_a_refusal_is_not_remembered(owner, channel):
    """It may have been made a moment ago."""
    with pytest.raises(UnknownId):
        await claim(owner, call(id="file-1"))
    channel.bindings = [at("file-1")]
    assert (await claim(owner, call(id="file-1"))).bound == at("file-1")


async def test_ids_at_different_credentials_cannot_be_named_together(owner, channel):
    channel.bindings = [at("file-1"), at("file-2", credential="old"), at("file-2", upstream="two")]
    with pytest.raises(IdsApart):
        await claim(owner, call({"a": {"file_id": "file-2"}}, id="file-1"))
    channel.bindings.append(at("file-3"))
    assert (await claim(owner, call({"a": {"file_id": "file-3"}}, id="file-1"))).bound == at("file-1")


async def test_a_call_with_a_model_goes_where_both_are_or_nowhere(owner, channel):
    channel.bindings = [at("file-1"), at("file-2", upstream="two")]
    for id_, expected in (("file-2", "mini-there"), ("file-1", None)):
        x = await claim(owner, call(id=id_))
        x.model, x.standing = "gpt-4o-mini", SimpleNamespace(model=x.snapshot.model_for("gpt-4o-mini"))
        if expected is None:
            with pytest.raises(IdsApart):
                owner.choices(x)
        else:
            assert {c.model for c in owner.choices(x)} == {expected}


async def test_what_the_file_no_longer_has_cannot_be_reached(owner, channel):
    channel.bindings = [at("file-1", upstream="gone"), at("file-2", credential="gone")]
    for id_ in ("file-1", "file-2"):
        with pytest.raises(CredentialsCooling):
            owner.choices(await claim(owner, call(id=id_)))


async def test_without_control_what_is_known_goes_on_and_the_rest_is_asked_again(owner, channel):
    channel.bindings = [at("file-1")]
    await claim(owner, call(id="file-1"))
    channel.is_down = True
    assert (await claim(owner, call(id="file-1"))).bound
    with pytest.raises(BindingLookupUnavailable):
        await claim(owner, call(id="file-2"))


def test_more_ids_than_a_request_may_name_are_refused(owner):
    with pytest.raises(MalformedRequest):
        owner.names(call({"files": [{"file_id": f"file-{n}"} for n in range(IDS_MAX + 1)]}))


async def test_what_is_known_is_bounded(owner, channel, monkeypatch):
    monkeypatch.setattr(module, "KNOWN_MAX", 10)
    channel.bindings = [at(f"file-{n}") for n in range(50)]
    for n in range(50):
        await claim(owner, call(id=f"file-{n}"))
    assert len(owner._known) == 10


def test_an_answers_id_is_bound_once_and_told(owner, channel, journal):
    for _ in range(2):
        x = call(method="POST")
        owner.watch(x)
        x.sighting.feed(b'{"id": "file-1", "bytes": 5}')
        x.sighting.finish()
        assert owner.conclude(x, entry.COMPLETE) is Fate.OVER
    [bind] = journal.entries
    assert isinstance(bind, Bind)
    assert (bind.account, bind.vendor_id, bind.credential, bind.content["bytes"]) == (7, "file-1", "main", 5)
    [told] = channel.told
    assert told["binding"] == {**at("file-1").as_dict(), "made": bind.id}


@pytest.mark.parametrize(("status", "outcome"), [(404, entry.COMPLETE), (200, entry.UPSTREAM_ERROR)])
def test_an_answer_that_is_an_error_makes_nothing(owner, journal, status, outcome):
    x = call(method="POST")
    x.attempts[-1].status = status
    owner.watch(x)
    x.sighting.feed(b'{"id": "file-1"}')
    x.sighting.finish()
    assert owner.conclude(x, outcome) is Fate.OVER
    assert journal.entries == []


async def test_a_delete_that_was_answered_ends_the_listing(owner, channel, journal):
    channel.bindings = [at("file-1")]
    x = await claim(owner, call(method="DELETE", id="file-1"))
    owner.conclude(x, entry.COMPLETE)
    [seen] = journal.entries
    assert isinstance(seen, Observed)
    assert (seen.state, seen.vendor_id, seen.credential) == (GONE, "file-1", "main")
    assert channel.told[-1]["gone"]


TOLD = Task(
    "task:mj", "fetch", (("status",),), {"SUCCESS": SUCCEEDED},
    callback=Callback(("notifyHook",)), progress=(("progress",),),
)  # fmt: skip
FETCH = OperationSpec("fetch", billed=False, ids_in=(IdIn(("path", "id")),), task=TOLD)


def look(owner: Ownership, content: bytes, *, is_told: bool) -> None:
    """A client asks for its own task."""
    x = call(id="t1")
    x.operation = FETCH
    x.bound = Binding("t1", TOLD.kind, 7, "one", "direct", "main", is_told)
    owner.watch(x)
    x.sighting.feed(content)
    x.sighting.finish()
    owner.conclude(x, entry.COMPLETE)


def shown(status: str, progress: int, more: str = "") -> bytes:
    return orjson.dumps({"id": "t1", "status": status, "progress": progress, "more": more})


def test_a_client_that_looks_brings_each_change_into_the_books_for_who_asked_to_be_told(owner, journal):
    for status, progress in (("RUN", 1), ("RUN", 1), ("RUN", 2), ("SUCCESS", 3), ("SUCCESS", 3)):
        look(owner, shown(status, progress), is_told=True)
    assert [(e.state, e.body.encode()) for e in journal.entries] == [
        ("running", shown("RUN", 1)), ("running", shown("RUN", 2)), ("succeeded", shown("SUCCESS", 3)),
    ]  # fmt: skip
    assert len({e.mark for e in journal.entries}) == 3


def test_a_client_that_looks_brings_states_only_where_nobody_asked_to_be_told(owner, journal):
    for status, progress in (("RUN", 1), ("RUN", 2), ("SUCCESS", 3)):
        look(owner, shown(status, progress), is_told=False)
    assert [(e.state, e.mark, e.body) for e in journal.entries] == [
        ("running", "", ""), ("succeeded", "", ""),
    ]  # fmt: skip


def test_an_end_that_cannot_be_told_from_what_was_kept_of_it_is_asked_for(owner, journal):
    look(owner, shown("SUCCESS", 100, "x" * (70 << 10)), is_told=True)
    assert [(e.state, e.mark) for e in journal.entries] == [(DUE, "")]


@pytest.mark.parametrize(
    ("hold", "hook", "is_pending"), [(7, "", True), (0, "https://h.example/", True), (0, "", False)]
)
def test_a_hook_goes_with_the_task_and_makes_one_that_is_free_wait_for_its_end(
    owner, channel, journal, hold, hook, is_pending
):
    x = call({"prompt": "a cat"}, method="POST")
    x.operation = OperationSpec("imagine", ids_out=(IdOut(TOLD.kind, (("result",),)),), task=TOLD)
    x.hook, x.begin = hook, SimpleNamespace(id="0" * 32, hold_nanos=hold, lease="")
    owner.watch(x)
    x.sighting.feed(b'{"code": 1, "result": "t1"}')
    x.sighting.finish()
    assert (owner.conclude(x, entry.COMPLETE) is Fate.GOES_ON) is bool(hold)
    [bind] = journal.entries
    assert (bind.hook, bind.hold_nanos, bind.id == "0" * 32) == (hook, hold, is_pending)
    assert channel.told[0]["binding"]["is_told"] is bool(hook)


# -- declared families -------------------------------------------------------------------------------

TASK = Task(
    "mj", "mj.fetch", (("status",),), {"SUCCESS": SUCCEEDED, "FAILURE": FAILED},
    many=Many("mj.many", "ids", (), ("id",)),
)  # fmt: skip
SUBMIT = OperationSpec(
    "mj.imagine",
    ids_out=(IdOut("mj", (("result",),)),),
    task=TASK,
    exists=(((("code",),), frozenset({"21"})),),
)
MANY = OperationSpec(
    "mj.many",
    billed=False,
    task=TASK,
    guarded=("ids",),
    lists=Listing("mj", shape="{items}", ids=("body", "ids")),
)


def submit(owner: Ownership, answer: bytes, bound: Binding | None = None) -> tuple[Any, Fate]:
    x = call(method="POST")
    x.operation, x.bound = SUBMIT, bound
    x.begin = SimpleNamespace(id="f" * 32, hold_nanos=5, lease="l")
    owner.watch(x)
    x.sighting.feed(answer)
    x.sighting.finish()
    return x, owner.conclude(x, entry.COMPLETE)


def test_a_task_is_bound_with_the_hold_of_its_submit_and_not_shown_before_it_is_seen(owner, channel, journal):
    _, fate = submit(owner, b'{"code": 1, "result": 17}')
    assert fate is Fate.GOES_ON
    [bind] = journal.entries
    assert (bind.id, bind.hold_nanos, bind.vendor_id, bind.content) == ("f" * 32, 5, "17", {})


def test_a_task_that_was_there_before_is_nobodys_who_cannot_show_it_for_his(owner, channel, journal):
    exists = b'{"code": 21, "result": 17}'
    assert submit(owner, exists)[1] is Fate.EXISTS
    assert journal.entries == [] and channel.told == []
    # It comes of one of the account's, or is known for its own: Postgres finds who has paid for it.
    assert submit(owner, exists, at("16"))[1] is Fate.GOES_ON
    assert submit(owner, exists)[1] is Fate.GOES_ON


async def test_an_answer_about_several_is_noted_for_each(owner, channel, journal):
    channel.bindings = [replace(at(id_), kind="mj") for id_ in ("1", "2", "3")]
    x = call({"ids": ["1", 2, "nobodys"]}, method="POST")
    x.operation, x.content, x.coded = MANY, b'{"ids": ["1", 2, "nobodys"], "more": 1}', b""
    assert not await owner.answer_list(x)
    assert x.content == b'{"ids": ["1",2], "more": 1}'
    owner.watch(x)
    x.sighting.feed(b'[{"id": "1", "status": "SUCCESS"}, {"id": 2, "status": "BUSY"}, {"id": "9"}, 5]')
    x.sighting.finish()
    owner.conclude(x, entry.COMPLETE)
    assert [(e.vendor_id, e.state) for e in journal.entries] == [("1", SUCCEEDED), ("2", "running")]
    assert [e.usage for e in journal.entries] == [{"calls": 1}, {}]


@pytest.mark.parametrize("ids", ["1", [["1"]], [1.5], {"a": 1}])
async def test_ids_of_another_shape_are_refused(owner, ids):
    x = call({"ids": ids}, method="POST")
    x.operation = MANY
    with pytest.raises(ParameterRefused):
        await owner.answer_list(x)


def test_what_is_told_of_already_is_so_for_the_call_that_pays_for_it_later(owner, channel):
    """Midjourney's modal, without a hook of its own."""
    owner._remember(7, "t1", (Binding("t1", TOLD.kind, 7, "one", "direct", "main", True),))
    x = call({"taskId": "t1"}, method="POST")
    x.operation = OperationSpec("modal", ids_out=(IdOut(TOLD.kind, (("result",),)),), task=TOLD)
    x.begin = SimpleNamespace(id="0" * 32, hold_nanos=7, lease="")
    owner.watch(x)
    x.sighting.feed(b'{"code": 1, "result": "t1"}')
    x.sighting.finish()
    assert owner.conclude(x, entry.COMPLETE) is Fate.GOES_ON
    assert channel.told[0]["binding"]["is_told"]
