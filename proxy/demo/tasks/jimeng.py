"""Films of ByteDance: Jimeng through relays and by its own actions, Seedance at Volc."""

from __future__ import annotations

import uuid
from typing import Any

from proxy.demo.tasks.family import Call, Family, Path, cancel, get, post, show, submit
from proxy.demo.tasks.jobs import Job, Jobs, Refusal
from proxy.demo.tasks.replies import STATUS, film_of, named, number, refused_as_openai, words
from proxy.demo.tasks.suno import refused as refused_by_code
from proxy.demo.tasks.suno import task, wrapped

TOKENS = 108_900  # what five seconds cost at Volc


def jimeng_action(jobs: Jobs, family: Family, call: Call) -> Any:
    """POST /jimeng/: what it does is a parameter."""
    wish = call.query.get("Action", "")
    if wish.endswith("SubmitTask"):
        return submit("video", "prompt", "image_urls", "binary_data_base64")(jobs, family, call)
    if wish.endswith("GetResult"):
        job = jobs.find(family, str(call.doc.get("task_id", "")), call.secret)
        job.polls += 1
        return jimeng_native(job)
    raise Refusal("invalid", f"no such Action: {wish}")


def jimeng_native(job: Job) -> dict[str, Any]:
    data = {"status": job.word, "video_url": film_of(job)}
    if job.why:
        return jimeng_said(50500, job.why, data)
    return jimeng_said(10000, "Success", data)


def jimeng_said(code: int, message: str, data: Any) -> dict[str, Any]:
    return {"code": code, "status": code, "message": message, "request_id": uuid.uuid4().hex, "data": data}


JIMENG_CODES = {"invalid": 50215, "banned": 50413, "missing": 50400, "full": 50430, "broken": 50500}

JIMENG_NATIVE = Family(
    name="jimeng-native",
    words=words("in_queue", "generating", "done", "done", "expired"),
    submitted=lambda job: jimeng_said(10000, "Success", {"task_id": job.id}),
    shown=jimeng_native,
    refused=lambda r: (STATUS[r.kind], jimeng_said(JIMENG_CODES[r.kind], r.message, None)),
    paths=(post("/jimeng/", jimeng_action), post("/jimeng", jimeng_action)),
    new_id=number,
)


def relayed(job: Job) -> dict[str, Any]:
    return wrapped(task(job, {"video_url": film_of(job), "progress": job.progress}))


JIMENG = Family(
    name="jimeng",
    words=words("NOT_START", "IN_PROGRESS", "SUCCESS", "FAILURE"),
    submitted=lambda job: wrapped(job.id),
    shown=relayed,
    refused=refused_by_code,
    paths=(
        post("/jimeng/submit/videos", submit("videos", "prompt", "image_url")),
        get("/jimeng/fetch/{id}", show()),
    ),
    hook=("notify_hook",),
)


def volc(job: Job) -> dict[str, Any]:
    shown = {
        "id": job.id,
        "model": job.asked.get("model", "doubao-seedance-1-0-lite-t2v"),
        "status": job.word,
        "created_at": int(job.begun_s),
        "updated_at": int(job.ended_s or job.begun_s),
    }
    if job.is_done:
        usage = {"completion_tokens": TOKENS, "total_tokens": TOKENS}
        return shown | {"content": {"video_url": film_of(job)}, "usage": usage}
    return shown | ({"error": {"code": "InternalServiceError", "message": job.why}} if job.why else {})


VOLC = Family(
    name="volc",
    words=words("queued", "running", "succeeded", "failed", "cancelled"),
    submitted=lambda job: {"id": job.id},
    shown=volc,
    refused=refused_as_openai,
    paths=tuple(
        path
        for root in ("/volc/v1", "/api/v3")
        for path in (
            post(root + "/contents/generations/tasks", submit("video", "content")),
            get(root + "/contents/generations/tasks/{id}", show()),
            Path("DELETE", root + "/contents/generations/tasks/{id}", cancel(lambda job: {})),
        )
    ),
    hook=("callback_url",),
    new_id=named("cgt-"),
)
