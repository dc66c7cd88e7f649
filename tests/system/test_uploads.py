"""Forms with files go through a whole station: byte for byte, not held in memory, billed once or never."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from tests.fakes.raw_client import COMPLETE, Answer, request
from tests.fakes.upstream_server import Pause, whole
from tests.http1.test_multipart import file, part
from tests.system.troubled import SETTLED, VOID, Lane, Troubled

TRANSCRIPTIONS, EDITS = "/v1/audio/transcriptions", "/v1/images/edits"
TYPE = "content-type: multipart/form-data; boundary=b"
SOUND = random.Random(1).randbytes(1 << 20).replace(b"--b", b"- b")  # no boundary in it
HEARD = orjson.dumps({"text": "Hi", "usage": {"type": "tokens", "input_tokens": 7, "output_tokens": 2}})
END = b"--b--\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + END


def hears(troubled: Troubled, kind: str = "solo") -> Lane:
    lane = troubled.lane(kind)
    lane.script([whole(HEARD)], path=TRANSCRIPTIONS)
    return lane


def model(lane: Lane) -> bytes:
    return part("model", lane.model.encode())


def upload(troubled: Troubled, body: bytes, *fields: str, path: str = TRANSCRIPTIONS) -> Answer:
    return troubled.ask(body, *(fields or (TYPE,)), path=path)


def orders(lane: Lane) -> Iterator[bytes]:
    """The file behind the model, and in front of it."""
    yield form(model(lane), file("file", SOUND), part("language", b"de"))
    yield form(file("file", SOUND), part("language", b"de"), model(lane))


# -- through ---------------------------------------------------------------------------------------


def test_a_recording_arrives_as_it_was_sent_and_is_billed(troubled: Troubled) -> None:
    lane = hears(troubled)
    for body in orders(lane):
        answer = upload(troubled, body)
        assert (answer.status, answer.body) == (200, HEARD)
        sent = lane.asked()[-1]
        assert sent.body == body
        assert sent.header(b"content-length") == b"%d" % len(body)
        assert sent.header(b"content-type") == TYPE.partition(": ")[2].encode()
        row = troubled.row(answer.call)
        assert (row["state"], row["model"], row["provenance"]) == (SETTLED, lane.model, "final")
        assert row["request_bytes"] == len(body)


def test_a_model_of_another_name_is_exchanged_in_the_form(troubled: Troubled) -> None:
    lane = hears(troubled, "renamed")
    for body in orders(lane):
        assert upload(troubled, body).status == 200
        assert lane.asked()[-1].body == body.replace(lane.model.encode(), b"their-model")


def test_an_upload_without_a_length_goes_on_in_chunks(troubled: Troubled) -> None:
    lane = hears(troubled)
    body = next(orders(lane))
    chunks = b"".join(
        b"%x\r\n%b\r\n" % (len(body[at : at + 9000]), body[at : at + 9000])
        for at in range(0, len(body), 9000)
    )
    with troubled.connect() as client:
        head = request(
            "POST",
            TRANSCRIPTIONS,
            f"authorization: Bearer {troubled.key}",
            TYPE,
            "transfer-encoding: chunked",
        )
        assert client.ask(head, chunks + b"0\r\n\r\n").status == 200
        assert lane.asked()[-1].body == body
        assert (
            client.ask(head, b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)).status == 200
        )  # the connection goes on


def test_the_upstream_has_the_beginning_before_the_client_has_sent_the_end(troubled: Troubled) -> None:
    lane = hears(troubled)
    begin, end = model(lane) + file("file", SOUND)[:-2], b"\r\n" + END
    reached = Pause()
    lane.script([reached, whole(HEARD)], path=TRANSCRIPTIONS, at_head=True)
    with troubled.connect() as client:
        size = len(begin) + len(end)
        client.send(
            request(
                "POST",
                TRANSCRIPTIONS,
                f"authorization: Bearer {troubled.key}",
                TYPE,
                f"content-length: {size}",
            ),
            begin,
        )
        assert reached.reached.wait(30)
        reached.end()
        client.send(end)
        assert client.answer().status == 200


def test_a_picture_is_sent_when_its_price_is_known(troubled: Troubled) -> None:
    lane = troubled.lane()
    answer = orjson.dumps({"created": 1, "data": [{"url": "x"}, {"url": "y"}]})
    lane.script([whole(answer)], path=EDITS)
    body = form(file("image", SOUND, "a.png"), part("prompt", b"more"), model(lane), part("n", b"2"))
    given = upload(troubled, body, path=EDITS)
    assert (given.status, given.body) == (200, answer)
    assert lane.asked()[-1].body == body
    assert troubled.row(given.call)["usage"]["images"] == 2


def test_a_small_upload_moves_to_another_upstream_and_one_that_streams_does_not(troubled: Troubled) -> None:
    lane = troubled.lane("pair")
    lane.script([whole(b"{}", 500)], path=TRANSCRIPTIONS)
    lane.script([whole(HEARD)], path=TRANSCRIPTIONS, place=1)
    spooled, streamed = form(file("file", SOUND), model(lane)), form(model(lane), file("file", SOUND))
    assert upload(troubled, spooled).status == 200
    assert lane.asked(1)[-1].body == spooled
    other = troubled.lane("pair")
    other.script([whole(b"{}", 500)], path=TRANSCRIPTIONS)
    assert upload(troubled, streamed.replace(lane.model.encode(), other.model.encode())).status == 502
    assert other.asked(1) == []


def test_what_nobody_reads_passes_whatever_it_is(troubled: Troubled) -> None:
    lane = Lane("lane-solo-0", troubled.server)
    lane.script([whole(b"\0")], path="/v1/raw")
    for body, fields in ((SOUND, ()), (SOUND[:9], ("content-encoding: gzip", "content-type: audio/mpeg"))):
        before = len(lane.asked())
        answer = troubled.ask(body, *fields, path="/v1/raw")
        assert (answer.status, answer.body) == (200, b"\0")
        (sent,) = lane.asked()[before:]
        assert sent.body == body
        assert sent.header(b"content-encoding") == (b"gzip" if fields else None)
        assert troubled.row(answer.call)["request_bytes"] == len(body)


# -- memory ----------------------------------------------------------------------------------------


def worker_status(troubled: Troubled) -> Path:
    pid = troubled.station.child("w0")
    return Path(f"/proc/{pid}")


def peak_bytes(process: Path) -> int:
    lines = (process / "status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


@pytest.mark.parametrize("is_first", [True, False], ids=["model first", "model last"])
def test_a_recording_of_100_mb_takes_no_memory_of_the_worker(troubled: Troubled, is_first: bool) -> None:
    lane = hears(troubled)
    process = worker_status(troubled)
    pieces = [model(lane), file("file", b"")[:-2]] if is_first else [file("file", b"")[:-2]]
    last = b"\r\n" + (b"" if is_first else model(lane)) + END

    def send(megabytes: int) -> None:
        size = sum(map(len, pieces)) + megabytes * len(SOUND) + len(last)
        head = request(
            "POST", TRANSCRIPTIONS, f"authorization: Bearer {troubled.key}", TYPE, f"content-length: {size}"
        )
        with troubled.connect() as client:
            client.sock.settimeout(60)
            client.send(head, *pieces, *[SOUND] * megabytes, last)
            assert client.answer().status == 200
        assert len(lane.asked()[-1].body) == size
        lane.server.requests.clear()

    send(10)
    (process / "clear_refs").write_text("5")  # the peak counts from here
    before = troubled.worker_bytes()
    send(100)
    assert peak_bytes(process) - before < 2 << 20


# -- what goes wrong -------------------------------------------------------------------------------


def test_who_breaks_off_pays_nothing_and_the_upstream_never_has_a_whole_request(troubled: Troubled) -> None:
    lane = hears(troubled)
    key = troubled.customer()
    begin = model(lane) + file("file", SOUND)[:-2]
    reached = Pause()
    lane.script([reached, whole(HEARD)], path=TRANSCRIPTIONS, at_head=True)
    with troubled.connect() as client:
        client.send(
            request("POST", TRANSCRIPTIONS, f"authorization: Bearer {key}", TYPE, "content-length: 9000000"),
            begin,
        )
        assert reached.reached.wait(30)
        client.leave()
    row = troubled.row_of(key)
    assert (row["state"], row["cost_nanos"]) == (VOID, 0)
    reached.end()


def test_an_upstream_that_answers_early_is_heard(troubled: Troubled) -> None:
    lane = hears(troubled)
    refusal = orjson.dumps({"error": {"message": "too large", "type": "x", "param": None, "code": None}})
    lane.script([whole(refusal, 413)], path=TRANSCRIPTIONS, at_head=True)
    with troubled.connect() as client:
        client.send(
            request(
                "POST",
                TRANSCRIPTIONS,
                f"authorization: Bearer {troubled.key}",
                TYPE,
                "content-length: 9000000",
            ),
            model(lane) + file("file", SOUND)[:-2],
        )
        answer = client.answer()
    assert (answer.status, answer.body, answer.end) == (413, refusal, COMPLETE)


def refused(troubled: Troubled, answer: Answer, status: int = 400) -> str:
    """The code of an error in OpenAI's shape; the station goes on."""
    assert answer.status == status, answer.body
    error = answer.json()["error"]
    assert error["message"] and error["type"]
    assert troubled.call(said(troubled)).status == 200
    return str(error["code"])


def said(troubled: Troubled) -> Lane:
    from tests.system.troubled import HELLO

    lane = troubled.lane()
    lane.script(HELLO)
    return lane


def test_forms_that_are_none_are_refused(troubled: Troubled) -> None:
    lane = hears(troubled)
    good = form(model(lane), file("file", b"abc"))
    cases = {
        "no boundary": (good, "content-type: multipart/form-data"),
        "a boundary of 10 KB": (good, "content-type: multipart/form-data; boundary=" + "b" * 10_000),
        "a boundary that never comes": (b"x" * 100_000, TYPE),
        "another boundary": (good, "content-type: multipart/form-data; boundary=c"),
        "an end that never comes": (good[: -len(END)], TYPE),
        "JSON": (b'{"model":"m"}', TYPE),
        "UTF-16": (good.decode().encode("utf-16"), TYPE),
        "a model of 1 MB": (form(part("model", b"m" * (1 << 20)), file("file", b"abc")), TYPE),
        "two models": (form(model(lane), model(lane), file("file", b"abc")), TYPE),
        "a million parts": (form(part("a", b"") * 20_000), TYPE),
        "no model": (form(file("file", b"abc")), TYPE),
    }
    codes = {name: refused(troubled, upload(troubled, body, kind)) for name, (body, kind) in cases.items()}
    assert set(codes.values()) == {
        "invalid_request",
        "parameter_refused",
        "duplicate_member",
        "model_missing",
    }
    assert refused(troubled, upload(troubled, good, TYPE, "content-encoding: gzip"), 415)
    assert lane.asked() == []


def test_a_form_that_goes_wrong_behind_its_beginning_ends_the_request(troubled: Troubled) -> None:
    lane = hears(troubled)
    for end in (b"\r\n" + model(lane) + END, b"\r\n--b\r\nx\r\n\r\n" + END, b"\r\n"):
        key = troubled.customer()
        body = model(lane) + file("file", SOUND)[:-2] + end
        answer = troubled.ask(body, TYPE, path=TRANSCRIPTIONS, key=key)
        assert answer.status == 400
        assert answer.json()["error"]["code"] in ("duplicate_member", "invalid_request")
        assert troubled.row_of(key)["state"] == VOID
    assert lane.asked() == []


def test_an_upload_that_is_too_large_is_refused_at_once(troubled: Troubled) -> None:
    with troubled.connect() as client:
        client.send(
            request(
                "POST", EDITS, f"authorization: Bearer {troubled.key}", TYPE, "content-length: 999999999999"
            )
        )
        assert client.answer().status == 413


def test_nothing_is_left_in_the_spool(troubled: Troubled) -> None:
    deadline = time.monotonic() + 30
    folder = troubled.station.data / "spool"
    while folder.exists() and list(folder.iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
