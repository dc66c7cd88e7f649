"""The demo upstream as an aiohttp application: paths, its key, request ids, error shapes."""

from __future__ import annotations

import hmac
import uuid
from collections import OrderedDict
from collections.abc import Awaitable, Callable

import orjson
from aiohttp import web

from proxy.demo import (
    anthropic,
    gemini,
    openai_files,
    openai_media,
    openai_responses,
    openai_rest,
    openai_text,
)
from proxy.demo.reading import RefusalError
from proxy.demo.streaming import PACE
from proxy.demo.tasks.control import OPEN, add_tasks
from proxy.demo.tasks.family import secret_of

BODY_BYTES_MAX = 32 << 20  # a prompt with a few images
PIECES_PER_SECOND = 60.0  # about what a fast hosted model writes
STEP_S = 2.0  # between two steps of a task: pictures and films of vendors take minutes
KEY = web.AppKey("key", str)
REQUEST_ID = web.RequestKey("request_id", str)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def make_app(key: str = "", pace: float = PIECES_PER_SECOND, step_s: float = STEP_S) -> web.Application:
    """The demo upstream. `key`: what callers must send ("": anything goes); `pace`: pieces of text
    a second, 0 for as fast as possible; `step_s`: between two steps of a task, 0 for only when told.
    """
    app = web.Application(client_max_size=BODY_BYTES_MAX, middlewares=[answer_refusals])
    app[KEY], app[PACE] = key, pace
    app.on_response_prepare.append(add_request_id)
    app.router.add_post("/v1/chat/completions", openai_text.chat)
    app.router.add_post("/v1/completions", openai_text.completions)
    app.router.add_post("/v1/embeddings", openai_rest.embeddings)
    app.router.add_post("/v1/moderations", openai_rest.moderations)
    app.router.add_post("/v1/images/generations", openai_rest.images)
    app.router.add_post("/v1/images/edits", openai_media.edit)
    app.router.add_post("/v1/images/variations", openai_media.edit)
    app.router.add_post("/v1/audio/speech", openai_media.speech)
    app.router.add_post("/v1/audio/transcriptions", openai_media.transcribe)
    app.router.add_post("/v1/audio/translations", openai_media.transcribe)
    app[openai_responses.KEPT] = OrderedDict()
    app.router.add_post("/v1/responses", openai_responses.create)
    app.router.add_get("/v1/responses/{id}", openai_responses.get)
    app.router.add_delete("/v1/responses/{id}", openai_responses.delete)
    app.router.add_get("/v1/responses/{id}/input_items", openai_responses.input_items)
    openai_files.add_routes(app)
    app.router.add_get("/v1/models", openai_rest.models)
    app.router.add_post("/v1/messages", anthropic.messages)
    app.router.add_post("/v1/messages/count_tokens", anthropic.count_tokens)
    at = "/v1beta/models/{model}:"
    app.router.add_post(at + "{verb:generateContent|streamGenerateContent}", gemini.generate)
    app.router.add_post(at + "{verb:embedContent|batchEmbedContents}", gemini.embed)
    app.router.add_post(at + "countTokens", gemini.count_tokens)
    add_tasks(app, step_s)
    return app


@web.middleware
async def answer_refusals(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Check the key; put every refusal into the shape that the path's SDK understands."""
    request[REQUEST_ID] = "req_" + uuid.uuid4().hex
    try:
        check_key(request)
        return await handler(request)
    except RefusalError as refusal:
        return refused(request, refusal)
    except web.HTTPException as error:
        kind = "not_found_error" if error.status == 404 else "invalid_request_error"
        return refused(request, RefusalError(error.status, kind, f"{error.reason}: {request.path}"))


def check_key(request: web.Request) -> None:
    """Raises RefusalError unless the caller sent the key, as Bearer or under a vendor's own name."""
    sent = secret_of(request.headers)
    expected = request.app[KEY]
    if (
        expected
        and not request.path.startswith(OPEN)
        and not hmac.compare_digest(sent.encode(), expected.encode())
    ):
        raise RefusalError(401, "authentication_error", "Incorrect API key provided.", code="invalid_api_key")


def is_anthropic(request: web.Request) -> bool:
    return request.path.startswith("/v1/messages")


def refused(request: web.Request, refusal: RefusalError) -> web.Response:
    error = {"type": refusal.kind, "message": refusal.message}
    body: dict[str, object]
    if request.path.startswith("/v1beta/"):
        body = gemini.refused(refusal)
    elif is_anthropic(request):
        body = {"type": "error", "error": error, "request_id": request[REQUEST_ID]}
    else:
        body = {"error": error | {"param": None, "code": refusal.code}}
    return web.json_response(body=orjson.dumps(body), status=refusal.status)


async def add_request_id(request: web.Request, response: web.StreamResponse) -> None:
    name = "request-id" if is_anthropic(request) else "x-request-id"
    response.headers[name] = request.get(REQUEST_ID, "")
