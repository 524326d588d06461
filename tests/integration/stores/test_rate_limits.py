"""Requests per account and per token: counted by the script that is asked anyhow, exactly, whoever asks at once."""

from __future__ import annotations

import asyncio
from collections import Counter
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from margin.caller import Caller
from margin.domain.order import Order
from margin.domain.position import Side
from margin.errors import MarginError, RateLimitedError
from tests.actions import BTC, buy, deposit, mark
from tests.integration.stores.hot_state import hot_state
from tests.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import redis

    from margin.config import Settings
    from margin.runtime import Engine
    from tests.integration.conftest import MakeEngine

ALICE = Caller(subject="alice", source_ip="192.0.2.1")
BOB = Caller(subject="bob", source_ip="192.0.2.2")
# So slow that within a test nothing is given back.
SLOW = 1
HOUR_S = 3600


def order(account_id: int, quantity: str = "0.001") -> Order:
    return Order(account_id, BTC, Side.BUY, Decimal(quantity), Decimal(50000))


async def furnished(make_engine: MakeEngine, **limits: int) -> Engine:
    """An engine with two accounts and a market, made before anything is limited."""
    engine = await make_engine()
    for account_id in (1, 2):
        await deposit(engine, account_id, "100000")
    await mark(engine, "50000")
    return await make_engine(opened=False, **limits)


async def outcomes(calls: list[Awaitable[Any]]) -> Counter[str]:
    """How often each error came of calls at once; "" where none did."""
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(answer, MarginError) or not isinstance(answer, BaseException) for answer in answers), answers
    return Counter(type(answer).__name__ if isinstance(answer, MarginError) else "" for answer in answers)


def freeze(store: redis.Redis, name: str) -> None:
    """Let a limit be used up to the last request for an hour, whatever its rate."""
    store.set(f"rate:{name}", str((store.time()[0] + HOUR_S) * 1_000_000))


ASKED: dict[str, Callable[[Engine, Caller], Awaitable[Any]]] = {
    "trade": lambda engine, caller: engine.trading.trade(order(1), key=None, caller=caller),
    "deposit": lambda engine, caller: engine.funds.deposit(1, Decimal(1), key=None, caller=caller),
    "withdrawal": lambda engine, caller: engine.funds.withdraw(1, Decimal(1), key=None, caller=caller),
    "preview": lambda engine, caller: engine.previews.preview(order(1), caller),
    "positions": lambda engine, caller: engine.margin.account_margin(1, caller),
    "funding": lambda engine, caller: engine.funding_list.payments(1, caller=caller),
}


@pytest.mark.parametrize("asked", ASKED)
async def test_of_many_at_once_exactly_as_many_as_may_be_are_served(make_engine: MakeEngine, asked: str) -> None:
    engine = await furnished(make_engine, rate_limit_account_per_s=SLOW, rate_limit_account_burst=7)
    other = await make_engine(opened=False, rate_limit_account_per_s=SLOW, rate_limit_account_burst=7)
    calls = [ASKED[asked](one, ALICE) for one in (engine, other) for _ in range(12)]
    # One a second is given back, and that long it may take on a busy machine.
    started_s = asyncio.get_running_loop().time()
    counted = await outcomes(calls)
    given_back = int(asyncio.get_running_loop().time() - started_s) + 1
    assert sum(counted.values()) == 24
    assert set(counted) == {"", "RateLimitedError"}
    assert 7 <= counted[""] <= 7 + given_back


async def test_what_is_served_and_what_is_counted_are_the_same(make_engine: MakeEngine, store: redis.Redis) -> None:
    burst, left = 100_000, 5
    engine = await furnished(make_engine, rate_limit_account_per_s=1, rate_limit_account_burst=burst)
    other = await make_engine(opened=False, rate_limit_account_per_s=1, rate_limit_account_burst=burst)
    seconds, microseconds = store.time()
    due = (seconds + burst - left) * 1_000_000 + microseconds
    store.set("rate:reads:1", str(due))
    counted = await outcomes([ASKED["positions"](one, ALICE) for one in (engine, other) for _ in range(20)])
    elapsed_us = (store.time()[0] - seconds) * 1_000_000 + store.time()[1] - microseconds
    assert Decimal(store.get("rate:reads:1") or 0) - due == counted[""] * 1_000_000
    assert left <= counted[""] <= left + elapsed_us // 1_000_000


def all_limits(burst: int = HOUR_S) -> dict[str, int]:
    names = ("rate_limit_account", "rate_limit_token")
    return {f"{name}_per_s": SLOW for name in names} | {f"{name}_burst": burst for name in names}


async def test_account_and_token_are_limited_by_themselves(make_engine: MakeEngine, store: redis.Redis) -> None:
    engine = await furnished(make_engine, **all_limits())
    await engine.margin.account_margin(1, ALICE)
    (token,) = store.keys("rate:token:*")
    freeze(store, "reads:1")
    with pytest.raises(RateLimitedError, match=r"^The limit of reads of account 1 is 1 requests a second, and 3600 at"):
        await engine.margin.account_margin(1, ALICE)
    await engine.margin.account_margin(2, ALICE)
    freeze(store, token.removeprefix("rate:"))
    with pytest.raises(RateLimitedError, match=r"^The limit of this token is"):
        await engine.margin.account_margin(2, ALICE)
    await engine.margin.account_margin(2, BOB)
    await engine.margin.account_margin(2)


async def test_whoever_only_looks_keeps_nobody_from_trading(make_engine: MakeEngine, store: redis.Redis) -> None:
    engine = await furnished(make_engine, **all_limits())
    freeze(store, "reads:1")
    assert (await engine.trading.trade(order(1), key=None, caller=ALICE)).final
    freeze(store, "account:1")
    with pytest.raises(RateLimitedError, match=r"^The limit of changes of account 1 is"):
        await engine.trading.trade(order(1), key=None, caller=ALICE)
    store.delete("rate:reads:1")
    await engine.margin.account_margin(1, ALICE)


async def test_a_refused_request_is_not_counted_and_writes_nothing(make_engine: MakeEngine, store: redis.Redis) -> None:
    engine = await furnished(make_engine, **all_limits())
    freeze(store, "account:1")
    freeze(store, "reads:1")
    counted = await outcomes([ASKED[asked](engine, ALICE) for asked in ASKED])
    before = hot_state(store)
    counted += await outcomes([ASKED[asked](engine, ALICE) for asked in ASKED for _ in range(3)])
    assert counted == {"RateLimitedError": 4 * len(ASKED)}
    assert hot_state(store) == before


async def test_a_clock_that_was_put_back_keeps_nobody_out(make_engine: MakeEngine, store: redis.Redis) -> None:
    engine = await furnished(make_engine, rate_limit_account_per_s=50, rate_limit_account_burst=10)
    freeze(store, "reads:1")
    with pytest.raises(RateLimitedError) as refused:
        await engine.margin.account_margin(1, ALICE)
    assert refused.value.retry_after_s == 1
    await until_served(engine)
    assert 0 < store.pttl("rate:reads:1") <= 10 * 1000 / 50 + 1001


async def until_served(engine: Engine) -> None:
    """Ask until the answer comes; more than the burst is never owed, so it does."""
    for _ in range(10_000):
        try:
            await engine.margin.account_margin(1, ALICE)
        except RateLimitedError:
            continue
        return
    raise AssertionError("the caller stays out")


async def test_a_full_redis_answers_reads_all_the_same(make_engine: MakeEngine, store: redis.Redis) -> None:
    engine = await furnished(make_engine, **all_limits())
    store.config_set("maxmemory", 1)
    try:
        assert (await engine.margin.account_margin(1, ALICE)).account.balance == 100_000
    finally:
        store.config_set("maxmemory", 0)
    assert store.keys("rate:reads:*") == []


async def test_a_slow_limit_says_how_long_its_pause_is(make_engine: MakeEngine, store: redis.Redis) -> None:
    engine = await furnished(make_engine, rate_limit_account_per_s=1, rate_limit_account_burst=1)
    await engine.margin.account_margin(1, ALICE)
    with pytest.raises(RateLimitedError) as refused:
        await engine.margin.account_margin(1, ALICE)
    assert refused.value.retry_after_s == 1
    assert 0 < store.pttl("rate:reads:1") <= 1001


async def test_a_limit_costs_no_round_trip(make_engine: MakeEngine, settings: Settings) -> None:
    await furnished(make_engine)
    async with Proxy(settings.redis_host, settings.redis_port) as proxy:
        limits = {"rate_limit_account_per_s": 100, "rate_limit_account_burst": 100}
        limits |= {"rate_limit_token_per_s": 100, "rate_limit_token_burst": 100, "idempotency_keys_max": 100}
        engine = await make_engine(opened=False, redis_port=proxy.port, **limits)
        await engine.trading.trade(order(1), key="warm", caller=ALICE)
        before = proxy.round_trips
        await engine.trading.trade(order(1), key="mine", caller=ALICE)
        assert proxy.round_trips - before == 3


async def test_the_engine_itself_is_never_limited(make_engine: MakeEngine, store: redis.Redis) -> None:
    engine = await furnished(
        make_engine,
        rate_limit_account_per_s=SLOW,
        rate_limit_account_burst=HOUR_S,
        rate_limit_token_per_s=SLOW,
        rate_limit_token_burst=HOUR_S,
        idempotency_keys_max=1,
    )
    await buy(await make_engine(opened=False), 1, "9", "50000")
    freeze(store, "account:1")
    assert (await mark(engine, "38000")).liquidated == (1,)


async def test_mark_prices_are_limited_by_their_token_alone(make_engine: MakeEngine, store: redis.Redis) -> None:
    engine = await furnished(make_engine, rate_limit_token_per_s=SLOW, rate_limit_token_burst=HOUR_S, partitions=1)
    await engine.marks.set_marks({BTC: Decimal(50001)}, caller=ALICE)
    (token,) = store.keys("rate:*")
    freeze(store, token.removeprefix("rate:"))
    with pytest.raises(RateLimitedError):
        await engine.marks.set_marks({BTC: Decimal(50002)}, caller=ALICE)
    assert store.hget("mark_prices", BTC) == "50001"
    await engine.marks.set_marks({BTC: Decimal(50003)}, caller=BOB)


async def test_a_token_is_limited_in_each_partition_by_itself(make_engine: MakeEngine, store: redis.Redis) -> None:
    engine = await make_engine(partitions=2, rate_limit_token_per_s=SLOW, rate_limit_token_burst=1)
    assert (await engine.funds.deposit(1, Decimal(1), key=None, caller=ALICE)).final
    assert (await engine.funds.deposit(2, Decimal(1), key=None, caller=ALICE)).final
    assert {name.partition(":")[0] for name in store.keys("*:rate:token:*")} == {"{p0}", "{p1}"}


# --- idempotency keys ---


def buys(engine: Engine, *keys: str | None) -> list[Awaitable[Any]]:
    return [engine.trading.trade(order(1), key=key, caller=ALICE) for key in keys]


async def test_an_account_has_no_more_keys_in_a_window_than_it_may(make_engine: MakeEngine, store: redis.Redis) -> None:
    engine = await furnished(make_engine, idempotency_keys_max=5)
    assert await outcomes(buys(engine, *(f"key-{n}" for n in range(9)))) == {"": 5, "RateLimitedError": 4}
    assert len(store.keys("idempotency:1:key-*")) == 5
    assert store.hget("position:1:BTC-PERP", "quantity") == "0.005"


async def test_keys_that_the_engine_makes_count_by_themselves(make_engine: MakeEngine, store: redis.Redis) -> None:
    engine = await furnished(make_engine, idempotency_keys_max=2)
    assert await outcomes(buys(engine, None, None, None)) == {"": 2, "RateLimitedError": 1}
    assert await outcomes(buys(engine, "mine")) == {"": 1}
    assert {name.rpartition(":")[2] for name in store.keys("idempotency_counts:1:*")} == {"3600000", "86400000"}


async def test_a_retry_uses_no_further_key_and_another_account_has_its_own(make_engine: MakeEngine) -> None:
    engine = await furnished(make_engine, idempotency_keys_max=1)
    for _ in range(3):
        (traded,) = await asyncio.gather(*buys(engine, "mine"))
        assert traded.final
    with pytest.raises(RateLimitedError, match="has 1 idempotency keys that are remembered still") as refused:
        await asyncio.gather(*buys(engine, "more"))
    assert 86_400 <= refused.value.retry_after_s <= 86_400 * 17 / 16
    assert (await engine.trading.trade(order(2), key="mine", caller=ALICE)).final


async def test_who_has_no_key_left_can_still_add_money_and_reduce(make_engine: MakeEngine) -> None:
    engine = await furnished(make_engine, idempotency_keys_max=1)
    await asyncio.gather(*buys(engine, "mine"))
    half = Order(1, BTC, Side.SELL, Decimal("0.0005"), Decimal(50000))
    assert (await engine.funds.deposit(1, Decimal(1), key="deposit", caller=ALICE)).final
    assert (await engine.trading.trade(half, key="reduction", caller=ALICE)).final
    flip = Order(1, BTC, Side.SELL, Decimal("0.0009"), Decimal(50000))
    with pytest.raises(RateLimitedError):
        await engine.trading.trade(flip, key="flip", caller=ALICE)
    with pytest.raises(RateLimitedError):
        await engine.funds.withdraw(1, Decimal(1), key="withdrawal", caller=ALICE)


async def test_keys_count_until_they_are_forgotten(make_engine: MakeEngine, store: redis.Redis) -> None:
    engine = await furnished(make_engine, idempotency_keys_max=2, idempotency_ttl_s=1600)
    now, name = store.time()[0] // 100, "idempotency_counts:1:1600000"
    store.hset(name, mapping={str(now - 17): "1", str(now - 16): "1", str(now + 1): "7"})
    assert await outcomes(buys(engine, "second")) == {"": 1}
    with pytest.raises(RateLimitedError) as refused:
        await asyncio.gather(*buys(engine, "third"))
    assert 1 <= refused.value.retry_after_s <= 100
    assert sum(map(int, store.hgetall(name).values())) == 2
    assert 1600 <= store.ttl(name) <= 1700
