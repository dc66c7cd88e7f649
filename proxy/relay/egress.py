"""The way out: a TCP connection to an upstream through the proxy that a mirror names with `via:`.

Owns the two handshakes, HTTP's CONNECT (RFC 9110 9.3.6) and SOCKS5 (RFC 1928, RFC 1929). The proxy is told
the host's name, so that names are resolved where the connection leaves. TLS to the upstream comes later
and goes through: a proxy sees neither keys nor prompts of an https mirror.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from base64 import b64encode

from proxy.routing.table import Egress

ANSWER_BYTES_MAX = 8192  # of a proxy's answer to CONNECT

SOCKS = 5
NO_AUTHENTICATION, PASSWORD = 0, 2
CONNECT, BY_NAME = 1, 3
ADDRESS_BYTES = {1: 4, 4: 16}  # of the proxy's own end, by type; a name (3) tells its length
REFUSALS = {
    1: "general failure", 2: "not allowed", 3: "network unreachable", 4: "host unreachable",
    5: "connection refused", 6: "expired", 7: "no CONNECT", 8: "no names",
}  # fmt: skip


async def open_tunnel(
    loop: asyncio.AbstractEventLoop, sock: socket.socket, egress: Egress, host: str, port: int
) -> None:
    """Make `sock`, which is connected to the proxy, lead to the host.

    Raises OSError. Whoever calls it has the time limit, and closes the socket when it fails.
    """
    if egress.scheme == "http":
        await _connect(loop, sock, egress, host, port)
    else:
        await _socks(loop, sock, egress, host, port)


async def _connect(
    loop: asyncio.AbstractEventLoop, sock: socket.socket, egress: Egress, host: str, port: int
) -> None:
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    request = f"CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n"
    if egress.user:
        token = b64encode(f"{egress.user}:{egress.secret}".encode()).decode()
        request += f"proxy-authorization: Basic {token}\r\n"
    await loop.sock_sendall(sock, f"{request}\r\n".encode())
    answer = b""
    while b"\r\n\r\n" not in answer:
        if len(answer) > ANSWER_BYTES_MAX:
            raise OSError("the egress proxy's answer does not end")
        answer += await _some(loop, sock)
    head, _, behind = answer.partition(b"\r\n\r\n")
    version, _, rest = head.partition(b"\r\n")[0].partition(b" ")
    if not version.startswith(b"HTTP/1.") or not rest[:3].isdigit():
        raise OSError("the egress proxy speaks no HTTP")
    if rest[:1] != b"2":
        raise OSError(f"the egress proxy refuses: status {rest[:3].decode()}")
    if behind:  # whoever is behind it spoke before it was asked
        raise OSError("bytes came before the request")


async def _socks(
    loop: asyncio.AbstractEventLoop, sock: socket.socket, egress: Egress, host: str, port: int
) -> None:
    method = PASSWORD if egress.user else NO_AUTHENTICATION
    await loop.sock_sendall(sock, bytes((SOCKS, 1, method)))
    if await _exactly(loop, sock, 2) != bytes((SOCKS, method)):
        raise OSError("the egress proxy wants another authentication")
    if egress.user:
        user, password = egress.user.encode(), egress.secret.encode()
        await loop.sock_sendall(sock, bytes((1, len(user))) + user + bytes((len(password),)) + password)
        if (await _exactly(loop, sock, 2))[1] != 0:
            raise OSError("the egress proxy refuses the password")
    name = host.encode()
    request = bytes((SOCKS, CONNECT, 0, BY_NAME, len(name))) + name + struct.pack(">H", port)
    await loop.sock_sendall(sock, request)
    version, reply, _, kind = await _exactly(loop, sock, 4)
    if version != SOCKS or reply != 0:
        raise OSError(f"the egress proxy refuses: {REFUSALS.get(reply, reply)}")
    size = ADDRESS_BYTES.get(kind) or (await _exactly(loop, sock, 1))[0]
    await _exactly(loop, sock, size + 2)


async def _exactly(loop: asyncio.AbstractEventLoop, sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += await _some(loop, sock, size - len(data))
    return data


async def _some(loop: asyncio.AbstractEventLoop, sock: socket.socket, most: int = ANSWER_BYTES_MAX) -> bytes:
    data = await loop.sock_recv(sock, most)
    if not data:
        raise ConnectionError("the egress proxy closed the connection")
    return data
