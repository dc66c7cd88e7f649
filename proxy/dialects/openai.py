"""OpenAI itself, and the vendors that copied its paths: Bearer key, model in the body."""

from __future__ import annotations

from dataclasses import replace

from proxy.dialects import openai_format as fmt
from proxy.dialects import openai_media, openai_realtime, openai_resources, openai_responses
from proxy.dialects.base import KEEP_ALIVE, Dialect
from proxy.dialects.owned import IdOut

# A chat may be kept there (only when asked to), and may name files.
_CHAT = replace(
    fmt.OPERATIONS["chat"],
    ids_out=(IdOut("completion", (("id",),), asked="store", by_default=False, days=30),),
)
OPERATIONS = fmt.OPERATIONS | {
    spec.name: spec
    for spec in (
        *openai_responses.SPECS,
        *openai_media.SPECS,
        *openai_realtime.SPECS,
        *openai_resources.SPECS,
    )
}
OPERATIONS["chat"] = _CHAT


OPENAI = Dialect(
    name="openai",
    operations=OPERATIONS,
    paths=dict.fromkeys(OPERATIONS, "/v1/{operation_path}") | {"call": "{path}"},
    auth=(b"authorization", b"Bearer "),
    request_pass=fmt.REQUEST_PASS,
    response_pass=fmt.RESPONSE_PASS,
    response_pass_prefixes=fmt.RESPONSE_PASS_PREFIXES,
    query_pass=fmt.QUERY_PASS,
    error_body=fmt.error_body,
    stream_error=fmt.in_stream(fmt.error_body),
    heartbeat=KEEP_ALIVE,
    meter_of=fmt.meter_of,
)
