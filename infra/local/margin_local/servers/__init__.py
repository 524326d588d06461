"""A real Valkey and a real PostgreSQL for local running and for tests, from Python wheels, with no container.

::

    with tempfile.TemporaryDirectory() as directory:
        valkey = EmbeddedValkey(Path(directory))
        valkey.start()
        ...  # valkey.host, valkey.port
        valkey.stop()

Synchronous and standard library only. Three processes take part: the *launcher* (whoever calls ``start``), a small
*keeper* that it starts (`keeper`), and the *server*, the keeper's child. The keeper stops the server when the launcher
is gone, however it went. Two locks in the directory (`lock`) say whether a launcher lives, and whether a server does.
"""

from margin_local.servers.embedded import EmbeddedServer
from margin_local.servers.error import DirectoryInUseError, EmbeddedServerError
from margin_local.servers.postgres import EmbeddedPostgres
from margin_local.servers.valkey import EmbeddedValkey

__all__ = ["DirectoryInUseError", "EmbeddedPostgres", "EmbeddedServer", "EmbeddedServerError", "EmbeddedValkey"]
