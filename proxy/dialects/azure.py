"""Azure OpenAI: the deployment is in the path, the key in `api-key`, the formats are OpenAI's.

Its newer surface has OpenAI's own paths and operations, under /openai/v1.
"""

from __future__ import annotations

from dataclasses import replace

import orjson

from proxy.dialects import openai_format as fmt
from proxy.dialects import openai_media, openai_realtime
from proxy.dialects.base import KEEP_ALIVE, Dialect
from proxy.dialects.openai import OPENAI

# What a deployment in the path stands for; the newer surface has OpenAI's own paths and no api-version.
_ON_DEPLOYMENTS = {
    spec.name: replace(spec, model_at="path")
    for spec in (*fmt.OPERATIONS.values(), *openai_media.SPECS)
    if spec.billed and spec.name != "images.variations"
}
# Here the deployment is in the query: a session has a path of its own.
_SESSIONS = {
    spec.name: replace(
        spec, path="/openai/realtime", session=replace(spec.session, model_in_query=("deployment", "model"))
    )
    if spec.session
    else spec
    for spec in openai_realtime.SPECS
}
_OPERATIONS = _ON_DEPLOYMENTS | _SESSIONS

# Azure's own codes where it has one; they are strings of letters or of digits.
_CODES = {
    "missing_api_key": "401",
    "invalid_api_key": "401",
    "model_not_found": "DeploymentNotFound",
    "unknown_path": "404",
    "rate_limit_exceeded": "RateLimitReached",
    "upstream_rate_limited": "RateLimitReached",
}


def error_body(kind: str, code: str, message: str, param: str | None, status: int, request_id: str) -> bytes:
    """OpenAI's shape with Azure's code; our own code is the inner one."""
    error = fmt.error_object(kind, _CODES.get(code, code), message, param)
    return orjson.dumps({"error": {**error, "innererror": {"code": code}}})


AZURE = Dialect(
    name="azure",
    # The path wins over a `model` member of the body, which may be missing or say something else.
    operations=_OPERATIONS,
    paths=dict.fromkeys(_ON_DEPLOYMENTS, "/openai/deployments/{model}/{operation_path}")
    | dict.fromkeys(_SESSIONS, "/openai/realtime"),
    query=(("api-version", "2024-10-21"),),
    auth=(b"api-key", b""),
    request_pass=fmt.REQUEST_PASS | {b"extra-parameters", b"x-ms-client-request-id", b"x-ms-useragent"},
    response_pass=fmt.RESPONSE_PASS
    | {
        b"apim-request-id",
        b"azureml-model-session",
        b"x-ms-client-request-id",
        b"x-ms-rai-invoked",
        b"x-ms-region",
    },
    response_pass_prefixes=fmt.RESPONSE_PASS_PREFIXES,
    error_body=error_body,
    stream_error=fmt.in_stream(error_body),
    heartbeat=KEEP_ALIVE,
    id_header=b"apim-request-id",
    meter_of=fmt.meter_of,
)

AZURE_V1 = replace(
    AZURE,
    name="azure_v1",
    operations=OPENAI.operations,
    paths=dict.fromkeys(OPENAI.operations, "/openai/v1/{operation_path}") | {"call": "{path}"},
    query=(),
    query_pass=fmt.QUERY_PASS,
)
