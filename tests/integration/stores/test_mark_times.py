"""Several mark prices in one step, and the times they say they are from: what is refused, and that it is everywhere."""

from __future__ import annotations

import asyncio
import json
import random
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from margin.domain.mark_time import AHEAD_MAX_US
from margin.domain.market import Mark
from margin.errors import (
    FutureTimestampError,
    MarginError,
    OlderMarkPriceError,
    OutcomeUnknownError,
    StaleMarkPriceError,
)
from margin.services.liquidation import Verdict
from tests.actions import BTC, ETH, buy, deposit, mark, sell
from tests.fakes import Exchange
from tests.integration.stores.hot_state import hot_state
from tests.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Callable

    import redis

    from margin.config import Settings
    from margin.runtime import Engine
    from margin.services.marks import MarkOutcome
    from tests.actions import Services
    from tests.integration.conftest import MakeEngine

    Query = Callable[..., list[tuple[Any, ...]]]

NOON = datetime(2023, 1, 31, 12, tzinfo=UTC)
_EPOCH = datetime.fromtimestamp(0, UTC)
SOL = "SOL-PERP"
PARTITIONS = [1, 3]


def at(seconds: float) -> int:
    """Microseconds since the epoch, so many seconds after noon."""
    return (NOON + timedelta(seconds=seconds) - _EPOCH) // timedelta(microseconds=1)


async def post(services: Services, prices: dict[str, str], **seconds: float) -> MarkOutcome:
    """Set marks; by the first three letters of a symbol, how many seconds after noon its price is from."""
    observed_us = {symbol: at(seconds[symbol[:3]]) for symbol in prices if symbol[:3] in seconds}
    return await services.marks.set_marks(
        {symbol: Decimal(price) for symbol, price in prices.items()}, observed_us=observed_us
    )


def now_us(store: redis.Redis) -> int:
    seconds, microseconds = store.time()
    return int(seconds) * 1_000_000 + int(microseconds)


def limit_age(store: redis.Redis) -> None:
    """Let marks of BTC count for a minute."""
    tier = {"notional_cap": None, "initial_rate": "0.20", "maintenance_rate": "0.10"}
    terms = {"symbol": BTC, "tiers": [tier], "taker_fee": "0", "price_band": "0.20", "lot_size": "0.00000001"}
    store.hset("instruments", BTC, json.dumps({**terms, "mark_max_age_s": 60, "version": 1}))


def everywhere(store: redis.Redis, name: str, partitions: int) -> list[dict[str, str]]:
    """Return a hash of each partition."""
    return [store.hgetall(name if partitions == 1 else f"{{p{number}}}:{name}") for number in range(partitions)]


def time_of(store: redis.Redis, symbol: str, prefix: str = "") -> int:
    """Return when the mark of a symbol was observed, which stands beside the stamp of that mark."""
    stamp, time = store.hget(f"{prefix}mark_times", symbol).split(":")
    assert stamp == store.hget(f"{prefix}mark_stamps", symbol)
    return int(time)


def times_everywhere(store: redis.Redis, partitions: int) -> list[dict[str, int]]:
    """Return when the marks of each partition were observed."""
    prefixes = [""] if partitions == 1 else [f"{{p{number}}}:" for number in range(partitions)]
    names = {prefix: store.hkeys(f"{prefix}mark_times") for prefix in prefixes}
    return [{symbol: time_of(store, symbol, prefix) for symbol in names[prefix]} for prefix in prefixes]


def keep_time(store: redis.Redis, time_us: int, prefix: str = "") -> None:
    """Let the mark of BTC, as it is, have been observed at another time."""
    store.hset(f"{prefix}mark_times", BTC, f"{store.hget(f'{prefix}mark_stamps', BTC)}:{time_us}")


def set_by_a_release_without_times(store: redis.Redis, price: str, prefix: str = "") -> int:
    """Store a price of BTC as releases did that keep no times; its stamp."""
    stamp = now_us(store)
    store.hset(f"{prefix}mark_prices", BTC, price)
    store.hset(f"{prefix}mark_stamps", BTC, stamp)
    return stamp


# --- what is refused ---


@pytest.mark.parametrize("partitions", PARTITIONS)
async def test_price_that_is_older_than_the_stored_one_is_refused_and_stored_nowhere(
    make_engine: MakeEngine, store: redis.Redis, partitions: int
) -> None:
    engine = await make_engine(partitions=partitions)
    await post(engine, {BTC: "50000"}, BTC=0)
    before = hot_state(store)
    with pytest.raises(OlderMarkPriceError) as refused:
        await post(engine, {BTC: "49000"}, BTC=-0.000001)
    assert refused.value.detail == (
        "BTC-PERP of 2023-01-31T11:59:59.999999Z is older than the stored price of 2023-01-31T12:00:00.000000Z. "
        "No price of this call was stored."
    )
    assert hot_state(store) == before
    assert times_everywhere(store, partitions) == [{BTC: at(0)}] * partitions


@pytest.mark.parametrize("partitions", PARTITIONS)
async def test_one_older_price_refuses_the_whole_call_and_all_older_ones_are_named(
    make_engine: MakeEngine, store: redis.Redis, partitions: int
) -> None:
    engine = await make_engine(partitions=partitions)
    await post(engine, {BTC: "50000", ETH: "2000", SOL: "100"}, BTC=0, ETH=1, SOL=2)
    before = hot_state(store)
    with pytest.raises(OlderMarkPriceError) as refused:
        await post(engine, {BTC: "51000", ETH: "2100", SOL: "110", "NEW": "1"}, BTC=5, ETH=0, SOL=-1)
    assert "ETH-PERP of 2023-01-31T12:00:00.000000Z is older" in refused.value.detail
    assert "SOL-PERP of 2023-01-31T11:59:59.000000Z is older" in refused.value.detail
    assert "BTC" not in refused.value.detail
    assert hot_state(store) == before


async def test_equal_time_is_the_same_price_again_or_corrected_and_the_last_stands(
    engine: Engine, store: redis.Redis
) -> None:
    stamps = []
    for price in ("50000", "50000", "50001", "49999"):
        await post(engine, {BTC: price}, BTC=0)
        assert (store.hget("mark_prices", BTC), time_of(store, BTC)) == (price, at(0))
        stamps.append(int(store.hget("mark_stamps", BTC)))
    assert stamps == sorted(set(stamps))


async def test_price_without_a_time_is_of_now_and_never_refused(engine: Engine, store: redis.Redis) -> None:
    early = now_us(store)
    await post(engine, {BTC: "50000"})
    time = time_of(store, BTC)
    assert early <= time <= now_us(store)
    assert time == int(store.hget("mark_stamps", BTC))
    with pytest.raises(OlderMarkPriceError):
        await engine.marks.set_marks({BTC: Decimal(1)}, observed_us={BTC: time - 1})
    # A sender's clock that is ahead keeps nobody out who does not say when.
    await engine.marks.set_marks({BTC: Decimal(50001)}, observed_us={BTC: now_us(store) + AHEAD_MAX_US // 2})
    await post(engine, {BTC: "50002"})
    assert store.hget("mark_prices", BTC) == "50002"
    assert time < time_of(store, BTC) <= now_us(store)


async def test_price_from_the_future_is_refused_with_all_of_its_call_and_a_clock_a_little_ahead_is_not(
    engine: Engine, store: redis.Redis
) -> None:
    await post(engine, {ETH: "2000"}, ETH=0)
    before = hot_state(store)
    ahead = now_us(store) + AHEAD_MAX_US + 60_000_000
    with pytest.raises(FutureTimestampError, match="may be at most 10 s ahead") as refused:
        # That another of them is older does not hide it.
        await engine.marks.set_marks({ETH: Decimal(1900), BTC: Decimal(50000)}, observed_us={ETH: at(-1), BTC: ahead})
    assert (refused.value.symbol, refused.value.field) == (BTC, "timestamp")
    assert hot_state(store) == before
    soon = now_us(store) + AHEAD_MAX_US // 2
    await engine.marks.set_marks({BTC: Decimal(50000)}, observed_us={BTC: soon})
    assert time_of(store, BTC) == soon


async def test_stored_time_of_a_clock_that_was_put_back_locks_nobody_out(engine: Engine, store: redis.Redis) -> None:
    await mark(engine, "50000")
    tomorrow = str(now_us(store) + 86_400_000_000)
    store.hset("mark_stamps", BTC, tomorrow)
    keep_time(store, int(tomorrow))
    said = now_us(store)
    await engine.marks.set_marks({BTC: Decimal(51000)}, observed_us={BTC: said})
    assert (store.hget("mark_prices", BTC), time_of(store, BTC)) == ("51000", said)
    with pytest.raises(OlderMarkPriceError):
        await engine.marks.set_marks({BTC: Decimal(1)}, observed_us={BTC: said - 1})


async def test_mark_of_a_release_that_kept_no_times_is_of_its_stamp(engine: Engine, store: redis.Redis) -> None:
    await mark(engine, "50000")
    store.delete("mark_times")
    stamp = int(store.hget("mark_stamps", BTC))
    assert (await engine.market.market()).marks[BTC].as_of_us == stamp
    with pytest.raises(OlderMarkPriceError):
        await engine.marks.set_marks({BTC: Decimal(1)}, observed_us={BTC: stamp - 1})
    await engine.marks.set_marks({BTC: Decimal(51000)}, observed_us={BTC: stamp})
    assert time_of(store, BTC) == stamp


@pytest.mark.parametrize("said_s", [-3600, 9])
async def test_price_of_a_release_that_keeps_no_times_is_of_its_stamp_and_not_of_the_time_before(
    engine: Engine, store: redis.Redis, said_s: int
) -> None:
    limit_age(store)
    await engine.marks.set_marks({BTC: Decimal(50000)}, observed_us={BTC: now_us(store) + said_s * 1_000_000})
    stamp = set_by_a_release_without_times(store, "50001")
    assert (await engine.market.market()).marks[BTC] == Mark(Decimal(50001), stamp, None)
    await deposit(engine, 1, "14000")
    assert (await buy(engine, 1, "1", "50000")).final
    for market in ((await engine.accounts.read(1)).market, (await engine.accounts.sweep(0, "0")).market):
        assert market.marks[BTC] == Mark(Decimal(50001), stamp, None)
    assert (await engine.scans.scan()).oldest_mark_age_s < 60
    # What it said is compared with nothing any more, the price in force is.
    with pytest.raises(OlderMarkPriceError):
        await engine.marks.set_marks({BTC: Decimal(1)}, observed_us={BTC: stamp - 1})
    stamp = set_by_a_release_without_times(store, "38000")
    assert await engine.liquidations.evaluate(1) is Verdict.LIQUIDATED
    await engine.marks.set_marks({BTC: Decimal(39000)}, observed_us={BTC: stamp})
    assert time_of(store, BTC) == stamp


async def test_partitions_are_brought_up_to_a_price_of_a_release_that_keeps_no_times(
    make_engine: MakeEngine, store: redis.Redis
) -> None:
    engine = await make_engine(partitions=3)
    await post(engine, {BTC: "50000"}, BTC=0)
    stamp = set_by_a_release_without_times(store, "51000", "{p0}:")
    await engine.scans.scan()
    assert everywhere(store, "mark_prices", 3) == [{BTC: "51000"}] * 3
    assert [store.hget(f"{{p{number}}}:mark_times", BTC) for number in (1, 2)] == [f"{stamp}:{stamp}"] * 2


async def test_time_that_stands_beside_no_stamp_says_nothing(engine: Engine, store: redis.Redis) -> None:
    await mark(engine, "50000")
    for text in ("1738324800000000", ":1738324800000000", "0:1738324800000000", ""):
        store.hset("mark_times", BTC, text)
        assert (await engine.market.market()).marks[BTC].observed_us is None
        assert (await engine.scans.scan()).oldest_mark_age_s < 600


async def test_other_partitions_take_what_partition_0_accepted_whatever_time_they_have(
    make_engine: MakeEngine, store: redis.Redis
) -> None:
    engine = await make_engine(partitions=3)
    await post(engine, {BTC: "50000"}, BTC=0)
    keep_time(store, at(100), "{p1}:")
    await post(engine, {BTC: "51000"}, BTC=1)
    assert everywhere(store, "mark_prices", 3) == [{BTC: "51000"}] * 3
    assert times_everywhere(store, 3) == [{BTC: at(1)}] * 3


# --- one step ---


@pytest.mark.parametrize("partitions", PARTITIONS)
async def test_hedged_account_is_liquidated_between_two_calls_and_not_by_one(
    make_engine: MakeEngine, query: Query, partitions: int
) -> None:
    engine = await make_engine(partitions=partitions)
    await post(engine, {BTC: "50000", ETH: "50000"}, BTC=0, ETH=0)
    for account_id in range(1, 4):
        await deposit(engine, account_id, "24000")
        await buy(engine, account_id, "1", "50000")
        await sell(engine, account_id, "1", "50000", symbol=ETH)
    together = await post(engine, {ETH: "90000", BTC: "90000"}, BTC=1, ETH=1)
    assert together.liquidated == ()
    assert query("select count(*) from liquidations") == [(0,)]
    assert (together.at_risk, together.at_risk_by_symbol) == (3, {ETH: 3, BTC: 0})
    await post(engine, {ETH: "50000", BTC: "50000"}, BTC=2, ETH=2)
    assert sorted((await post(engine, {ETH: "90000"}, ETH=3)).liquidated) == [1, 2, 3]
    await post(engine, {BTC: "90000"}, BTC=3)
    assert sorted(query("select distinct account_id from liquidations")) == [(1,), (2,), (3,)]


async def test_refused_call_brings_nobody_to_evaluation(engine: Engine, query: Query) -> None:
    await post(engine, {BTC: "50000", ETH: "2000"}, BTC=0, ETH=0)
    await deposit(engine, 1, "14000")
    await buy(engine, 1, "1", "50000")
    with pytest.raises(OlderMarkPriceError):
        await post(engine, {BTC: "30000", ETH: "2000"}, BTC=1, ETH=-1)
    assert (await engine.scans.scan()).crossed == 0
    assert query("select count(*) from liquidations") == [(0,)]
    assert (await engine.margin.account_margin(1)).account.positions[BTC].quantity == 1


@pytest.mark.parametrize("partitions", PARTITIONS)
async def test_account_crossed_by_two_symbols_is_counted_once_where_it_is_named(
    make_engine: MakeEngine, partitions: int
) -> None:
    engine = await make_engine(partitions=partitions)
    await post(engine, {BTC: "50000", ETH: "50000"}, BTC=0, ETH=0)
    for account_id in range(1, 7):
        await deposit(engine, account_id, "20000")
        await buy(engine, account_id, "1", "50000")
        await buy(engine, account_id, "1", "50000", symbol=ETH)
    outcome = await post(engine, {BTC: "40000", ETH: "40000"}, BTC=1, ETH=1)
    assert (outcome.at_risk, outcome.at_risk_by_symbol) == (6, {BTC: 6, ETH: 6})
    assert sorted(outcome.liquidated) == [1, 2, 3, 4, 5, 6]


async def test_beyond_those_named_the_total_is_the_most_that_there_can_be(make_engine: MakeEngine) -> None:
    engine = await make_engine(crossed_inline_max=0, crossed_queued_max=0)
    await post(engine, {BTC: "50000", ETH: "50000"}, BTC=0, ETH=0)
    for account_id in (1, 2):
        await deposit(engine, account_id, "20000")
        await buy(engine, account_id, "1", "50000")
        await buy(engine, account_id, "1", "50000", symbol=ETH)
    outcome = await post(engine, {BTC: "40000", ETH: "40000"}, BTC=1, ETH=1)
    assert (outcome.at_risk, outcome.at_risk_by_symbol, outcome.liquidated) == (4, {BTC: 2, ETH: 2}, ())


async def test_symbols_share_what_is_named_and_what_one_leaves_is_the_others(engine: Engine) -> None:
    symbols = {BTC: 6, ETH: 1, SOL: 4}
    await engine.marks.set_marks(dict.fromkeys(symbols, Decimal(50000)))
    account_id = 0
    for symbol, holders in symbols.items():
        for _ in range(holders):
            account_id += 1
            await deposit(engine, account_id, str(14000 - account_id))
            await buy(engine, account_id, "1", "50000", symbol=symbol)
    updates = await engine.market.set_marks(dict.fromkeys(symbols, Decimal(39000)), crossed_max=7)
    assert {update.symbol: update.crossed_count for update in updates} == symbols
    named = {update.symbol: update.crossed for update in updates}
    # One for ETH; of the six that are left three each, those that are furthest beyond.
    assert named == {BTC: (6, 5, 4), ETH: (7,), SOL: (11, 10, 9)}


@pytest.mark.parametrize("partitions", PARTITIONS)
async def test_call_is_one_script_for_each_partition_and_a_refusal_one_in_all(
    make_engine: MakeEngine, settings: Settings, store: redis.Redis, partitions: int
) -> None:
    async with Proxy(settings.redis_host, settings.redis_port) as proxy:
        engine = await make_engine(redis_port=proxy.port, partitions=partitions)
        await post(engine, {BTC: "50000", ETH: "2000"}, BTC=0, ETH=0)
        store.config_resetstat()
        before = proxy.round_trips
        await post(engine, {BTC: "51000", ETH: "2100"}, BTC=1, ETH=1)
        assert proxy.round_trips - before == partitions
        with pytest.raises(OlderMarkPriceError):
            await post(engine, {BTC: "52000", ETH: "2200"}, BTC=2, ETH=0)
        assert proxy.round_trips - before == partitions + 1
        statistics = store.info("commandstats")
        assert statistics["cmdstat_evalsha"]["calls"] == partitions + 1
        assert "cmdstat_eval" not in statistics


@pytest.mark.parametrize("partitions", PARTITIONS)
async def test_calls_at_once_leave_all_prices_of_one_of_them_in_every_partition(
    make_engine: MakeEngine, store: redis.Redis, partitions: int
) -> None:
    engine = await make_engine(partitions=partitions)
    others = await make_engine(partitions=partitions)
    order = list(range(40))
    random.Random(7).shuffle(order)  # noqa: S311 - a test's own sequence
    outcomes = await asyncio.gather(
        *(post((engine, others)[n % 2], {BTC: str(50000 + n), ETH: str(2000 + n)}, BTC=n, ETH=n) for n in order),
        return_exceptions=True,
    )
    refused = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    assert {type(error) for error in refused} <= {OlderMarkPriceError}
    assert everywhere(store, "mark_prices", partitions) == [{BTC: "50039", ETH: "2039"}] * partitions
    assert times_everywhere(store, partitions) == [{BTC: at(39), ETH: at(39)}] * partitions
    (stamps, *same) = everywhere(store, "mark_stamps", partitions)
    assert same == [stamps] * (partitions - 1)


async def test_two_senders_whose_calls_overlap_in_a_symbol_agree_everywhere(
    make_engine: MakeEngine, store: redis.Redis
) -> None:
    engine = await make_engine(partitions=3)
    calls = [post(engine, {BTC: str(50000 + n), ETH: str(2000 + n)}) for n in range(15)]
    calls += [post(engine, {ETH: str(3000 + n), SOL: str(100 + n)}) for n in range(15)]
    await asyncio.gather(*calls)
    for name in ("mark_prices", "mark_times", "mark_stamps"):
        (first, *others) = everywhere(store, name, 3)
        assert others == [first] * 2


# --- lost, late, restored ---


@pytest.mark.parametrize("partitions", PARTITIONS)
async def test_call_whose_reply_was_lost_is_accepted_again(
    make_engine: MakeEngine, settings: Settings, store: redis.Redis, partitions: int
) -> None:
    async with Proxy(settings.redis_host, settings.redis_port) as proxy:
        engine = await make_engine(redis_port=proxy.port, partitions=partitions)
        await post(engine, {BTC: "50000"}, BTC=0)
        proxy.lose_reply_to(b"51000")
        with pytest.raises(OutcomeUnknownError, match="may be stored all the same"):
            await post(engine, {BTC: "51000", ETH: "2000"}, BTC=1, ETH=1)
        assert proxy.lost == 1
        assert everywhere(store, "mark_prices", partitions)[0] == {BTC: "51000", ETH: "2000"}
        await post(engine, {BTC: "51000", ETH: "2000"}, BTC=1, ETH=1)
    assert everywhere(store, "mark_prices", partitions) == [{BTC: "51000", ETH: "2000"}] * partitions
    assert times_everywhere(store, partitions) == [{BTC: at(1), ETH: at(1)}] * partitions


async def test_call_that_died_between_partitions_is_brought_up_with_its_times_by_the_scan(
    make_engine: MakeEngine, settings: Settings, store: redis.Redis
) -> None:
    async with Proxy(settings.redis_host, settings.redis_port) as proxy:
        engine = await make_engine(redis_port=proxy.port, partitions=3)
        await post(engine, {BTC: "50000", ETH: "2000"}, BTC=0, ETH=0)
        proxy.lose_request(b"{p1}:marker")
        with pytest.raises(OutcomeUnknownError):
            await post(engine, {BTC: "51000", ETH: "2100"}, BTC=1, ETH=1)
        prices = {BTC: "51000", ETH: "2100"}
        assert everywhere(store, "mark_prices", 3) == [prices, {BTC: "50000", ETH: "2000"}, {BTC: "50000", ETH: "2000"}]
        await engine.scans.scan()
    assert everywhere(store, "mark_prices", 3) == [prices] * 3
    assert times_everywhere(store, 3) == [{BTC: at(1), ETH: at(1)}] * 3


async def test_marks_of_an_emptied_redis_refuse_what_is_older_than_their_arrival_and_take_what_is_newer(
    make_engine: MakeEngine, store: redis.Redis
) -> None:
    engine = await make_engine(partitions=3)
    await mark(engine, "50000")
    kept = int(store.hget("{p0}:mark_stamps", BTC))
    await engine.mark_records.save()
    store.flushall()
    await engine.opening.open()
    assert everywhere(store, "mark_stamps", 3) == [{BTC: "0"}] * 3
    assert times_everywhere(store, 3) == [{BTC: kept}] * 3
    assert (await engine.market.market()).is_stale(BTC)
    with pytest.raises(OlderMarkPriceError):
        await engine.marks.set_marks({BTC: Decimal(30000)}, observed_us={BTC: kept - 1})
    await engine.marks.set_marks({BTC: Decimal(51000)}, observed_us={BTC: kept + 1})
    assert everywhere(store, "mark_prices", 3) == [{BTC: "51000"}] * 3
    assert not (await engine.market.market()).is_stale(BTC)


async def test_partition_that_alone_was_restored_takes_the_time_of_the_next_price(
    make_engine: MakeEngine, store: redis.Redis
) -> None:
    engine = await make_engine(partitions=3)
    await post(engine, {BTC: "50000"}, BTC=0)
    await engine.mark_records.save()
    store.delete(*store.scan_iter("{p1}:*"))
    await engine.opening.open()
    assert store.hget("{p1}:mark_stamps", BTC) == "0"
    await post(engine, {BTC: "51000"}, BTC=1)
    assert times_everywhere(store, 3) == [{BTC: at(1)}] * 3


async def test_marks_that_are_forgotten_leave_no_time_behind(make_engine: MakeEngine, store: redis.Redis) -> None:
    engine = await make_engine(partitions=3)
    await post(engine, {BTC: "50000"}, BTC=0)
    await engine.market.forget_marks(1)
    assert [bool(times) for times in everywhere(store, "mark_times", 3)] == [True, False, True]


# --- how old a mark is ---


async def test_age_of_a_mark_counts_from_the_time_it_says_and_not_from_its_arrival(
    engine: Engine, store: redis.Redis
) -> None:
    limit_age(store)
    await deposit(engine, 1, "100000")
    ten_minutes_ago = now_us(store) - 600_000_000
    await engine.marks.set_marks({BTC: Decimal(50000)}, observed_us={BTC: ten_minutes_ago})
    with pytest.raises(StaleMarkPriceError):
        await buy(engine, 1, "0.1", "50000")
    # The same observation again is no younger.
    await engine.marks.set_marks({BTC: Decimal(50000)}, observed_us={BTC: ten_minutes_ago})
    with pytest.raises(StaleMarkPriceError):
        await buy(engine, 1, "0.1", "50000")
    await engine.marks.set_marks({BTC: Decimal(50000)}, observed_us={BTC: now_us(store)})
    assert (await buy(engine, 1, "0.1", "50000")).final


async def test_old_observation_is_worth_watching_for_the_scan_and_makes_no_account_look_safe(
    engine: Engine, store: redis.Redis
) -> None:
    await mark(engine, "50000")
    await deposit(engine, 1, "14000")
    await buy(engine, 1, "1", "50000")
    keep_time(store, now_us(store) - 600_000_000)
    assert 600 <= (await engine.scans.scan()).oldest_mark_age_s < 700
    limit_age(store)
    await deposit(engine, 1, "1")
    assert store.zscore("triggers:BTC-PERP:floor", "1") == float("inf")
    scan = await engine.scans.scan()
    assert (scan.crossed, scan.missed) == (1, [])


# --- the stores in memory judge alike ---


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("partitions", [1, 2])
async def test_fakes_and_redis_refuse_and_store_the_same(make_engine: MakeEngine, seed: int, partitions: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - a test's own sequence
    engine = await make_engine(partitions=partitions)
    exchange = await Exchange(partitions=partitions).open()
    expected: dict[str, tuple[str, int]] = {}
    answers = []
    for step in range(60):
        symbols = chance.sample([BTC, ETH, SOL], chance.randint(1, 3))
        prices = {symbol: str(chance.randint(1, 100_000)) for symbol in symbols}
        seconds = {symbol[:3]: step * 0.1 + chance.uniform(-1, 3) for symbol in symbols}
        answer = [await _answer(services, prices, seconds) for services in (engine, exchange)]
        assert answer[0] == answer[1], step
        answers.append(answer[0])
        accepted = all(at(seconds[symbol[:3]]) >= expected.get(symbol, ("", 0))[1] for symbol in symbols)
        assert (answer[0] == "stored") is accepted, step
        if accepted:
            expected |= {symbol: (prices[symbol], at(seconds[symbol[:3]])) for symbol in symbols}
        for market in (await engine.market.market(), await exchange.market.market()):
            assert {s: (str(m.price), m.observed_us) for s, m in market.marks.items()} == expected, step
    assert min(answers.count("stored"), len(answers) - answers.count("stored")) > 5


async def _answer(services: Services, prices: dict[str, str], seconds: dict[str, float]) -> str:
    try:
        await post(services, prices, **seconds)
    except MarginError as error:
        return error.detail
    return "stored"
