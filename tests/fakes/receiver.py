"""A customer's server: takes callbacks, remembers them, and is down when the test says so. In a thread."""

from __future__ import annotations

import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson


class Receiver:
    def __init__(self) -> None:
        self.taken: list[tuple[str, bytes]] = []  # (event, body), as they were taken
        self.headers: list[dict[str, str]] = []
        self.tries: Counter[str] = Counter()
        self.is_down = False
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(receiver._take(dict(self.headers), body))
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def _take(self, headers: dict[str, str], body: bytes) -> int:
        event = headers["webhook-id"]
        self.tries[event] += 1
        self.headers.append(headers)
        if self.is_down:
            return 503
        self.taken.append((event, body))
        return 204

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def told(self) -> list[Any]:
        """The bodies of events, each once."""
        return [orjson.loads(body) for body in dict(self.taken).values()]

    def __enter__(self) -> Receiver:
        self._thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
