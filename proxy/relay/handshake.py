"""The client's side of a session: is this a handshake, and the answer to it.

Owns how a connection of the front becomes aiohttp's, which speaks WebSocket (RFC 6455).
"""

from __future__ import annotations

import asyncio

from aiohttp.web import BaseRequest, Server, WebSocketResponse

from proxy.errors import MalformedRequest
from proxy.relay.dialler import FRAME_BYTES_MAX, HANDSHAKE_S
from proxy.relay.exchange import Exchange
from proxy.relay.ids import dashed

CLOSE_S = 5.0  # for the other side to answer a close frame


def check_handshake(x: Exchange) -> None:
    """Raises MalformedRequest: this path is a WebSocket (RFC 6455 4.2.1)."""
    headers = x.headers
    asks = (
        headers.get("Upgrade", "").lower() == "websocket"
        and "upgrade" in headers.get("Connection", "").lower()
    )
    if not asks or headers.get("Sec-WebSocket-Version") != "13" or not headers.get("Sec-WebSocket-Key"):
        raise MalformedRequest("This path is a WebSocket: it needs an upgrade, version 13.")


async def accept(
    x: Exchange, ended: asyncio.Future[None], protocols: tuple[str, ...]
) -> WebSocketResponse[bool]:
    """Answer the handshake. The connection is aiohttp's from here on, until `ended` is done."""
    opened: asyncio.Future[WebSocketResponse[bool]] = asyncio.get_running_loop().create_future()

    async def handler(request: BaseRequest) -> WebSocketResponse[bool]:
        socket: WebSocketResponse[bool] = WebSocketResponse(
            protocols=protocols,
            autoclose=False,
            autoping=False,
            decode_text=False,
            timeout=CLOSE_S,
            max_msg_size=FRAME_BYTES_MAX,
        )
        assert x.dialect is not None
        for name in x.dialect.own_id_headers:
            socket.headers[name.decode()] = dashed(x.id).decode()
        await socket.prepare(request)
        opened.set_result(socket)
        await ended
        return socket

    # The parser's own limits are those of the front: the head has passed them.
    x.client.hand_over(Server(handler, access_log=None)())
    x.keep_alive = False
    async with asyncio.timeout(HANDSHAKE_S):
        return await opened
