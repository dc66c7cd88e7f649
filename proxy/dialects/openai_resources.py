"""What lives at OpenAI under an id: files, batches, fine-tunes, vector stores, conversations, threads.

Owns the table of their paths, and of the ids in them. They are no model's: a station serves them from the
first upstream that offers them. Calls that make the vendor work are billed under their own name
(`vector_stores.search`) and refused without a price; looking at things, and taking them away, is free.
Data only.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from proxy.dialects.answer import NO_USAGE, known_int
from proxy.dialects.base import ANY, OperationSpec, UsagePointers
from proxy.dialects.openai_format import NAMED, TOP_USAGE
from proxy.dialects.owned import FAILED, SUCCEEDED, IdIn, IdOut, Listing, Task
from proxy.dialects.rules import NOTHING, UNREAD
from proxy.metering.usage import Usage

FREE, SOLD = False, True

# Method, name, request body, sold.
_Call = tuple[str, str, str, bool]
_LIST: _Call = ("GET", "list", "none", FREE)
_GET: _Call = ("GET", "get", "none", FREE)
_DELETE: _Call = ("DELETE", "delete", "none", FREE)
_UPDATE: _Call = ("POST", "update", "json", FREE)
_CANCEL: _Call = ("POST", "cancel", "opaque", FREE)
_CREATE: _Call = ("POST", "create", "json", FREE)
_SELL: _Call = ("POST", "create", "json", SOLD)

TABLE: tuple[tuple[str, str, str, tuple[_Call, ...]], ...] = (
    # API, name of the thing in it, path, what can be done there
    ("files", "", "files", (_LIST, ("POST", "create", "opaque", FREE))),
    ("files", "", "files/{id}", (_GET, _DELETE)),
    ("files", "", "files/{id}/content", (("GET", "content", "none", FREE),)),
    ("uploads", "", "uploads", (_CREATE,)),
    ("uploads", "", "uploads/{id}/parts", (("POST", "part", "opaque", FREE),)),
    ("uploads", "", "uploads/{id}/complete", (("POST", "complete", "json", FREE),)),
    ("uploads", "", "uploads/{id}/cancel", (_CANCEL,)),
    ("batches", "", "batches", (_LIST, _SELL)),
    ("batches", "", "batches/{id}", (_GET,)),
    ("batches", "", "batches/{id}/cancel", (_CANCEL,)),
    ("fine_tuning", "", "fine_tuning/jobs", (_LIST, _SELL)),
    ("fine_tuning", "", "fine_tuning/jobs/{id}", (_GET,)),
    ("fine_tuning", "", "fine_tuning/jobs/{id}/cancel", (_CANCEL,)),
    ("fine_tuning", "", "fine_tuning/jobs/{id}/pause", (("POST", "pause", "opaque", FREE),)),
    ("fine_tuning", "", "fine_tuning/jobs/{id}/resume", (("POST", "resume", "opaque", FREE),)),
    ("fine_tuning", "", "fine_tuning/jobs/{id}/events", (("GET", "events", "none", FREE),)),
    ("fine_tuning", "", "fine_tuning/jobs/{id}/checkpoints", (("GET", "checkpoints", "none", FREE),)),
    ("vector_stores", "", "vector_stores", (_LIST, _SELL)),
    ("vector_stores", "", "vector_stores/{id}", (_GET, _UPDATE, _DELETE)),
    ("vector_stores", "", "vector_stores/{id}/search", (("POST", "search", "json", SOLD),)),
    ("vector_stores", "files", "vector_stores/{id}/files", (_LIST, _CREATE)),
    ("vector_stores", "files", "vector_stores/{id}/files/{file_id}", (_GET, _UPDATE, _DELETE)),
    ("vector_stores", "files", "vector_stores/{id}/files/{file_id}/content",
     (("GET", "content", "none", FREE),)),
    ("vector_stores", "file_batches", "vector_stores/{id}/file_batches", (_CREATE,)),
    ("vector_stores", "file_batches", "vector_stores/{id}/file_batches/{batch_id}", (_GET,)),
    ("vector_stores", "file_batches", "vector_stores/{id}/file_batches/{batch_id}/cancel",
     (_CANCEL,)),
    ("vector_stores", "file_batches", "vector_stores/{id}/file_batches/{batch_id}/files",
     (("GET", "files", "none", FREE),)),
    ("conversations", "", "conversations", (_CREATE,)),
    ("conversations", "", "conversations/{id}", (_GET, _UPDATE, _DELETE)),
    ("conversations", "items", "conversations/{id}/items", (_LIST, _CREATE)),
    ("conversations", "items", "conversations/{id}/items/{item_id}", (_GET, _DELETE)),
    ("assistants", "", "assistants", (_LIST, _CREATE)),
    ("assistants", "", "assistants/{id}", (_GET, _UPDATE, _DELETE)),
    ("threads", "", "threads", (_CREATE,)),
    ("threads", "", "threads/{id}", (_GET, _UPDATE, _DELETE)),
    ("threads", "messages", "threads/{id}/messages", (_LIST, _CREATE)),
    ("threads", "messages", "threads/{id}/messages/{message_id}", (_GET, _UPDATE, _DELETE)),
    ("threads", "runs", "threads/{id}/runs", (_LIST, _SELL)),
    ("threads", "runs", "threads/{id}/runs/{run_id}", (_GET, _UPDATE)),
    ("threads", "runs", "threads/{id}/runs/{run_id}/cancel", (_CANCEL,)),
    ("threads", "runs", "threads/{id}/runs/{run_id}/submit_tool_outputs",
     (("POST", "submit", "json", FREE),)),
    ("threads", "run_steps", "threads/{id}/runs/{run_id}/steps", (_LIST,)),
    ("threads", "run_steps", "threads/{id}/runs/{run_id}/steps/{step_id}", (_GET,)),
    ("stored_chats", "", "chat/completions", (_LIST,)),
    ("stored_chats", "", "chat/completions/{id}", (_GET, _UPDATE, _DELETE)),
    ("stored_chats", "", "chat/completions/{id}/messages", (("GET", "messages", "none", FREE),)),
    ("decisions", "", "decisions", (_SELL,)),
)  # fmt: skip

# API -> what the things in it are called where they are bound.
_KINDS = {
    "files": "file", "uploads": "upload", "batches": "batch", "fine_tuning": "fine_tune",
    "vector_stores": "vector_store", "conversations": "conversation", "assistants": "assistant",
    "threads": "thread", "stored_chats": "completion",
}  # fmt: skip

_PATH = IdIn(("path", "id"))
_NAMED_BY = {
    "batches.create": (IdIn(("body", "input_file_id")),),
    "fine_tuning.create": (IdIn(("body", "training_file")), IdIn(("body", "validation_file"))),
    "threads.runs.create": (IdIn(("body", "assistant_id")),),
}


def _read_trained(job: dict[str, Any]) -> Usage | None:
    """A price that has none for `training_input` would sell training as inference: it is refused."""
    tokens = known_int(job.get("trained_tokens"))
    return Usage(units={"training_input": tokens}, calls=1) if tokens else None


_TASKS = {
    "batches": Task(
        "batch",
        poll="batches.get",
        state=(("status",),),
        # What was done before it was stopped is charged.
        states={"completed": SUCCEEDED, "expired": SUCCEEDED, "cancelled": SUCCEEDED, "failed": FAILED},
        usage=TOP_USAGE,
        model=("model",),
        service_tier="batch",
        shortest_s=30.0,
    ),
    "fine_tuning": Task(
        "fine_tune",
        poll="fine_tuning.get",
        state=(("status",),),
        states={"succeeded": SUCCEEDED, "failed": FAILED, "cancelled": SUCCEEDED},
        usage=UsagePointers(places=((),), read=_read_trained),
        shortest_s=30.0,
        deadline_s=7 * 86400.0,
    ),
}
_SHOWN = {"batches.get": TOP_USAGE}
_SHOWS = frozenset({"get", "cancel", "create", "pause", "resume"})

# Files and models that the vendor makes, and tells of where their maker is shown.
_MADE = {
    "batches": (IdOut("file", (("output_file_id",), ("error_file_id",))),),
    "fine_tuning": (
        IdOut("file", (("result_files", ANY),)),
        IdOut("fine_tuned_model", (("fine_tuned_model",), ("data", ANY, "fine_tuned_model_checkpoint"))),
    ),
    "uploads": (IdOut("file", (("file", "id"),)),),
}


def _ids_out(api: str, thing: str, name: str) -> Iterator[IdOut]:
    if name == "create" and not thing and api in _KINDS:
        yield IdOut(_KINDS[api], (("id",),))
    if name != "list":
        yield from _MADE.get(api, ())


def _spec(api: str, thing: str, path: str, call: _Call) -> OperationSpec:
    method, name, request, is_sold = call
    full = ".".join(part for part in (api, thing, name) if part)
    ids: tuple[IdIn, ...] = (_PATH,) if "{id}" in path else ()
    if request == "json":
        ids += NAMED + _NAMED_BY.get(full, ())
    is_own_list = name == "list" and "{id}" not in path
    return OperationSpec(
        full,
        path,
        (method,),
        api=api,
        kind="training" if full == "fine_tuning.create" else "calls",
        request=request,
        model_at="none",
        billed=is_sold,
        replayable=method != "POST",
        guarded=(),
        meter=NO_USAGE if is_sold else _SHOWN.get(full),
        rules=UNREAD if name == "content" else NOTHING,
        ids_in=ids,
        ids_out=tuple(_ids_out(api, thing, name)),
        task=_TASKS.get(api) if name in _SHOWS else None,
        lists=Listing(_KINDS[api]) if is_own_list else None,
    )


# Any path that a route declares: the same path there, sold by the call.
CALL = OperationSpec(
    "call", "", ("POST",), kind="calls", request="opaque", model_at="none", replayable=False, rules=UNREAD
)

SPECS = (*(_spec(api, thing, path, call) for api, thing, path, calls in TABLE for call in calls), CALL)
