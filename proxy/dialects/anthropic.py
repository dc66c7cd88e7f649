"""Anthropic itself: messages, completions of old, and what lives there under an id."""

from __future__ import annotations

from dataclasses import replace

from proxy.dialects import anthropic_format as fmt
from proxy.dialects.answer import NO_USAGE
from proxy.dialects.base import ANY, Dialect, MakeMeter, OperationSpec, Rules, UsagePointers
from proxy.dialects.headers import ANTHROPIC_RATES, X_RATES
from proxy.dialects.owned import DEEP, SUCCEEDED, IdIn, IdOut, Listing, Results, Task
from proxy.dialects.rules import NOTHING, UNREAD, RuledMeter

MESSAGES = OperationSpec(
    "messages",
    "messages",
    streams=True,
    generates_text=True,
    guarded=("model", "stream", "max_tokens"),
    terminal_hint=b"message_stop",
    meter=fmt.USAGE,
    ids_in=(IdIn(("body", DEEP, "file_id")),),
)

# Its answers have no usage: what it wrote is counted.
COMPLETE = OperationSpec(
    "complete",
    "complete",
    streams=True,
    generates_text=True,
    guarded=("model", "stream", "max_tokens_to_sample"),
    meter=NO_USAGE,
    rules=Rules(text=(("completion",),), finished=(("stop_reason",),)),
)

# -- batches -----------------------------------------------------------------------------------------

# One line for each message of a batch; all of them together are its bill.
RESULTS = UsagePointers(places=(("result", "message", "usage"),), read=fmt.read_usage, adds_up=True)

BATCH = Task(
    "message_batch",
    poll="message_batches.get",
    state=(("processing_status",),),
    states={"ended": SUCCEEDED},
    results=Results("message_batches.results", (), RESULTS, ("result", "message", "model")),
    service_tier="batch",
    headers=((b"anthropic-version", b"2023-06-01"),),
    shortest_s=30.0,
)

_OF_ID = (IdIn(("path", "id")),)
_GET = OperationSpec(
    "", methods=("GET",), request="none", model_at="none", billed=False, rules=NOTHING, ids_in=_OF_ID
)
_LIST = replace(_GET, ids_in=())
_POST = replace(_GET, methods=("POST",), request="opaque", replayable=False)


def _listing(kind: str) -> Listing:
    return Listing(kind, after="after_id", before="before_id", fixed={})


_SPECS = (
    MESSAGES,
    OperationSpec(
        "count_tokens", "messages/count_tokens", billed=False, guarded=("model",), ids_in=MESSAGES.ids_in
    ),
    COMPLETE,
    OperationSpec("models", "models", ("GET",), request="none", model_at="none", billed=False),
    replace(_LIST, name="models.get", path="models/{model}", api="models", model_at="path"),
    OperationSpec(
        "message_batches.create",
        "messages/batches",
        api="message_batches",
        kind="calls",
        model_at="none",
        replayable=False,
        guarded=(),
        rules=NOTHING,
        calls_in=("requests", ANY, "params"),
        ids_in=(IdIn(("body", DEEP, "file_id")),),
        ids_out=(IdOut("message_batch", (("id",),)),),
        task=BATCH,
    ),
    *(
        replace(spec, name=f"message_batches.{name}", path=f"messages/batches{path}", api="message_batches")
        for name, path, spec in (
            (
                "list",
                "",
                replace(_LIST, lists=_listing("message_batch")),
            ),
            ("get", "/{id}", replace(_GET, task=BATCH)),
            ("cancel", "/{id}/cancel", replace(_POST, task=BATCH)),
            ("results", "/{id}/results", replace(_GET, meter=RESULTS, rules=Rules(values=b"{", error=()))),
            ("delete", "/{id}", replace(_GET, methods=("DELETE",))),
        )
    ),
    *(
        replace(spec, name=f"claude_files.{name}", path=f"files{path}", api="claude_files")
        for name, path, spec in (
            ("list", "", replace(_LIST, lists=_listing("claude_file"))),
            ("create", "", replace(_POST, ids_in=(), ids_out=(IdOut("claude_file", (("id",),)),))),
            ("get", "/{id}", _GET),
            ("content", "/{id}/content", replace(_GET, rules=UNREAD)),
            ("delete", "/{id}", replace(_GET, methods=("DELETE",))),
        )
    ),
)
OPERATIONS: dict[str, OperationSpec] = {spec.name: spec for spec in _SPECS}


def meter_of(operation: OperationSpec) -> MakeMeter:
    return fmt.MessagesMeter if operation.rules is None else RuledMeter


REQUEST_PASS = frozenset({
    b"accept", b"accept-encoding", b"accept-language", b"anthropic-beta",
    b"anthropic-dangerous-direct-browser-access", b"anthropic-version", b"baggage", b"content-type",
    b"traceparent", b"tracestate", b"user-agent", b"x-app", b"x-stainless-arch",
    b"x-stainless-async", b"x-stainless-helper", b"x-stainless-helper-method", b"x-stainless-lang",
    b"x-stainless-os", b"x-stainless-package-version", b"x-stainless-raw-response",
    b"x-stainless-read-timeout", b"x-stainless-retry-count", b"x-stainless-runtime",
    b"x-stainless-runtime-version", b"x-stainless-stream-helper", b"x-stainless-timeout",
})  # fmt: skip

# Not anthropic-organization-id: whose account it is stays ours.
RESPONSE_PASS = frozenset({
    b"cache-control", b"content-encoding", b"content-language", b"content-type", b"date", b"retry-after",
    b"vary", b"x-content-type-options", b"x-should-retry",
})  # fmt: skip

ANTHROPIC = Dialect(
    name="anthropic",
    operations=OPERATIONS,
    paths=dict.fromkeys(OPERATIONS, "/v1/{operation_path}"),
    auth=(b"x-api-key", b""),
    request_pass=REQUEST_PASS,
    response_pass=RESPONSE_PASS,
    response_pass_prefixes=(ANTHROPIC_RATES.prefix, X_RATES.prefix),
    query_pass={"beta": frozenset()},
    error_body=fmt.error_body,
    stream_error=fmt.stream_error,
    heartbeat=b'event: ping\ndata: {"type": "ping"}\n\n',
    id_header=b"request-id",
    own_id_headers=(b"x-request-id", b"request-id"),
    rates=ANTHROPIC_RATES,
    meter_of=meter_of,
)
