"""A connection to an upstream over TLS: read into one buffer, written in whole records.

Owns how plain bytes are taken from the transport and given to it, and nothing else of a connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from proxy.relay.upstream import UpstreamConnection

# One buffer for all connections of a process: it is emptied before the loop reads anything else. A fresh one
# per read costs 20 us of mmap over TLS; over plain TCP the transport has its own, and this way costs more.
READ_BYTES_MAX = 256 * 1024
_BUFFER = memoryview(bytearray(READ_BYTES_MAX))
RECORD_BYTES_MAX = 16 * 1024  # RFC 8446 5.1


class TlsConnection(UpstreamConnection, asyncio.BufferedProtocol):
    """As asyncio.BufferedProtocol describes it."""

    __slots__ = ()

    def write(self, pieces: Sequence[bytes]) -> None:
        """Head and body in one record where they fit: each piece would be sealed as its own."""
        if len(pieces) > 1 and sum(map(len, pieces)) <= RECORD_BYTES_MAX:
            pieces = (b"".join(pieces),)
        super().write(pieces)

    def get_buffer(self, sizehint: int) -> memoryview:
        return _BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        self._may_hold_more = nbytes == READ_BYTES_MAX
        self.data_received(bytes(_BUFFER[:nbytes]))
