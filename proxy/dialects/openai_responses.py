"""OpenAI's Responses, which several vendors speak too: streams, whole answers, background, and what is
kept of them. Data only.
"""

from __future__ import annotations

from proxy.dialects.base import ANY, OperationSpec, Rules, Tools
from proxy.dialects.openai_format import NAMED, read_usage
from proxy.dialects.owned import DEEP, FAILED, SUCCEEDED, IdIn, IdOut, Task
from proxy.dialects.rules import reading

USAGE = reading(read_usage, ("response", "usage"), ("usage",))

# Output items that are charged by the call. Of what a web search does only the search itself is.
CALLS = Tools(
    places=(("output",), ("response", "output")),
    named=(("type",), ("action", "type")),
    kinds={
        "web_search_call": "web_search",
        "web_search_call/search": "web_search",
        "file_search_call": "file_search",
        "code_interpreter_call": "code_interpreter",
        "image_generation_call": "image_generation",
    },
)

RULES = Rules(
    model=(("model",), ("response", "model")),
    vendor_id=(("id",), ("response", "id")),
    tier=(("service_tier",), ("response", "service_tier")),
    status=(("status",), ("response", "status")),
    waiting=frozenset({"queued", "in_progress"}),
    error=(("error",), ("response", "error")),
    text=(
        ("delta",),  # of text, reasoning, refusals, arguments and code alike
        ("output", ANY, "content", ANY, "text"),
        ("output", ANY, "content", ANY, "refusal"),
        ("output", ANY, "summary", ANY, "text"),
        ("output", ANY, "arguments"),
        ("output", ANY, "input"),
    ),
    terminal=frozenset({"response.completed", "response.incomplete", "response.failed"}),
    failing=frozenset({"error", "response.failed"}),
    tools=CALLS,
)

TASK = Task(
    "response",
    poll="responses.get",
    state=(("status",), ("response", "status")),
    states={"completed": SUCCEEDED, "incomplete": SUCCEEDED, "failed": FAILED, "cancelled": FAILED},
    asked="background",
    usage=USAGE,
)
_IDS = (
    IdIn(("body", "previous_response_id")),
    IdIn(("body", "conversation")),
    IdIn(("body", "conversation", "id")),
    IdIn(("body", DEEP, "container"), only=("cntr_",)),
    *NAMED,
)

_CREATE = OperationSpec(
    "responses",
    "responses",
    streams=True,
    generates_text=True,
    guarded=("model", "stream", "max_output_tokens", "background", "store", "service_tier"),
    meter=USAGE,
    rules=RULES,
    ids_in=_IDS,
    ids_out=(
        IdOut("response", (("id",), ("response", "id")), asked="store", days=30),
        IdOut("container", (("output", ANY, "container_id"), ("response", "output", ANY, "container_id"))),
    ),
    task=TASK,
)


def _kept(name: str, path: str, *methods: str, request: str = "none") -> OperationSpec:
    """A call about a response that exists: what it cost was charged to the call that made it."""
    return OperationSpec(
        f"responses.{name}",
        f"responses/{path}",
        methods,
        api="responses",
        request=request,
        model_at="none",
        billed=False,
        meter=USAGE,
        rules=RULES,
        ids_in=(IdIn(("path", "id")),),
        task=TASK,
    )


SPECS = (
    _CREATE,
    OperationSpec(
        "responses.compact",
        "responses/compact",
        api="responses",
        generates_text=True,
        guarded=("model",),
        meter=USAGE,
        rules=RULES,
        ids_in=_IDS,
    ),
    OperationSpec(
        "responses.input_tokens",
        "responses/input_tokens",
        api="responses",
        billed=False,
        guarded=("model",),
        rules=Rules(),
        ids_in=_IDS,
    ),
    _kept("get", "{id}", "GET"),
    _kept("delete", "{id}", "DELETE"),
    _kept("cancel", "{id}/cancel", "POST", request="opaque"),
    _kept("input_items", "{id}/input_items", "GET"),
)
