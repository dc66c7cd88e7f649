"""nginx by our example, in front of a server: what must reach it and what must come back."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
NGINX = shutil.which("nginx", path="/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin")
UPLOAD_BYTES = 40 << 20  # more than a JSON body may have
DEADLINE_S = 30.0

ARRIVING = web.AppKey("ARRIVING", asyncio.Event)  # the first bytes of an upload are there

pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")


async def session(request: web.Request) -> web.WebSocketResponse:
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    async for message in socket:
        await socket.send_str(message.data)
    return socket


async def upload(request: web.Request) -> web.Response:
    size = 0
    async for piece in request.content.iter_any():
        request.app[ARRIVING].set()
        size += len(piece)
    return web.Response(text=str(size))


async def connection(request: web.Request) -> web.Response:
    return web.Response(text=request.headers.get("Connection", "none"))


@pytest.fixture
def arriving() -> asyncio.Event:
    return asyncio.Event()


@pytest.fixture
async def front(tmp_path: Path, arriving: asyncio.Event) -> AsyncIterator[str]:
    """Its base URL."""
    app = web.Application(client_max_size=1 << 30)
    app[ARRIVING] = arriving
    app.add_routes(
        [web.get("/v1/realtime", session), web.post("/v1/files", upload), web.get("/", connection)]
    )
    server, port = TestServer(app), unused_port()
    await server.start_server()
    subject = ["-subj", "/CN=localhost", "-keyout", "privkey.pem", "-out", "fullchain.pem"]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *subject],
        cwd=tmp_path, check=True, capture_output=True, timeout=DEADLINE_S,
    )  # fmt: skip
    text = (DEPLOY / "nginx.conf").read_text()
    for ours, theirs in (
        ("127.0.0.1:8080", f"127.0.0.1:{server.port}"),
        ("listen 443", f"listen 127.0.0.1:{port}"),
        ("/etc/headrace/tls", str(tmp_path)),
        ("http {", f"http {{ access_log off; client_body_temp_path {tmp_path}/bodies;"),
    ):
        assert ours in text
        text = text.replace(ours, theirs)
    config = tmp_path / "nginx.conf"
    config.write_text(f"daemon off; master_process off; pid {tmp_path}/pid;\n{text}")
    nginx = await asyncio.create_subprocess_exec(str(NGINX), "-e", f"{tmp_path}/log", "-c", str(config))
    try:
        await listens(port)
        yield f"https://127.0.0.1:{port}"
    finally:
        nginx.terminate()
        await nginx.wait()
        await server.close()


async def listens(port: int) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.01)
            else:
                writer.close()
                return


@pytest.fixture
async def client(front: str) -> AsyncIterator[aiohttp.ClientSession]:
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    connector = aiohttp.TCPConnector(ssl=trusting)
    async with aiohttp.ClientSession(front, connector=connector) as session:
        yield session


async def test_a_session_passes(client: aiohttp.ClientSession):
    async with client.ws_connect("/v1/realtime") as socket:
        await socket.send_str("hello")
        assert await socket.receive_str(timeout=DEADLINE_S) == "hello"


async def test_a_call_keeps_its_connection_behind_the_front(client: aiohttp.ClientSession):
    async with client.get("/") as answer:
        assert await answer.text() in ("none", "keep-alive")


async def test_a_large_upload_passes_while_it_comes(client: aiohttp.ClientSession, arriving: asyncio.Event):
    async def pieces() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.wait_for(arriving.wait(), DEADLINE_S)  # nothing in front waits for the rest
        for _ in range(UPLOAD_BYTES >> 20):
            yield bytes(1 << 20)

    async with client.post("/v1/files", data=pieces()) as answer:
        assert await answer.text() == str(UPLOAD_BYTES + 1)
