"""The words in a prompt that decide what becomes of a job.

fail      it fails at its end                  never   it never ends
banned    the vendor refuses the prompt        full    the vendor has no room for it now
queued    it is taken, and waits in a queue    broken  the vendor breaks down: 500
cancel    the vendor gives it up
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

# Members of requests that are in the caller's own words; `state` is Midjourney's for a caller's note.
SPOKEN = frozenset({
    "content", "gpt_description_prompt", "prompt", "promptText", "state", "text", "title", "user_prompt",
})  # fmt: skip
WORD = re.compile(r"\b(fail|never|banned|full|queued|broken|cancel)\b", re.IGNORECASE)
CHARS_MAX = 4_000  # a longer text is a picture
DEPTH_MAX = 6


def words_in(asked: dict[str, Any]) -> frozenset[str]:
    """Those of the words above that a request says."""
    return frozenset(word.lower() for text in spoken(asked) for word in WORD.findall(text))


def prompt_of(asked: dict[str, Any]) -> str:
    """What the caller asked for, in words."""
    return next((text for text in spoken(asked) if text), "")


def spoken(value: Any, depth: int = 0) -> Iterator[str]:
    """Texts of the members that are in the caller's words, at any depth."""
    if depth > DEPTH_MAX:
        return
    if isinstance(value, list):
        for item in value:
            yield from spoken(item, depth + 1)
    elif isinstance(value, dict):
        for name, member in value.items():
            if isinstance(member, str):
                if name in SPOKEN and len(member) <= CHARS_MAX:
                    yield member
            else:
                yield from spoken(member, depth + 1)
