"""Midjourney as midjourney-proxy offers it: /mj/submit/..., tasks with buttons, modes as a path's prefix.

A submit is answered 200 even where it is refused; `code` tells which. What a button does is in its customId.
"""

from __future__ import annotations

import time
import uuid
from itertools import count
from typing import Any

from aiohttp import web

from proxy.demo.tasks.family import Call, Family, Path, cancel, get, post, require, show, show_many, submit
from proxy.demo.tasks.files import picture
from proxy.demo.tasks.jobs import ENDED, FAILED, QUEUED, RUNNING, SUBMITTED, SUCCEEDED, Job, Jobs, Refusal
from proxy.demo.tasks.words import words_in

SUBMITTED_OK, EXISTS, IN_QUEUE = 1, 21, 22
CODES = {"full": 23, "banned": 24, "missing": 3, "invalid": 4}
WORDS = {
    "queued": "NOT_START", "submitted": "SUBMITTED", "running": "IN_PROGRESS", "waiting": "MODAL",
    "succeeded": "SUCCESS", "failed": "FAILURE", "cancelled": "CANCEL",
}  # fmt: skip
PLAN = ((QUEUED, 0), (SUBMITTED, 0), (RUNNING, 31), (RUNNING, 62), (SUCCEEDED, 100))
MODES = "{mode:(?:mj-)?(?:fast|relax|turbo)}"
ROOTS = ("/mj", f"/{MODES}/mj")

# What a customId begins with -> the kind of job that it starts; the more particular one first.
CUSTOM = (
    ("MJ::JOB::upsample", "UPSCALE"), ("MJ::JOB::low_variation", "LOW_VARIATION"),
    ("MJ::JOB::high_variation", "HIGH_VARIATION"), ("MJ::JOB::variation", "VARIATION"),
    ("MJ::JOB::reroll", "REROLL"), ("MJ::JOB::pan_", "PAN"), ("MJ::Outpaint", "ZOOM"),
    ("MJ::CustomZoom", "CUSTOM_ZOOM"), ("MJ::Inpaint", "INPAINT"), ("MJ::Job::PicReader", "IMAGINE"),
    ("MJ::Job::PromptAnalyzer", "IMAGINE"),
)  # fmt: skip
CHANGES = {"U": "UPSCALE", "V": "VARIATION", "R": "REROLL"}
GRIDS = frozenset({
    "IMAGINE", "VARIATION", "LOW_VARIATION", "HIGH_VARIATION", "REROLL", "BLEND", "PAN", "ZOOM",
    "CUSTOM_ZOOM", "INPAINT", "EDITS",
})  # fmt: skip
WITHOUT_PICTURE = frozenset({"DESCRIBE", "SHORTEN"})

_tail = count(uuid.uuid4().int % 1000)


def new_id() -> str:
    """Milliseconds and three digits, as the proxy counts."""
    return f"{int(time.time() * 1000)}{next(_tail) % 1000:03}"


# -- replies ---------------------------------------------------------------------------------------


def reply(code: int, description: str, result: Any = "", **properties: Any) -> dict[str, Any]:
    return {"code": code, "description": description, "result": result, "properties": properties}


def submitted(job: Job) -> dict[str, Any]:
    if job.state == "waiting":
        return reply(EXISTS, "Waiting for window confirm", job.id, finalPrompt=job.prompt, remix=True)
    if "queued" in words_in(job.asked):
        return reply(IN_QUEUE, "排队中，前面还有1个任务", job.id, numberOfQueues=1)
    return reply(SUBMITTED_OK, "提交成功", job.id)


def exists(job: Job) -> dict[str, Any]:
    """The same was asked for before: here it is."""
    return reply(EXISTS, "任务已存在", job.id, status=job.word, imageUrl=_image(job))


def refused(refusal: Refusal) -> tuple[int, Any]:
    if refusal.kind == "broken":
        return 500, reply(9, refusal.message)
    extra = {"promptEn": refusal.message, "bannedWord": "banned"} if refusal.kind == "banned" else {}
    return 200, reply(CODES[refusal.kind], refusal.message, **extra)


def shown(job: Job) -> dict[str, Any]:
    """The task object: of fetch, of lists, and the body of notifyHook."""
    return {
        "id": job.id,
        "action": job.kind,
        "customId": job.asked.get("customId", ""),
        "botType": job.asked.get("botType", "MID_JOURNEY"),
        "prompt": job.prompt,
        "promptEn": _told(job) if job.is_done else job.prompt,
        "description": f"/{job.kind.lower()} {job.prompt}",
        "state": job.asked.get("state", ""),
        "submitTime": _ms(job.begun_s),
        "startTime": _ms(job.started_s),
        "finishTime": _ms(job.ended_s),
        "imageUrl": _image(job),
        "status": job.word,
        "progress": f"{job.progress}%",
        "failReason": job.why,
        "buttons": buttons(job),
        "properties": {"finalPrompt": _told(job) if job.is_done else "", "finalZhPrompt": ""},
    }


def _told(job: Job) -> str:
    if job.kind == "DESCRIBE":
        return "\n\n".join(f"{n} a picture of something --ar 1:1" for n in ("1️⃣", "2️⃣", "3️⃣", "4️⃣"))
    return job.prompt


def _ms(seconds: float) -> int:
    return int(seconds * 1000)


def _image(job: Job) -> str:
    if not job.progress or job.kind in WITHOUT_PICTURE or job.state == FAILED:
        return ""
    return job.file("mp4") if job.kind == "VIDEO" else job.file("png")


def buttons(job: Job) -> list[dict[str, Any]]:
    """What can be done with a result: pick or vary one of a grid's four, or go on from a single picture."""
    if not job.is_done:
        return []
    key = uuid.uuid5(uuid.NAMESPACE_OID, job.id)
    if job.kind == "DESCRIBE":
        ids = {f"{n}️⃣": f"MJ::Job::PicReader::{n}" for n in range(1, 5)}
    elif job.kind == "SHORTEN":
        ids = {f"{n}️⃣": f"MJ::Job::PromptAnalyzer::{n}" for n in range(1, 6)}
    elif job.kind in GRIDS:
        ids = {f"U{n}": f"MJ::JOB::upsample::{n}::{key}" for n in range(1, 5)}
        ids |= {"🔄": f"MJ::JOB::reroll::0::{key}::SOLO"}
        ids |= {f"V{n}": f"MJ::JOB::variation::{n}::{key}" for n in range(1, 5)}
    elif job.kind == "UPSCALE":
        ids = {
            "Upscale (Subtle)": f"MJ::JOB::upsample_v6_2x_subtle::1::{key}::SOLO",
            "Upscale (Creative)": f"MJ::JOB::upsample_v6_2x_creative::1::{key}::SOLO",
            "Vary (Subtle)": f"MJ::JOB::low_variation::1::{key}::SOLO",
            "Vary (Strong)": f"MJ::JOB::high_variation::1::{key}::SOLO",
            "Vary (Region)": f"MJ::Inpaint::1::{key}::SOLO",
            "Zoom Out 2x": f"MJ::Outpaint::50::1::{key}::SOLO",
            "Zoom Out 1.5x": f"MJ::Outpaint::75::1::{key}::SOLO",
            "Custom Zoom": f"MJ::CustomZoom::{key}",
            "⬅️": f"MJ::JOB::pan_left::1::{key}::SOLO",
            "➡️": f"MJ::JOB::pan_right::1::{key}::SOLO",
        }
    else:
        ids = {}
    return [
        {"customId": id_, "emoji": "", "label": label, "type": 2, "style": 2} for label, id_ in ids.items()
    ]


# -- what the paths do -----------------------------------------------------------------------------


def blend(jobs: Jobs, family: Family, call: Call) -> Any:
    if not 2 <= len(call.doc.get("base64Array") or ()) <= 5:
        raise Refusal("invalid", "base64List参数错误")
    return submitted(jobs.add(family, "BLEND", call))


def parent_of(jobs: Jobs, family: Family, call: Call, id_: Any) -> Job:
    """Raises Refusal: there is none, or it is not done."""
    if not id_:
        raise Refusal("invalid", "taskId不能为空")
    parent = jobs.find(family, str(id_), call.secret)
    if not parent.is_done:
        raise Refusal("invalid", "关联任务状态错误")
    return parent


def go_on(jobs: Jobs, call: Call, parent: Job, kind: str, which: Any) -> Any:
    """From a finished job to the next. The same picture is upscaled once."""
    for job in jobs.of(parent.family, call.secret) if kind == "UPSCALE" else ():
        if job.parent is parent and job.kind == kind and _which(job) == which and job.state != FAILED:
            return exists(job)
    return submitted(jobs.add(parent.family, kind, call, parent))


def _which(job: Job) -> Any:
    """What it was asked to do with its parent."""
    doc = job.asked
    return doc.get("customId") or doc.get("index") or str(doc.get("content", "")).partition(" ")[2]


def action(jobs: Jobs, family: Family, call: Call) -> Any:
    parent = parent_of(jobs, family, call, call.doc.get("taskId"))
    custom = str(call.doc.get("customId", ""))
    if custom not in {button["customId"] for button in buttons(parent)}:
        raise Refusal("invalid", "customId不存在")
    kind = next(kind for begin, kind in CUSTOM if custom.startswith(begin))
    return go_on(jobs, call, parent, kind, custom)


def change(jobs: Jobs, family: Family, call: Call) -> Any:
    kind, index = call.doc.get("action"), call.doc.get("index")
    if kind not in CHANGES.values() or (kind != "REROLL" and index not in (1, 2, 3, 4)):
        raise Refusal("invalid", "action参数错误")
    return go_on(jobs, call, parent_of(jobs, family, call, call.doc.get("taskId")), str(kind), index)


def simple_change(jobs: Jobs, family: Family, call: Call) -> Any:
    id_, _, wish = str(call.doc.get("content", "")).partition(" ")
    kind = CHANGES.get(wish[:1])
    if kind is None or (wish != "R" and wish[1:] not in ("1", "2", "3", "4")):
        raise Refusal("invalid", "content参数错误")
    return go_on(jobs, call, parent_of(jobs, family, call, id_), kind, wish)


def modal(jobs: Jobs, family: Family, call: Call) -> Any:
    """Answer the window that an action opened: the same job goes on."""
    job = jobs.find(family, str(call.doc.get("taskId", "")), call.secret)
    if job.state != "waiting":
        raise Refusal("invalid", "关联任务状态错误")
    job.asked.update({name: call.doc[name] for name in ("prompt", "maskBase64") if name in call.doc})
    jobs.resume(job)
    return submitted(job)


def upload(jobs: Jobs, family: Family, call: Call) -> Any:
    """No job: the pictures are there at once."""
    require(call, "base64Array")
    urls = [f"{call.base}/_demo/files/{new_id()}/{n}.png" for n in range(len(call.doc["base64Array"]))]
    return reply(SUBMITTED_OK, "success", urls)


def seed(jobs: Jobs, family: Family, call: Call) -> Any:
    job = jobs.find(family, call.at["id"], call.secret)
    if not job.is_done:
        raise Refusal("invalid", "关联任务状态错误")
    return reply(SUBMITTED_OK, "成功", str(uuid.uuid5(uuid.NAMESPACE_OID, job.id).int % 4_294_967_296))


def listed(jobs: Jobs, family: Family, call: Call) -> Any:
    """Everything that this credential has made, whoever asked for it."""
    return [shown(job) for job in jobs.of(family, call.secret)]


def queue(jobs: Jobs, family: Family, call: Call) -> Any:
    return [shown(job) for job in jobs.of(family, call.secret) if job.state not in ENDED]


def image(jobs: Jobs, family: Family, call: Call) -> web.Response:
    """The picture itself; anybody may ask for it."""
    return picture(jobs.find(family, call.at["id"]).id)


def paths() -> tuple[Path, ...]:
    rows = (
        post("/submit/imagine", submit("IMAGINE", "prompt")),
        post("/submit/blend", blend),
        post("/submit/describe", submit("DESCRIBE", "base64", "link")),
        post("/submit/shorten", submit("SHORTEN", "prompt")),
        post("/submit/edits", submit("EDITS", "prompt")),
        post("/submit/retexture", submit("EDITS", "prompt")),
        post("/submit/video", submit("VIDEO", "image", "prompt", "taskId")),
        post("/submit/upload-discord-images", upload),
        post("/submit/action", action),
        post("/submit/change", change),
        post("/submit/simple-change", simple_change),
        post("/submit/modal", modal),
        post("/insight-face/swap", submit("SWAP_FACE", "sourceBase64")),
        get("/task/list", listed),
        get("/task/queue", queue),
        post("/task/list-by-condition", show_many()),
        post("/task/list-by-ids", show_many()),
        get("/task/{id}/fetch", show()),
        get("/task/{id}/image-seed", seed),
        post("/task/{id}/cancel", cancel(lambda job: reply(SUBMITTED_OK, "成功", job.id))),
        get("/image/{id}", image),
    )
    return tuple(Path(row.method, root + row.path, row.action) for root in ROOTS for row in rows)


MIDJOURNEY = Family(
    name="midjourney",
    words=WORDS,
    submitted=submitted,
    shown=shown,
    refused=refused,
    paths=paths(),
    hook=("notifyHook",),
    plan=PLAN,
    waits=frozenset({"INPAINT", "CUSTOM_ZOOM"}),
    new_id=new_id,
)
