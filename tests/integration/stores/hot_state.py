"""Everything that Redis holds, as values that can be compared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import redis


def hot_state(store: redis.Redis, *, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """Value of each key, but those whose name begins with one of ``without``."""
    names = sorted(name for name in store.scan_iter() if not name.startswith(without or ("\0",)))
    return {name: _value(store, name) for name in names}


def _value(store: redis.Redis, name: str) -> Any:
    readers = {
        "string": store.get,
        "hash": store.hgetall,
        "set": store.smembers,
        "list": lambda key: store.lrange(key, 0, -1),
        "zset": lambda key: store.zrange(key, 0, -1, withscores=True),
    }
    return readers[store.type(name)](name)
