"""Redeem codes: what they look like, and what is kept of them.

Owns their alphabet (Crockford's base 32, which has no I, L, O and U) and how a mistyped one is read.
Pure: the random bytes come in.
"""

from __future__ import annotations

import hashlib

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
SECRET_BYTES = 20  # five bits of each are used: 100 bits, not to be guessed
GROUP = 5
_READ_AS = str.maketrans({"O": "0", "I": "1", "L": "1", "-": None, " ": None})


def make_code(secret: bytes) -> str:
    """`XXXXX-XXXXX-XXXXX-XXXXX` from SECRET_BYTES random bytes. Raises ValueError for any other length."""
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a code is made of {SECRET_BYTES} random bytes")
    digits = "".join(ALPHABET[byte & 31] for byte in secret)
    return "-".join(digits[i : i + GROUP] for i in range(0, len(digits), GROUP))


def code_digest(code: str) -> bytes:
    """What is stored: of the code as it was meant, however it was typed."""
    return hashlib.sha256(code.strip().upper().translate(_READ_AS).encode("utf-8", "replace")).digest()


def masked_code(code: str) -> str:
    return f"{code[:GROUP]}…"
