"""What the demo says: canned prose that depends on the prompt, cut into the pieces it streams.

Pure and deterministic: the same prompt gets the same answer, so that a demonstration can be
repeated and a test can compare a streamed answer with a whole one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass

CJK = "\u3400-\u9fff\uff00-\uffef\u3000-\u303f"
PIECE = re.compile(rf"\s*(?:[{CJK}]|[^\s{CJK}]+)|\s+$")
TOPIC_WORDS = 8

GREETING = re.compile(r"\s*(hello|hi|hey|good (morning|evening|day))\b.{0,16}$", re.IGNORECASE)
HELLO = (
    "Hello! I am the demo model of this station. My answers are canned, but the tokens are "
    "counted, priced and settled like those of any other model. What would you like to talk about?",
    "Hi there! You have reached the demo model behind this relay. Ask me anything and I will "
    "answer something plausible, one word at a time.",
)
ENGLISH = (
    'You asked about "{topic}". In short: start small, measure, and keep what works. First write '
    "down what a good result looks like. Then try the simplest thing that could produce it. Most "
    "of the surprises will come from the places where two parts meet, so look there before "
    "anywhere else.",
    'That is a good question. "{topic}" has three sides: what it costs, what it saves, and who '
    "notices. The first is easy to measure, the second takes a week of honest notes, and the "
    "third decides whether anyone will still be doing it next year.",
    'Let us take "{topic}" step by step.\n\n1. Name the thing you want to change.\n2. Find the one '
    "number that would show it.\n3. Change one cause at a time and watch that number.\n\nIf the "
    "number does not move, the cause was a different one, and that is worth knowing too.",
    'Here is one way to think about "{topic}": imagine it already works, and ask what had to be '
    "true for that. Each answer is a small task with a beginning and an end. Do the one that would "
    "hurt most if it turned out to be impossible first.",
)
CHINESE = (
    "你问的是“{topic}”。简单来说：先从小处开始，先测量，再保留有效的部分。多数意外都发生在两个部分相接的地方，先看那里。",
    "关于“{topic}”，可以分三步来看：先说清楚想要的结果，再找到能说明它的那个数字，最后一次只改变一个原因。",
)


@dataclass(frozen=True, slots=True)
class Answer:
    """One generated text, already cut to the caller's limit."""

    pieces: list[str]
    tokens: int
    is_cut: bool  # the token limit ended it
    function: str = ""  # what it calls; the text are the arguments in JSON

    @property
    def text(self) -> str:
        return "".join(self.pieces)


def say(prompt: str, choice: int) -> str:
    """The whole canned answer to `prompt`; another `choice` is another answer."""
    text = prompt.strip()
    is_chinese = re.search(f"[{CJK}]", text) is not None
    stock = HELLO if GREETING.match(text) else CHINESE if is_chinese else ENGLISH
    seed = hashlib.sha256(text.encode("utf-8", "replace")).digest()[0]
    topic = text[:24] if is_chinese else " ".join(text.split()[:TOPIC_WORDS])
    return stock[(seed + choice) % len(stock)].format(topic=topic or "nothing in particular")


def answer(prompt: str, choice: int, limit: int | None, count: Callable[[str], int]) -> Answer:
    """Answer `prompt` with at most `limit` tokens (None: no limit), counted by `count`.

    The longest run of whole pieces that fits is kept, so that streaming and not streaming agree.
    """
    pieces = PIECE.findall(say(prompt, choice))
    tokens = count("".join(pieces))
    if limit is None or tokens <= limit:
        return Answer(pieces, tokens, is_cut=False)
    keep = min(limit, len(pieces))  # a piece is at least one token
    while keep and (tokens := count("".join(pieces[:keep]))) > limit:
        keep -= 1
    return Answer(pieces[:keep], tokens if keep else 0, is_cut=True)
