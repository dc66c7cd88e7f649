"""Calls every way of a runner script and prints what became of each, one line of JSON a way.

A runner is executed by the Python of the venv that holds its SDK; pytest reads its lines. BASE is
the station's base URL without a path, KEY a key of it.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable

BASE = os.environ["HEADRACE_BASE_URL"].rstrip("/")
KEY = os.environ["HEADRACE_KEY"]

CHAT_MODEL = os.environ.get("HEADRACE_CHAT_MODEL", "gpt-3.5-turbo")
CLAUDE_MODEL = os.environ.get("HEADRACE_CLAUDE_MODEL", "claude-sonnet-4-5")
EMBEDDING_MODEL = os.environ.get("HEADRACE_EMBEDDING_MODEL", "text-embedding-3-small")

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


def check_same(streamed: list[str], whole: str) -> None:
    """A stream came in pieces, and says what the whole answer says."""
    assert whole, "an empty answer"
    assert len(streamed) > 1, f"the stream came in {len(streamed)} piece"
    assert "".join(streamed) == whole, ("".join(streamed), whole)


def check_usage(prompt: int, completion: int, total: int) -> None:
    assert prompt > 0, prompt
    assert completion > 0, completion
    assert total == prompt + completion, (prompt, completion, total)
