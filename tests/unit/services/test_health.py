"""Health: names the store that cannot be used."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from margin.errors import PostgresUnavailableError, RedisUnavailableError, StateNotLoadedError, UnavailableError

if TYPE_CHECKING:
    from tests.fakes import Exchange

NO_REDIS = RedisUnavailableError("Redis is down.")
NO_HISTORY = PostgresUnavailableError("PostgreSQL is down.")


async def test_stores_that_can_be_used_are_healthy(exchange: Exchange) -> None:
    await exchange.health.check()


@pytest.mark.parametrize(
    ("prefix", "error", "named"), [("partitions", NO_REDIS, "Redis"), ("history", NO_HISTORY, "PostgreSQL")]
)
async def test_store_that_is_down_is_named(
    exchange: Exchange, prefix: str, error: UnavailableError, named: str
) -> None:
    exchange.faults.take_down(prefix, error)
    with pytest.raises(type(error), match=f"^{named} is down"):
        await exchange.health.check()


async def test_both_stores_that_are_down_are_named(exchange: Exchange) -> None:
    exchange.faults.take_down("partitions", NO_REDIS)
    exchange.faults.take_down("history", NO_HISTORY)
    with pytest.raises(UnavailableError, match=r"^Redis is down\. PostgreSQL is down\.$"):
        await exchange.health.check()


async def test_state_that_is_not_loaded_is_not_healthy(exchange: Exchange) -> None:
    exchange.redis.markers.clear()
    with pytest.raises(StateNotLoadedError):
        await exchange.health.check()


async def test_defect_in_a_check_is_not_taken_for_an_outage(exchange: Exchange) -> None:
    def defect() -> None:
        raise ZeroDivisionError

    exchange.faults.call("partitions.check.before", defect)
    with pytest.raises(ZeroDivisionError):
        await exchange.health.check()
