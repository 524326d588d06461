"""A TCP proxy on the loopback address that counts round trips and loses what it is told to lose."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

_CHUNK_BYTES = 1 << 20


class Proxy:
    """Stands between a client and a server; use it as an asynchronous context.

    ``lose_reply_to(marker)`` forwards the next request that holds the marker, waits until the server has answered, and
    then closes the client's connection instead of passing the answer on: it has happened, and nobody was told.
    With ``breaking`` it closes every later connection as well, until ``repair()``.

    ``lose_request(marker)`` closes the client's connection instead of forwarding the request. ``break_at(marker)`` does
    that and closes every later connection as well.

    ``hold_back(marker)`` keeps the next request that holds the marker; ``held`` is set then, and ``deliver()`` forwards
    it, whatever has become of the client, and returns when the server has answered.
    """

    def __init__(self, host: str, port: int) -> None:
        self.round_trips = 0
        self.lost = 0
        self._target = (host, port)
        self._lose_reply: bytes | None = None
        self._lose_request: bytes | None = None
        self._break: bytes | None = None
        self._breaking = False
        self._broken = False
        self._hold: bytes | None = None
        self.held = asyncio.Event()
        self._delivered = asyncio.Event()
        self._answered = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._closing = asyncio.Event()
        self._open: set[asyncio.Future[None]] = set()

    @property
    def host(self) -> str:
        return "127.0.0.1"

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    def lose_reply_to(self, marker: bytes, *, breaking: bool = False) -> None:
        self._lose_reply = marker
        self._breaking = breaking

    def lose_request(self, marker: bytes) -> None:
        self._lose_request = marker

    def break_at(self, marker: bytes) -> None:
        self._break = marker

    def hold_back(self, marker: bytes) -> None:
        self._hold = marker

    async def deliver(self) -> None:
        self._delivered.set()
        await self._answered.wait()

    def repair(self) -> None:
        self._broken = False

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, self.host, 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self._closing.set()
        await asyncio.gather(*self._open)
        await self._server.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._open.add(ended)
        try:
            await self._serve(reader, writer)
        finally:
            self._open.discard(ended)
            ended.set_result(None)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._broken:
            await _close(writer)
            return
        server_reader, server_writer = await asyncio.open_connection(*self._target)
        try:
            connection = _Connection(self, reader, writer, server_reader, server_writer)
            await connection.run(self._closing)
        finally:
            await _close(writer)
            await _close(server_writer)

    def _take(self, request: bytes) -> tuple[bool, bool]:
        """Whether the request, and whether the reply to it, is to be lost; each once."""
        if self._break is not None and self._break in request:
            self._break = None
            self._broken = True
        request_lost = self._broken or (self._lose_request is not None and self._lose_request in request)
        reply_lost = self._lose_reply is not None and self._lose_reply in request
        if request_lost:
            self._lose_request = None
        if reply_lost:
            self._lose_reply = None
            self._broken = self._breaking
        self.lost += request_lost or reply_lost
        return request_lost, reply_lost

    async def _wait_if_held_back(self, request: bytes) -> bool:
        if self._hold is None or self._hold not in request:
            return False
        self._hold = None
        self.held.set()
        await self._delivered.wait()
        return True


class _Connection:
    def __init__(
        self,
        proxy: Proxy,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        server_reader: asyncio.StreamReader,
        server_writer: asyncio.StreamWriter,
    ) -> None:
        self._proxy = proxy
        self._reader, self._writer = reader, writer
        self._server_reader, self._server_writer = server_reader, server_writer
        self._losing = False
        self._late = False
        self._answered = True

    async def run(self, closing: asyncio.Event) -> None:
        """Forward both ways until one side ends, something is lost or the proxy closes."""
        steps = (self._requests(), self._replies(), closing.wait())
        ways = {asyncio.ensure_future(step) for step in steps}
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _requests(self) -> None:
        while request := await self._reader.read(_CHUNK_BYTES):
            # A request that follows an answer begins a round trip; what is sent before any answer belongs to the same.
            self._proxy.round_trips += self._answered
            self._answered = False
            lost, self._losing = self._proxy._take(request)
            if lost:
                return
            self._late = late = await self._proxy._wait_if_held_back(request)
            self._server_writer.write(request)
            await self._server_writer.drain()
            if late:
                await self._proxy._answered.wait()

    async def _replies(self) -> None:
        while reply := await self._server_reader.read(_CHUNK_BYTES):
            self._answered = True
            if self._late:
                self._proxy._answered.set()
            if self._losing:
                return
            self._writer.write(reply)
            await self._writer.drain()


async def _close(stream: asyncio.StreamWriter) -> None:
    stream.close()
    with contextlib.suppress(OSError):
        await stream.wait_closed()
