"""UUIDv7 ids (RFC 9562 5.7), never going back within one process even when the clock does."""

from __future__ import annotations

from random import Random, SystemRandom

_COUNTER_BITS = 74  # rand_a and rand_b together, counted up within one millisecond


class IdSource:
    """Makes call ids. `next(now_ms)` -> 32 hex digits, strictly increasing."""

    def __init__(self) -> None:
        self._last_ms = 0
        self._tail = 0
        # Ids are unique, not secret: a seeded generator, because os.urandom is a system call per id.
        self._random = Random(SystemRandom().getrandbits(128))  # noqa: S311

    def next(self, now_ms: int) -> str:
        if now_ms > self._last_ms:
            self._last_ms = now_ms
            # One bit is left free so that counting up does not overflow into the version.
            self._tail = self._random.getrandbits(_COUNTER_BITS - 1)
        else:
            self._tail += 1
        rand_a, rand_b = self._tail >> 62, self._tail & ((1 << 62) - 1)
        value = (self._last_ms << 80) | (0x7 << 76) | (rand_a << 64) | (0b10 << 62) | rand_b
        return f"{value:032x}"


def dashed(id_hex: str) -> str:
    """The form that clients see (`x-request-id`)."""
    return f"{id_hex[:8]}-{id_hex[8:12]}-{id_hex[12:16]}-{id_hex[16:20]}-{id_hex[20:]}"
