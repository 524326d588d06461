"""Many requests at once: nothing is lost, doubled or mixed."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from margin.errors import ContentionError, InsufficientWithdrawableError
from margin.services.journal import Outcome
from margin.services.liquidation import Verdict
from tests.actions import BTC, buy, deposit, mark, withdraw
from tests.integration.stores.hot_state import hot_state

if TYPE_CHECKING:
    from collections.abc import Callable

    import redis

    from margin.runtime import Engine
    from tests.integration.conftest import MakeEngine

    Query = Callable[..., list[tuple[Any, ...]]]

AT_ONCE = 64
PRICES = [f"500{number:02}.0000000{number % 10}" for number in range(AT_ONCE)]


async def test_trades_at_once_on_one_account_are_all_exact(engine: Engine, query: Query, store: redis.Redis) -> None:
    await deposit(engine, 1, "1000000")
    await mark(engine, "50000")
    answers = await asyncio.gather(*(buy(engine, 1, "0.01", price) for price in PRICES), return_exceptions=True)

    assert {type(answer) for answer in answers} <= {Outcome, ContentionError}
    happened = [(answer, price) for answer, price in zip(answers, PRICES, strict=True) if isinstance(answer, Outcome)]
    assert len(happened) > AT_ONCE // 2
    assert all(answer.final for answer, _ in happened)
    quantity = Decimal("0.01") * len(happened)
    entry_cost = sum((Decimal("0.01") * Decimal(price) for _, price in happened), start=Decimal(0))
    position = (await engine.margin.account_margin(1)).account.positions[BTC]
    assert (position.quantity, position.entry_cost) == (quantity, entry_cost)
    assert query("select count(*), sum(quantity), sum(notional) from trades") == [(len(happened), quantity, entry_cost)]

    chain = query("select n, event_id, previous_event_id, hash, body ->> 'previous_hash' from events order by n")
    assert [row[0] for row in chain] == list(range(1, len(happened) + 2))
    assert [row[2] for row in chain[1:]] == [row[1] for row in chain[:-1]]
    assert [row[4] for row in chain[1:]] == [row[3] for row in chain[:-1]]
    assert not any(name.startswith("pending") for name in hot_state(store))


async def test_trade_that_lost_every_race_can_be_sent_again(engine: Engine, query: Query) -> None:
    await deposit(engine, 1, "1000000")
    await mark(engine, "50000")

    async def until_executed(number: int) -> int:
        for attempts in range(1, 50):
            try:
                await buy(engine, 1, "0.01", "50000", key=f"trade-{number}")
            except ContentionError:
                continue
            return attempts
        raise AssertionError("never executed")

    await asyncio.gather(*(until_executed(number) for number in range(AT_ONCE)))
    assert query("select count(*), sum(quantity) from trades") == [(AT_ONCE, Decimal("0.64"))]


async def test_one_key_sent_many_times_at_once_is_executed_once(engine: Engine, query: Query) -> None:
    await deposit(engine, 1, "1000000")
    await mark(engine, "50000")
    answers = await asyncio.gather(*(buy(engine, 1, "0.01", "50000", key="same") for _ in range(AT_ONCE)))
    assert len({answer.event_id for answer in answers}) == 1
    assert [answer.replayed for answer in answers].count(False) == 1
    assert all(answer.result == answers[0].result and answer.final for answer in answers)
    assert query("select count(*), sum(quantity) from trades") == [(1, Decimal("0.01"))]


async def test_accounts_at_once_do_not_disturb_each_other(make_engine: MakeEngine, query: Query) -> None:
    engine = await make_engine(partitions=4)
    await mark(engine, "50000")
    numbers = range(1, AT_ONCE + 1)
    await asyncio.gather(*(deposit(engine, number, f"{number}000") for number in numbers))
    answers = await asyncio.gather(*(buy(engine, number, f"0.0{number:02}", "50000") for number in numbers))
    assert all(answer.final and not answer.replayed for answer in answers)
    rows = query(
        "select account_id, n, balance, positions -> 'BTC-PERP' ->> 'quantity' from accounts order by account_id"
    )
    expected = [(number, 2, Decimal(number * 1000), f"0.0{number:02}".rstrip("0")) for number in numbers]
    assert rows == expected


async def test_withdrawals_at_once_never_pay_out_more_than_there_is(engine: Engine, query: Query) -> None:
    await deposit(engine, 1, "100")
    answers = await asyncio.gather(*(withdraw(engine, 1, "30") for _ in range(10)), return_exceptions=True)
    paid = [answer for answer in answers if isinstance(answer, Outcome)]
    assert len(paid) == 3
    assert {type(answer) for answer in answers} <= {Outcome, InsufficientWithdrawableError, ContentionError}
    assert query("select balance from accounts") == [(Decimal(10),)]


async def test_liquidation_by_many_evaluators_at_once_happens_once(
    make_engine: MakeEngine, engine: Engine, query: Query
) -> None:
    others = [await make_engine() for _ in range(3)]
    await deposit(engine, 1, "10000")
    await mark(engine, "50000")
    await buy(engine, 1, "1", "50000")
    await engine.market.set_marks({BTC: Decimal(44000)}, crossed_max=0)
    everyone = [engine, *others] * 4
    verdicts = await asyncio.gather(*(each.liquidations.evaluate(1) for each in everyone))
    assert set(verdicts) <= {Verdict.LIQUIDATED, Verdict.ANCHORED}
    assert query("select type, n from events order by n") == [("DEPOSIT", 1), ("TRADE", 2), ("LIQUIDATION", 3)]
    assert query("select count(*) from liquidations") == [(1,)]
