"""The function `rebuild`: what it takes, what it answers, and that it stops in time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest

import rebuild_handler
from margin import runtime, time_budget
from margin.errors import InvalidRequestError, RedisUnavailableError, StateNotLoadedError
from rebuild_handler import RebuildError, Target
from tests.actions import deposit
from tests.fakes import Exchange

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def exchange() -> AsyncIterator[Exchange]:
    """Yield an exchange of two partitions with three accounts; it is the engine of this process."""
    exchange = await Exchange(partitions=2).open()
    for account_id in (1, 2, 3):
        await deposit(exchange, account_id, "10", key="k")
    runtime.use(cast("Any", exchange))
    yield exchange
    runtime.use(None)


@pytest.mark.parametrize(
    ("payload", "target"),
    [
        ({"account_id": 42}, Target(account_id=42)),
        ({"account_id": 2**63 - 1}, Target(account_id=2**63 - 1)),
        ({"partition": 0}, Target(partition=0)),
        ({"all": True}, Target()),
    ],
)
def test_payload_says_what_is_rebuilt(payload: dict[str, Any], target: Target) -> None:
    assert Target.of(payload) == target


@pytest.mark.parametrize(
    "payload",
    [
        *({}, [], None, "all", 42),
        *({"account_id": value} for value in (0, -1, 2**63, "42", 4.2, True, None, [42])),
        *({"partition": value} for value in (-1, "3", True, None)),
        *({"all": value} for value in (False, 1, "true", None)),
        *({"account_id": 42, "partition": 3}, {"all": True, "partition": 3}, {"account": 42}),
    ],
)
def test_payload_that_does_not_say_one_thing_is_refused(payload: object) -> None:
    with pytest.raises(InvalidRequestError, match="Give one of"):
        Target.of(payload)


async def test_account_is_rebuilt(exchange: Exchange) -> None:
    exchange.redis.accounts[1].chain_hash = "another"
    answer = await rebuild_handler.rebuild({"account_id": 1})
    assert answer == {
        "rebuilt": {"account_id": 1, "version": exchange.redis.accounts[1].version},
        "accounts": 1,
        "loaded": 1,
        "dropped": 0,
        "kept": 0,
        "complete": True,
    }
    assert exchange.redis.accounts[1].chain_hash == exchange.history_store.state_of(1).chain_hash


async def test_partition_is_rebuilt(exchange: Exchange) -> None:
    answer = await rebuild_handler.rebuild({"partition": 1})
    assert answer == {
        "rebuilt": {"partitions": [1]},
        "accounts": 2,
        "loaded": 2,
        "dropped": 0,
        "kept": 0,
        "drained": 0,
        "complete": True,
    }


async def test_everything_is_rebuilt(exchange: Exchange) -> None:
    answer = await rebuild_handler.rebuild({"all": True})
    assert (answer["rebuilt"], answer["loaded"], answer["complete"]) == ({"partitions": [0, 1]}, 3, True)


async def test_rebuild_without_time_breaks_off_and_says_that_the_same_call_goes_on(exchange: Exchange) -> None:
    time_budget.start(rebuild_handler.RESERVE_S - 1)
    answer = await rebuild_handler.rebuild({"all": True})
    assert (answer["complete"], answer["rebuilt"]) == (False, {"partitions": []})
    assert "the same call goes on" in answer["next"]
    with pytest.raises(StateNotLoadedError):
        await deposit(exchange, 1, "1")
    time_budget.start(rebuild_handler.RESERVE_S + 60)
    answer = await rebuild_handler.rebuild({"all": True})
    assert (answer["complete"], answer["loaded"]) == (True, 3)
    assert "next" not in answer


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ({"account": 42}, "INVALID_REQUEST: Give one of"),
        ({"partition": 2}, "INVALID_REQUEST: partition: must be from 0 to 1"),
        ({"account_id": 42}, "UNKNOWN_ACCOUNT: Account 42 does not exist"),
    ],
)
async def test_failure_begins_with_its_code(exchange: Exchange, payload: dict[str, Any], message: str) -> None:
    with pytest.raises(RebuildError, match=message):
        await rebuild_handler.rebuild(payload)


async def test_store_that_is_down_and_another_opener_are_said_to_be_that(exchange: Exchange) -> None:
    exchange.faults.take_down("partitions", RedisUnavailableError("Redis is down."))
    with pytest.raises(RebuildError, match="REDIS_UNAVAILABLE: Redis is down"):
        await rebuild_handler.rebuild({"all": True})
    exchange.faults.bring_up("partitions")
    exchange.history_store.opening = True
    with pytest.raises(RebuildError, match="STATE_NOT_LOADED: Another process is opening"):
        await rebuild_handler.rebuild({"all": True})
