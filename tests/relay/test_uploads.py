"""An upload goes through without being held: what decides is known first, the rest passes piece by piece."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Sequence
from pathlib import Path

import pytest

from proxy.errors import (
    BodyTooLarge,
    ClientFault,
    DuplicateMember,
    MalformedRequest,
    Overloaded,
    ProxyError,
)
from proxy.metering.sound import Upload as Recording
from proxy.relay.spool import Spool
from proxy.relay.uploads import HELD_BYTES_MAX, Sending, Upload
from tests.fakes.calls import GivenBody
from tests.http1.test_multipart import file, part

TYPE = "multipart/form-data; boundary=b"
GUARDED = ("model", "stream", "response_format")
SOUND = bytes(range(256)) * 4096  # 1 MiB
MODEL_FIRST = part("model", b"whisper-1") + file("file", SOUND) + part("language", b"de") + b"--b--\r\n"
MODEL_LAST = file("file", SOUND) + part("language", b"de") + part("model", b"whisper-1") + b"--b--\r\n"


def cut(body: bytes, size: int = 64 << 10) -> list[bytes]:
    return [body[at : at + size] for at in range(0, len(body), size)]


class Upstream:
    """Takes what is written, as long as it is asked to."""

    def __init__(self) -> None:
        self.writable = True
        self.is_sending = False
        self.taken: list[bytes] = []

    def write(self, pieces: Sequence[bytes]) -> None:
        self.taken += pieces

    @property
    def content(self) -> bytes:
        return b"".join(self.taken)


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool", spare=0)


async def received(
    spool: Spool,
    pieces: Sequence[bytes | Exception],
    *,
    announced: int | None = None,
    limit: int = 1 << 30,
    early: tuple[str, ...] | None = ("model",),
) -> Upload:
    upload = Upload(GivenBody(pieces), announced, limit, spool)
    await upload.receive_form(TYPE, GUARDED, early)
    return upload


async def sent(upload: Upload, model: str | None = "whisper-1") -> tuple[bytes, bytes]:
    """(framing, content) of one attempt. Raises what ended it."""
    sending, upstream = Sending(upload, model), Upstream()
    told: asyncio.Future[ProxyError | None] = asyncio.get_running_loop().create_future()
    sending.start(upstream, told.set_result)
    async with asyncio.timeout(30):
        error = await told
    if error is not None:
        assert not sending.is_done
        raise error
    assert sending.is_done and not upstream.is_sending
    return sending.framing, upstream.content


# -- passing through -------------------------------------------------------------------------------


async def test_a_form_whose_model_comes_first_begins_before_its_file_has_come(spool: Spool):
    upload = await received(spool, cut(MODEL_FIRST), announced=len(MODEL_FIRST))
    assert upload.doc["model"] == "whisper-1"
    assert upload.received <= 64 << 10
    assert not upload.is_whole
    assert await sent(upload) == (b"content-length: %d\r\n" % len(MODEL_FIRST), MODEL_FIRST)
    assert upload.is_whole


async def test_what_comes_late_is_known_to_the_bill(spool: Spool):
    upload = await received(spool, cut(MODEL_FIRST), announced=len(MODEL_FIRST))
    assert upload.doc["file"] == Recording(SOUND[:4096], len(MODEL_FIRST))
    assert "language" not in upload.doc
    await sent(upload)
    assert upload.doc["language"] == "de"
    assert upload.doc["file"] == Recording(SOUND[:4096], len(SOUND))


async def test_a_model_behind_the_file_is_waited_for_on_disk_without_a_name(spool: Spool):
    upload = await received(spool, cut(MODEL_LAST), announced=len(MODEL_LAST))
    assert upload.doc["model"] == "whisper-1"
    assert upload.is_whole
    assert upload._file is not None
    assert upload._file.size >= len(MODEL_LAST) - HELD_BYTES_MAX
    assert list(spool.directory.iterdir()) == []
    assert await sent(upload) == (b"content-length: %d\r\n" % len(MODEL_LAST), MODEL_LAST)


async def test_a_small_form_touches_no_disk(spool: Spool):
    body = file("file", b"RIFF") + part("model", b"whisper-1") + b"--b--\r\n"
    upload = await received(spool, [body])
    assert await sent(upload) == (b"content-length: %d\r\n" % len(body), body)
    assert not spool.directory.exists()


@pytest.mark.parametrize("body", [MODEL_FIRST, MODEL_LAST])
@pytest.mark.parametrize("size", [1000, 64 << 10, 4 << 20])
async def test_only_the_model_changes(spool: Spool, body: bytes, size: int):
    upload = await received(spool, cut(body, size), announced=len(body))
    framing, content = await sent(upload, "our-deployment")
    assert content == body.replace(b"whisper-1", b"our-deployment")
    assert framing == b"content-length: %d\r\n" % len(content)


async def test_an_upstream_that_has_the_model_in_its_path_gets_the_body_as_it_is(spool: Spool):
    upload = await received(spool, cut(MODEL_LAST))
    assert (await sent(upload, None))[1] == MODEL_LAST


async def test_a_default_model_is_put_in_front(spool: Spool):
    body = file("file", SOUND) + b"--b--\r\n"
    upload = await received(spool, cut(body))
    assert (await sent(upload, "usual"))[1] == part("model", b"usual") + body


async def test_what_a_route_drops_is_cut_out(spool: Spool):
    upload = Upload(GivenBody(cut(MODEL_LAST)), None, 1 << 30, spool)
    await upload.receive_form(TYPE, (*GUARDED, "language"), None)
    upload.dropped = ("language", "absent")
    framing, content = await sent(upload)
    assert content == MODEL_LAST.replace(part("language", b"de"), b"")
    assert framing == b"content-length: %d\r\n" % len(content)


async def test_a_length_that_nobody_knows_is_sent_in_chunks(spool: Spool):
    upload = await received(spool, cut(MODEL_FIRST, 200_000))
    framing, content = await sent(upload)
    assert framing == b"transfer-encoding: chunked\r\n"
    out, at = b"", 0
    while True:
        end = content.index(b"\r\n", at)
        size = int(content[at:end], 16)
        out += content[end + 2 : end + 2 + size]
        at = end + 4 + size
        if not size:
            break
    assert (out, at) == (MODEL_FIRST, len(content))


async def test_what_nobody_reads_passes_as_it_comes(spool: Spool):
    upload = Upload(GivenBody([b"a" * 1000, b"b" * 1000]), 2000, 1 << 20, spool)
    await upload.receive()
    assert upload.received == 1000
    assert await sent(upload, None) == (b"content-length: 2000\r\n", b"a" * 1000 + b"b" * 1000)


async def test_a_whole_upload_can_be_sent_again_and_one_that_streams_cannot(spool: Spool):
    whole = await received(spool, cut(MODEL_LAST))
    assert await sent(whole, "a") != await sent(whole, "b")
    assert whole.may_resend
    streamed = await received(spool, cut(MODEL_FIRST))
    assert streamed.may_resend
    await sent(streamed)
    assert not streamed.may_resend


# -- backpressure, memory --------------------------------------------------------------------------


async def test_a_slow_upstream_stops_the_client(spool: Spool):
    body = GivenBody(cut(MODEL_FIRST))
    upload = Upload(body, None, 1 << 30, spool)
    await upload.receive_form(TYPE, GUARDED, ("model",))
    upstream, sending = Upstream(), Sending(upload, "whisper-1")
    upstream.writable = False
    told = asyncio.get_running_loop().create_future()
    sending.start(upstream, told.set_result)
    async with asyncio.timeout(30):
        while not upstream.taken:
            await asyncio.sleep(0)
    for _ in range(10):
        await asyncio.sleep(0)
    assert body.taken == 1
    upstream.writable = True
    sending.resume()
    async with asyncio.timeout(30):
        assert await told is None


async def test_an_upload_that_is_stopped_takes_nothing_more(spool: Spool):
    body = GivenBody(cut(MODEL_FIRST))
    upload = Upload(body, None, 1 << 30, spool)
    await upload.receive_form(TYPE, GUARDED, ("model",))
    upstream, sending = Upstream(), Sending(upload, "whisper-1")
    upstream.writable = False
    sending.start(upstream, lambda error: pytest.fail("it was stopped"))
    async with asyncio.timeout(30):
        while not upstream.taken:
            await asyncio.sleep(0)
    sending.stop()
    for _ in range(10):
        await asyncio.sleep(0)
    assert body.taken == 1


class Hundred(GivenBody):
    """A form of 100 MB that is made while it is read."""

    def __init__(self, begin: bytes, end: bytes) -> None:
        super().__init__([])
        self._steps = iter([begin, *[SOUND] * 100, end])
        self.left = 102

    @property
    def is_complete(self) -> bool:
        return self.left == 0

    async def more(self) -> bytes:
        self.left -= 1
        return next(self._steps)


@pytest.mark.parametrize("is_first", [True, False])
async def test_an_upload_of_100_mb_is_never_in_memory(spool: Spool, is_first: bool):
    model = part("model", b"whisper-1")
    begin, end = file("file", b"")[:-2], b"\r\n" + (b"" if is_first else model) + b"--b--\r\n"
    upload = Upload(Hundred(model + begin if is_first else begin, end), None, 1 << 30, spool)
    await upload.receive_form(TYPE, GUARDED, ("model",))
    assert upload._held_bytes <= HELD_BYTES_MAX + len(SOUND)
    gc.collect()
    upstream, most, size = Upstream(), 0, 0
    async for piece in upload.content():
        size += len(piece)
        most = max(most, len(piece))
    assert size == 100 * len(SOUND) + len(begin + end + model) - (0 if is_first else len(model))
    assert most <= len(SOUND)
    assert upstream.taken == []
    upload.close()


# -- bounds ----------------------------------------------------------------------------------------


async def test_an_upload_that_is_announced_too_large_is_not_read(spool: Spool):
    with pytest.raises(BodyTooLarge):
        Upload(GivenBody([b"x"]), 101, 100, spool)


@pytest.mark.parametrize("body", [MODEL_FIRST, MODEL_LAST])
async def test_an_upload_that_becomes_too_large_ends(spool: Spool, body: bytes):
    with pytest.raises(BodyTooLarge):
        await sent(await received(spool, cut(body), limit=500_000))


async def test_the_disk_of_uploads_has_a_quota_that_is_given_back(tmp_path: Path):
    spool = Spool(tmp_path, quota=1_300_000, spare=0)
    first = await received(spool, cut(MODEL_LAST))
    second = Upload(GivenBody(cut(MODEL_LAST)), None, 1 << 30, spool)
    with pytest.raises(Overloaded):
        await second.receive_form(TYPE, GUARDED, ("model",))
    second.close()
    first.close()
    third = await received(spool, cut(MODEL_LAST))
    third.close()


async def test_a_disk_that_is_nearly_full_takes_no_uploads(tmp_path: Path):
    spool = Spool(tmp_path, spare=1 << 60)
    with pytest.raises(Overloaded):
        await received(spool, cut(MODEL_LAST))


async def test_a_call_that_ends_while_its_upload_is_written_leaves_nothing_open(spool: Spool):
    upload = Upload(GivenBody(cut(MODEL_LAST)), None, 1 << 30, spool)
    reading = asyncio.create_task(upload.receive_form(TYPE, GUARDED, ("model",)))
    async with asyncio.timeout(30):
        while upload._file is None:
            await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    upload.close()
    file_on_disk = upload._file
    async with asyncio.timeout(30):
        while file_on_disk._file is not None and not file_on_disk._file.closed:
            await asyncio.sleep(0.01)


# -- what goes wrong on the way --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "kind"),
    [
        ([MalformedRequest()], MalformedRequest),  # the client broke off
        ([b"\r\n" + part("model", b"dearer") + b"--b--\r\n"], DuplicateMember),
        ([b"\r\n--b\r\nx"], ClientFault),
        ([], ClientFault),  # the boundary never comes
    ],
)
@pytest.mark.parametrize("is_announced", [True, False])
async def test_a_form_that_goes_wrong_is_never_whole_for_the_upstream(
    spool: Spool, end: list[bytes | Exception], kind: type[ProxyError], is_announced: bool
):
    begin = cut(part("model", b"whisper-1") + file("file", SOUND)[:-2])
    size = sum(map(len, begin)) + sum(len(piece) for piece in end if isinstance(piece, bytes))
    upload = await received(spool, [*begin, *end], announced=size if is_announced else None)
    sending, upstream = Sending(upload, "whisper-1"), Upstream()
    told: asyncio.Future[ProxyError | None] = asyncio.get_running_loop().create_future()
    sending.start(upstream, told.set_result)
    async with asyncio.timeout(30):
        assert type(await told) is kind
    assert not sending.is_done
    if is_announced and end and isinstance(end[0], bytes):
        assert len(upstream.content) < size
    assert not upstream.content.endswith(b"0\r\n\r\n")
