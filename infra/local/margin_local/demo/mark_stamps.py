"""When a mark price came into force: Redis knows, by the clock that times events too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import redis

from margin.clients import keys
from margin.errors import RedisUnavailableError

if TYPE_CHECKING:
    from collections.abc import Sequence

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

    def read(self, symbols: Sequence[str]) -> dict[str, int]:
        """Stamps of the symbols' present marks in microseconds, 0 of one that has none.

        Raises
        ------
        RedisUnavailableError
        """
        try:
            stamps = self._redis.hmget(self._key, list(symbols))
        except redis.RedisError as error:
            message = f"Redis does not tell when a mark price came into force: {error}"
            raise RedisUnavailableError(message) from error
        return {symbol: int(stamp or 0) for symbol, stamp in zip(symbols, stamps, strict=True)}

    def close(self) -> None:
        """Close the connection."""
        self._redis.close()
