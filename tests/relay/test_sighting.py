"""What of an answer is the caller's is seen however it is cut, however long it is."""

from __future__ import annotations

import json

import pytest

from proxy.dialects.base import OperationSpec, UsagePointers
from proxy.dialects.owned import ANY, FAILED, RUNNING, SUCCEEDED, IdOut, Task
from proxy.metering.usage import Usage
from proxy.relay.sighting import CONTENT_BYTES_MAX, WHOLE_BYTES_MAX, Sighting, sighting_of

TASK = Task(
    "response", "get", (("status",), ("response", "status")), {"completed": SUCCEEDED, "failed": FAILED},
    asked="background",
    usage=UsagePointers((("usage",), ("response", "usage")), lambda told: Usage(output=told["n"])),
)  # fmt: skip
OUT = (
    IdOut("response", (("id",), ("response", "id")), asked="store"),
    IdOut("container", (("response", "output", ANY, "container_id"),)),
)
SPEC = OperationSpec("responses", ids_out=OUT, task=TASK)


def events(*documents: object) -> bytes:
    return (
        b"".join(b"event: x\ndata: %b\n\n" % json.dumps(d).encode() for d in documents) + b"data: [DONE]\n\n"
    )


def watching(request: dict, seen: list | None = None) -> Sighting:
    found = sighting_of(SPEC, request, lambda kind, id_: seen is not None and seen.append((kind, id_)))
    assert found is not None
    return found


@pytest.mark.parametrize("size", [1, 7, 64, 1 << 20])
def test_a_whole_answer_tells_id_state_usage_and_what_lists_show(size):
    document = {"id": "resp_1", "status": "completed", "usage": {"n": 5}}
    data = b"\r\n " + json.dumps(document).encode()
    sighting = watching({"background": True})
    for at in range(0, len(data), size):
        sighting.feed(data[at : at + size])
    sighting.finish()
    assert (sighting.ids, sighting.state) == ({"resp_1": "response"}, SUCCEEDED)
    assert sighting.usage == Usage(output=5) and sighting.content == document


@pytest.mark.parametrize("size", [1, 13, 1 << 20])
def test_a_stream_tells_each_id_once_as_soon_as_it_comes(size):
    data = events(
        {"type": "response.created", "response": {"id": "resp_1", "status": "queued"}},
        {"type": "delta", "delta": 'the "id" of nothing', "item_id": "msg_1"},
        {"response": {"id": "resp_1", "status": "failed", "output": [{"container_id": "cntr_1"}, {}]}},
    )
    seen: list[tuple[str, str]] = []
    sighting = watching({"background": True}, seen)
    for at in range(0, len(data), size):
        sighting.feed(data[at : at + size])
        if b"queued" in data[: at + size].partition(b"\n\n")[0] and b"\n\n" in data[: at + size]:
            assert seen[:1] == [("response", "resp_1")]
    sighting.finish()
    assert seen == [("response", "resp_1"), ("container", "cntr_1")]
    assert sighting.state == FAILED


def test_it_is_urgent_until_a_stream_has_told_its_id_and_never_for_a_whole_answer():
    sighting = watching({})
    assert sighting.is_urgent
    sighting.feed(b"event: x\n")
    assert sighting.is_urgent
    sighting.feed(b'data: {"response": {"id": "resp_1"}}\n\n')
    assert not sighting.is_urgent and not sighting.is_over
    sighting.feed(b'data: {"response": {"output": [{"container_id": "c"}]}}\n\n')
    assert sighting.is_over
    whole = watching({})
    whole.feed(b'{"id"')
    assert not whole.is_urgent


def test_what_the_vendor_was_asked_not_to_keep_is_nobodys():
    sighting = watching({"store": False})
    sighting.feed(b'{"id": "resp_1"}')
    sighting.finish()
    assert sighting.ids == {}
    plain = OperationSpec("chat", ids_out=(IdOut("chat", (("id",),), asked="store", by_default=False),))
    assert sighting_of(plain, {}, lambda kind, id_: None) is None
    assert sighting_of(OperationSpec("x", task=TASK), {}, lambda kind, id_: None) is None


def test_a_long_answer_is_read_within_bounds():
    document = {"data": "x" * (WHOLE_BYTES_MAX * 4), "id": "resp_1", "status": "queued"}
    sighting = watching({"background": True})
    data = json.dumps(document).encode()
    for at in range(0, len(data), 50_000):
        sighting.feed(data[at : at + 50_000])
        assert sighting._buffer is None or len(sighting._buffer) <= WHOLE_BYTES_MAX + 50_000
    sighting.finish()
    assert (sighting.ids, sighting.state, sighting.content) == ({"resp_1": "response"}, RUNNING, {})
    medium = watching({})
    medium.feed(json.dumps({"id": "resp_1", "text": "x" * CONTENT_BYTES_MAX}).encode())
    medium.finish()
    assert medium.ids and medium.content == {}


@pytest.mark.parametrize(
    "data", [b"", b"null", b"[]", b'{"id": 5', b'{"id": {}}', b"<html>", b"data: {\n\n", b"\xff"]
)
def test_odd_answers_tell_nothing_and_raise_nothing(data):
    sighting = watching({"background": True})
    sighting.feed(data)
    sighting.finish()
    assert sighting.ids == {} and sighting.state is None


def test_a_reader_that_fails_disturbs_nobody():
    sighting = watching({"background": True})
    sighting.feed(b'{"id": "resp_1", "usage": {"m": 1}}')
    sighting.finish()
    assert sighting.ids == {"resp_1": "response"} and sighting.usage is None
