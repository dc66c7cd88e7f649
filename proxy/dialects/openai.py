"""OpenAI itself, and the vendors that copied its paths: Bearer key, model in the body."""

from __future__ import annotations

from proxy.dialects import openai_format as fmt
from proxy.dialects.base import Dialect

OPENAI = Dialect(
    name="openai",
    operations=fmt.OPERATIONS,
    paths=dict.fromkeys(fmt.OPERATIONS, "/v1/{operation_path}"),
    auth=(b"authorization", b"Bearer "),
    request_pass=fmt.REQUEST_PASS,
    response_pass=fmt.RESPONSE_PASS,
    response_pass_prefixes=fmt.RESPONSE_PASS_PREFIXES,
    error_body=fmt.error_body,
    stream_error=fmt.in_stream(fmt.error_body),
    make_meter=fmt.make_meter,
)
