"""Alibaba's DashScope, its native API: what is asked for is in the path, a stream in a request header.

Owns its wire format. (Behind /compatible-mode/ DashScope speaks OpenAI's.) Usage is cumulative and in
every event. A request for an asynchronous task does not pass: the header that asks for it is not in the list.
"""

from __future__ import annotations

from typing import Any

import orjson

from proxy.dialects import headers
from proxy.dialects import openai_format as fmt
from proxy.dialects.answer import known_int
from proxy.dialects.base import ANY, KEEP_ALIVE, Dialect, OperationSpec, Rules
from proxy.dialects.rules import meter_of, reading
from proxy.metering.usage import Usage


def read_usage(raw: dict[str, Any]) -> Usage | None:
    """Tokens under OpenAI's newer names, and a count of pictures for models that draw."""
    usage, images = fmt.read_usage(raw), known_int(raw.get("image_count"))
    if images:
        usage = usage or Usage()
        usage.images = images
    return usage


USAGE = reading(read_usage, ("usage",))
_CHOICES = ("output", "choices", ANY, "message")
_RULES = Rules(
    vendor_id=(("request_id",),),
    error=(("code",),),
    finished=(("output", "finish_reason"), ("output", "choices", ANY, "finish_reason")),
    text=(
        ("output", "text"), (*_CHOICES, "content"), (*_CHOICES, "content", ANY, "text"),
        (*_CHOICES, "reasoning_content"),
    ),
)  # fmt: skip


def _generation(name: str, path: str) -> OperationSpec:
    return OperationSpec(
        name,
        path,
        api="dashscope",
        streams=True,
        stream_header="x-dashscope-sse",
        generates_text=True,
        guarded=("model", "parameters"),
        meter=USAGE,
        rules=_RULES,
    )


OPERATIONS: dict[str, OperationSpec] = {
    spec.name: spec
    for spec in (
        _generation("dashscope.text", "aigc/text-generation/generation"),
        _generation("dashscope.multimodal", "aigc/multimodal-generation/generation"),
        OperationSpec(
            "dashscope.embeddings",
            "embeddings/text-embedding/text-embedding",
            api="dashscope",
            kind="embeddings",
            guarded=("model",),
            meter=USAGE,
            rules=_RULES,
        ),
        OperationSpec(
            "dashscope.rerank",
            "rerank/text-rerank/text-rerank",
            api="dashscope",
            kind="rerank",
            guarded=("model",),
            meter=USAGE,
            rules=_RULES,
        ),
    )
}

# https://help.aliyun.com/zh/model-studio/error-code
_CODES = {
    400: "InvalidParameter",
    401: "InvalidApiKey",
    402: "Arrearage",
    403: "AccessDenied",
    404: "ModelNotFound",
    429: "Throttling.RateQuota",
}


def error_body(kind: str, code: str, message: str, param: str | None, status: int, request_id: str) -> bytes:
    """`{"code": ..., "message": ..., "request_id": ...}`"""
    name = _CODES.get(status, "InvalidParameter" if status < 500 else "InternalError")
    return orjson.dumps({"code": name, "message": message, "request_id": request_id})


def stream_error(*refusal: Any) -> bytes:
    """An `error` event."""
    return b"event:error\ndata:%b\n\n" % error_body(*refusal)


DASHSCOPE = Dialect(
    name="dashscope",
    operations=OPERATIONS,
    paths=dict.fromkeys(OPERATIONS, "/api/v1/services/{operation_path}"),
    auth=(b"authorization", b"Bearer "),
    request_pass=headers.REQUEST | {b"x-accel-buffering", b"x-dashscope-datainspection", b"x-dashscope-sse"},
    response_pass=headers.RESPONSE,
    error_body=error_body,
    stream_error=stream_error,
    heartbeat=KEEP_ALIVE,
    id_header=b"x-request-id",
    meter_of=meter_of,
)
