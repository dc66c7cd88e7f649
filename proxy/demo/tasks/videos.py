"""Films of Luma, Kling, Runway and MiniMax: a row per family, with its words and the looks of its replies."""

from __future__ import annotations

import uuid
from typing import Any

from aiohttp import web

from proxy.demo.tasks.family import Call, Family, Path, asked_for, get, post, show, show_many, submit
from proxy.demo.tasks.jobs import ENDED, Job, Jobs
from proxy.demo.tasks.replies import STATUS, film_of, iso, number, refused_as_openai, words

# -- Luma ---------------------------------------------------------------------------------------------

LUMA_ROOTS = ("/luma", "/luma/v1", "/vip/luma", "/pro/luma", "/lumvip", "/lumvip/v1")


def luma(job: Job) -> dict[str, Any]:
    video = {"url": film_of(job), "download_url": film_of(job), "width": 1360, "height": 752}
    return {
        "id": job.id,
        "prompt": job.prompt,
        "state": job.word,
        "created_at": iso(job.begun_s),
        "video": video if job.is_done else None,
        "liked": None,
        "estimate_wait_seconds": None,
    } | ({"failure_reason": job.why} if job.why else {})


LUMA = Family(
    name="luma",
    words=words("pending", "processing", "completed", "failed"),
    submitted=luma,
    shown=luma,
    refused=refused_as_openai,
    paths=tuple(
        path
        for root in LUMA_ROOTS
        for path in (
            post(root + "/generations", submit("generation", "user_prompt", "image_url")),
            post(
                root + "/generations/{id}/extend", submit("extend", "user_prompt", upon=lambda c: c.at["id"])
            ),
            get(root + "/generations/{id}", show()),
            get(root + "/task/{id}", show()),
            post(root + "/tasks", show_many()),
        )
    ),
    hook=("notify_hook",),
)


def dream_machine(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "generation_type": "video",
        "state": job.word,
        "failure_reason": job.why or None,
        "created_at": iso(job.begun_s),
        "assets": {"video": film_of(job)} if job.is_done else None,
        "model": job.asked.get("model", "ray-2"),
        "request": job.asked,
    }


DREAM_MACHINE = Family(
    name="dream-machine",
    words=words("queued", "dreaming", "completed", "failed"),
    submitted=dream_machine,
    shown=dream_machine,
    refused=lambda refusal: (STATUS[refusal.kind], {"detail": refusal.message}),
    paths=(
        post("/dream-machine/v1/generations", submit("generation", "prompt")),
        get("/dream-machine/v1/generations/{id}", show()),
    ),
    hook=("callback_url",),
)


# -- Kling --------------------------------------------------------------------------------------------


def kling(job: Job) -> dict[str, Any]:
    data: dict[str, Any] = {
        "task_id": job.id,
        "task_status": job.word,
        "task_status_msg": job.why,
        "task_info": {"external_task_id": job.asked.get("external_task_id", "")},
        "created_at": int(job.begun_s * 1000),
        "updated_at": int((job.ended_s or job.started_s or job.begun_s) * 1000),
    }
    if job.is_done and job.kind.startswith("images/"):
        many = int(job.asked.get("n", 1))
        data["task_result"] = {"images": [{"index": n, "url": job.file("png", n)} for n in range(many)]}
    elif job.is_done:
        seconds = str(job.asked.get("duration", "5"))
        data["task_result"] = {"videos": [{"id": f"{job.id}0", "url": film_of(job), "duration": seconds}]}
    return {"code": 0, "message": "SUCCEED", "request_id": uuid.uuid4().hex, "data": data}


KLING_VIDEOS = (
    "{op:text2video|image2video|multi-image2video|video-extend|lip-sync|effects|avatar/image2video}"
)
KLING_IMAGES = "{op:generations|kolors-virtual-try-on}"

KLING = Family(
    name="kling",
    words=words("submitted", "processing", "succeed", "failed"),
    submitted=kling,
    shown=kling,
    refused=lambda refusal: (STATUS[refusal.kind], {"code": 1201, "message": refusal.message, "data": None}),
    paths=tuple(
        path
        for kind, operations in (("videos", KLING_VIDEOS), ("images", KLING_IMAGES))
        for root in ("/kling/v1/", "/v1/")
        for path in (
            post(
                f"{root}{kind}/{operations}",
                submit(kind + "/{op}", upon=lambda c: c.doc.get("video_id", "")[:-1]),
            ),
            get(f"{root}{kind}/{operations}/{{id}}", show()),
        )
        if not (root == "/v1/" and kind == "images")  # OpenAI's
    ),
    hook=("callback_url",),
    new_id=number,
)


# -- Runway, MiniMax ----------------------------------------------------------------------------------


def runway(job: Job) -> dict[str, Any]:
    shown: dict[str, Any] = {"id": job.id, "status": job.word, "createdAt": iso(job.begun_s)}
    if job.is_done:
        return shown | {"output": [film_of(job)]}
    if job.why:
        return shown | {"failure": job.why, "failureCode": "INTERNAL.BAD_OUTPUT"}
    return shown | {"progress": job.progress / 100}


def gone(jobs: Jobs, family: Family, call: Call) -> web.Response:
    """Runway's cancel: 204, also for what is over."""
    job = asked_for(jobs, family, call)
    if job.state not in ENDED:
        jobs.move(job, "cancelled")
    return web.Response(status=204)


RUNWAY = Family(
    name="runway",
    words=words("PENDING", "RUNNING", "SUCCEEDED", "FAILED", "CANCELLED"),
    submitted=lambda job: {"id": job.id},
    shown=runway,
    refused=lambda refusal: (STATUS[refusal.kind], {"error": refusal.message}),
    paths=tuple(
        path
        for root in ("/runwayml/v1", "/v1")
        for path in (
            post(root + "/image_to_video", submit("image_to_video", "promptImage")),
            post(root + "/text_to_video", submit("text_to_video", "promptText")),
            get(root + "/tasks/{id}", show()),
            Path("DELETE", root + "/tasks/{id}", gone),
        )
    ),
)


FILE = "7"  # behind a task's id: that of its file


def minimax(job: Job) -> dict[str, Any]:
    said = {"status_code": 1027 if job.why else 0, "status_msg": job.why or "success"}
    shown = {"task_id": job.id, "status": job.word, "base_resp": said}
    return shown | (
        {"file_id": job.id + FILE, "video_width": 1280, "video_height": 720} if job.is_done else {}
    )


def minimax_file(jobs: Jobs, family: Family, call: Call) -> Any:
    job = jobs.find(family, call.query.get("file_id", "").removesuffix(FILE), call.secret)
    file = {"file_id": job.id + FILE, "bytes": 0, "filename": "output.mp4", "download_url": film_of(job)}
    return {"file": file, "base_resp": {"status_code": 0, "status_msg": "success"}}


MINIMAX_CODES = {"invalid": 2013, "banned": 1026, "missing": 2013, "full": 1002, "broken": 1000}

MINIMAX = Family(
    name="minimax",
    words=words("Queueing", "Processing", "Success", "Fail"),
    submitted=lambda job: {"task_id": job.id, "base_resp": {"status_code": 0, "status_msg": "success"}},
    shown=minimax,
    refused=lambda refusal: (  # 200, whatever it is
        200,
        {"base_resp": {"status_code": MINIMAX_CODES[refusal.kind], "status_msg": refusal.message}},
    ),
    paths=tuple(
        path
        for root in ("/minimax/v1", "/v1")
        for path in (
            post(root + "/video_generation", submit("video", "prompt", "first_frame_image")),
            get(root + "/query/video_generation", show("task_id")),
            get(root + "/files/retrieve", minimax_file),
        )
    ),
    hook=("callback_url",),
    new_id=number,
)
