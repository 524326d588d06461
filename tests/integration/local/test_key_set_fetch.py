"""An issuer's keys over HTTP: only what is at that address, whole, in time and of a bounded length."""

from __future__ import annotations

import contextlib
import http.server
import threading
from typing import TYPE_CHECKING

import pytest

from margin_local.servers import ports
from margin_local.tokens.key_set import DOCUMENT_BYTES_MAX, DocumentError, keys_of, source_of
from tests.tokens import KEY_ID, key_set

if TYPE_CHECKING:
    from collections.abc import Iterator


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers by the path."""

    protocol_version = "HTTP/1.1"
    released = threading.Event()

    def do_GET(self) -> None:
        if self.path == "/moved":
            self._head(302, b"", Location="/jwks.json")
            return
        if self.path == "/cut":
            self._head(200, None)
            self.wfile.write(b"ff\r\n{")
            self.close_connection = True
            return
        if self.path == "/nonsense":
            self.wfile.write(b"nonsense\r\n")
            self.close_connection = True
            return
        if self.path == "/dripping":
            self._head(200, None)
            # Each piece comes soon enough for a timeout that is for one piece alone.
            with contextlib.suppress(OSError):
                while not self.released.wait(0.05):
                    self.wfile.write(b"1\r\n \r\n")
            self.close_connection = True
            return
        body = {"/jwks.json": key_set(), "/long": b" " * (DOCUMENT_BYTES_MAX + 1), "/html": b"<html>"}.get(self.path)
        self._head(404 if body is None else 200, body or b"")

    def _head(self, status: int, body: bytes | None, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if body is None:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body or b"")

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def issuer() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        Handler.released.set()
        server.shutdown()
        thread.join()


def test_keys_are_fetched(issuer: str) -> None:
    assert set(keys_of(source_of(f"{issuer}/jwks.json")())) == {KEY_ID}


def test_proxy_of_the_environment_is_not_asked_about_this_machine(issuer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{ports.choose_port()}")
    assert source_of(f"{issuer}/jwks.json")() == key_set()


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/cut", "cannot be reached"),
        ("/nonsense", "cannot be reached"),
        ("/moved", "answers 302"),
        ("/none", "answers 404"),
        ("/long", "longer than"),
        ("/dripping", "takes longer than"),
    ],
)
def test_answer_that_is_none_is_said_so(issuer: str, path: str, reason: str) -> None:
    with pytest.raises(DocumentError, match=reason):
        source_of(f"{issuer}{path}", timeout_s=0.3)()


def test_page_instead_of_keys_is_said_so(issuer: str) -> None:
    with pytest.raises(DocumentError, match="not a JSON Web Key Set"):
        keys_of(source_of(f"{issuer}/html")())


def test_issuer_that_does_not_listen_is_said_so() -> None:
    with pytest.raises(DocumentError, match="cannot be reached"):
        source_of(f"http://127.0.0.1:{ports.choose_port()}/jwks.json")()
