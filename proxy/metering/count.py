"""Count tokens with a library's tokenizer, where a vendor reports none.

Exact for OpenAI's families, an estimate for the others. Pure; the vocabularies are part of the
library. The relay calls it for slices of a few KiB at a time (40 MB/s and more).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

SLICE_CHARS = 16 << 10  # what is counted at once: well under a millisecond

# The first prefix that fits, on the model's name without a vendor's prefix.
_ENCODINGS = (
    ("gpt-oss", "o200k_harmony"),
    ("gpt-4o", "o200k_base"),
    ("gpt-4.", "o200k_base"),
    ("gpt-4", "cl100k_base"),
    ("gpt-3", "cl100k_base"),
    ("gpt-35", "cl100k_base"),
    ("text-embedding-", "cl100k_base"),
    ("text-davinci", "cl100k_base"),
    ("davinci", "cl100k_base"),
    ("babbage", "cl100k_base"),
    ("qwen", "qwen3.5"),
    ("qwq", "qwen3.5"),
)
_DEFAULT = "o200k_base"  # the newest of OpenAI's, and the closest to most others


@lru_cache(maxsize=1024)
def encoding_for(model: str) -> str:
    """The name of the vocabulary that counts for a model best."""
    name = model.lower().rpartition("/")[2]
    for prefix, encoding in _ENCODINGS:
        if name.startswith(prefix):
            return encoding
    return _DEFAULT


_loaded: set[str] = set()


def load_vocabulary(model: str = "") -> None:
    """Load the vocabulary of a model (none named: the one that most are counted with), at a moment when
    nobody waits: for up to a second nothing else of the process runs, also not its other threads, and it
    takes 50 to 100 MB.
    """
    encoding = encoding_for(model)
    _count(["a"], encoding)
    _loaded.add(encoding)


def is_exact(model: str) -> bool:
    """Would its tokens be counted with the model's own vocabulary?"""
    return encoding_for(model) in _loaded


def count_tokens(texts: Iterable[str], model: str) -> int:
    """Tokens of the texts as one, counted in slices. Lone surrogates count as U+FFFD, pairs
    that came in two pieces as their character.

    Loads no vocabulary but the usual one, which then counts for the others too: see `is_exact`.
    """
    text = "".join(texts)
    if not text:
        return 0
    if not text.isascii():
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    slices = [text[at : at + SLICE_CHARS] for at in range(0, len(text), SLICE_CHARS)]
    encoding = encoding_for(model)
    return _count(slices, encoding if encoding in _loaded else _DEFAULT)


def _count(slices: list[str], encoding: str) -> int:
    from toktok import batch_count  # not all processes count

    return sum(batch_count(slices, encoding, threads=1))
