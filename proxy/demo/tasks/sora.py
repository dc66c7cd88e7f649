"""Films behind OpenAI's path and those that grew beside it, and people who talk in films."""

from __future__ import annotations

import uuid
from typing import Any

from aiohttp import web

from proxy.demo.tasks.family import Call, Family, Path, asked_for, cancel, get, post, show, submit
from proxy.demo.tasks.files import film
from proxy.demo.tasks.jobs import Job, Jobs, Refusal
from proxy.demo.tasks.replies import STATUS, film_of, named, refused_as_openai, words
from proxy.demo.tasks.suno import refused as refused_by_code
from proxy.demo.tasks.suno import task, wrapped

# -- Sora, new-api's unified path ---------------------------------------------------------------------


def sora(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "object": "video",
        "model": job.asked.get("model", "sora-2"),
        "status": job.word,
        "progress": job.progress,
        "created_at": int(job.begun_s),
        "completed_at": int(job.ended_s) or None,
        "seconds": str(job.asked.get("seconds", "4")),
        "size": job.asked.get("size", "720x1280"),
        "remixed_from_video_id": job.parent.id if job.parent else None,
        "error": {"code": "video_generation_failed", "message": job.why} if job.why else None,
    }


def sora_content(jobs: Jobs, family: Family, call: Call) -> web.Response:
    job = asked_for(jobs, family, call)
    if not job.is_done:
        raise Refusal("invalid", "Video is not ready yet")
    return web.Response(body=film(f"{job.id}/0"), content_type="video/mp4")


def sora_list(jobs: Jobs, family: Family, call: Call) -> Any:
    """Everything that this credential has made, whoever asked for it."""
    return {"object": "list", "data": [sora(job) for job in jobs.of(family, call.secret)], "has_more": False}


SORA = Family(
    name="sora",
    words=words("queued", "in_progress", "completed", "failed"),
    submitted=sora,
    shown=sora,
    refused=refused_as_openai,
    paths=(
        post("/v1/videos", submit("video", "prompt")),
        get("/v1/videos", sora_list),
        get("/v1/videos/{id:video_[^/]+}", show()),
        get("/v1/videos/{id}/content", sora_content),
        post("/v1/videos/{id}/remix", submit("remix", "prompt", upon=lambda c: c.at["id"])),
        Path("DELETE", "/v1/videos/{id}", cancel(lambda j: {"id": j.id, "object": "video", "deleted": True})),
    ),
    new_id=named("video_"),
)


def grok(job: Job) -> dict[str, Any]:
    if not job.is_done:
        return {"status": job.word, "progress": job.progress}
    video = {"url": film_of(job), "duration": int(job.asked.get("duration", 6)), "respect_moderation": True}
    return {"status": job.word, "video": video, "model": job.asked.get("model"), "progress": 100}


GROK = Family(
    name="grok-imagine",
    words=words("pending", "pending", "done", "failed", "expired"),
    submitted=lambda job: {"request_id": job.id},
    shown=grok,
    refused=lambda refusal: (STATUS[refusal.kind], {"code": refusal.kind, "error": refusal.message}),
    paths=(
        post("/v1/videos/generations", submit("video", "prompt")),
        get("/v1/videos/{id:[0-9a-f]+-[0-9a-f-]+}", show()),
    ),
)


def unified(job: Job) -> dict[str, Any]:
    return {
        "task_id": job.id,
        "status": job.word,
        "url": film_of(job),
        "format": "mp4" if job.is_done else "",
        "metadata": {"duration": job.asked.get("duration"), "progress": job.progress},
        "error": {"code": 500, "message": job.why} if job.why else None,
    }


UNIFIED = Family(
    name="video",
    words=words("queued", "processing", "succeeded", "failed"),
    submitted=lambda job: {"task_id": job.id, "status": job.word},
    shown=unified,
    refused=refused_as_openai,
    paths=(
        post("/v1/video/generations", submit("video", "prompt", "image")),
        get("/v1/video/generations/{id}", show()),
    ),
)


# -- digital humans -----------------------------------------------------------------------------------


def avatar(job: Job) -> dict[str, Any]:
    work = {
        "id": job.id,
        "work_name": job.prompt,
        "create_time": int(job.begun_s),
        "web_work_status": 200 if job.is_done else 100,
        "work_video_path": film_of(job),
        "no_wm_work_video_path": film_of(job) if job.asked.get("no_watermark") else "",
    }
    return wrapped(task(job, work))


AVATAR = Family(
    name="avatar",
    words=words("NOT_START", "IN_PROGRESS", "SUCCESS", "FAILURE"),
    submitted=lambda job: wrapped(job.id),
    shown=avatar,
    refused=refused_by_code,
    paths=(
        post("/avatar/generation", submit("avatar-generate", "avatar_url")),
        get("/avatar/task/{id}", show()),
    ),
    hook=("notify_hook",),
    new_id=lambda: uuid.uuid4().hex,
)
