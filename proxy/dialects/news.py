"""What the owner of a task is told of it: what counts as a change, and what is sent.

Pure; knows no vendor: where state, progress and the task itself are in an answer is its table's to say.
"""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import orjson

from proxy.dialects.owned import Task, first, found, text_of

MARK_BYTES = 12
BODY_BYTES_MAX = 1 << 20  # a longer one is nothing that a receiver waits for


class News(NamedTuple):
    """A look at a task, as its owner may be told it."""

    mark: str  # the same for looks that show no change
    body: str  # JSON text


UNTOLD = News("-", "")  # of an end that shows nothing to tell


def news_of(task: Task, document: Any) -> News | None:
    """`document` is the vendor's object of the task. None: nobody is told of such tasks, or it shows none."""
    callback = task.callback
    if callback is None:
        return None
    word, told = text_of(first(document, task.state)), first(document, (callback.body,))
    if word is None or told is None:
        return None
    progress = [list(found(document, pointer)) for pointer in task.progress]
    mark = hashlib.blake2b(orjson.dumps([word, progress]), digest_size=MARK_BYTES).hexdigest()
    body = orjson.dumps(told)
    return News(mark, body.decode()) if len(body) <= BODY_BYTES_MAX else None
