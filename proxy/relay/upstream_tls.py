"""A connection to an upstream over TLS: read into one buffer.

Owns how decrypted bytes are taken from the transport, and nothing else of a connection.
"""

from __future__ import annotations

import asyncio

from proxy.relay.upstream import UpstreamConnection

# One buffer for all connections of a process: it is emptied before the loop reads anything else. A fresh one
# per read costs 20 us of mmap over TLS; over plain TCP the transport has its own, and this way costs more.
READ_BYTES_MAX = 256 * 1024
_BUFFER = memoryview(bytearray(READ_BYTES_MAX))


class TlsConnection(UpstreamConnection, asyncio.BufferedProtocol):
    """As asyncio.BufferedProtocol describes it."""

    __slots__ = ()

    def get_buffer(self, sizehint: int) -> memoryview:
        return _BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        self._may_hold_more = nbytes == READ_BYTES_MAX
        self.data_received(bytes(_BUFFER[:nbytes]))
