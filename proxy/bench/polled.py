"""A vendor whose tasks go on for ever, for the benchmark of the poller: `python -m proxy.bench.polled PORT`.

Counts what it is asked.
"""

from __future__ import annotations

import logging
import sys

from aiohttp import web

COUNTS = web.AppKey("COUNTS", dict[str, int])


async def one(request: web.Request) -> web.Response:
    request.app[COUNTS]["requests"] += 1
    request.app[COUNTS]["tasks"] += 1
    return web.json_response(task(request.match_info["id"]))


async def many(request: web.Request) -> web.Response:
    ids = (await request.json())["ids"]
    request.app[COUNTS]["requests"] += 1
    request.app[COUNTS]["tasks"] += len(ids)
    return web.json_response([task(id_) for id_ in ids])


async def counts(request: web.Request) -> web.Response:
    return web.json_response(request.app[COUNTS])


def task(id_: str) -> dict[str, object]:
    """About what Midjourney tells of one."""
    return {
        "id": id_, "action": "IMAGINE", "status": "IN_PROGRESS", "progress": "40%", "prompt": "a cat " * 20,
        "submitTime": 1_700_000_000_000, "imageUrl": f"http://127.0.0.1/{id_}.png", "buttons": [],
    }  # fmt: skip


def main(port: int) -> None:
    app = web.Application()
    app[COUNTS] = {"requests": 0, "tasks": 0}
    app.router.add_get("/one/{id}", one)
    app.router.add_post("/many/list", many)
    app.router.add_get("/counts", counts)
    logging.getLogger("aiohttp.access").disabled = True
    web.run_app(app, host="127.0.0.1", port=port, print=None)


if __name__ == "__main__":
    main(int(sys.argv[1]))
