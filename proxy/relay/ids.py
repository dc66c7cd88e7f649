"""UUIDv7 ids (RFC 9562 5.7), never going back within one process even when the clock does."""

from __future__ import annotations

from random import Random, SystemRandom
from struct import Struct

# 12 and 62 random bits lie around the version and the variant. The highest of the 62 is left free, so that
# counting up within one millisecond never comes into the variant.
_FIXED = (0x7 << 76) | (0b10 << 62)

_GROUPS = Struct("8s4s4s4s12s").unpack  # RFC 9562 4: a third of the time of five slices


class IdSource:
    """Makes call ids. `next(now_ms)` -> 32 hex digits, strictly increasing."""

    def __init__(self) -> None:
        self._last_ms = 0
        self._value = _FIXED
        # Ids are unique, not secret: a seeded generator, because os.urandom is a system call per id.
        self._random = Random(SystemRandom().getrandbits(128)).getrandbits  # noqa: S311

    def next(self, now_ms: int) -> str:
        if now_ms > self._last_ms:
            self._last_ms = now_ms
            value = now_ms << 80 | _FIXED | self._random(12) << 64 | self._random(61)
        else:
            value = self._value + 1
        self._value = value
        return value.to_bytes(16).hex()


def dashed(id_hex: str) -> bytes:
    """The form that clients see (`x-request-id`)."""
    return b"-".join(_GROUPS(id_hex.encode()))
