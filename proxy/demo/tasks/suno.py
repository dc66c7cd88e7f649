"""Suno as relays offer it: /suno/submit/... with string codes, and the older paths with a version.

One submit makes two songs. A song may be gone on from: by its clip's id, at the credential that made it.
"""

from __future__ import annotations

import uuid
from typing import Any

from proxy.demo.tasks.family import Action, Call, Family, Path, get, post, require, show, show_many
from proxy.demo.tasks.jobs import (
    FAILED,
    QUEUED,
    RUNNING,
    SUBMITTED,
    SUCCEEDED,
    WAITING,
    Job,
    Jobs,
    Refusal,
)

WORDS = {
    "queued": "QUEUED", "submitted": "SUBMITTED", "running": "IN_PROGRESS", "waiting": "NOT_START",
    "succeeded": "SUCCESS", "failed": "FAILURE", "cancelled": "FAILURE",
}  # fmt: skip
PLAN = ((WAITING, 0), (SUBMITTED, 0), (QUEUED, 0), (RUNNING, 30), (RUNNING, 60), (SUCCEEDED, 100))
SONGS = 2
STATUS = {"invalid": 400, "banned": 400, "missing": 400, "full": 429, "broken": 500}
CODES = {
    "invalid": "invalid_request",
    "banned": "sensitive_words",
    "missing": "task_not_exist",
    "full": "queue_full",
}
VERSIONS = ("/suno/v1", "/suno/v1/v3.0", "/suno/v1/mv-3.5", "/suno/v1/v3.5")


def said_in(asked: dict[str, Any]) -> dict[str, Any]:
    """What is wanted: the older dialect wraps it."""
    inner = asked.get("input")
    return inner if isinstance(inner, dict) else asked


def clip_id(job: Job, number: int) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{job.id} {number}"))


def clips(job: Job) -> list[dict[str, Any]]:
    """The songs, as far as they are: known while they are made, playable at the end."""
    if job.kind == "LYRICS" or not job.progress:
        return []
    said = said_in(job.asked)
    model = said.get("mv") or "chirp-v3-0"
    count = 1 if job.kind == "CONCAT" else SONGS
    return [
        {
            "id": clip_id(job, n),
            "title": said.get("title") or job.prompt[:40],
            "status": "error" if job.state == FAILED else "complete" if job.is_done else "streaming",
            "audio_url": job.file("wav", n) if job.is_done else "",
            "video_url": job.file("mp4", n) if job.is_done else "",
            "image_url": job.file("png", n),
            "image_large_url": job.file("png", n),
            "model_name": model,
            "major_model_version": model.removeprefix("chirp-").replace("-", "."),
            "metadata": {
                "tags": said.get("tags", ""),
                "prompt": job.prompt,
                "duration": 120.0 if job.is_done else None,
                "error_type": "demo" if job.why else None,
                "error_message": job.why or None,
            },
        }
        for n in range(count)
    ]


def lyrics(job: Job) -> dict[str, Any]:
    text = f"[Verse]\nAll I know about {job.prompt}\nis what you told me" if job.is_done else ""
    return {
        "id": clip_id(job, 0),
        "title": job.prompt,
        "text": text,
        "status": "complete" if text else "running",
    }


def wrapped(data: Any) -> dict[str, Any]:
    return {"code": "success", "message": "", "data": data}


def task(job: Job, data: Any) -> dict[str, Any]:
    """The task object that relays make of whatever a vendor says."""
    return {
        "task_id": job.id,
        "notify_hook": job.hook,
        "action": job.kind,
        "status": job.word,
        "fail_reason": job.why,
        "submit_time": int(job.begun_s),
        "start_time": int(job.started_s),
        "finish_time": int(job.ended_s),
        "progress": f"{job.progress}%",
        "data": data,
    }


def song(job: Job) -> dict[str, Any]:
    return task(job, lyrics(job) if job.kind == "LYRICS" else clips(job))


def refused(refusal: Refusal) -> tuple[int, Any]:
    code = CODES.get(refusal.kind, "internal_error")
    return STATUS[refusal.kind], {"code": code, "message": refusal.message, "data": None}


def sing(kind: str, *needed: str) -> Action:
    """Music or lyrics. What it goes on from must be a song of this credential's."""

    def act(jobs: Jobs, family: Family, call: Call) -> Any:
        said = said_in(call.doc)
        require(call, *needed)
        song_id = said.get("continue_clip_id") or said.get("clip_id")
        parent = _of_song(jobs, family, call, song_id) if song_id else None
        return family.submitted(jobs.add(family, kind, call, parent))

    return act


def _of_song(jobs: Jobs, family: Family, call: Call, id_: str) -> Job:
    """The job that made a song. Raises Refusal."""
    for job in jobs.of(family, call.secret):
        if any(clip["id"] == id_ for clip in clips(job)):
            return job
    raise Refusal("missing", f"clip {id_} was not found")


def older_task(job: Job) -> dict[str, Any]:
    return {
        "code": 200,
        "data": {
            "task_id": job.id,
            "status": job.word,
            "input": job.asked.get("input", job.asked),
            "clips": {clip["id"]: clip for clip in clips(job)},
            "error": job.why,
        },
        "message": "success",
    }


def older_refused(refusal: Refusal) -> tuple[int, Any]:
    status = STATUS[refusal.kind]
    return status, {"code": status, "data": None, "message": refusal.message}


SUNO = Family(
    name="suno",
    words=WORDS,
    submitted=lambda job: wrapped(job.id),
    shown=lambda job: wrapped(song(job)),
    refused=refused,
    paths=(
        post("/suno/submit/music", sing("MUSIC", "prompt", "gpt_description_prompt", "continue_clip_id")),
        post("/suno/submit/lyrics", sing("LYRICS", "prompt")),
        post("/suno/submit/concat", sing("CONCAT", "clip_id")),
        get("/suno/fetch/{id}", show()),
        post("/suno/fetch", show_many(wrap=lambda found: wrapped([item["data"] for item in found]))),
    ),
    hook=("notify_hook",),
    plan=PLAN,
)

SUNO_OLDER = Family(
    name="suno-older",
    words=WORDS | {
        "queued": "pending", "submitted": "pending", "waiting": "pending", "running": "processing",
        "succeeded": "completed", "failed": "failed", "cancelled": "failed",
    },
    submitted=lambda job: {"code": 200, "data": {"task_id": job.id}, "message": "success"},
    shown=older_task,
    refused=older_refused,
    paths=tuple(
        path
        for version in VERSIONS
        for path in (
            post(version + "/music", sing("MUSIC", "input", "prompt", "gpt_description_prompt")),
            post(version + "/music/concat", sing("CONCAT", "clip_id")),
            Path("GET", version + "/music/{id}", show()),
        )
    ),
    hook=("notify_hook",),
)  # fmt: skip
