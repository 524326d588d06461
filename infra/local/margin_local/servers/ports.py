"""TCP ports for embedded servers, on the loopback address only."""

from __future__ import annotations

import secrets
import socket

from margin_local.servers.error import EmbeddedServerError

HOST = "127.0.0.1"
"""All embedded servers listen here and nowhere else: they know no passwords."""

PORT_MAX = 55_534
"""A Valkey node in cluster mode also takes its port + 10000, which has to stay a port."""

# Below 32768 the kernel hands out no ports for outgoing connections, so that a chosen one stays free between two runs.
_CHOSEN = range(20_000, 32_768)
_CHOICES_MAX = 100


def check_port(port: int) -> int:
    """Return `port` when a server may be asked to listen on it.

    Parameters
    ----------
    port : int
        0 (choose one) or a port from 1 to `PORT_MAX`.

    Returns
    -------
    int
        The same port.

    Raises
    ------
    EmbeddedServerError
        If it is outside the range.
    """
    if not 0 <= port <= PORT_MAX:
        raise EmbeddedServerError(f"port {port} is out of range: give 1 to {PORT_MAX}, or 0 to have a free one chosen")
    return port


def port_is_free(port: int) -> bool:
    """Tell whether a server could listen on `port` right now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As the servers do: without it a port counts as taken for a minute after its last connection closed.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def choose_port() -> int:
    """Return a port that is free now.

    Another process may take it before the server listens, so the caller has to be ready to choose again.

    Returns
    -------
    int
        A port below 32768.

    Raises
    ------
    EmbeddedServerError
        If no free one was found in a hundred tries.
    """
    for _ in range(_CHOICES_MAX):
        port = _CHOSEN[secrets.randbelow(len(_CHOSEN))]
        if port_is_free(port):
            return port
    raise EmbeddedServerError(f"no free port was found from {_CHOSEN.start} to {_CHOSEN.stop - 1} on {HOST}: give one")
