"""The demo's own paths for tasks: what was submitted, what becomes of it, and the files of results.

GET  /_demo/tasks            all jobs, newest first, with the requests that made them
POST /_demo/tasks/{id}       {"state": "failed", "progress": 50, "why": "...", "times": 2} or {"step": 2}
GET  /_demo/files/{id}/{n}   a result
"""

from __future__ import annotations

from typing import Any

import orjson
from aiohttp import web

from proxy.demo.reading import RefusalError, invalid
from proxy.demo.tasks import files
from proxy.demo.tasks.family import JOBS, Family, handler
from proxy.demo.tasks.hooks import Hooks
from proxy.demo.tasks.images import BFL, FAL, REPLICATE
from proxy.demo.tasks.jimeng import JIMENG, JIMENG_NATIVE, VOLC
from proxy.demo.tasks.jobs import STATES, Job, Jobs, Refusal
from proxy.demo.tasks.midjourney import MIDJOURNEY
from proxy.demo.tasks.sora import AVATAR, GROK, SORA, UNIFIED
from proxy.demo.tasks.suno import SUNO, SUNO_OLDER
from proxy.demo.tasks.videos import DREAM_MACHINE, KLING, LUMA, MINIMAX, RUNWAY
from proxy.demo.tasks.zhipu import ZHIPU

FAMILIES: tuple[Family, ...] = (
    MIDJOURNEY, SUNO, SUNO_OLDER, LUMA, DREAM_MACHINE, ZHIPU, KLING, RUNWAY, MINIMAX, JIMENG, JIMENG_NATIVE,
    VOLC, SORA, GROK, UNIFIED, AVATAR, FAL, REPLICATE, BFL,
)  # fmt: skip
STEPS_MAX = 100
OPEN = (files.ROOT, "/mj/image/")  # paths that vendors serve without a key
HOOKS = web.AppKey("hooks", Hooks)


def add_tasks(app: web.Application, step_s: float) -> None:
    """Serve every family. `step_s`: between two steps of a job; 0: only POST /_demo/tasks/{id} moves it."""
    app[HOOKS] = hooks = Hooks()
    app[JOBS] = Jobs(step_s, hooks.tell)
    app.router.add_get("/_demo/tasks", list_all)
    app.router.add_get("/_demo/tasks/{id}", show_one)
    app.router.add_post("/_demo/tasks/{id}", move)
    app.router.add_get(files.ROOT + "{id}/{name}", files.serve)
    for family in FAMILIES:
        for path in family.paths:
            app.router.add_route(path.method, path.path, handler(family, path.action))
    app.on_cleanup.append(stop)


async def stop(app: web.Application) -> None:
    app[JOBS].stop()
    await app[HOOKS].stop()


async def list_all(request: web.Request) -> web.Response:
    return _answer([described(job) for job in request.app[JOBS].of(None)])


async def show_one(request: web.Request) -> web.Response:
    return _answer(described(_found(request)))


async def move(request: web.Request) -> web.Response:
    """Whatever its state was: late truths and changed minds are a part of the trade."""
    job, jobs = _found(request), request.app[JOBS]
    try:
        wish: dict[str, Any] = orjson.loads(await request.read())
        for _ in range(min(int(wish.get("step", 0)), STEPS_MAX)):
            jobs.step(job)
        state = wish.get("state", job.state)
        if "step" not in wish:
            for _ in range(min(int(wish.get("times", 1)), STEPS_MAX)):
                _move(jobs, job, state, wish)
    except (ValueError, TypeError, AttributeError) as error:
        raise invalid(f"say what is to become of it: {error}") from error
    return _answer(described(job))


def _move(jobs: Jobs, job: Job, state: str, wish: dict[str, Any]) -> None:
    if state not in STATES or state not in job.family.words:
        raise ValueError(f"{job.family.name} has no state {state}")
    jobs.move(job, state, wish.get("progress"), str(wish.get("why", "")))


def _found(request: web.Request) -> Job:
    try:
        return request.app[JOBS].find(None, request.match_info["id"])
    except Refusal as refusal:
        raise RefusalError(404, "not_found_error", refusal.message) from refusal


def described(job: Job) -> dict[str, Any]:
    """A job in the demo's words, with the request that made it."""
    call = job.call
    return {
        "id": job.id,
        "family": job.family.name,
        "kind": job.kind,
        "state": job.state,
        "progress": job.progress,
        "polls": job.polls,
        "parent": job.parent.id if job.parent else None,
        "request": {
            "method": call.method,
            "target": call.target,
            "headers": {name.lower(): value for name, value in call.headers.items()},
            "body": call.doc,
        },
    }


def _answer(body: Any) -> web.Response:
    return web.json_response(body=orjson.dumps(body))
