"""OpenAI's files and batches as the demo speaks them: what is uploaded is kept, a batch is answered at once
and told a moment later."""

from __future__ import annotations

import time
import uuid
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, TypeVar

import orjson
from aiohttp import web

from proxy.demo import counting, openai_text, reading

KEPT_MAX = 200  # files, and batches, that can be asked for again
FILE_BYTES_MAX = 8 << 20
LINES_MAX = 1000  # of one batch
READY_AFTER_S = 1.0
ENDPOINT = "/v1/chat/completions"  # the one that batches may be for


@dataclass(frozen=True, slots=True)
class File:
    """What was uploaded, or what a batch has written."""

    content: bytes
    name: str
    purpose: str
    id: str = field(default_factory=lambda: f"file-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def document(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "file",
            "bytes": len(self.content),
            "created_at": self.created,
            "filename": self.name,
            "purpose": self.purpose,
            "status": "processed",
        }


@dataclass(slots=True)
class Batch:
    """One batch: its answers are there, and shown when it is ready."""

    input_file_id: str
    model: str
    metadata: dict[str, Any]
    output: File
    calls: int
    usage: dict[str, int]
    id: str = field(default_factory=lambda: f"batch_{uuid.uuid4().hex}")
    created: float = field(default_factory=time.time)
    cancelled: float = 0.0

    def document(self, now: float) -> dict[str, Any]:
        is_over = bool(self.cancelled) or now >= self.created + READY_AFTER_S
        is_done = is_over and not self.cancelled
        done = self.calls if is_done else 0
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": ENDPOINT,
            "model": self.model,
            "errors": None,
            "input_file_id": self.input_file_id,
            "completion_window": "24h",
            "status": "completed" if is_done else "cancelled" if is_over else "in_progress",
            "output_file_id": self.output.id if is_done else None,
            "error_file_id": None,
            "created_at": int(self.created),
            "in_progress_at": int(self.created),
            "expires_at": int(self.created) + 86400,
            "completed_at": int(self.created + READY_AFTER_S) if is_done else None,
            "cancelled_at": int(self.cancelled) if self.cancelled else None,
            "request_counts": {"total": self.calls, "completed": done, "failed": 0},
            "usage": self.usage if is_done else None,
            "metadata": self.metadata,
        }


Kept = TypeVar("Kept")

FILES = web.AppKey("files", OrderedDict[str, File])
BATCHES = web.AppKey("batches", OrderedDict[str, Batch])


def add_routes(app: web.Application) -> None:
    app[FILES], app[BATCHES] = OrderedDict(), OrderedDict()
    app.router.add_post("/v1/files", upload)
    app.router.add_get("/v1/files", list_files)
    app.router.add_get("/v1/files/{id}", get_file)
    app.router.add_get("/v1/files/{id}/content", content)
    app.router.add_delete("/v1/files/{id}", delete)
    app.router.add_post("/v1/batches", create)
    app.router.add_get("/v1/batches/{id}", get_batch)
    app.router.add_post("/v1/batches/{id}/cancel", cancel)


async def upload(request: web.Request) -> web.Response:
    """POST /v1/files"""
    form = await request.post() if request.content_type == "multipart/form-data" else {}
    sent, purpose = form.get("file"), form.get("purpose")
    if not isinstance(sent, web.FileField) or not isinstance(purpose, str):
        raise reading.invalid("'file' and 'purpose' are required", "missing_required_parameter")
    data = sent.file.read(FILE_BYTES_MAX + 1)
    if len(data) > FILE_BYTES_MAX:
        raise reading.invalid("The demo keeps files of at most 8 MiB.")
    made = File(data, sent.filename, purpose)
    _keep(request.app[FILES], made.id, made)
    return _answer(made.document())


async def list_files(request: web.Request) -> web.Response:
    """GET /v1/files"""
    data = [file.document() for file in reversed(request.app[FILES].values())]
    return _answer({"object": "list", "data": data, "has_more": False})


async def get_file(request: web.Request) -> web.Response:
    """GET /v1/files/{id}"""
    return _answer(_asked_for(request, FILES).document())


async def content(request: web.Request) -> web.Response:
    """GET /v1/files/{id}/content"""
    found = _asked_for(request, FILES)
    return web.Response(body=found.content, content_type="application/octet-stream")


async def delete(request: web.Request) -> web.Response:
    """DELETE /v1/files/{id}"""
    found = _asked_for(request, FILES)
    del request.app[FILES][found.id]
    return _answer({"id": found.id, "object": "file", "deleted": True})


async def create(request: web.Request) -> web.Response:
    """POST /v1/batches"""
    body = await reading.read_object(request, model_default="-")
    if body.get("endpoint") != ENDPOINT:
        raise reading.invalid(f"The demo has batches for {ENDPOINT} only.", "invalid_endpoint")
    given = request.app[FILES].get(str(body.get("input_file_id")))
    if given is None:
        raise reading.invalid("'input_file_id' names no file.", "invalid_value")
    made = _run(given, body.get("metadata") or {})
    _keep(request.app[FILES], made.output.id, made.output)
    _keep(request.app[BATCHES], made.id, made)
    return _answer(made.document(0))


def _run(given: File, metadata: dict[str, Any]) -> Batch:
    """Answer each line. Raises RefusalError for one that is no request for a chat completion."""
    lines = [line for line in given.content.splitlines() if line.strip()]
    if not 0 < len(lines) <= LINES_MAX:
        raise reading.invalid(f"A batch has 1 to {LINES_MAX} lines.", "invalid_file")
    told, models, sums = [], [], {"input_tokens": 0, "output_tokens": 0}
    for line in lines:
        try:
            asked = orjson.loads(line)
            body, custom_id = asked["body"], asked["custom_id"]
            messages, model = reading.messages_of(body), body["model"]
        except (ValueError, TypeError, KeyError) as e:
            raise reading.invalid("A line needs a custom_id and the body of a chat completion.") from e
        limit = reading.count_of(body, "max_tokens", None)
        prompt, tokens = reading.last_prompt(messages), counting.message_tokens(messages, model)
        said = openai_text.generate(openai_text.CHAT, body, [prompt], limit, tokens).whole()
        models.append(model)
        sums["input_tokens"] += said["usage"]["prompt_tokens"]
        sums["output_tokens"] += said["usage"]["completion_tokens"]
        response = {"status_code": 200, "request_id": uuid.uuid4().hex, "body": said}
        row_id = f"batch_req_{uuid.uuid4().hex}"
        told.append({"id": row_id, "custom_id": custom_id, "response": response, "error": None})
    usage = {**sums, "total_tokens": sum(sums.values())}
    output = File(b"".join(orjson.dumps(row) + b"\n" for row in told), "output.jsonl", "batch_output")
    return Batch(given.id, models[0], metadata, output, len(lines), usage)


async def get_batch(request: web.Request) -> web.Response:
    """GET /v1/batches/{id}"""
    return _answer(_asked_for(request, BATCHES).document(time.time()))


async def cancel(request: web.Request) -> web.Response:
    """POST /v1/batches/{id}/cancel"""
    found, now = _asked_for(request, BATCHES), time.time()
    if now < found.created + READY_AFTER_S:
        found.cancelled = found.cancelled or now
    return _answer(found.document(now))


def _asked_for(request: web.Request, kept: web.AppKey[OrderedDict[str, Kept]]) -> Kept:
    found = request.app[kept].get(request.match_info["id"])
    if found is None:
        raise reading.RefusalError(
            404, "invalid_request_error", f"No such object: {request.match_info['id']}"
        )
    return found


def _keep(kept: OrderedDict[str, Kept], id_: str, made: Kept) -> None:
    kept[id_] = made
    while len(kept) > KEPT_MAX:
        kept.popitem(last=False)


def _answer(document: dict[str, Any]) -> web.Response:
    return web.json_response(body=orjson.dumps(document))
