"""How both applications answer: JSON, and every error in one shape.

Owns reading JSON bodies and the middleware that turns exceptions into answers. What it does not know
becomes a 500 that tells nothing; the traceback goes to the log.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from aiohttp import web

from proxy.errors import ClientFault, ConfigError, InternalError, ProxyError, StateError, UnknownPath

log = logging.getLogger("headrace.web")

BODY_BYTES_MAX = 64 << 10  # an account or a key with its permissions

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def json_answer(document: object, status: int = 200) -> web.Response:
    return web.Response(
        body=orjson.dumps(document),
        status=status,
        content_type="application/json",
        headers={"cache-control": "no-store"},
    )


def told(status: int, code: str, message: str, **more: object) -> web.Response:
    return json_answer({"error": {"code": code, "message": message, **more}}, status)


def refusal(error: ProxyError) -> web.Response:
    answer = told(error.status, error.code, error.message, param=error.param)
    if error.retry_after_s is not None:
        answer.headers["retry-after"] = str(max(1, round(error.retry_after_s)))
    return answer


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The border: no exception of ours, the store's or aiohttp's leaves as anything but JSON."""
    try:
        return await handler(request)
    except ConfigError as e:
        return told(422, "config_invalid", "routes.yaml cannot be used.", mistakes=e.mistakes)
    except ProxyError as e:
        return refusal(e)
    except StateError as e:
        return told(409, "conflict", str(e))
    except web.HTTPException as e:
        return refusal(UnknownPath() if e.status == 404 else ClientFault(e.reason, status=e.status))
    except Exception as e:
        if type(e) is LookupError:  # the store's word for "no such row"; its children are bugs
            return told(404, "not_found", str(e))
        log.exception("an answer failed", extra={"path": request.path})
        return refusal(InternalError())


# What curl and HTTP libraries say of a body where nobody tells them what it is.
UNTOLD = frozenset({"application/x-www-form-urlencoded", "application/octet-stream"})


async def read_object(
    request: web.Request, members: frozenset[str], types: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """The body as a JSON object with none but `members`. Raises ClientFault.

    The content type must say JSON, or be of `types`: a page of another site cannot send that without being
    asked first. Where callers are known by a key that they send, and by nothing that a browser adds, it
    need not.
    """
    if request.content_type not in {"application/json", *types}:
        raise ClientFault("The body must be application/json.", status=415)
    try:
        document = orjson.loads(await request.read())
    except ValueError as e:
        raise ClientFault("The body is not JSON.") from e
    if not isinstance(document, dict):
        raise ClientFault("The body is not a JSON object.")
    if unknown := document.keys() - members:
        raise ClientFault(f"Unknown member; known are {', '.join(sorted(members))}.", param=min(unknown))
    return document


def text_member(document: dict[str, Any], name: str, default: str | None = None) -> str:
    """A member that is a text; `default` None: it must be there. Raises ClientFault."""
    value = document.get(name, default)
    if not isinstance(value, str):
        raise ClientFault(f"{name!r} must be a text.", param=name)
    return value
