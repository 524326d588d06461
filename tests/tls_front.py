"""A front that speaks TLS before a server that does not: the wheels' servers were built without it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator
    from types import TracebackType

_SSL_REQUEST = b"\x00\x00\x00\x08\x04\xd2\x16\x2f"
_CHUNK_BYTES = 65536
_CLOSING_TIMEOUT_S = 1.0


class TlsFront:
    """Passes on what is said over TLS; use it as a context.

    Parameters
    ----------
    port : int
        Of the server behind it, on the loopback address.
    context : ssl.SSLContext
        With its certificate.
    asks_first : bool, default False
        Whether a client asks in plain text for TLS, as PostgreSQL's do.
    """

    host = "localhost"

    def __init__(self, port: int, context: ssl.SSLContext, *, asks_first: bool = False) -> None:
        self._behind = port
        self._context = context
        self._asks_first = asks_first
        self._server: asyncio.Server | None = None
        self._served: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        """Where it listens."""
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def __aenter__(self) -> Self:
        tls = None if self._asks_first else self._context
        self._server = await asyncio.start_server(self._begin, "127.0.0.1", 0, ssl=tls)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        await asyncio.gather(*self._served)

    def _begin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._served.add(task)
        task.add_done_callback(self._served.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with _closed(writer):
            if self._asks_first:
                assert await reader.readexactly(len(_SSL_REQUEST)) == _SSL_REQUEST
                writer.write(b"S")
                await writer.start_tls(self._context)
            behind_reader, behind_writer = await asyncio.open_connection("127.0.0.1", self._behind)
            async with _closed(behind_writer):
                await asyncio.gather(_pass_on(reader, behind_writer), _pass_on(behind_reader, writer))


@contextlib.asynccontextmanager
async def _closed(writer: asyncio.StreamWriter) -> AsyncIterator[None]:
    """Close a connection at the end, however it went."""
    try:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            yield
    finally:
        writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            await asyncio.wait_for(writer.wait_closed(), _CLOSING_TIMEOUT_S)


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(_CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
    writer.close()
