"""Passwords of account holders: what is kept of them, and whether one is right.

Owns the form of the kept text, `scrypt$N$r$p$salt$hash`, and the work that a guess costs (about 50 ms and
16 MiB). Pure: the salt comes in. Slow on purpose: callers run it in a thread.
"""

from __future__ import annotations

import hashlib
import hmac

SALT_BYTES = 16
CHARACTERS_MIN, CHARACTERS_MAX = 10, 200
_N, _R, _P = 1 << 14, 8, 1
_MEMORY_BYTES = 64 << 20


def kept(password: str, salt: bytes) -> str:
    """What may be stored. Raises ValueError: it is too short, or too long to be one."""
    if not CHARACTERS_MIN <= len(password) <= CHARACTERS_MAX:
        raise ValueError(f"a password has {CHARACTERS_MIN} to {CHARACTERS_MAX} characters")
    return f"scrypt${_N}${_R}${_P}${salt.hex()}${_hash(password, salt, _N, _R, _P).hex()}"


def is_right(password: str, stored: str) -> bool:
    """As slow for a wrong password as for the right one."""
    _, n, r, p, salt, digest = stored.split("$")
    if len(password) > CHARACTERS_MAX:
        return False
    found = _hash(password, bytes.fromhex(salt), int(n), int(r), int(p))
    return hmac.compare_digest(found, bytes.fromhex(digest))


def _hash(password: str, salt: bytes, n: int, r: int, p: int) -> bytes:
    data = password.encode("utf-8", "surrogateescape")
    return hashlib.scrypt(data, salt=salt, n=n, r=r, p=p, maxmem=_MEMORY_BYTES, dklen=32)


# Compared with where there is no such account, so that nobody can tell by the time it takes.
NOBODY = f"scrypt${_N}${_R}${_P}${'00' * SALT_BYTES}${'00' * 32}"
