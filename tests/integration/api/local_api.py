"""The application of the local engine, called in this process: as its HTTP server would, without the server."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from margin.lambda_entry import LOOP
from margin_local.application import make_application
from tests.integration.api.exchange import Reply

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.types import Message

    from margin.http import Authenticator

PEER = "198.51.100.9"


class LocalApi:
    """All routes in one application, on the engine that is in use.

    Parameters
    ----------
    authenticate : Authenticator
        Says who sent a request.
    """

    def __init__(self, authenticate: Authenticator) -> None:
        self.app = make_application(authenticate=authenticate)

    def call(
        self, method: str, url: str, body: Any = None, *, authorization: Sequence[str] = (), key: str = ""
    ) -> Reply:
        """Send a request; a body that is no bytes is sent as JSON."""
        content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        headers = [(b"authorization", value.encode("latin-1")) for value in authorization]
        headers += [(b"content-type", b"application/json")] if content else []
        headers += [(b"idempotency-key", key.encode())] if key else []
        return LOOP.run_until_complete(self._call(method, url, content, headers))

    async def _call(self, method: str, url: str, content: bytes, headers: list[tuple[bytes, bytes]]) -> Reply:
        path, _, query = url.partition("?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "headers": [*headers, (b"content-length", str(len(content)).encode())],
            "client": (PEER, 4711),
            "server": ("127.0.0.1", 8000),
        }
        received: list[Message] = [{"type": "http.request", "body": content, "more_body": False}]
        sent: list[Message] = []

        async def receive() -> Message:
            return received.pop() if received else {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            sent.append(message)

        await self.app(scope, receive, send)
        text = b"".join(message.get("body", b"") for message in sent[1:]).decode()
        return Reply(sent[0]["status"], {name.decode(): value.decode() for name, value in sent[0]["headers"]}, text)
