"""Real answers of some twenty vendors give the usage that their vendors reported.

The recordings are not part of the project: HEADRACE_RECORDINGS says where they are.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from proxy.conform.recordings import as_billed, figures
from proxy.dialects import DIALECTS
from proxy.metering.usage import Usage
from tests.dialects.answers import every_byte, metered, said, two_pieces

ROOT = Path(os.environ.get("HEADRACE_RECORDINGS", ""))
ALL_CUTS_BYTES_MAX = 8 << 10  # longer ones are cut around the ends of lines, and all of them at each byte

OPERATIONS = {
    "openai.chat": ("openai", "chat"),
    "openai.completions": ("openai", "completions"),
    "openai.embeddings": ("openai", "embeddings"),
    "openai.images": ("openai", "images"),
    "openai.moderations": ("openai", "moderations"),
    "openai.responses": ("openai", "responses"),
    "openai.transcriptions": ("openai", "transcriptions"),
    "files": ("openai", "files.content"),
    "fine_tuning": ("openai", "fine_tuning.events"),
    "batches": ("openai", "batches.get"),
    "models": ("openai", "models.get"),
    "anthropic.messages": ("anthropic", "messages"),
    "bedrock.converse": ("bedrock", "converse"),
    "anthropic.complete": ("anthropic", "complete"),
    "anthropic.batches": ("anthropic", "message_batches.get"),
    "cohere.chat": ("cohere", "cohere.chat"),
    "cohere.embed": ("cohere", "cohere.embed"),
    "rerank": ("cohere", "rerank"),
    "ollama": ("ollama", "ollama.chat"),
    "gemini.generate": ("gemini", "stream_generate_content"),
    "gemini.embed": ("gemini", "batch_embed_contents"),
    "gemini.predict": ("gemini", "predict_long_running"),
}


class Recording:
    def __init__(self, path: Path) -> None:
        data = json.loads(path.read_text())
        self.name = str(path.relative_to(ROOT))
        self.expected: dict[str, Any] = data["expected"]
        self.protocol: str = self.expected.get("protocol") or ""
        self.status: int = data["status"]
        body = data["response_body"]
        self.body = (body if isinstance(body, str) else json.dumps(body)).encode()
        headers = {name.lower(): value for name, value in (data["response_headers"] or {}).items()}
        self.is_event_stream = "event-stream" in str(headers.get("content-type", ""))
        self.error = data["expected_detail"].get("error")
        dialect, self.operation = OPERATIONS.get(self.protocol, ("", ""))
        on_deployment = path.parent.name == "azure" and self.operation in DIALECTS["azure"].operations
        self.dialect = "azure" if on_deployment else dialect

    def meter(self, *pieces: bytes) -> dict[str, Any]:
        return said(metered(self.dialect, self.operation, pieces, is_event_stream=self.is_event_stream))


def recordings() -> list[Recording]:
    if not os.environ.get("HEADRACE_RECORDINGS"):
        return []
    every = (Recording(path) for path in sorted(ROOT.glob("*/*.json")))
    return [recording for recording in every if recording.protocol in OPERATIONS]


RECORDINGS = recordings()
ANSWERS = [r for r in RECORDINGS if r.status < 400]
STREAMS = [r for r in ANSWERS if r.expected["stream"] or r.is_event_stream]

pytestmark = pytest.mark.skipif(not RECORDINGS, reason="HEADRACE_RECORDINGS names no folder of recordings")


def each(recordings: list[Recording]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("recording", recordings, ids=lambda r: r.name)


@each(ANSWERS)
def test_usage_is_what_the_vendor_reported(recording: Recording):
    meter = metered(
        recording.dialect, recording.operation, [recording.body], is_event_stream=recording.is_event_stream
    )
    usage = meter.usage()
    assert figures(usage or Usage()) == as_billed(recording.expected)
    assert not meter.degraded
    assert meter.error == bool(recording.error)
    if usage is not None:
        assert meter.usage_is_final()


@each(ANSWERS)
def test_the_content_type_does_not_matter(recording: Recording):
    whole = recording.meter(recording.body)
    recording.is_event_stream = not recording.is_event_stream
    try:
        assert recording.meter(recording.body) == whole
    finally:
        recording.is_event_stream = not recording.is_event_stream


@each([r for r in RECORDINGS if r.status >= 400])
def test_an_error_reports_no_usage(recording: Recording):
    meter = metered(recording.dialect, recording.operation, [recording.body], is_event_stream=False)
    assert meter.usage() is None


@each(RECORDINGS)
def test_all_at_once_is_the_same(recording: Recording):
    dialect = DIALECTS[recording.dialect]
    meter = dialect.make_meter(dialect.operations[recording.operation], recording.is_event_stream)
    meter.read_all(recording.body)
    assert said(meter) == recording.meter(recording.body)


@each(ANSWERS)
def test_byte_by_byte_is_the_same(recording: Recording):
    assert recording.meter(*every_byte(recording.body)) == recording.meter(recording.body)


@each([r for r in STREAMS if len(r.body) <= ALL_CUTS_BYTES_MAX])
def test_every_cut_in_two_is_the_same(recording: Recording):
    whole = recording.meter(recording.body)
    for first, second in two_pieces(recording.body):
        assert recording.meter(first, second) == whole, len(first)


@each([r for r in STREAMS if len(r.body) > ALL_CUTS_BYTES_MAX])
def test_cuts_around_the_ends_of_lines_are_the_same_in_long_streams(recording: Recording):
    whole = recording.meter(recording.body)
    ends = [at for at, byte in enumerate(recording.body) if byte in b"\r\n"]
    cuts = {at + offset for at in (*ends[:40], *ends[-40:]) for offset in (-1, 0, 1, 2)}
    for at in sorted(cut for cut in cuts if 0 < cut < len(recording.body)):
        assert recording.meter(recording.body[:at], recording.body[at:]) == whole, at
