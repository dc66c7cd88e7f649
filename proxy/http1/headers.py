"""What passes of an answer's header fields, and how a head is written to a client.

Owns hop-by-hop removal (RFC 9110 7.6.1), the allow-list and the serialisation. Pure. Framing is the caller's
decision: Content-Length never passes here, the caller adds its own framing fields.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from http import HTTPStatus
from itertools import compress
from typing import Protocol

from proxy.errors import InternalError
from proxy.http1.head import CRLF, FIELD_BYTES, SHAPES_REMEMBERED_MAX, Field, Head, Shape

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
_NEVER_PASSED = HOP_BY_HOP | {b"content-length"}  # framing belongs to one hop as well

REASONS: dict[int, bytes] = {status.value: status.phrase.encode() for status in HTTPStatus} | {
    499: b"Client Closed Request",
    529: b"Overloaded",
}


class ResponseRules(Protocol):
    """What an operator adds to the dialect's allow-list, takes from it and sets; names in lower case."""

    @property
    def response_pass(self) -> frozenset[bytes]: ...
    @property
    def response_set(self) -> tuple[Field, ...]: ...
    @property
    def response_drop(self) -> frozenset[bytes]: ...


def connection_nominated(values: Iterable[bytes]) -> frozenset[bytes]:
    """The lower-case names that these Connection values make hop-by-hop."""
    tokens = (token.strip(b" \t").lower() for value in values for token in value.split(b","))
    return frozenset(token for token in tokens if token)


@lru_cache(maxsize=64)
def _ended_by(connection: bytes) -> frozenset[bytes]:
    """What this Connection value ends here beyond what ends anyway: usually nothing."""
    return connection_nominated((connection,)) - HOP_BY_HOP


class Admission(dict[Shape, tuple[bool, ...]]):
    """Which fields of an answer may reach a client: the names of a head -> may they pass, one by one.

    A field passes when the dialect (by name or prefix) or the policy lets it, the policy does not drop or
    replace it, and it is not hop-by-hop. The names of a head decide that once.
    """

    __slots__ = ("_added", "_hidden", "_passed", "_prefixes", "_refused", "added")

    def __init__(
        self,
        passed: frozenset[bytes],
        prefixes: tuple[bytes, ...],
        policy: ResponseRules,
        refused: Iterable[bytes] = (),
        hidden: tuple[bytes, ...] = (),
    ) -> None:
        """`hidden`: prefixes of what does not pass whoever lets it, and is not set either."""
        replaced = {name for name, _ in policy.response_set}
        self._passed = passed | policy.response_pass
        self._prefixes = prefixes
        self._refused = _NEVER_PASSED.union(policy.response_drop, replaced, refused)
        self._hidden = hidden
        self._added = [
            field
            for field in policy.response_set
            if field[0] not in _NEVER_PASSED and not field[0].startswith(hidden)
        ]
        self.added = field_lines(self._added)  # what the policy sets, as it is written

    def __missing__(self, shape: Shape) -> tuple[bool, ...]:
        nominated = _ended_by(shape.connection) if shape.connection else ()
        admitted = tuple(self._admits(name) and name not in nominated for name in shape.names)
        if shape.is_remembered:
            if len(self) == SHAPES_REMEMBERED_MAX:
                self.clear()
            self[shape] = admitted
        return admitted

    def _admits(self, name: bytes) -> bool:
        is_let = name in self._passed or name.startswith(self._prefixes)
        return is_let and name not in self._refused and not name.startswith(self._hidden)

    def fields(self, head: Head) -> list[Field]:
        """Those of an answer that may reach the client, in their order, then those that the policy sets."""
        return [*compress(head.fields, self[head.shape]), *self._added]


def serialize(status: int, reason: bytes, headers: Iterable[Field]) -> bytes:
    """Return the head of an HTTP/1.1 answer with its empty line.

    An empty `reason` stays empty, as an upstream may send it. Raises InternalError when a name, a value or
    the reason would end its line: nobody's bytes may become a header of ours.
    """
    return b"%b%b\r\n" % (status_line(status, reason), field_lines(headers))


@lru_cache(maxsize=64)
def status_line(status: int, reason: bytes) -> bytes:
    """The first line of such a head."""
    return _checked(b"HTTP/1.1 %d %b" % (status, reason))


def field_lines(headers: Iterable[Field]) -> bytes:
    """The lines of such a head's fields."""
    return b"".join([_checked(b"%b: %b" % field) for field in headers])


def _checked(line: bytes) -> bytes:
    if line.translate(None, FIELD_BYTES):
        raise InternalError(detail="control byte in an answer's head")
    return line + CRLF
