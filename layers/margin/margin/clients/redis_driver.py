"""The parts of redis-py that the engine uses, without the rest.

The driver's packages import everything that it can do: clusters, sentinels, notifications, metrics. That is a tenth of
a cold start. Its modules are therefore imported with empty packages in the place of the two that do so, and as if there
were no OpenTelemetry, whose metrics it would prepare. Then the empty packages go: whoever imports ``redis`` later gets
the real ones, with the same modules in them.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import TYPE_CHECKING

__all__ = [
    "BlockingConnectionPool",
    "Connection",
    "CredentialProvider",
    "NoBackoff",
    "Redis",
    "Retry",
    "SSLConnection",
    "exceptions",
]

if TYPE_CHECKING:
    from redis import exceptions
    from redis.asyncio import BlockingConnectionPool, Connection, Redis, SSLConnection
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff
    from redis.credentials import CredentialProvider
else:
    _ALL = ("redis", "redis.asyncio")
    _METRICS = "opentelemetry.metrics"

    absent = [name for name in (*_ALL, _METRICS) if name not in sys.modules]
    if _ALL[0] in absent:
        (folder,) = importlib.util.find_spec(_ALL[0]).submodule_search_locations
        for name in _ALL:
            sys.modules[name] = ModuleType(name)
            sys.modules[name].__path__ = [folder + name.removeprefix(_ALL[0]).replace(".", "/")]
        sys.modules.setdefault(_METRICS, None)  # Is taken for "not there".
    try:
        from redis import exceptions
        from redis.asyncio.client import Redis
        from redis.asyncio.connection import BlockingConnectionPool, Connection, SSLConnection
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
        from redis.credentials import CredentialProvider
    finally:
        if _ALL[0] in absent:
            for name in absent:
                del sys.modules[name]
