"""Pictures that are made behind the answer: Flux as fal, Replicate and Black Forest Labs sell it."""

from __future__ import annotations

import uuid
from typing import Any

from proxy.demo.tasks.family import Call, Family, Path, asked_for, cancel, get, post, show, submit
from proxy.demo.tasks.jobs import ENDED, Job, Jobs, Refusal
from proxy.demo.tasks.replies import STATUS, iso, words

# -- fal: a queue with a status beside the result --------------------------------------------------

AT_FAL = "/fal-ai/{model:.+}"
REQUESTS = "/fal-ai/{app}/requests"


def fal_urls(job: Job) -> dict[str, Any]:
    """Under the app's name: what is behind it is part of the model only."""
    app = job.call.at["model"].partition("/")[0]
    at = f"{job.call.base}/fal-ai/{app}/requests/{job.id}"
    return {
        "request_id": job.id,
        "response_url": at,
        "status_url": at + "/status",
        "cancel_url": at + "/cancel",
    }


def fal_status(jobs: Jobs, family: Family, call: Call) -> Any:
    job = asked_for(jobs, family, call)
    shown = {"status": job.word} | fal_urls(job)
    return shown | (
        {"error": job.why, "error_type": "internal_error"} if job.state in ENDED and not job.is_done else {}
    )


def fal(job: Job) -> Any:
    """The result. Raises Refusal while there is none."""
    if job.state not in ENDED:
        raise Refusal("invalid", "Request is still in progress")
    if not job.is_done:
        raise Refusal("broken", job.why or "Request was cancelled")
    pictures = [
        {"url": job.file("png", n), "content_type": "image/png"}
        for n in range(int(job.asked.get("num_images", 1)))
    ]
    return {"images": pictures, "seed": 42, "prompt": job.prompt, "has_nsfw_concepts": [False]}


def fal_cancel(jobs: Jobs, family: Family, call: Call) -> Any:
    job = jobs.find(family, call.at["id"], call.secret)
    if job.state in ENDED:
        raise Refusal("invalid", "ALREADY_COMPLETED")
    jobs.move(job, "cancelled")
    return {"status": "CANCELLATION_REQUESTED"}


FAL = Family(
    name="fal",
    words=words("IN_QUEUE", "IN_PROGRESS", "COMPLETED", "COMPLETED"),
    submitted=lambda job: {"status": job.word, "queue_position": 0} | fal_urls(job),
    shown=fal,
    refused=lambda refusal: (STATUS[refusal.kind], {"detail": refusal.message}),
    paths=(
        get(REQUESTS + "/{id}/status", fal_status),
        get(REQUESTS + "/{id}", show()),
        Path("PUT", REQUESTS + "/{id}/cancel", fal_cancel),
        post(AT_FAL, submit("{model}", "prompt", "image_url")),
    ),
)

# -- Replicate -------------------------------------------------------------------------------------


def replicate(job: Job) -> dict[str, Any]:
    at = f"{job.call.base}/v1/predictions/{job.id}"
    took = max(job.ended_s - job.started_s, 0.0)
    return {
        "id": job.id,
        "model": f"{job.call.at['owner']}/{job.call.at['model']}" if "owner" in job.call.at else "",
        "input": job.asked.get("input", {}),
        "output": [job.file("png")] if job.is_done else None,
        "error": job.why or None,
        "status": job.word,
        "created_at": iso(job.begun_s),
        "completed_at": iso(job.ended_s) if job.ended_s else None,
        "metrics": {"predict_time": took} if job.is_done else {},
        "urls": {"get": at, "cancel": at + "/cancel"},
    }


REPLICATE = Family(
    name="replicate",
    words=words("starting", "processing", "succeeded", "failed", "canceled"),
    submitted=replicate,
    shown=replicate,
    refused=lambda refusal: (
        STATUS[refusal.kind],
        {"detail": refusal.message, "status": STATUS[refusal.kind]},
    ),
    paths=tuple(
        path
        for root in ("/replicate/v1", "/v1")
        for path in (
            post(root + "/models/{owner}/{model}/predictions", submit("prediction", "input")),
            post(root + "/predictions", submit("prediction", "input")),
            get(root + "/predictions/{id}", show()),
            post(root + "/predictions/{id}/cancel", cancel()),
        )
    ),
    hook=("webhook",),
    new_id=lambda: uuid.uuid4().hex[:26],
)

# -- Black Forest Labs -----------------------------------------------------------------------------


def bfl(job: Job) -> dict[str, Any]:
    result = {"sample": job.file("png"), "prompt": job.prompt, "seed": 42} if job.is_done else None
    return {
        "id": job.id,
        "status": job.word,
        "result": result,
        "progress": job.progress / 100,
        "details": None,
    }


def bfl_refused(refusal: Refusal) -> tuple[int, Any]:
    if refusal.kind == "missing":
        return 404, {"id": "", "status": "Task not found", "result": None}
    return STATUS[refusal.kind], {"detail": refusal.message}


BFL = Family(
    name="bfl",
    words=words("Pending", "Pending", "Ready", "Error", "Content Moderated"),
    submitted=lambda job: {"id": job.id, "polling_url": f"{job.call.base}/v1/get_result?id={job.id}"},
    shown=bfl,
    refused=bfl_refused,
    paths=(
        post("/v1/{model:flux-[^/]+}", submit("{model}", "prompt")),
        get("/v1/get_result", show("id")),
    ),
    hook=("webhook_url",),
)
