"""Request bodies that are not held in memory: forms with files, and what passes unread.

Owns how an upload is received as far as its call has to know it before it may begin, and how it goes on to an
upstream while it still comes in. What decides route and price may stand behind the file: until it is known,
the upload waits in a file without a name (spool.py). Nothing changes but the value of `model` and what a
route drops; backpressure goes both ways.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from time import monotonic
from typing import Protocol

from proxy import telemetry
from proxy.errors import BodyTooLarge, ProxyError
from proxy.http1.multipart import Edit, FormReader, Splicer, boundary_of, text_part
from proxy.metering.sound import Upload as Recording
from proxy.relay.exchange import Body
from proxy.relay.spool import Spool, SpoolFile

HELD_BYTES_MAX = 256 << 10  # of an upload that waits for its fields; more goes to the spool


class Connection(Protocol):
    """The upstream's side, as an upload sees it."""

    is_sending: bool

    @property
    def writable(self) -> bool: ...
    def write(self, pieces: Sequence[bytes]) -> None: ...


class Upload:
    """One request body on its way. `doc` are the text fields of a form, and its first `file`."""

    def __init__(self, body: Body, announced: int | None, limit: int, spool: Spool) -> None:
        """`announced`: the Content-Length, None where there is none. Raises BodyTooLarge."""
        if announced is not None and announced > limit:
            raise BodyTooLarge
        self.doc: dict[str, object] = {}
        self.received = 0
        self.is_whole = False  # it has come to its end
        self.dropped: tuple[str, ...] = ()  # fields that the route cuts out
        self._body = body
        self._announced = announced
        self._limit = limit
        self._spool = spool
        self._file: SpoolFile | None = None
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._form: FormReader | None = None
        self._boundary = ""
        self._is_spent = False

    @property
    def may_resend(self) -> bool:
        """Nothing of it was passed on that is not here any more."""
        return not self._is_spent

    @property
    def size(self) -> int:
        """Bytes of the body: exact where it is whole or announced, else the most that it may have."""
        if self.is_whole:
            return self.received
        return self._limit if self._announced is None else self._announced

    # -- receiving -----------------------------------------------------------------------------------

    async def receive_form(
        self, content_type: str, guarded: Sequence[str], early: Sequence[str] | None
    ) -> None:
        """Read until the fields `early` and the beginning of a file are known; None: the whole form.

        Raises what FormReader.feed raises, BodyTooLarge, Overloaded, MalformedRequest and BodyTimeout.
        """
        self._boundary = boundary_of(content_type)
        self._form = form = FormReader(self._boundary, guarded)
        while piece := await self._next():
            self._held.append(piece)
            self._held_bytes += len(piece)
            if early is not None and form.has_file_head and all(name in form.fields for name in early):
                break
            if self._held_bytes > HELD_BYTES_MAX:
                await self._put_away()

    async def receive(self) -> None:
        """Read what has come, of a body that nobody needs to know."""
        if piece := await self._next():
            self._held.append(piece)

    async def _next(self) -> bytes:
        """The next piece, checked; b"" at the end."""
        piece = await self._body.more()
        if piece:
            self.received += len(piece)
            if self.received > self._limit:
                raise BodyTooLarge
            if self._form is not None:
                self._form.feed(piece)
        if not piece or self._body.is_complete:
            self.is_whole = True
            # Before the last piece goes on: no upstream gets a form that is not whole.
            if self._form is not None:
                self._form.finish()
        if self._form is not None:
            self._note(self._form)
        return piece

    def _note(self, form: FormReader) -> None:
        """Also what comes late: the call is settled with all of it."""
        self.doc.update(form.fields)
        if form.files:
            is_over = self.is_whole or len(form.files) > 1
            self.doc["file"] = Recording(form.files[0].head, form.files[0].size if is_over else self.size)

    async def _put_away(self) -> None:
        if self._file is None:
            self._file = SpoolFile(self._spool)
        held, self._held = self._held, []
        self._held_bytes = 0
        await self._file.append(held)

    # -- passing on ----------------------------------------------------------------------------------

    def edits(self, model: str | None) -> list[Edit]:
        """What changes for an upstream that calls the model `model`; None: it is not told in the body."""
        form = self._form
        if form is None:
            return []
        edits: list[Edit] = [(*form.parts[name], b"") for name in self.dropped if name in form.parts]
        if model is not None and form.fields.get("model") != model:
            if "model" in form.spans:
                edits.append((*form.spans["model"], model.encode()))
            else:
                edits.append((0, 0, text_part(self._boundary, "model", model)))
        return edits

    async def content(self) -> AsyncIterator[bytes]:
        """The body as it came; what still comes can be had only once."""
        at = 0
        while self._file is not None and at < self._file.size:
            piece = await self._file.read(at)
            at += len(piece)
            yield piece
        for piece in self._held:
            yield piece
        if self.is_whole:
            return
        self._is_spent = True
        self._held.clear()
        while piece := await self._next():
            yield piece
            if self.is_whole:
                return

    def announced_for(self, edits: Sequence[Edit]) -> int | None:
        """The length that an upstream is told; None: nobody knows it yet."""
        size = self.received if self.is_whole else self._announced
        return None if size is None else size + Splicer(edits).growth

    def close(self) -> None:
        """The call is over."""
        self._held.clear()
        if self._file is not None:
            self._file.close()


class Sending:
    """One upload on its way to one upstream."""

    def __init__(self, upload: Upload, model: str | None) -> None:
        """`model`: its name in the body, None where the body does not tell it."""
        self.upload = upload
        self.is_done = False
        self.last_activity = 0.0  # seconds of time.monotonic(): something was passed on
        self._edits = upload.edits(model)
        self._length = upload.announced_for(self._edits)
        self._task: asyncio.Task[None] | None = None
        self._room: asyncio.Future[None] | None = None

    @property
    def framing(self) -> bytes:
        """The header line that frames it (RFC 9112 6)."""
        if self._length is None:
            return b"transfer-encoding: chunked\r\n"
        return b"content-length: %d\r\n" % self._length

    def start(self, connection: Connection, tell: Callable[[ProxyError | None], None]) -> None:
        """Begin to write; `tell` hears how it ended, unless it is stopped."""
        self.last_activity = monotonic()
        self.is_done = False
        connection.is_sending = True
        self._task = telemetry.spawn("upload", self._run(connection, tell))

    def resume(self) -> None:
        """The upstream takes more."""
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def stop(self) -> None:
        """Write nothing more."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _run(self, connection: Connection, tell: Callable[[ProxyError | None], None]) -> None:
        try:
            await self._write(connection)
        except ProxyError as e:
            tell(e)
        else:
            self.is_done = True
            connection.is_sending = False
            tell(None)

    async def _write(self, connection: Connection) -> None:
        splicer = Splicer(self._edits)
        async for content in self.upload.content():
            pieces = splicer.feed(content)
            if self._length is None:
                size = sum(map(len, pieces))
                pieces = [b"%x\r\n" % size, *pieces, b"\r\n"] if size else []
            if pieces:
                connection.write(pieces)
            self.last_activity = monotonic()
            while not connection.writable:
                self._room = asyncio.get_running_loop().create_future()
                await self._room
                self.last_activity = monotonic()
        if self._length is None:
            connection.write((b"0\r\n\r\n",))
