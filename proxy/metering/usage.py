"""`Usage`: the disjoint, priced buckets of what one call consumed.

Owns the buckets and how they add up; knows no vendor and no price. Dialects fill it, pricing
multiplies it, the journal and the usage row store `as_dict()`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import Struct, field, structs, to_builtins


class Provenance:
    """Where the figures of a call came from: the words that are journaled and stored."""

    FINAL = "final"  # the vendor's last word
    EARLY = "early"  # the vendor's figures, but the stream was cut before its last word
    COUNTED = "counted"  # our tokenizer
    ESTIMATED = "estimated"  # bounded from bytes or a checkpoint
    NONE = "none"  # nothing was consumed


class Usage(Struct, gc=False, omit_defaults=True):
    """Tokens unless the name says otherwise. No bucket contains another, except that `reasoning`
    is an annotation: how much of `output` was hidden reasoning, never priced by itself.
    """

    input: int = 0  # uncached text input
    cache_read: int = 0
    cache_write_5m: int = 0
    cache_write_1h: int = 0
    input_audio: int = 0
    cached_audio: int = 0
    input_image: int = 0
    output: int = 0  # text output, reasoning included
    output_audio: int = 0
    output_image: int = 0
    reasoning: int = 0
    seconds_ms: int = 0  # thousandths of a second of audio or video
    characters: int = 0
    images: int = 0
    calls: int = 0
    tools: dict[str, int] = field(default_factory=dict)  # server tool calls by kind
    units: dict[str, int] = field(default_factory=dict)  # pages, search units by kind
    waived: dict[str, int] = field(default_factory=dict)  # of a bucket: counted by the vendor, not charged

    def input_tokens_all(self) -> int:
        """Everything that went in, as one figure in tokens."""
        return (
            self.input
            + self.cache_read
            + self.cache_write_5m
            + self.cache_write_1h
            + self.input_audio
            + self.cached_audio
            + self.input_image
        )

    def output_tokens_all(self) -> int:
        """Everything that came out, reasoning included, as one figure in tokens."""
        return self.output + self.output_audio + self.output_image

    def charged(self, bucket: str) -> int:
        """What of a bucket is charged."""
        return max(0, int(getattr(self, bucket)) - self.waived.get(bucket, 0))

    def plus(self, other: Usage) -> Usage:
        """Both together, of two different calls."""
        total = Usage()
        for f in FIELDS:
            mine, others = getattr(self, f.name), getattr(other, f.name)
            if isinstance(mine, dict):
                others = {kind: mine.get(kind, 0) + others.get(kind, 0) for kind in {**mine, **others}}
                setattr(total, f.name, others)
            else:
                setattr(total, f.name, mine + others)
        return total

    def is_empty(self) -> bool:
        return not self.as_dict()

    def as_dict(self) -> dict[str, Any]:
        """Only what is not zero: the form that is journaled and stored."""
        return as_dict(self)

    @classmethod
    def from_dict(cls, data: dict[str, int | dict[str, int]]) -> Usage:
        """Raises TypeError on an unknown bucket: a newer build wrote it."""
        return cls(**data)  # type: ignore[arg-type]


FIELDS = structs.fields(Usage)
as_dict: Callable[[Usage], dict[str, Any]] = to_builtins  # for who cannot spare the call of a method
