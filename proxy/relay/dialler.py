"""The upstream's side of a session: where it is, with which head it is asked for, and what a refusal means.

Owns aiohttp's client session of a worker, which is used for WebSockets only.
"""

from __future__ import annotations

import asyncio
import ssl
from urllib.parse import quote

from aiohttp import (
    ClientError,
    ClientSession,
    ClientTimeout,
    ClientWebSocketResponse,
    TCPConnector,
    WSServerHandshakeError,
)
from aiohttp.client import URL

from proxy.errors import UpstreamConnectFailed, UpstreamRefused
from proxy.relay.answers import BUSY_STATUS, CREDENTIAL_STATUS
from proxy.relay.exchange import Exchange
from proxy.relay.heads import DEFAULT_PORTS
from proxy.routing.rewrite import request_headers, upstream_target
from proxy.routing.selection import Choice

FRAME_BYTES_MAX = 16 << 20  # OpenAI takes 15 MiB of sound in one event
HANDSHAKE_S = 15.0
KEY_PROTOCOL = "openai-insecure-api-key."


class Refused(Exception):
    """An upstream did not open a session. `status` 0: it was not reached; `is_ours`: another may do."""

    def __init__(self, error: UpstreamRefused | UpstreamConnectFailed, status: int, *, is_ours: bool) -> None:
        super().__init__(error.detail)
        self.error = error
        self.status = status
        self.is_ours = is_ours


class Dialler:
    """Opens sessions at upstreams."""

    def __init__(self, tls: ssl.SSLContext | None) -> None:
        self._tls = tls
        self._client: ClientSession | None = None

    async def dial(self, x: Exchange, choice: Choice) -> ClientWebSocketResponse[bool]:
        """Raises Refused."""
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in _fields(x, choice)]
        deflates = "permessage-deflate" in x.headers.get("Sec-WebSocket-Extensions", "")
        try:
            async with asyncio.timeout(choice.upstream.timeouts.connect_ms / 1000 + HANDSHAKE_S):
                return await self._session().ws_connect(
                    URL(_url(x, choice), encoded=True),
                    headers=headers,
                    protocols=_protocols(x),
                    autoclose=False,
                    autoping=False,
                    decode_text=False,
                    compress=15 if deflates else 0,
                    max_msg_size=FRAME_BYTES_MAX,
                )
        except WSServerHandshakeError as e:
            error = UpstreamRefused(detail=f"status:{e.status}")
            is_ours = e.status in CREDENTIAL_STATUS | BUSY_STATUS or not 400 <= e.status < 500
            if not is_ours:
                error.status = e.status  # the client's own mistake
            raise Refused(error, e.status, is_ours=is_ours) from e
        except (ClientError, OSError, TimeoutError, ValueError) as e:
            raise Refused(UpstreamConnectFailed(detail=type(e).__name__), 0, is_ours=True) from e

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()

    def _session(self) -> ClientSession:
        if self._client is None:
            self._client = ClientSession(
                connector=TCPConnector(limit=0, ssl=self._tls or True),
                timeout=ClientTimeout(total=None),
                auto_decompress=False,
                skip_auto_headers=("User-Agent",),
            )
        return self._client


def _url(x: Exchange, choice: Choice) -> str:
    """Where the session is at this mirror; its model is called as it is there."""
    assert x.heads is not None and x.operation is not None
    mirror, offered = choice.mirror, choice.upstream.operations[x.operation.name]
    dialect = x.heads.snapshot.dialects[offered.dialect]
    target = upstream_target(offered, mirror, choice.model, x.captures, x.query, dialect)
    theirs = dialect.operations[x.operation.name].session
    if theirs is not None and theirs.model_in_query:
        separator = "&" if "?" in target else "?"
        target += f"{separator}{theirs.model_in_query[0]}={quote(choice.model, safe='')}"
    host = f"[{mirror.host}]" if ":" in mirror.host else mirror.host
    port = "" if mirror.port == DEFAULT_PORTS[mirror.scheme] else f":{mirror.port}"
    return f"{mirror.scheme}://{host}{port}{target}"


def _fields(x: Exchange, choice: Choice) -> list[tuple[bytes, bytes]]:
    assert x.heads is not None and x.route is not None and x.operation is not None
    offered = choice.upstream.operations[x.operation.name]
    dialect = x.heads.snapshot.dialects[offered.dialect]
    fields = request_headers(x.head.fields, dialect, choice.upstream, offered, x.route, choice.credential)
    return [field for field in fields if not field[0].lower().startswith(b"sec-websocket-")]


def _protocols(x: Exchange) -> tuple[str, ...]:
    """The subprotocols that the client offers, but for its key."""
    offered = x.headers.get("Sec-WebSocket-Protocol", "").split(",")
    return tuple(p for protocol in offered if (p := protocol.strip()) and not p.startswith(KEY_PROTOCOL))
