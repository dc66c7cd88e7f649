"""What lives at OpenAI under an id: files, batches, fine-tunes, vector stores, conversations, threads.

Owns the table of their paths. They are no model's: a station serves them from the first upstream that
offers them. Calls that make the vendor work are billed under their own name (`vector_stores.search`) and
refused without a price; looking at things, and taking them away, is free. Data only.
"""

from __future__ import annotations

from collections.abc import Iterator

from proxy.dialects.base import OperationSpec, Rules
from proxy.dialects.openai_format import TOP_USAGE
from proxy.dialects.rules import NOTHING, UNREAD

FREE, SOLD = False, True

# API, path, then (method, name, request body, sold).
_Call = tuple[str, str, str, bool]
_LIST: _Call = ("GET", "list", "none", FREE)
_GET: _Call = ("GET", "get", "none", FREE)
_DELETE: _Call = ("DELETE", "delete", "none", FREE)
_UPDATE: _Call = ("POST", "update", "opaque", FREE)
_CANCEL: _Call = ("POST", "cancel", "opaque", FREE)
_CREATE: _Call = ("POST", "create", "json", FREE)
_SELL: _Call = ("POST", "create", "json", SOLD)

TABLE: tuple[tuple[str, str, str, tuple[_Call, ...]], ...] = (
    # API, name of the thing in it, path, what can be done there
    ("files", "", "files", (_LIST, ("POST", "create", "opaque", FREE))),
    ("files", "", "files/{file_id}", (_GET, _DELETE)),
    ("files", "", "files/{file_id}/content", (("GET", "content", "none", FREE),)),
    ("uploads", "", "uploads", (_CREATE,)),
    ("uploads", "", "uploads/{upload_id}/parts", (("POST", "part", "opaque", FREE),)),
    ("uploads", "", "uploads/{upload_id}/complete", (("POST", "complete", "json", FREE),)),
    ("uploads", "", "uploads/{upload_id}/cancel", (_CANCEL,)),
    ("batches", "", "batches", (_LIST, _SELL)),
    ("batches", "", "batches/{batch_id}", (_GET,)),
    ("batches", "", "batches/{batch_id}/cancel", (_CANCEL,)),
    ("fine_tuning", "", "fine_tuning/jobs", (_LIST, _SELL)),
    ("fine_tuning", "", "fine_tuning/jobs/{job_id}", (_GET,)),
    ("fine_tuning", "", "fine_tuning/jobs/{job_id}/cancel", (_CANCEL,)),
    ("fine_tuning", "", "fine_tuning/jobs/{job_id}/pause", (("POST", "pause", "opaque", FREE),)),
    ("fine_tuning", "", "fine_tuning/jobs/{job_id}/resume", (("POST", "resume", "opaque", FREE),)),
    ("fine_tuning", "", "fine_tuning/jobs/{job_id}/events", (("GET", "events", "none", FREE),)),
    ("fine_tuning", "", "fine_tuning/jobs/{job_id}/checkpoints", (("GET", "checkpoints", "none", FREE),)),
    ("vector_stores", "", "vector_stores", (_LIST, _SELL)),
    ("vector_stores", "", "vector_stores/{vector_store_id}", (_GET, _UPDATE, _DELETE)),
    ("vector_stores", "", "vector_stores/{vector_store_id}/search", (("POST", "search", "json", SOLD),)),
    ("vector_stores", "files", "vector_stores/{vector_store_id}/files", (_LIST, _CREATE)),
    ("vector_stores", "files", "vector_stores/{vector_store_id}/files/{file_id}", (_GET, _UPDATE, _DELETE)),
    ("vector_stores", "files", "vector_stores/{vector_store_id}/files/{file_id}/content",
     (("GET", "content", "none", FREE),)),
    ("vector_stores", "file_batches", "vector_stores/{vector_store_id}/file_batches", (_CREATE,)),
    ("vector_stores", "file_batches", "vector_stores/{vector_store_id}/file_batches/{batch_id}", (_GET,)),
    ("vector_stores", "file_batches", "vector_stores/{vector_store_id}/file_batches/{batch_id}/cancel",
     (_CANCEL,)),
    ("vector_stores", "file_batches", "vector_stores/{vector_store_id}/file_batches/{batch_id}/files",
     (("GET", "files", "none", FREE),)),
    ("conversations", "", "conversations", (("POST", "create", "opaque", FREE),)),
    ("conversations", "", "conversations/{conversation_id}", (_GET, _UPDATE, _DELETE)),
    ("conversations", "items", "conversations/{conversation_id}/items", (_LIST, _CREATE)),
    ("conversations", "items", "conversations/{conversation_id}/items/{item_id}", (_GET, _DELETE)),
    ("assistants", "", "assistants", (_LIST, _CREATE)),
    ("assistants", "", "assistants/{assistant_id}", (_GET, _UPDATE, _DELETE)),
    ("threads", "", "threads", (("POST", "create", "opaque", FREE),)),
    ("threads", "", "threads/{thread_id}", (_GET, _UPDATE, _DELETE)),
    ("threads", "messages", "threads/{thread_id}/messages", (_LIST, _CREATE)),
    ("threads", "messages", "threads/{thread_id}/messages/{message_id}", (_GET, _UPDATE, _DELETE)),
    ("threads", "runs", "threads/{thread_id}/runs", (_LIST, ("POST", "create", "json", SOLD))),
    ("threads", "runs", "threads/{thread_id}/runs/{run_id}", (_GET, _UPDATE)),
    ("threads", "runs", "threads/{thread_id}/runs/{run_id}/cancel", (_CANCEL,)),
    ("threads", "runs", "threads/{thread_id}/runs/{run_id}/submit_tool_outputs",
     (("POST", "submit", "json", SOLD),)),
    ("threads", "run_steps", "threads/{thread_id}/runs/{run_id}/steps", (_LIST,)),
    ("threads", "run_steps", "threads/{thread_id}/runs/{run_id}/steps/{step_id}", (_GET,)),
    ("chat", "stored", "chat/completions", (_LIST,)),
    ("chat", "stored", "chat/completions/{completion_id}", (_GET, _UPDATE, _DELETE)),
    ("chat", "stored", "chat/completions/{completion_id}/messages", (("GET", "messages", "none", FREE),)),
    ("decisions", "", "decisions", (_SELL,)),
)  # fmt: skip

# A run's own stream is of events like `thread.run.completed`; its usage covers all of its steps.
_RUN = Rules(
    kind=("object",),
    status=(("status",),),
    waiting=frozenset({"queued", "in_progress", "requires_action", "cancelling"}),
    error=(("error",), ("last_error",)),
    text=(("delta", "content"),),
    failing=frozenset({"error"}),
)
_RULES = {"content": UNREAD, "create": NOTHING}


def _specs() -> Iterator[OperationSpec]:
    for api, thing, path, calls in TABLE:
        for method, name, request, is_sold in calls:
            is_run = is_sold and thing == "runs"
            yield OperationSpec(
                ".".join(part for part in (api, thing, name) if part),
                path,
                (method,),
                api=api,
                kind="text" if is_run else "calls",
                request=request,
                model_at="none",
                streams=is_run,
                billed=is_sold,
                replayable=method != "POST",
                guarded=("stream",) if is_run else (),
                terminal_hint=b"[DONE]" if is_run else b"",
                meter=TOP_USAGE if is_run else None,
                rules=_RUN if is_run else _RULES.get(name, NOTHING),
            )


# Any path that a route declares: the same path there, sold by the call.
CALL = OperationSpec(
    "call", "", ("POST",), kind="calls", request="opaque", model_at="none", replayable=False, rules=UNREAD
)

SPECS = (*_specs(), CALL)
