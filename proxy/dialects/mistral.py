"""Mistral: OpenAI's formats, and two operations that OpenAI does not have.

Owns code completion in the middle (FIM) and OCR, which is billed by the page, and the shape of its errors.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson

from proxy.dialects import openai_format as fmt
from proxy.dialects.answer import known_int
from proxy.dialects.base import KEEP_ALIVE, Dialect, OperationSpec, Rules
from proxy.dialects.rules import reading
from proxy.metering.usage import Usage


def read_pages(raw: dict[str, Any]) -> Usage | None:
    """`usage_info` of an OCR."""
    pages = known_int(raw.get("pages_processed"))
    return Usage(units={"page": pages}) if pages else None


OPERATIONS: dict[str, OperationSpec] = {
    spec.name: spec
    for spec in (
        *(fmt.OPERATIONS[name] for name in ("chat", "embeddings", "moderations")),
        replace(fmt.OPERATIONS["chat"], name="fim", path="fim/completions", include_usage=False),
        OperationSpec(
            "ocr",
            "ocr",
            kind="pages",
            guarded=("model", "pages"),
            ids_in=fmt.NAMED,
            meter=reading(read_pages, ("usage_info",)),
            rules=Rules(),
        ),
    )
}


def error_body(kind: str, code: str, message: str, param: str | None, status: int, request_id: str) -> bytes:
    """OpenAI's members without the envelope."""
    return orjson.dumps({"object": "error", **fmt.error_object(kind, code, message, param)})


MISTRAL = Dialect(
    name="mistral",
    operations=OPERATIONS,
    paths=dict.fromkeys(OPERATIONS, "/v1/{operation_path}"),
    auth=(b"authorization", b"Bearer "),
    request_pass=fmt.REQUEST_PASS,
    response_pass=fmt.RESPONSE_PASS,
    response_pass_prefixes=fmt.RESPONSE_PASS_PREFIXES,
    error_body=error_body,
    stream_error=fmt.in_stream(error_body),
    heartbeat=KEEP_ALIVE,
    id_header=b"mistral-correlation-id",
    meter_of=fmt.meter_of,
)
