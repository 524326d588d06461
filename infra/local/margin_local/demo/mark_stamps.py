"""When a mark price came into force: Redis knows, by the clock that times events too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import redis

from margin.clients import keys
from margin.errors import RedisUnavailableError

if TYPE_CHECKING:
    from margin.config import Settings

__all__ = ["MarkStamps"]

_TIMEOUT_S = 10.0


class MarkStamps:
    """Reads the stamps of marks.

    Parameters
    ----------
    settings : Settings
        Where Redis is.
    """

    def __init__(self, settings: Settings) -> None:
        self._key = f"{keys.prefix(0, settings.partitions)}mark_stamps"
        # The driver's types cover bytes, text and futures alike; here an answer is always text.
        self._redis: Any = redis.Redis(
            host=settings.redis_host,
            port=settings.redis_port,
            db=settings.redis_db,
            password=settings.redis_password or None,
            ssl=settings.redis_tls,
            socket_timeout=_TIMEOUT_S,
            decode_responses=True,
        )

    def read(self, symbol: str) -> int:
        """Stamp of the symbol's present mark in microseconds, 0 when it has none.

        Raises
        ------
        RedisUnavailableError
        """
        try:
            return int(self._redis.hget(self._key, symbol) or 0)
        except redis.RedisError as error:
            message = f"Redis does not tell when a mark price came into force: {error}"
            raise RedisUnavailableError(message) from error

    def close(self) -> None:
        """Close the connection."""
        self._redis.close()
