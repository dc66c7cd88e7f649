"""Calls every way of a runner script and prints what became of each, one line of JSON a way.

A runner is executed by the Python of the venv that holds its SDK; pytest reads its lines. BASE is
the station's base URL without a path, KEY a key of it.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

BASE = os.environ["HEADRACE_BASE_URL"].rstrip("/")
KEY = os.environ["HEADRACE_KEY"]

CHAT_MODEL = os.environ.get("HEADRACE_CHAT_MODEL", "gpt-3.5-turbo")
CLAUDE_MODEL = os.environ.get("HEADRACE_CLAUDE_MODEL", "claude-sonnet-4-5")
EMBEDDING_MODEL = os.environ.get("HEADRACE_EMBEDDING_MODEL", "text-embedding-3-small")

GEMINI_MODEL = os.environ.get("HEADRACE_GEMINI_MODEL", "gemini-2.5-flash")
GEMINI_EMBEDDING_MODEL = os.environ.get("HEADRACE_GEMINI_EMBEDDING_MODEL", "gemini-embedding-001")
BUSY_MODEL = os.environ.get("HEADRACE_BUSY_MODEL", "")  # "": the station has none
NEVER_MODEL = BUSY_MODEL + "-never"
SPEECH_MODEL, HEARING_MODEL, IMAGE_MODEL = "tts-1", "whisper-1", "gpt-image-1"

WEATHER = {
    "name": "get_weather",
    "description": "What the weather is like.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "unit": {"type": "string", "enum": ["C", "F"]}},
        "required": ["city", "unit"],
    },
}

ASK = [
    {"role": "system", "content": "你是个有帮助的助手"},
    {"role": "user", "content": "Say this is a test!"},
]


def run(*ways: Callable[[], None]) -> None:
    """Exit status 1 if one of them failed."""
    failures = 0
    for way in ways:
        line = {"way": way.__name__, "error": ""}
        try:
            way()
        except Exception:
            failures += 1
            line["error"] = traceback.format_exc()
        print(json.dumps(line), flush=True)
    sys.exit(failures > 0)


@contextmanager
def waiting_as_told() -> Iterator[None]:
    """What is called inside is refused with `retry-after: 1` first; SDKs left alone wait less."""
    started = time.monotonic()
    yield
    assert time.monotonic() - started > 0.9, "retry-after was not honoured"


def check_weather(name: str, arguments: str | dict) -> None:
    """A call of WEATHER with all that it wants."""
    told = json.loads(arguments) if isinstance(arguments, str) else dict(arguments)
    assert (name, told["unit"]) == ("get_weather", "C"), (name, told)
    assert told["city"]


def check_same(streamed: list[str], whole: str) -> None:
    """A stream came in pieces, and says what the whole answer says."""
    assert whole, "an empty answer"
    assert len(streamed) > 1, f"the stream came in {len(streamed)} piece"
    assert "".join(streamed) == whole, ("".join(streamed), whole)


def check_usage(prompt: int, completion: int, total: int) -> None:
    assert prompt > 0, prompt
    assert completion > 0, completion
    assert total == prompt + completion, (prompt, completion, total)
