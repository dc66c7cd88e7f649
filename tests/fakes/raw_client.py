"""A client that sends exactly the bytes of a test, and tells how each answer ended.

Blocking sockets: what it talks to runs in other processes or threads.

    with RawClient(port) as client:
        client.send(request("POST", "/v1/chat/completions", f"authorization: Bearer {key}", body=b"{}"))
        assert client.answer().status == 400
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass, field
from typing import Any

import orjson

from tests.waiting import DEADLINE_S

COMPLETE, CUT, RESET = "complete", "cut", "reset"


def request(method: str, target: str, *fields: str, body: bytes | None = None, version: str = "1.1") -> bytes:
    """The bytes of a request; Content-Length is added where there is a body and no field frames it."""
    lines = [f"{method} {target} HTTP/{version}", *fields]
    names = {field.partition(":")[0].lower() for field in fields}
    if "host" not in names and version == "1.1":
        lines.append("host: station.test")
    if body is not None and not names & {"content-length", "transfer-encoding"}:
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join((*lines, "", "")).encode("latin-1") + (body or b"")


@dataclass
class Answer:
    """One answer. Names in lower case. `end`: COMPLETE by its framing, else CUT (FIN) or RESET."""

    status: int
    fields: list[tuple[str, str]]
    body: bytes = b""
    end: str = COMPLETE
    raw: bytes = field(default=b"", repr=False)  # its head as it came

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.fields if key == name), None)

    def json(self) -> Any:
        return orjson.loads(self.body)

    @property
    def call(self) -> str:
        """The call's id."""
        return self.header("x-request-id") or ""

    @property
    def says_close(self) -> bool:
        return self.header("connection") == "close"


class Left(Exception):
    """The other side left before an answer began; `args[0]` is CUT or RESET."""


class RawClient:
    """One connection to 127.0.0.1; `source` is another address of this machine to call from."""

    def __init__(self, port: int, *, receive_buffer: int | None = None, source: str = "127.0.0.1") -> None:
        self.sock = socket.socket()
        self.sock.bind((source, 0))
        if receive_buffer is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.settimeout(DEADLINE_S)
        self.sock.connect(("127.0.0.1", port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = b""

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self.sock.close()

    # -- sending --

    def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.sock.sendall(piece)

    def half_close(self) -> None:
        """No more will be sent; answers are still read."""
        self.sock.shutdown(socket.SHUT_WR)

    def leave(self) -> None:
        """FIN both ways."""
        self.sock.close()

    def reset(self) -> None:
        """RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    # -- receiving --

    def ask(self, *pieces: bytes, method: str = "POST") -> Answer:
        self.send(*pieces)
        return self.answer(method)

    def answer(self, method: str = "POST") -> Answer:
        """The next answer, interim ones included. Raises Left when nothing of it comes."""
        answer = self.head()
        try:
            self._read_body(answer, method)
        except Left as left:
            answer.end = left.args[0]
        return answer

    def head(self) -> Answer:
        """The head of the next answer; its content is still to be read. Raises Left."""
        while b"\r\n\r\n" not in self._buffer:
            self._more()
        raw, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        first, *lines = raw.decode("latin-1").split("\r\n")
        version, status, _ = first.split(" ", 2)
        assert version == "HTTP/1.1", first
        pairs = [line.partition(":") for line in lines]
        return Answer(int(status), [(n.lower(), v.strip()) for n, _, v in pairs], raw=raw)

    def chunk(self) -> bytes:
        """The content of the next chunk of a chunked answer; b"" is the last one. Raises Left."""
        return self._read_chunk(Answer(0, []))

    def end(self) -> str:
        """How the other side ends the connection: nothing more may come before."""
        try:
            while not self._buffer:
                self._more()
        except Left as left:
            return str(left.args[0])
        raise AssertionError(f"more bytes: {self._buffer[:200]!r}")

    def is_open(self, within_s: float = 0.05) -> bool:
        """Has the other side not ended the connection?"""
        self.sock.settimeout(within_s)
        try:
            return self.end() == ""
        except TimeoutError:
            return True
        finally:
            self.sock.settimeout(DEADLINE_S)

    def _read_body(self, answer: Answer, method: str) -> None:
        length = answer.header("content-length")
        if method == "HEAD" or answer.status < 200 or answer.status in (204, 304):
            return
        if answer.header("transfer-encoding") == "chunked":
            while self._read_chunk(answer):
                pass
        elif length is not None:
            self._fill(answer, int(length))
        else:
            self._read_to_end(answer)

    def _read_chunk(self, answer: Answer) -> bytes:
        start, size = len(answer.body), int(self._line(), 16)
        self._fill(answer, size)
        assert self._line() == b"", "a chunk is as long as it says, and there are no trailers"
        return answer.body[start:]

    def _read_to_end(self, answer: Answer) -> None:
        """Only a FIN ends such a body."""
        try:
            while True:
                answer.body += self._take(1 << 20)
        except Left as left:
            if left.args[0] == RESET:
                raise

    def _fill(self, answer: Answer, size: int) -> None:
        end = len(answer.body) + size
        while len(answer.body) < end:
            answer.body += self._take(end - len(answer.body))

    def _line(self) -> bytes:
        while b"\r\n" not in self._buffer:
            self._more()
        line, _, self._buffer = self._buffer.partition(b"\r\n")
        return line

    def _take(self, most: int) -> bytes:
        if not self._buffer:
            self._more()
        data, self._buffer = self._buffer[:most], self._buffer[most:]
        return data

    def _more(self) -> None:
        try:
            data = self.sock.recv(1 << 16)
        except (ConnectionResetError, BrokenPipeError):
            raise Left(RESET) from None
        if not data:
            raise Left(CUT)
        self._buffer += data
