"""Feed answers to meters in pieces, and say what came out in one comparable value."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from proxy.dialects import DIALECTS
from proxy.dialects.base import Meter


def metered(dialect: str, operation: str, pieces: Iterable[bytes], *, is_event_stream: bool = True) -> Meter:
    """A meter that has seen the pieces and the end."""
    meter = DIALECTS[dialect].make_meter(DIALECTS[dialect].operations[operation], is_event_stream)
    for piece in pieces:
        meter.feed(piece)
    meter.finish()
    return meter


def said(meter: Meter) -> dict[str, Any]:
    """Everything that a meter has made of its answer. Takes its text."""
    usage = meter.usage()
    return {
        "usage": None if usage is None else usage.as_dict(),
        "model": meter.model,
        "id": meter.vendor_id,
        "tier": meter.service_tier,
        "text": "".join(meter.take_text()),
        "flags": sorted(
            name for name in ("complete", "finished", "error", "degraded") if getattr(meter, name)
        ),
        "final": meter.usage_is_final(),
        "unread": meter.unread_bytes,
    }


def every_byte(body: bytes) -> Iterator[bytes]:
    return (body[at : at + 1] for at in range(len(body)))


def two_pieces(body: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Every way to cut in two."""
    return ((body[:at], body[at:]) for at in range(1, len(body)))
