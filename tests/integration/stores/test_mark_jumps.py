"""Prices that move too far: set aside, confirmed, dropped; and where a price is from. In every partition alike."""

from __future__ import annotations

import asyncio
import json
import random
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import pytest

from margin.caller import NOBODY
from margin.domain.instrument import Instrument
from margin.domain.instrument_terms import terms_of
from margin.domain.mark_jump import MarkCandidate
from margin.domain.mark_time import AHEAD_MAX_US
from margin.errors import FutureTimestampError, OlderMarkPriceError, OutcomeUnknownError, StaleMarkPriceError
from margin.ports import SetAside
from tests.actions import BTC, ETH, buy, deposit, fund, sell, withdraw
from tests.fakes import Exchange
from tests.integration.stores.hot_state import hot_state
from tests.mark_oracle import MarkOracle, Message
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

PARTITIONS = [1, 3]
NOON = datetime(2023, 1, 31, 12, tzinfo=UTC)
SOL = "SOL-PERP"
TICK = Decimal("0.00000001")


def at(seconds: float) -> int:
    """Microseconds since the epoch, so many seconds after noon."""
    return (NOON + timedelta(seconds=seconds) - datetime.fromtimestamp(0, UTC)) // timedelta(microseconds=1)


def guard(store: redis.Redis, jump_max: str | None, symbol: str = BTC, partitions: int = 1, **terms: Any) -> None:
    """Let prices of a symbol move by so much at once."""
    instrument = Instrument(symbol, mark_jump_max=None if jump_max is None else Decimal(jump_max), version=1, **terms)
    for prefix in prefixes(partitions):
        store.hset(f"{prefix}instruments", symbol, json.dumps(terms_of(instrument)))
        if jump_max is None:
            store.hdel(f"{prefix}mark_jump_max", symbol)
        else:
            store.hset(f"{prefix}mark_jump_max", symbol, jump_max)


def prefixes(partitions: int) -> list[str]:
    return [""] if partitions == 1 else [f"{{p{number}}}:" for number in range(partitions)]


def everywhere(store: redis.Redis, name: str, partitions: int) -> list[dict[str, str]]:
    return [store.hgetall(f"{prefix}{name}") for prefix in prefixes(partitions)]


async def send(services: Services, price: Decimal | str, seconds: float | None = None, source: str = "") -> MarkOutcome:
    """Send a price of BTC that is from so many seconds after noon, or says nothing of that."""
    return await services.marks.set_marks(
        {BTC: Decimal(price)},
        observed_us={} if seconds is None else {BTC: at(seconds)},
        sources={BTC: source} if source else {},
    )


async def waiting(engine: Engine) -> dict[str, MarkCandidate]:
    _, candidates = await engine.market.market_and_candidates()
    return candidates


async def in_force(engine: Engine) -> str:
    return str((await engine.market.market()).marks[BTC].price)


# --- set aside ---


@pytest.mark.parametrize("partitions", PARTITIONS)
@pytest.mark.parametrize("price", ["55000.00000001", "44999.99999999", "1", "999999999999"])
async def test_price_beyond_the_bound_is_not_the_mark_anywhere(
    make_engine: MakeEngine, store: redis.Redis, partitions: int, price: str
) -> None:
    engine = await make_engine(partitions=partitions)
    guard(store, "0.1", partitions=partitions)
    await send(engine, "50000", 0, "index-1")
    before = hot_state(store)
    outcome = await send(engine, price, 1, "index-2")
    assert outcome.set_aside == {BTC: SetAside(Decimal(50000), Decimal("0.1"))}
    assert (outcome.at_risk, outcome.at_risk_by_symbol) == (0, {BTC: 0})
    assert await waiting(engine) == {BTC: MarkCandidate(Decimal(price), at(1), "index-2")}
    after = hot_state(store)
    stamp = store.hget(f"{prefixes(partitions)[0]}mark_stamps", BTC)
    waits = [after.pop(f"{prefix}mark_candidates") for prefix in prefixes(partitions)]
    assert waits == [{BTC: f"{stamp}:{waits[0][BTC].split(':')[1]}:{at(1)}:{price}:index-2"}] * partitions
    assert after == before


@pytest.mark.parametrize(
    ("mark", "bound", "price"),
    [
        ("50000", "0.1", "55000"),
        ("50000", "0.1", "45000"),
        ("100", "0.29", "129"),
        ("100", "0.29", "71"),
        ("0.1", "0.3", "0.13"),
        ("0.00000003", "0.33333334", "0.00000002"),
        ("999999999999", "0.00000001", "999999999998"),
        ("123456.78901234", "0.07", "132098.7642432"),
        ("1", "0.00000001", "1.00000001"),
        ("0.00000001", "1", "0.00000002"),
        ("3", "2.5", "0.00000001"),
        ("3", "2.5", "10.5"),
    ],
)
async def test_move_of_exactly_the_bound_or_just_below_it_is_the_mark_at_once(
    engine: Engine, store: redis.Redis, mark: str, bound: str, price: str
) -> None:
    assert abs(Decimal(price) - Decimal(mark)) <= Decimal(bound) * Decimal(mark)
    guard(store, bound)
    await send(engine, mark)
    assert (await send(engine, price)).set_aside == {}
    assert Decimal(await in_force(engine)) == Decimal(price)


@pytest.mark.parametrize("symbol_has_terms", [False, True])
async def test_without_a_bound_every_price_is_the_mark(
    engine: Engine, store: redis.Redis, symbol_has_terms: bool
) -> None:
    if symbol_has_terms:
        guard(store, None)
    await send(engine, "50000")
    assert (await send(engine, "1")).set_aside == {}
    assert (await send(engine, "999999999999")).set_aside == {}
    assert not store.exists("mark_candidates")


async def test_first_price_of_a_symbol_is_the_mark_whatever_it_is(engine: Engine, store: redis.Redis) -> None:
    guard(store, "0.00000001")
    assert (await send(engine, "50000")).set_aside == {}
    assert await in_force(engine) == "50000"


async def test_nobody_is_liquidated_or_warned_by_a_price_that_waits_and_all_are_by_the_one_that_confirms_it(
    engine: Engine, store: redis.Redis, query: Query
) -> None:
    guard(store, "0.05")
    await send(engine, "50000", 0)
    await deposit(engine, 1, "14000")
    await buy(engine, 1, "1", "50000")
    triggers = store.zrange("triggers:BTC-PERP:floor", 0, -1, withscores=True)
    assert (await send(engine, "39000", 1)).liquidated == ()
    scan = await engine.scans.scan()
    assert (scan.crossed, scan.missed, scan.liquidated) == (0, [], [])
    assert store.zrange("triggers:BTC-PERP:floor", 0, -1, withscores=True) == triggers
    assert query("select type from events where type not in ('DEPOSIT', 'TRADE')") == []
    outcome = await send(engine, "39100", 2)
    assert (outcome.at_risk, outcome.liquidated, outcome.set_aside) == (1, (1,), {})


# --- confirmed ---


@pytest.mark.parametrize("partitions", PARTITIONS)
async def test_second_later_price_within_the_bound_of_the_first_is_the_mark_everywhere(
    make_engine: MakeEngine, store: redis.Redis, partitions: int
) -> None:
    engine = await make_engine(partitions=partitions)
    guard(store, "0.1", partitions=partitions)
    await send(engine, "50000", 0, "index-1")
    await send(engine, "30000", 1, "index-1")
    assert (await send(engine, "31000", 1.000001, "index-2")).set_aside == {}
    assert everywhere(store, "mark_prices", partitions) == [{BTC: "31000"}] * partitions
    (stamps, *same) = everywhere(store, "mark_stamps", partitions)
    assert same == [stamps] * (partitions - 1)
    assert everywhere(store, "mark_times", partitions) == [{BTC: f"{stamps[BTC]}:{at(1.000001)}"}] * partitions
    assert everywhere(store, "mark_sources", partitions) == [{BTC: f"{stamps[BTC]}:index-2"}] * partitions
    assert everywhere(store, "mark_candidates", partitions) == [{}] * partitions


@pytest.mark.parametrize(("price", "is_mark"), [("33000", True), ("27000", True), ("26999.99999999", False)])
async def test_price_confirms_at_exactly_the_bound_of_the_one_that_waits(
    engine: Engine, store: redis.Redis, price: str, is_mark: bool
) -> None:
    guard(store, "0.1")
    await send(engine, "50000", 0)
    await send(engine, "30000", 1)
    assert (await send(engine, price, 2)).set_aside.keys() == (set() if is_mark else {BTC})
    assert await in_force(engine) == (price if is_mark else "30000")
    assert {symbol: str(found.price) for symbol, found in (await waiting(engine)).items()} == (
        {} if is_mark else {BTC: price}
    )


async def test_very_same_message_sent_again_does_not_confirm_itself(engine: Engine, store: redis.Redis) -> None:
    guard(store, "0.1")
    await send(engine, "50000", 0)
    for _ in range(3):
        assert (await send(engine, "30000", 1)).set_aside.keys() == {BTC}
    assert await in_force(engine) == "50000"
    # It is worth as much as before: the next one confirms it.
    assert (await send(engine, "30000", 2)).set_aside == {}


async def test_reply_that_was_lost_and_asked_for_again_confirms_nothing(
    make_engine: MakeEngine, settings: Settings, store: redis.Redis
) -> None:
    async with Proxy(settings.redis_host, settings.redis_port) as proxy:
        engine = await make_engine(redis_port=proxy.port)
        guard(store, "0.1")
        await send(engine, "50000", 0)
        proxy.lose_reply_to(b"30000")
        with pytest.raises(OutcomeUnknownError):
            await send(engine, "30000", 1)
        assert proxy.lost == 1
        assert (await send(engine, "30000", 1)).set_aside.keys() == {BTC}
        assert await in_force(engine) == "50000"


async def test_prices_that_say_no_time_confirm_each_other_by_their_arrival(engine: Engine, store: redis.Redis) -> None:
    guard(store, "0.1")
    await send(engine, "50000")
    assert (await send(engine, "30000")).set_aside.keys() == {BTC}
    assert (await send(engine, "30000.01")).set_aside == {}
    assert await in_force(engine) == "30000.01"


@pytest.mark.parametrize("source", ["", "index-1"])
async def test_same_price_without_a_time_counts_once_within_a_second(
    engine: Engine, store: redis.Redis, source: str
) -> None:
    guard(store, "0.1")
    await send(engine, "50000")
    answers = await asyncio.gather(*(send(engine, "30000", source=source) for _ in range(5)))
    assert [answer.set_aside.keys() for answer in answers] == [{BTC}] * 5
    assert await in_force(engine) == "50000"
    # As if it had come a second before.
    stamp, came, time, price, _ = store.hget("mark_candidates", BTC).split(":")
    earlier = [str(int(moment) - 1_000_000) for moment in (came, time)]
    store.hset("mark_candidates", BTC, ":".join([stamp, *earlier, price, source]))
    assert (await send(engine, "30000", source=source)).set_aside == {}


async def test_same_price_of_another_source_confirms_at_once(engine: Engine, store: redis.Redis) -> None:
    guard(store, "0.1")
    await send(engine, "50000")
    await send(engine, "30000", source="index-1")
    assert (await send(engine, "30000", source="index-2")).set_aside == {}


async def test_price_of_a_clock_that_is_ahead_is_confirmed_by_others_and_not_by_itself(
    engine: Engine, store: redis.Redis
) -> None:
    guard(store, "0.1")
    await send(engine, "50000")
    ahead = {BTC: int(store.time()[0]) * 1_000_000 + AHEAD_MAX_US - 1_000_000}
    for _ in range(2):
        outcome = await engine.marks.set_marks({BTC: Decimal(30000)}, observed_us=ahead)
        assert outcome.set_aside.keys() == {BTC}
    assert (await send(engine, "30001")).set_aside == {}


async def test_price_that_is_older_than_the_one_that_waits_neither_confirms_nor_replaces_it(
    engine: Engine, store: redis.Redis
) -> None:
    guard(store, "0.1")
    await send(engine, "50000", 0)
    await send(engine, "30000", 5)
    for overtaken in ("30000", "70000"):
        assert (await send(engine, overtaken, 4)).set_aside.keys() == {BTC}
        assert await waiting(engine) == {BTC: MarkCandidate(Decimal(30000), at(5))}
    assert (await send(engine, "30500", 6)).set_aside == {}


async def test_correction_of_the_same_time_takes_the_place_of_the_one_that_waits(
    engine: Engine, store: redis.Redis
) -> None:
    guard(store, "0.1")
    await send(engine, "50000", 0)
    await send(engine, "3000", 1)
    await send(engine, "30000", 1, "corrected")
    assert await waiting(engine) == {BTC: MarkCandidate(Decimal(30000), at(1), "corrected")}


# --- dropped, replaced ---


async def test_price_within_the_bound_of_the_mark_drops_the_one_that_waits(engine: Engine, store: redis.Redis) -> None:
    guard(store, "0.1")
    await send(engine, "50000", 0)
    await send(engine, "30000", 1)
    assert (await send(engine, "50100", 2)).set_aside == {}
    assert (await waiting(engine), store.exists("mark_candidates")) == ({}, 0)
    assert (await send(engine, "30000", 3)).set_aside.keys() == {BTC}
    assert await in_force(engine) == "50100"


async def test_price_on_the_other_side_takes_the_place_of_what_waits(engine: Engine, store: redis.Redis) -> None:
    guard(store, "0.1")
    await send(engine, "50000", 0)
    for second, price in enumerate(["30000", "70000", "20000", "60000"], start=1):
        assert (await send(engine, price, second)).set_aside.keys() == {BTC}
        assert await waiting(engine) == {BTC: MarkCandidate(Decimal(price), at(second))}
    assert await in_force(engine) == "50000"


async def test_what_waits_is_void_beside_another_mark_however_that_came(engine: Engine, store: redis.Redis) -> None:
    guard(store, "0.1")
    await send(engine, "50000", 0)
    await send(engine, "30000", 1)
    # As a release does that knows no guard.
    store.hset("mark_prices", BTC, "50100")
    store.hset("mark_stamps", BTC, str(int(store.hget("mark_stamps", BTC)) + 1))
    assert await waiting(engine) == {}
    assert (await send(engine, "30000")).set_aside.keys() == {BTC}


async def test_what_waits_from_a_clock_that_was_put_back_keeps_nobody_away(engine: Engine, store: redis.Redis) -> None:
    guard(store, "0.1")
    await send(engine, "50000", 0)
    stamp, (now_s, _) = store.hget("mark_stamps", BTC), store.time()
    ahead = int(now_s) * 1_000_000 + 2 * AHEAD_MAX_US
    store.hset("mark_candidates", BTC, f"{stamp}:{ahead}:70000:")
    assert (await send(engine, "30000", 1)).set_aside.keys() == {BTC}
    assert await waiting(engine) == {BTC: MarkCandidate(Decimal(30000), at(1))}


async def test_bound_that_is_taken_away_or_raised_holds_for_the_next_price(engine: Engine, store: redis.Redis) -> None:
    guard(store, "0.1")
    await send(engine, "50000", 0)
    await send(engine, "30000", 1)
    guard(store, None)
    assert (await send(engine, "30000", 1)).set_aside == {}
    assert (await in_force(engine), await waiting(engine)) == ("30000", {})
    guard(store, "0.1")
    await send(engine, "50000", 2)
    guard(store, "0.8")
    assert (await send(engine, "50000", 2)).set_aside == {}


async def test_bound_in_force_counts_and_not_one_that_is_staged(engine: Engine, store: redis.Redis) -> None:
    guard(store, "0.1")
    terms = json.loads(store.hget("instruments", BTC))
    staged = terms | {"mark_jump_max": None, "version": 2}
    store.hset("instruments", BTC, json.dumps(terms | {"next": staged}))
    await engine.market.set_marks({BTC: Decimal(50000)}, crossed_max=0)
    (update,) = await engine.market.set_marks({BTC: Decimal(30000)}, crossed_max=0)
    assert update.set_aside == SetAside(Decimal(50000), Decimal("0.1"))


# --- two that agree on no more than that it moved ---


@pytest.mark.parametrize("partitions", PARTITIONS)
@pytest.mark.parametrize(
    ("first", "second", "mark", "waits"),
    [
        ("5000", "44000", "44000", "5000"),
        ("44000", "5000", "44000", "5000"),
        ("60000", "90000", "60000", "90000"),
        ("90000", "60000", "60000", "90000"),
        # From 26500 on 29000 is within the bound of 26500, and 26500 is not within that of 29000.
        ("26500", "29200", "29200", None),
    ],
)
async def test_of_two_prices_on_one_side_the_nearer_is_the_mark_and_the_further_waits(
    make_engine: MakeEngine,
    store: redis.Redis,
    partitions: int,
    first: str,
    second: str,
    mark: str,
    waits: str | None,
) -> None:
    engine = await make_engine(partitions=partitions)
    guard(store, "0.1", partitions=partitions)
    await send(engine, "50000", 0, "index-0")
    await send(engine, first, 1, "index-1")
    outcome = await send(engine, second, 2, "index-2")
    is_stored = mark == second
    assert outcome.set_aside == ({} if is_stored else {BTC: SetAside(Decimal(mark), Decimal("0.1"), moved_mark=True)})
    number = 2 if is_stored else 1
    found = (await engine.market.market()).marks[BTC]
    assert (str(found.price), found.observed_us, found.source) == (mark, at(number), f"index-{number}")
    other = 3 - number
    expected = {} if waits is None else {BTC: MarkCandidate(Decimal(waits), at(other), f"index-{other}")}
    assert await waiting(engine) == expected
    for name in ("mark_prices", "mark_stamps", "mark_times", "mark_sources", "mark_candidates"):
        (zeroth, *others) = everywhere(store, name, partitions)
        assert others == [zeroth] * (partitions - 1), name


async def test_prices_that_alternate_beyond_the_bound_do_not_hold_the_mark_for_ever(
    engine: Engine, store: redis.Redis
) -> None:
    guard(store, "0.01")
    await send(engine, "100", 0)
    await send(engine, "104", 1)
    for second in range(2, 20):
        await send(engine, "102" if second % 2 == 0 else "104", second)
        assert Decimal(await in_force(engine)) >= 102


async def test_steady_fall_in_steps_beyond_the_bound_is_followed_one_message_later(
    engine: Engine, store: redis.Redis
) -> None:
    guard(store, "0.05")
    price = Decimal(100)
    await send(engine, price, 0)
    for second in range(1, 20):
        before, price = price, price * Decimal("0.9")
        await send(engine, price.quantize(TICK), second)
        assert Decimal(await in_force(engine)) <= before.quantize(TICK) or second == 1


async def test_whom_the_mark_crosses_that_another_one_moved_is_evaluated_at_once(
    engine: Engine, store: redis.Redis
) -> None:
    guard(store, "0.05")
    await send(engine, "50000", 0)
    await deposit(engine, 1, "14000")
    await buy(engine, 1, "1", "50000")
    assert (await send(engine, "39000", 1)).liquidated == ()
    outcome = await send(engine, "30000", 2)
    # The mark is 39000 and in doubt itself: nobody is closed at it, and everyone whom it crosses is looked at again.
    assert (outcome.at_risk, outcome.liquidated, await in_force(engine)) == (1, (), "39000")
    assert (await send(engine, "38900", 3)).liquidated == (1,)


async def test_price_that_was_overtaken_leaves_a_later_one_waiting_beside_it(
    engine: Engine, store: redis.Redis
) -> None:
    guard(store, "0.1")
    await send(engine, "100", 0)
    await send(engine, "50", 10)
    assert (await send(engine, "99", 5)).set_aside == {}
    assert (await in_force(engine), await waiting(engine)) == ("99", {BTC: MarkCandidate(Decimal(50), at(10))})
    assert (await send(engine, "50", 11)).set_aside == {}


async def test_price_that_was_overtaken_drops_a_later_one_that_is_within_its_bound(
    engine: Engine, store: redis.Redis
) -> None:
    guard(store, "0.1")
    await send(engine, "100", 0)
    await send(engine, "89", 10)
    assert (await send(engine, "95", 5)).set_aside == {}
    assert await waiting(engine) == {}


# --- in doubt ---


async def hedge(engine: Engine, store: redis.Redis, account_id: int, partitions: int) -> None:
    """Give an account a long and a short whose margins of 400 are covered by 410, with guards of 0.4 and 0.3."""
    guard(store, "0.4", partitions=partitions)
    guard(store, "0.3", ETH, partitions=partitions)
    await pair(engine, 100, 0)
    await deposit(engine, account_id, "410")
    await buy(engine, account_id, "10", "100")
    await sell(engine, account_id, "10", "100", symbol=ETH)


async def pair(engine: Engine, price: int, seconds: float) -> MarkOutcome:
    prices = dict.fromkeys((BTC, ETH), Decimal(price))
    return await engine.marks.set_marks(prices, observed_us=dict.fromkeys(prices, at(seconds)))


@pytest.mark.parametrize("partitions", PARTITIONS)
async def test_hedged_account_is_not_judged_between_a_price_that_is_stored_and_one_that_waits(
    make_engine: MakeEngine, store: redis.Redis, query: Query, partitions: int
) -> None:
    engine = await make_engine(partitions=partitions)
    # Of the last partition: what it holds is what partition 0 said.
    account_id = partitions - 1 or 1
    await hedge(engine, store, account_id, partitions)
    outcome = await pair(engine, 65, 1)
    assert (outcome.set_aside.keys(), outcome.at_risk, outcome.liquidated) == ({ETH}, 1, ())
    scan = await engine.scans.scan()
    assert (scan.missed, scan.liquidated) == ([], [])
    # Confirmed it leaves the account where it was, and with triggers of its own again.
    outcome = await pair(engine, 65, 2)
    assert (outcome.set_aside, outcome.at_risk, outcome.liquidated) == ({}, 1, ())
    scan = await engine.scans.scan()
    assert (scan.crossed, scan.missed, scan.liquidated) == (0, [], [])
    assert query("select count(*) from events where type = 'LIQUIDATION'") == [(0,)]


@pytest.mark.parametrize("partitions", PARTITIONS)
async def test_price_that_is_dropped_lets_the_account_be_judged_by_the_mark(
    make_engine: MakeEngine, store: redis.Redis, partitions: int
) -> None:
    engine = await make_engine(partitions=partitions)
    account_id = partitions - 1 or 1
    await hedge(engine, store, account_id, partitions)
    await pair(engine, 65, 1)
    outcome = await engine.marks.set_marks({ETH: Decimal(100)}, observed_us={ETH: at(2)})
    assert (outcome.at_risk, outcome.liquidated) == (1, (account_id,))


@pytest.mark.parametrize("partitions", PARTITIONS)
async def test_no_money_leaves_and_no_risk_is_added_while_a_price_waits(
    make_engine: MakeEngine, store: redis.Redis, partitions: int
) -> None:
    engine = await make_engine(partitions=partitions)
    account_id = partitions - 1 or 1
    guard(store, "0.1", partitions=partitions)
    await send(engine, "100", 0)
    await deposit(engine, account_id, "1000")
    await buy(engine, account_id, "5", "100")
    await send(engine, "20", 1)
    for attempt in (
        lambda: withdraw(engine, account_id, "1"),
        lambda: buy(engine, account_id, "1", "100"),
        lambda: fund(engine, "0.0001"),
    ):
        with pytest.raises(StaleMarkPriceError, match="BTC-PERP is in doubt: a price far from it waits to be"):
            await attempt()
    await sell(engine, account_id, "1", "100")
    await send(engine, "100", 2)
    await withdraw(engine, account_id, "1")
    await buy(engine, account_id, "1", "100")
    await fund(engine, "0.0001")


async def test_liquidation_beside_a_price_that_waits_is_recorded_so_that_it_can_be_decided_anew(
    engine: Engine, store: redis.Redis, query: Query
) -> None:
    guard(store, "0.1", ETH)
    await pair(engine, 100, 0)
    await deposit(engine, 1, "410")
    await buy(engine, 1, "10", "100")
    await sell(engine, 1, "10", "100", symbol=ETH)
    # With the benefit of the doubt the short wins 50 a unit, and the long loses 95.
    outcome = await engine.marks.set_marks({BTC: Decimal(5), ETH: Decimal(50)})
    assert outcome.liquidated == (1,)
    await engine.drain.drain()
    ((inputs,),) = query("select body->'detail'->'inputs' from events where type = 'LIQUIDATION'")
    assert inputs["waiting"] == {ETH: "50"}
    report = await engine.reconcile.reconcile()
    assert report.differences == []


async def test_guard_of_rules_that_take_effect_holds_for_the_next_price(
    make_engine: MakeEngine, store: redis.Redis
) -> None:
    engine = await make_engine(partitions=2)
    await send(engine, "50000", 0)
    for version, (bound, kept) in enumerate([("0.1", {BTC: "0.1"}), (None, {}), ("0.25", {BTC: "0.25"})], start=1):
        rules = Instrument(BTC, mark_jump_max=None if bound is None else Decimal(bound))
        await engine.instruments.put(rules, NOBODY)
        assert everywhere(store, "mark_jump_max", 2) == [kept] * 2, version
    store.delete(*(f"{prefix}{name}" for prefix in prefixes(2) for name in ("marker", "instruments", "mark_jump_max")))
    opened = await make_engine(partitions=2)
    assert everywhere(store, "mark_jump_max", 2) == [{BTC: "0.25"}] * 2
    assert (await send(opened, "30000", 1)).set_aside.keys() == {BTC}


# --- several at once, refusals, partitions ---


@pytest.mark.parametrize("partitions", PARTITIONS)
async def test_of_one_call_those_beyond_wait_and_the_others_are_stored(
    make_engine: MakeEngine, store: redis.Redis, partitions: int
) -> None:
    engine = await make_engine(partitions=partitions)
    guard(store, "0.1", partitions=partitions)
    guard(store, "0.1", ETH, partitions=partitions)
    await engine.marks.set_marks({BTC: Decimal(50000), ETH: Decimal(2000), SOL: Decimal(100)})
    for account_id in range(1, 4):
        await deposit(engine, account_id, "14000")
        await buy(engine, account_id, "500", "100", symbol=SOL)
    outcome = await engine.marks.set_marks({BTC: Decimal(30000), ETH: Decimal(2100), SOL: Decimal(79)})
    assert outcome.set_aside == {BTC: SetAside(Decimal(50000), Decimal("0.1"))}
    assert outcome.at_risk_by_symbol == {BTC: 0, ETH: 0, SOL: 3}
    assert sorted(outcome.liquidated) == [1, 2, 3]
    prices = {BTC: "50000", ETH: "2100", SOL: "79"}
    assert everywhere(store, "mark_prices", partitions) == [prices] * partitions
    updates = await engine.market.set_marks({ETH: Decimal(1), SOL: Decimal(80), BTC: Decimal(1)}, crossed_max=0)
    assert [(update.symbol, update.set_aside is None) for update in updates] == [
        (ETH, False),
        (SOL, True),
        (BTC, False),
    ]


async def test_refused_call_sets_nothing_aside(engine: Engine, store: redis.Redis) -> None:
    guard(store, "0.1")
    await engine.marks.set_marks(
        {BTC: Decimal(50000), ETH: Decimal(2000)}, observed_us={BTC: at(0), ETH: at(0)}, sources={}
    )
    before = hot_state(store)
    later = int(store.time()[0]) * 1_000_000 + 2 * AHEAD_MAX_US
    for time_us, error in ((at(-1), OlderMarkPriceError), (later, FutureTimestampError)):
        with pytest.raises(error):
            await engine.marks.set_marks(
                {BTC: Decimal(30000), ETH: Decimal(2000)}, observed_us={BTC: at(1), ETH: time_us}
            )
        assert hot_state(store) == before


async def test_partitions_are_brought_up_with_sources_and_with_what_waits(
    make_engine: MakeEngine, settings: Settings, store: redis.Redis
) -> None:
    async with Proxy(settings.redis_host, settings.redis_port) as proxy:
        engine = await make_engine(redis_port=proxy.port, partitions=3)
        guard(store, "0.1", partitions=3)
        await send(engine, "50000", 0)
        proxy.lose_request(b"{p1}:marker")
        with pytest.raises(OutcomeUnknownError):
            await send(engine, "51000", 1, "index-1")
        await send(engine, "30000", 2)
        store.delete("{p2}:mark_candidates")
        await engine.scans.scan()
    stamp = store.hget("{p0}:mark_stamps", BTC)
    assert everywhere(store, "mark_prices", 3) == [{BTC: "51000"}] * 3
    assert everywhere(store, "mark_sources", 3) == [{BTC: f"{stamp}:index-1"}] * 3
    (waits, *others) = everywhere(store, "mark_candidates", 3)
    assert (set(waits), others) == ({BTC}, [waits] * 2)


async def test_partitions_that_have_the_mark_are_brought_up_with_what_waits_and_what_does_not(
    make_engine: MakeEngine, store: redis.Redis
) -> None:
    engine = await make_engine(partitions=3)
    guard(store, "0.1", partitions=3)
    await send(engine, "50000", 0)
    await send(engine, "30000", 1)
    waits = everywhere(store, "mark_candidates", 3)
    store.delete("{p2}:mark_candidates")
    assert await engine.market.align_marks() == 1
    assert everywhere(store, "mark_candidates", 3) == waits
    assert await engine.market.align_marks() == 0
    store.delete("{p0}:mark_candidates")
    assert await engine.market.align_marks() == 2
    assert everywhere(store, "mark_candidates", 3) == [{}] * 3


async def test_what_waits_is_not_undone_by_a_call_that_was_overtaken(
    make_engine: MakeEngine, store: redis.Redis
) -> None:
    engine = await make_engine(partitions=2)
    guard(store, "0.1", partitions=2)
    await send(engine, "50000", 0)
    await send(engine, "30000", 1)
    older = store.hget("{p0}:mark_candidates", BTC)
    await send(engine, "70000", 2)
    newer = store.hget("{p0}:mark_candidates", BTC)
    store.hset("{p0}:mark_candidates", BTC, older)
    # Partition 0 as it was in between: it passes on what waited then.
    await send(engine, "30000", 0.5)
    assert everywhere(store, "mark_candidates", 2) == [{BTC: older}, {BTC: newer}]


async def test_mark_that_was_put_back_from_history_is_guarded_too(engine: Engine, store: redis.Redis) -> None:
    guard(store, "0.1")
    await send(engine, "50000", source="index-1")
    await send(engine, "70000")
    await engine.mark_records.save()
    store.flushall()
    await engine.opening.open()
    guard(store, "0.1")
    assert (await waiting(engine), (await engine.market.market()).marks[BTC].source) == ({}, None)
    assert (await send(engine, "30000")).set_aside.keys() == {BTC}
    assert (await engine.market.market()).is_stale(BTC)
    assert (await send(engine, "30001")).set_aside == {}
    assert not (await engine.market.market()).is_stale(BTC)


async def test_marks_that_are_forgotten_leave_nothing_that_waits_and_no_source(
    make_engine: MakeEngine, store: redis.Redis
) -> None:
    engine = await make_engine(partitions=3)
    guard(store, "0.1", partitions=3)
    await send(engine, "50000", source="index-1")
    await send(engine, "30000", source="index-1")
    await engine.market.forget_marks(0)
    assert [bool(found) for found in everywhere(store, "mark_sources", 3)] == [False, True, True]
    assert [bool(found) for found in everywhere(store, "mark_candidates", 3)] == [False, True, True]


# --- sources ---


@pytest.mark.parametrize("source", ["index-1", "a:b:c", " ", ":", "~" * 64, "0:1"])
async def test_source_is_kept_as_it_is_said_of_the_mark_and_of_what_waits(
    engine: Engine, store: redis.Redis, source: str
) -> None:
    guard(store, "0.1")
    await send(engine, "50000", 0, source)
    await send(engine, "30000", 1, source)
    market, candidates = await engine.market.market_and_candidates()
    assert market.marks[BTC].source == source
    assert candidates == {BTC: MarkCandidate(Decimal(30000), at(1), source)}


async def test_source_of_another_price_says_nothing_of_this_one(engine: Engine) -> None:
    await send(engine, "50000", source="index-1")
    await send(engine, "50001")
    assert (await engine.market.market()).marks[BTC].source is None


# --- the stores in memory judge alike ---


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("partitions", [1, 2])
async def test_fakes_and_redis_set_aside_and_store_the_same(
    make_engine: MakeEngine, store: redis.Redis, seed: int, partitions: int
) -> None:
    chance = random.Random(seed)  # noqa: S311 - a test's own sequence
    engine = await make_engine(partitions=partitions)
    exchange = await Exchange(partitions=partitions).open()
    seen = {"set aside": 0, "stored": 0}
    for step in range(80):
        if step % 20 == 0:
            bound = chance.choice(["0.1", "0.25", "1.5"])
            guard(store, bound, partitions=partitions)
            exchange.redis.instruments[BTC] = Instrument(BTC, mark_jump_max=Decimal(bound), version=1)
        price, seconds = str(chance.choice([100, 105, 110, 150, 160, 200, 40])), step + chance.choice([0, 0, 1, -0.5])
        answers = []
        for services in (engine, exchange):
            try:
                outcome = await send(services, price, seconds, "one" if step % 2 else "")
            except OlderMarkPriceError:
                answers.append(None)
            else:
                answers.append(outcome.set_aside)
        assert answers[0] == answers[1], step
        seen["set aside" if answers[0] else "stored"] += 1
        for market, candidates in (
            await engine.market.market_and_candidates(),
            await exchange.market.market_and_candidates(),
        ):
            found = market.marks[BTC]
            answers.append((found.price, found.observed_us, found.source, candidates))
        assert answers[2] == answers[3], step
    assert min(seen.values()) > 10


@pytest.mark.parametrize("seed", range(3))
async def test_redis_sets_aside_and_stores_what_the_rules_say(
    make_engine: MakeEngine, store: redis.Redis, seed: int
) -> None:
    chance = random.Random(seed)  # noqa: S311 - a test's own sequence
    engine = await make_engine(partitions=2)
    seen = {True: 0, False: 0}
    for bound in ("0.05", "0.1", "1.5"):
        guard(store, bound, partitions=2)
        for prefix in prefixes(2):
            store.delete(*(f"{prefix}mark_{name}" for name in ("prices", "stamps", "times", "candidates")))
        oracle = MarkOracle(Fraction(bound))
        for step in range(60):
            price = Decimal(chance.choice([100, 104, 105, 110, 115, 150, 160, 200, 300, 40, 44]))
            seconds = step + chance.choice([0, 0, 1, -0.5, -2])
            # All are from long ago, so that when they came does not matter.
            told = oracle.take(Message(price, at(10_000), at(seconds)))
            try:
                assert (await send(engine, price, seconds)).set_aside.keys() == (set() if told else {BTC}), step
            except OlderMarkPriceError:
                assert told is None, step
            else:
                assert told is not None
                seen[told] += 1
            assert oracle.mark is not None
            expected = {} if oracle.waiting is None else {BTC: oracle.waiting}
            for partition in range(2):
                market = await engine.market.market(partition)
                found = market.marks[BTC]
                assert (found.price, found.observed_us) == (oracle.mark.price, oracle.mark.observed_us), step
                assert market.waiting == {symbol: one.price for symbol, one in expected.items()}, step
            assert {symbol: one.observed_us for symbol, one in (await waiting(engine)).items()} == {
                symbol: one.observed_us for symbol, one in expected.items()
            }
    assert min(seen.values()) > 20
