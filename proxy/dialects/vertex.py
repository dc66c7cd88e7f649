"""Google's Vertex AI: Gemini's verbs, and Anthropic's messages, under a path that names a publisher.

Owns its paths and its kind of key. The base URL of a mirror says whose project and where:
https://LOCATION-aiplatform.googleapis.com/v1/projects/PROJECT/locations/LOCATION
"""

from __future__ import annotations

from dataclasses import replace

from proxy.dialects.anthropic import ANTHROPIC
from proxy.dialects.gemini import GEMINI
from proxy.dialects.gemini_resources import FILE_OPERATIONS, cached_contents

# The model is in the path, and whether it streams is in the verb.
_RAW = replace(
    ANTHROPIC.operations["messages"],
    name="raw_predict",
    path="models/{model}:rawPredict",
    model_at="path",
    own_meter=ANTHROPIC.make_meter,
)
_CLAUDE = {
    spec.name: spec
    for spec in (
        _RAW,
        replace(
            _RAW, name="stream_raw_predict", path="models/{model}:streamRawPredict", streams_unasked=True
        ),
    )
}


# Its Live service has a name of its own; the model is a resource there.
_LIVE = replace(
    GEMINI.operations["live"], path="/ws/google.cloud.aiplatform.v1.LlmBidiService/BidiGenerateContent"
)

# Below the project that a caller names; whose it is in truth is said by the mirror's base URL. Files lie in
# a storage of its own.
_CACHED = {
    spec.name: spec for spec in cached_contents("/v1/projects/{project}/locations/{location}/cachedContents")
}
_FILES = frozenset(spec.name for spec in FILE_OPERATIONS)
_OPERATIONS = {
    **{name: spec for name, spec in GEMINI.operations.items() if name not in _FILES},
    **_CLAUDE,
    **_CACHED,
    "live": _LIVE,
}

VERTEX = replace(
    GEMINI,
    name="vertex",
    operations=_OPERATIONS,
    paths=dict.fromkeys(_OPERATIONS, "/publishers/google/{operation_path}")
    | {"predict_long_running": "/publishers/google/models/{model}:predictLongRunning", "live": _LIVE.path}
    | dict.fromkeys(_CLAUDE, "/publishers/anthropic/{operation_path}")
    | {spec.name: "/cachedContents" + "/{id}" * spec.path.endswith("}") for spec in _CACHED.values()},
    auth=(b"authorization", b"Bearer "),
    request_pass=GEMINI.request_pass | {b"anthropic-beta", b"anthropic-version"},
)
