"""What our own keys look like: `sk-`, 43 base62 digits of 256 random bits, 6 digits of checksum.

Pure: the random bytes are an argument. The checksum tells a mistyped key from an unknown one without
asking anybody, and lets secret scanners match without false alarms. A key imported from another system
may look like anything; it is refused only if it claims to be one of ours and its checksum is wrong.
"""

from __future__ import annotations

import hashlib
import re
import zlib

PREFIX = "sk-"
DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
SECRET_BYTES = 32
SECRET_DIGITS = 43  # the least that hold 256 bits
CHECKSUM_DIGITS = 6  # hold 32 bits

_OURS = re.compile(rf"{PREFIX}[0-9A-Za-z]{{{SECRET_DIGITS + CHECKSUM_DIGITS}}}")


def make_key(secret: bytes) -> str:
    """A key from 32 random bytes. Raises ValueError for any other length."""
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a key is made of {SECRET_BYTES} random bytes")
    body = _base62(int.from_bytes(secret), SECRET_DIGITS)
    return PREFIX + body + _checksum(body)


def is_well_formed(key: str) -> bool:
    """False only for a key in our own format whose checksum is wrong: it cannot exist."""
    if not _OURS.fullmatch(key):
        return True
    body = key[len(PREFIX) : -CHECKSUM_DIGITS]
    return _checksum(body) == key[-CHECKSUM_DIGITS:]


def digest_of(key: str) -> bytes:
    """SHA-256 of the whole key: what is stored and looked up, never a part of the key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def masked(key: str) -> str:
    """How a key is shown: its first six and last four characters, fewer of a short one."""
    if len(key) < 20:
        return f"{key[:3]}…"
    return f"{key[:6]}…{key[-4:]}"


def _checksum(body: str) -> str:
    return _base62(zlib.crc32(body.encode()), CHECKSUM_DIGITS)


def _base62(number: int, width: int) -> str:
    digits = []
    for _ in range(width):
        number, digit = divmod(number, 62)
        digits.append(DIGITS[digit])
    return "".join(reversed(digits))
