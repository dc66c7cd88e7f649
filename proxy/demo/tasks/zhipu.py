"""Zhipu's asynchronous films, pictures and chats: one path tells the results of all of them."""

from __future__ import annotations

from typing import Any

from proxy.demo.tasks.family import Family, get, post, show, submit
from proxy.demo.tasks.jobs import Job
from proxy.demo.tasks.replies import STATUS, film_of, number, words

ZHIPU_ROOTS = ("/api/paas/v4", "/cogvideox/v4", "/zhipu/api/paas/v4", "/zhipu")


def zhipu_begun(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "model": job.asked.get("model", "cogvideox-2"),
        "request_id": job.asked.get("request_id") or job.id,
        "task_status": job.word,
    }


def zhipu(job: Job) -> dict[str, Any]:
    shown = zhipu_begun(job)
    if not job.is_done:
        return shown
    if job.kind == "chat":
        said = f"The demo has thought about {job.prompt}."
        usage = {"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30}
        message = {"role": "assistant", "content": said}
        return shown | {
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
            "usage": usage,
        }
    if job.kind == "image":
        return shown | {"image_result": [{"url": job.file("png")}]}
    return shown | {"video_result": [{"url": film_of(job), "cover_image_url": job.file("png")}]}


ZHIPU = Family(
    name="zhipu",
    words=words("PROCESSING", "PROCESSING", "SUCCESS", "FAIL"),
    submitted=zhipu_begun,
    shown=zhipu,
    refused=lambda refusal: (
        STATUS[refusal.kind], {"error": {"code": "1210", "message": refusal.message}}
    ),
    paths=tuple(
        path
        for root in ZHIPU_ROOTS
        for path in (
            post(root + "/videos/generations", submit("video", "prompt", "image_url")),
            post(root + "/async/images/generations", submit("image", "prompt")),
            post(root + "/async/chat/completions", submit("chat", "messages")),
            get(root + "/async-result/{id}", show()),
        )
    ),
    new_id=number,
)  # fmt: skip
