"""A kept HTTP connection on an event loop, that says plainly when no answer came."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

HANG_S = 5.0
"""A request that takes this long hangs."""
_TIMEOUT_S = 2 * HANG_S


class NoAnswerError(Exception):
    """The connection was refused or broke, or nothing came in time: whatever was asked may have happened."""


class NotSentError(NoAnswerError):
    """Nobody listens: nothing happened."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Status, headers (names in lower case) and JSON body of an answer."""

    status: int
    headers: Mapping[str, str]
    body: Mapping[str, Any]

    @property
    def code(self) -> str:
        """Code of a problem, "" of anything else."""
        return str(self.body.get("code", ""))

    @property
    def replayed(self) -> bool:
        """Whether it was executed before."""
        return self.headers.get("idempotent-replayed") == "true"

    @property
    def event_id(self) -> int:
        """Id of what was executed."""
        return int(self.body.get("trade_id") or self.body["entry_id"])


class HttpConnection:
    """Sends requests one after the other; connects when it has to.

    Parameters
    ----------
    host, port : str, int
        Of an HTTP/1.1 server whose answers have a length.
    """

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self.slowest_s = 0.0

    async def post(self, path: str, body: Mapping[str, object], *, key: str | None = None) -> Answer:
        """Send one request, once.

        Raises
        ------
        NoAnswerError
            `NotSentError` where it is known that nothing was sent.
        """
        content = json.dumps(body).encode()
        headers = {"Host": self._address[0], "Content-Type": "application/json", "Content-Length": str(len(content))}
        if key is not None:
            headers["Idempotency-Key"] = key
        lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        started_s = time.monotonic()
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                return await self._exchange("\r\n".join(lines).encode() + content)
        except (OSError, EOFError, TimeoutError) as error:
            self.close()
            raise NoAnswerError(type(error).__name__) from error
        finally:
            self.slowest_s = max(self.slowest_s, time.monotonic() - started_s)

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    async def aclose(self) -> None:
        """Close the connection and wait until it is."""
        if self._streams is not None:
            writer = self._streams[1]
            self.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _exchange(self, request: bytes) -> Answer:
        if self._streams is None:
            try:
                self._streams = await asyncio.open_connection(*self._address)
            except ConnectionRefusedError as error:
                raise NotSentError("nobody listens") from error
        reader, writer = self._streams
        writer.write(request)
        await writer.drain()
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        status_line, *fields = head.rstrip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
        content = await reader.readexactly(int(headers["content-length"]))
        if headers.get("connection") == "close":
            self.close()
        return Answer(int(status_line.split()[1]), headers, json.loads(content))
