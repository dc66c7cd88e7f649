"""Where a request's head ends and what it says, read once for all requests with the same bytes.

Owns the seam to aiohttp's C parser, which reads each head that was not seen before; SDKs send
byte-identical heads on every call, but for the length of the body. The parser is given a head and nothing
else: bodies are walked by http1/body.py, whose errors reach their reader.
Relies on the parser's undocumented class; tests/relay/test_request_head.py pins what is used of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace

from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import HttpRequestParser

from proxy.errors import MalformedRequest
from proxy.http1.multipart import is_form

HTTP_11 = (1, 1)
HEAD_BYTES_MAX = 64 * 1024
LINE_BYTES_MAX = 16 * 1024  # the request line
FIELD_BYTES_MAX = 16 * 1024  # one header: cookies and long betas are the long ones
FIELDS_MAX = 100
LENGTH_DIGITS_MAX = 15
JUDGED_EARLY_BYTES = 1024  # what is no HTTP shows in its first bytes

MEMO_MAX = 4096  # heads; about 2 KB each
REMEMBERED_BYTES_MAX = 8 * 1024  # of one head: nobody fills the memory with heads of 60 KB

HEAD_END = b"\r\n\r\n"
# The one header that differs between calls of one client, as clients spell it.
_LENGTH, _LENGTH_TOO = b"\r\ncontent-length: ", b"\r\nContent-Length: "
_NO_FORM = HEAD_END + b"%d"  # like no head: HEAD_END is in none


@dataclass(frozen=True, slots=True, eq=False)
class RequestHead:
    """One head, shared by all requests that begin with it. Compared and hashed by identity."""

    method: str
    target: str  # as it was sent
    version: tuple[int, int]
    headers: Mapping[str, str]  # case-insensitive
    fields: tuple[tuple[bytes, bytes], ...]
    keep_alive: bool
    expects_continue: bool
    is_chunked: bool
    length: int  # of the body, as this head's own Content-Length says
    is_remembered: bool  # others will begin with it
    form: bytes = _NO_FORM  # `form % length` is all of it but HEAD_END, where it tells that as clients do

    @property
    def is_http10(self) -> bool:
        return self.version < HTTP_11

    def as_bytes(self) -> bytes:
        """The head again, for another parser."""
        line = f"{self.method} {self.target} HTTP/{self.version[0]}.{self.version[1]}"
        fields = [b"%b: %b" % field for field in self.fields]
        return b"\r\n".join([line.encode("utf-8", "surrogateescape"), *fields, b"", b""])


Found = tuple[RequestHead, int, int]
"""A head in what was received, the length of this request's body, and where the body begins."""


class HeadReader:
    """The heads that one worker has seen."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        assert_c_parser()
        self._loop = loop
        self._memo: dict[tuple[bytes, bytes], RequestHead] = {}

    def find(self, data: bytes, scanned: int = 0) -> Found | None:
        """The head at the beginning of `data`, None while it is incomplete.

        `scanned` bytes were looked at before. Raises MalformedRequest, without an echo.
        """
        end = data.find(HEAD_END, scanned - 3 if scanned > 3 else 0)
        if end < 0 or end > HEAD_BYTES_MAX:
            self._refuse_early(data)
            return None
        end += 4
        block = data[:end]
        before, name, digits = block.partition(_LENGTH)
        if not name:
            before, name, digits = block.partition(_LENGTH_TOO)
        if not name:
            head = self._memo.get((block, b"")) or self._read(block, block, b"")
            return head, head.length, end
        before += name
        digits, _, after = digits.partition(b"\r")
        digits = digits.strip(b" \t")
        if not digits.isdigit() or len(digits) > LENGTH_DIGITS_MAX:
            raise MalformedRequest
        head = self._memo.get((before, after)) or self._read(block, before, after)
        return head, int(digits), end

    def _read(self, block: bytes, before: bytes, after: bytes) -> RequestHead:
        head = self._parse(block)
        if head is None:
            raise MalformedRequest
        if head.is_remembered:
            if len(self._memo) >= MEMO_MAX:
                self._memo.clear()
            if after:
                around = (before, (b"\r" + after).removesuffix(HEAD_END))
                head = replace(head, form=b"%d".join(part.replace(b"%", b"%%") for part in around))
            self._memo[before, after] = head
        return head

    def _refuse_early(self, data: bytes) -> None:
        """Refuse what can no longer become a head, so that its sender is not kept waiting."""
        if len(data) > HEAD_BYTES_MAX:
            raise MalformedRequest
        if len(data) <= JUDGED_EARLY_BYTES and self._parse(data) is not None:
            raise MalformedRequest  # complete for the parser, not for us: they must never disagree

    def _parse(self, block: bytes) -> RequestHead | None:
        parser = HttpRequestParser(
            BaseProtocol(self._loop),
            self._loop,
            1 << 16,
            max_line_size=LINE_BYTES_MAX,
            max_headers=FIELDS_MAX,
            max_field_size=FIELD_BYTES_MAX,
            auto_decompress=False,
        )
        try:
            messages, _, tail = parser.feed_data(block)
        except HttpProcessingError as e:
            # The parser's own words hold the client's bytes, which may hold a key.
            raise MalformedRequest from e
        if not messages:
            return None
        if len(messages) > 1 or tail:
            raise MalformedRequest
        message = messages[0][0]
        length = message.headers.get("Content-Length", "0")
        if not (length.isascii() and length.isdigit()):
            raise MalformedRequest  # an empty one passes the parser
        return RequestHead(
            message.method,
            message.path,
            message.version,
            message.headers,
            message.raw_headers,
            # After an Upgrade that is not taken nobody can tell what follows.
            keep_alive=not (message.should_close or message.upgrade or message.version < HTTP_11),
            # RFC 9110 10.1.1: a client of HTTP/1.0 cannot expect anything.
            expects_continue="Expect" in message.headers and message.version >= HTTP_11,
            is_chunked=message.chunked,
            length=int(length),
            # Each form has a boundary of its own: no other request begins like it.
            is_remembered=len(block) <= REMEMBERED_BYTES_MAX
            and not is_form(message.headers.get("Content-Type", "")),
        )


def assert_c_parser() -> None:
    """The pure-Python parser is laxer than the C one: refuse to run on it."""
    if HttpRequestParser.__module__ != "aiohttp._http_parser":
        raise RuntimeError("aiohttp's C parser is not loaded (is AIOHTTP_NO_EXTENSIONS set?)")
