"""A vendor's file server as a process of its own: files by their size, and the ways in which one goes wrong.

    /file/SIZE/NAME          the content of that size; its type by the name's ending
    /slow/SIZE/NAME          half of it, then nothing until /release?PATH
    /flaky/COUNT/SIZE/NAME   503 so many times, then the file
    /late/COUNT/SIZE/NAME    404 so many times, then the file
    /short/SIZE              says twice as much as it sends
    /endless                 chunks for ever
    /huge/SIZE               says a length and sends nothing
    /status/CODE             nothing else
    /coded/SIZE              gzip although nobody asked for it
    /to?URL                  302
    /typed/SIZE?TYPE         the content under that type

`python -m tests.fakes.file_server` prints its port. What was asked is at /asked, as JSON.
"""

from __future__ import annotations

import json
import mimetypes
import subprocess
import sys
import threading
import urllib.request
from collections import Counter, defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote, unquote

ROOT = Path(__file__).resolve().parents[2]
PNG = b"\x89PNG\r\n\x1a\n"


def content(size: int) -> bytes:
    """The same each time: a PNG's beginning, then numbers."""
    return (PNG + b"".join(b"%09d\n" % n for n in range(size // 10 + 1)))[:size]


class Handler(BaseHTTPRequestHandler):
    asked: ClassVar[Counter[str]] = Counter()
    released: ClassVar[defaultdict[str, threading.Event]] = defaultdict(threading.Event)
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        what, *words = path[1:].split("/")
        if what == "asked":
            self.send(json.dumps(self.asked).encode(), "application/json")
        elif what == "release":
            self.released[unquote(query)].set()
            self.send(b"", "text/plain")
        else:
            self.asked[path] += 1
            getattr(self, f"do_{what}")(words, unquote(query))

    def head(self, status: int, **fields: object) -> None:
        self.send_response(status)
        for name, value in fields.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def send(self, data: bytes, kind: str) -> None:
        self.head(200, Content_Length=len(data), Content_Type=kind)
        self.wfile.write(data)

    def do_file(self, words: list[str], query: str) -> None:
        kind = mimetypes.guess_type(words[-1])[0] or "application/octet-stream"
        self.send(content(int(words[0])), kind)

    def do_slow(self, words: list[str], query: str) -> None:
        data = content(int(words[0]))
        self.head(200, Content_Length=len(data), Content_Type="image/png")
        self.wfile.write(data[: len(data) // 2])
        self.wfile.flush()
        self.released[self.path].wait(120)
        self.wfile.write(data[len(data) // 2 :])

    def do_flaky(self, words: list[str], query: str, status: int = 503) -> None:
        if self.asked[self.path.partition("?")[0]] <= int(words[0]):
            self.head(status, Content_Length=0)
        else:
            self.do_file(words[1:], query)

    def do_late(self, words: list[str], query: str) -> None:
        self.do_flaky(words, query, 404)

    def do_short(self, words: list[str], query: str) -> None:
        data = content(int(words[0]))
        self.head(200, Content_Length=2 * len(data), Content_Type="image/png")
        self.wfile.write(data)
        self.close_connection = True

    def do_endless(self, words: list[str], query: str) -> None:
        self.head(200, Transfer_Encoding="chunked", Content_Type="video/mp4")
        try:
            while True:
                self.wfile.write(b"10000\r\n" + bytes(1 << 16) + b"\r\n")
        except OSError:
            self.close_connection = True

    def do_huge(self, words: list[str], query: str) -> None:
        self.head(200, Content_Length=words[0], Content_Type="video/mp4")
        self.close_connection = True

    def do_status(self, words: list[str], query: str) -> None:
        self.head(int(words[0]), Content_Length=0)

    def do_coded(self, words: list[str], query: str) -> None:
        data = content(int(words[0]))
        self.head(200, Content_Length=len(data), Content_Type="image/png", Content_Encoding="gzip")
        self.wfile.write(data)

    def do_to(self, words: list[str], query: str) -> None:
        self.head(302, Location=query, Content_Length=0)

    def do_typed(self, words: list[str], query: str) -> None:
        self.send(content(int(words[0])), query)


class FileServer:
    """The process. Used as a context manager; `url` is where it listens."""

    url = ""

    def __enter__(self) -> FileServer:
        command = [sys.executable, "-m", "tests.fakes.file_server"]
        self._process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        self.url = f"http://127.0.0.1:{int(self._process.stdout.readline())}"
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def asked(self, path: str) -> int:
        """How often a path was asked for."""
        with urllib.request.urlopen(f"{self.url}/asked", timeout=30) as answer:
            return int(json.load(answer).get(path, 0))

    def release(self, path: str) -> None:
        """A slow file goes on."""
        urllib.request.urlopen(f"{self.url}/release?{quote(path)}", timeout=30).close()


def main() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
