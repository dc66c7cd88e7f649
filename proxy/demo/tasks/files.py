"""Results of jobs: a picture, a sound or a film for each URL, always the same. Anybody may fetch them."""

from __future__ import annotations

import struct

from aiohttp import web

from proxy.demo.openai_media import tones
from proxy.demo.openai_rest import png

ROOT = "/_demo/files/"


async def serve(request: web.Request) -> web.Response:
    """GET /_demo/files/{id}/{name}: what it is, the extension says."""
    id_, (name, _, extension) = request.match_info["id"], request.match_info["name"].partition(".")
    if extension == "png":
        return picture(f"{id_}/{name}")
    if extension == "mp4":
        return web.Response(body=film(f"{id_}/{name}"), content_type="video/mp4")
    if extension == "wav":
        return web.Response(body=tones(f"a song of {id_} and {name}"), content_type="audio/wav")
    raise web.HTTPNotFound


def picture(text: str) -> web.Response:
    return web.Response(body=png(text), content_type="image/png")


def film(text: str) -> bytes:
    """The boxes of an MP4 that has no frames: enough to be stored, not to be watched."""
    boxes = ((b"ftyp", b"isom\0\0\2\0isomiso2mp41"), (b"free", text.encode()), (b"mdat", b""))
    return b"".join(struct.pack(">I", 8 + len(data)) + kind + data for kind, data in boxes)
