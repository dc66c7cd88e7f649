"""The one spelling of a request target: what is matched is what is forwarded.

Owns which targets are refused as tricks (RFC 3986 6.2.2, RFC 9112 3.2). Pure. A path that passes
reads the same after one and after two percent-decodings, so that no upstream, however often it
decodes, sees another path than the one that was matched.
"""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

from proxy.errors import MalformedRequest

# Segments that begin with neither a dot nor an escape: nearly every request.
_PLAIN = re.compile(r"(?:/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+")
# RFC 3986 3.3: pchar, and the slash between segments.
_PATH = re.compile(r"/(?:[A-Za-z0-9\-._~!$&'()*+,;=:@/]|%[0-9A-Fa-f]{2})*")
_QUERY = re.compile(r"[!-~]*")
_ESCAPE = re.compile(r"%[0-9A-Fa-f]{2}")
_SLASHES = re.compile(r"/{2,}")

SEGMENT_SAFE = "-._~!$&'()*+,;=:@"  # stand for themselves in a segment, beside letters and digits
_DOTS = ("", ".", "..")


def canonical(raw_target: str) -> tuple[str, str]:
    """Path and query of an origin-form target; the query without its `?` and as it came.

    Slashes are collapsed, escapes of characters that need none are undone, the others are in upper
    case; `%2F` stays, for a `{model}` capture. Raises MalformedRequest for any other form of target,
    dot segments in any spelling, backslashes, control bytes, fragments and double escapes.
    """
    path, _, query = raw_target.partition("?")
    if query and (not _QUERY.fullmatch(query) or "#" in query):
        raise MalformedRequest
    if _PLAIN.fullmatch(path):
        return path, query
    if not _PATH.fullmatch(path):
        raise MalformedRequest
    path = _SLASHES.sub("/", _ESCAPE.sub(_shortest, path))
    _refuse_tricks(unquote_to_bytes(path))
    return path, query


def _shortest(escape: re.Match[str]) -> str:
    character = chr(int(escape[0][1:], 16))
    if character.isascii() and (character.isalnum() or character in SEGMENT_SAFE):
        return character
    return escape[0].upper()


def _refuse_tricks(decoded: bytes) -> None:
    try:
        text = decoded.decode()
    except UnicodeDecodeError:
        raise MalformedRequest(detail="path is not UTF-8") from None
    if any(c in "%\\" or c < " " or c == "\x7f" for c in text):
        raise MalformedRequest(detail="path hides a control byte, a backslash or an escape")
    for segment in text.split("/"):
        # `..;x` is a dot segment to servers that strip path parameters.
        if segment and segment.partition(";")[0] in _DOTS:
            raise MalformedRequest(detail="path has a dot segment")
