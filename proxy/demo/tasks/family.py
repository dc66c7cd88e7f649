"""What differs between families of tasks: their paths, their words for a state, the looks of their replies.

Owns the table's shape, how a request is read, and the actions that most families share.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from aiohttp import web

from proxy.demo.reading import invalid
from proxy.demo.tasks.jobs import ENDED, PLAN, Job, Jobs, Refusal, Step

JOBS = web.AppKey("jobs", Jobs)
SECRET_HEADERS = ("api-key", "x-api-key", "x-goog-api-key", "mj-api-secret", "x-key")
SCHEMES = ("Bearer ", "Key ", "Token ")  # fal says Key, Replicate's older clients say Token
TEXT_CHARS_MAX = 64_000  # a longer one is a picture: its beginning is kept with the job


@dataclass(frozen=True, slots=True)
class Call:
    """One request to a family: what it says, and how it came."""

    doc: dict[str, Any]
    at: Mapping[str, str]  # what its path names
    query: Mapping[str, str]
    method: str
    target: str
    headers: Mapping[str, str]
    secret: str
    base: str  # scheme and host, as the caller named them


Action = Callable[[Jobs, "Family", Call], Any]
"""What a path does -> the JSON of its answer, or a whole answer. Raises Refusal."""


@dataclass(frozen=True, slots=True)
class Path:
    method: str
    path: str
    action: Action


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Family:
    """One vendor's way of telling about jobs. `words`: its word for each of our states."""

    name: str
    words: Mapping[str, str]
    submitted: Callable[[Job], Any]  # the answer to who submits one
    shown: Callable[[Job], Any]  # the answer to who asks about one, and the body of its hook
    refused: Callable[[Refusal], tuple[int, Any]]
    paths: tuple[Path, ...]
    hook: tuple[str, ...] = ()  # members of a request that name who wants to be told
    plan: tuple[Step, ...] = PLAN
    waits: frozenset[str] = frozenset()  # kinds that wait for their caller first
    new_id: Callable[[], str] = lambda: str(uuid.uuid4())


def secret_of(headers: Mapping[str, str]) -> str:
    """The key that a caller sent, as Bearer or under a vendor's own name; or ""."""
    sent = headers.get("Authorization", "")
    for scheme in SCHEMES:
        sent = sent.removeprefix(scheme)
    return sent or next((headers[name] for name in SECRET_HEADERS if name in headers), "")


async def read_call(request: web.Request) -> Call:
    """Raises RefusalError: the body is neither a JSON object nor a form."""
    return Call(
        await _document(request),
        request.match_info,
        request.query,
        request.method,
        request.path_qs,
        request.headers,
        secret_of(request.headers),
        str(request.url.origin()),
    )


async def _document(request: web.Request) -> dict[str, Any]:
    if request.content_type in ("multipart/form-data", "application/x-www-form-urlencoded"):
        form = await request.post()
        return {name: _field(value) for name, value in form.items()}
    content = await request.read()
    try:
        doc = orjson.loads(content) if content.strip() else {}
    except orjson.JSONDecodeError as error:
        raise invalid("We could not parse the JSON body of your request.") from error
    if not isinstance(doc, dict):
        raise invalid("The request body must be a JSON object.")
    return {name: _kept(value) for name, value in doc.items()}


def _kept(value: Any) -> Any:
    if isinstance(value, str):
        return value[:TEXT_CHARS_MAX]
    if isinstance(value, list):
        return [_kept(item) for item in value]
    return {name: _kept(item) for name, item in value.items()} if isinstance(value, dict) else value


def _field(value: object) -> Any:
    if not isinstance(value, web.FileField):
        return value
    return {"filename": value.filename, "content_type": value.content_type, "bytes": len(value.file.read())}


def handler(family: Family, action: Action) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def handle(request: web.Request) -> web.StreamResponse:
        call = await read_call(request)
        status = 200
        try:
            body = action(request.app[JOBS], family, call)
        except Refusal as refusal:
            status, body = family.refused(refusal)
        if isinstance(body, web.StreamResponse):
            return body
        return web.json_response(body=orjson.dumps(body), status=status)

    return handle


# -- what most families do -------------------------------------------------------------------------


def post(path: str, action: Action) -> Path:
    return Path("POST", path, action)


def get(path: str, action: Action) -> Path:
    return Path("GET", path, action)


def submit(kind: str, *needed: str, upon: Callable[[Call], str] | None = None) -> Action:
    """Take a job on. Of `needed` one must be there; `upon` tells the id of the job that it goes on from."""

    def act(jobs: Jobs, family: Family, call: Call) -> Any:
        require(call, *needed)
        parent = jobs.find(family, upon(call), call.secret) if upon and upon(call) else None
        return family.submitted(jobs.add(family, kind.format(**call.at), call, parent))

    return act


def require(call: Call, *needed: str) -> None:
    """Raises Refusal unless one of these members says something."""
    if needed and not any(call.doc.get(name) for name in needed):
        raise Refusal("invalid", f"{' or '.join(needed)} must not be empty")


def show(at: str = "id") -> Action:
    """Tell about the one that the path or the query names."""

    def act(jobs: Jobs, family: Family, call: Call) -> Any:
        return family.shown(asked_for(jobs, family, call, at))

    return act


def show_many(ids: str = "ids", wrap: Callable[[list[Any]], Any] = lambda items: items) -> Action:
    """Tell about those that are there of the ones in a list."""

    def act(jobs: Jobs, family: Family, call: Call) -> Any:
        found = []
        for id_ in call.doc.get(ids) or ():
            with contextlib.suppress(Refusal):
                job = jobs.find(family, str(id_), call.secret)
                job.polls += 1
                found.append(family.shown(job))
        return wrap(found)

    return act


def cancel(answer: Callable[[Job], Any] | None = None, *, at: str = "id") -> Action:
    """Give it up, if it is not over. `answer`: what is told; None: what is shown."""

    def act(jobs: Jobs, family: Family, call: Call) -> Any:
        job = jobs.find(family, call.at[at], call.secret)
        if job.state in ENDED:
            raise Refusal("invalid", f"task {job.id} is over")
        jobs.move(job, "cancelled")
        return (answer or family.shown)(job)

    return act


def asked_for(jobs: Jobs, family: Family, call: Call, at: str = "id") -> Job:
    """The job that the path or the query names, asked about once more. Raises Refusal."""
    job = jobs.find(family, call.at.get(at) or call.query.get(at, ""), call.secret)
    job.polls += 1
    return job
