"""Shortfalls on real stores: who pays them, exactly once, whoever dies, trades or settles at the same time."""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from margin.clients.account_redis import ACCOUNTS_PER_PAGE
from margin.domain.controls import ControlState, symbol_control
from margin.domain.event import EventType, canonical, digest
from margin.domain.safe_zone import TriggerSide
from margin.domain.settlement import Place, SettlementStep
from margin.ports.settlement import StepOutcome
from margin.services.counterparties import TRIES_MAX
from margin.services.settlement_planning import Waiting
from margin.services.settlement_steps import fence_of
from tests.actions import BTC, ETH, buy, contribute, deposit, mark, sell, switch
from tests.integration.stores.dying import FunctionDiedError
from tests.integration.stores.dying_settler import DyingSettler, LocklessSettler
from tests.integration.stores.interrupted import InterruptedEngine

if TYPE_CHECKING:
    from collections.abc import Callable

    import redis

    from margin.domain.settlement import Standing
    from margin.ports.settlement import SettlementSession
    from margin.runtime import Engine
    from margin.services.settlement_planning import SettlementReport
    from tests.integration.conftest import MakeEngine

    Query = Callable[..., list[tuple[Any, ...]]]

BANKRUPT, SHORT, SMALL_SHORT, DONOR, LONG = 1, 2, 3, 4, 5


async def go_bankrupt(
    engine: Engine, *, counterparties: tuple[tuple[int, str, str], ...] = ((SHORT, "1", "50000"),)
) -> None:
    """Account 1 is liquidated at 30000 with a shortfall of 5000; its bankruptcy price is 35000."""
    await mark(engine, "50000")
    await deposit(engine, BANKRUPT, "15000")
    for account_id, quantity, money in counterparties:
        await deposit(engine, account_id, money)
        await sell(engine, account_id, quantity, "50000")
    await buy(engine, BANKRUPT, "1", "50000")
    assert (await mark(engine, "30000")).liquidated == (BANKRUPT,)


async def settle(engine: Engine) -> SettlementReport:
    report = await engine.settlement.settle()
    assert report.complete
    return report


def events(query: Query, event_type: EventType) -> list[tuple[int, dict[str, Any]]]:
    return query(
        "select account_id, body -> 'detail' from events where type = %(type)s order by event_id", type=str(event_type)
    )


async def assert_sound(engine: Engine, query: Query, *, uncovered: str = "0", balance: str) -> None:
    """Nothing differs anywhere, the ledger sums to zero, and this is how the fund stands."""
    await engine.drain.drain()
    report = await engine.reconcile.reconcile()
    assert (report.differences, report.unverified, report.complete) == ([], [], True)
    assert query("select coalesce(sum(amount), 0) from ledger_lines") == [(0,)]
    fund = await engine.insurance_fund.fund()
    assert (fund.balance, fund.uncovered) == (Decimal(balance), Decimal(uncovered))
    assert sum((one.uncovered for one in fund.open_shortfalls), start=Decimal(0)) == fund.uncovered


async def test_shortfall_is_paid_from_the_fund(engine: Engine, query: Query) -> None:
    await deposit(engine, DONOR, "8000")
    await contribute(engine, DONOR, "7000")
    await go_bankrupt(engine)
    report = await settle(engine)
    assert (report.settlements, report.deleveragings, report.settled) == (1, 0, 5000)
    assert (report.balance, report.uncovered) == (2000, 0)
    ((account_id, detail),) = events(query, EventType.SETTLEMENT)
    ((liquidation_id,),) = query("select id from liquidations where shortfall > 0")
    assert account_id == BANKRUPT
    assert detail == {
        "liquidation_id": liquidation_id,
        "number": 1,
        "amount": "5000",
        "source": "INSURANCE_FUND",
        "uncovered": "0",
    }
    await assert_sound(engine, query, balance="2000")
    assert (await settle(engine)).settlements == 0


async def test_what_the_fund_lacks_is_raised_by_deleveraging(engine: Engine, query: Query) -> None:
    await deposit(engine, DONOR, "8000")
    await contribute(engine, DONOR, "1000")
    await go_bankrupt(engine)
    report = await settle(engine)
    assert (report.settlements, report.deleveragings, report.settled) == (2, 1, 5000)
    ((account_id, detail),) = events(query, EventType.DELEVERAGING)
    ((bankrupt_id, liquidation_id),) = query("select account_id, id from liquidations where shortfall > 0")
    assert account_id == SHORT
    age = detail["positions"][0].pop("mark_age_s")
    assert 0 <= float(age) < 60
    assert set(detail.pop("market")["marks"]) == {BTC}
    assert detail == {
        "rules": 2,
        "equity": "70000",
        "maintenance_margin": "3000",
        "equity_after": "66000",
        "maintenance_margin_after": "600",
        "reason": "AUTO_DELEVERAGING",
        "fee": "0",
        "shortfall": "0",
        "positions": [
            {
                "symbol": BTC,
                "quantity": "-0.8",
                "remaining": "-0.2",
                "entry_price": "50000",
                "price": "35000",
                "bankruptcy_price": "35000",
                "realised_pnl": "12000",
                "fee": "0",
            }
        ],
        "mark_price": "30000",
        "liquidation_price": "30000",
        "received": "4000",
        "liquidation_id": liquidation_id,
        "liquidated_account_id": bankrupt_id,
        "number": 2,
        "uncovered": "4000",
        "shared_notional": None,
    }
    last = events(query, EventType.SETTLEMENT)[-1][1]
    ((deleveraging_id,),) = query("select event_id from events where type = 'DELEVERAGING'")
    assert last["source"] == {"account_id": SHORT, "event_id": deleveraging_id}
    rows = (await engine.history.liquidations(account_id=SHORT)).rows
    assert [(row["reason"], row["equity"], row["shortfall"]) for row in rows] == [("AUTO_DELEVERAGING", 70000, 0)]
    await assert_sound(engine, query, balance="0")


async def test_counterparties_are_deleveraged_by_rank_until_all_is_paid(engine: Engine, query: Query) -> None:
    # The same profit share, but three times the leverage.
    await go_bankrupt(engine, counterparties=((SHORT, "1", "60000"), (SMALL_SHORT, "0.4", "8000")))
    report = await settle(engine)
    assert (report.settlements, report.deleveragings) == (2, 2)
    taken = [
        (account_id, detail["positions"][0]["quantity"]) for account_id, detail in events(query, EventType.DELEVERAGING)
    ]
    assert taken == [(SMALL_SHORT, "-0.4"), (SHORT, "-0.6")]
    await assert_sound(engine, query, balance="0")


async def test_only_the_fund_pays_where_deleveraging_is_switched_off(make_engine: MakeEngine, query: Query) -> None:
    engine = await make_engine(auto_deleveraging=False)
    await deposit(engine, DONOR, "8000")
    await contribute(engine, DONOR, "1000")
    await go_bankrupt(engine)
    report = await settle(engine)
    assert (report.settlements, report.deleveragings, report.uncovered) == (1, 0, 4000)
    await assert_sound(engine, query, balance="0", uncovered="4000")
    await contribute(engine, DONOR, "5000")
    assert (await settle(engine)).uncovered == 0
    await assert_sound(engine, query, balance="1000")


@pytest.mark.parametrize("changes", [{"partitions": 3}, {"history": "drain"}, {"history": "drain", "partitions": 3}])
async def test_shortfall_is_paid_whatever_the_partitions_and_whoever_acknowledges(
    make_engine: MakeEngine, query: Query, changes: dict[str, Any]
) -> None:
    engine = await make_engine(**changes)
    await go_bankrupt(engine, counterparties=((SHORT, "1", "60000"), (SMALL_SHORT, "0.4", "8000")))
    await engine.drain.drain()
    report = await settle(engine)
    assert (report.settlements, report.deleveragings, report.uncovered) == (2, 2, 0)
    await assert_sound(engine, query, balance="0")


async def test_nobody_is_deleveraged_while_the_symbol_is_paused(engine: Engine, query: Query) -> None:
    await go_bankrupt(engine)
    await switch(engine, symbol_control(BTC), ControlState.PAUSED)
    report = await settle(engine)
    assert (report.deleveragings, report.put_off, report.uncovered) == (0, 1, 5000)
    await switch(engine, symbol_control(BTC), ControlState.ACTIVE)
    assert (await settle(engine)).uncovered == 0
    await assert_sound(engine, query, balance="0")


async def test_nobody_gains_by_being_deleveraged_after_the_mark_came_back(engine: Engine, query: Query) -> None:
    await go_bankrupt(engine)
    await mark(engine, "45000")
    assert (await settle(engine)).uncovered == 0
    ((_, detail),) = events(query, EventType.DELEVERAGING)
    assert (detail["equity"], detail["equity_after"], detail["received"]) == ("55000", "55000", "5000")
    assert detail["positions"][0]["price"] == "45000"
    # The house keeps what the mark gained beyond the bankruptcy price, and is flat without that.
    lines = query(
        "select sum(amount) from ledger_lines where ledger_account = 'house_pnl' and event_id in"
        " (select event_id from events where type in ('DELEVERAGING', 'LIQUIDATION'))"
    )
    assert lines == [(20000 - 5000 - 5000,)]
    await assert_sound(engine, query, balance="0")


async def test_deleveraging_that_was_tampered_with_is_found(engine: Engine, query: Query) -> None:
    """Somebody who knows the engine makes the fund receive less, and everything behind it fit."""
    await go_bankrupt(engine)
    await settle(engine)
    ((body, n),) = query("select body, n from events where type = 'DELEVERAGING'")
    body["detail"]["received"] = "4000"
    body["ledger"] = [
        [name, {"insurance": "4000", "house_pnl": "-19000"}.get(name, value)] for name, value in body["ledger"]
    ]
    rehashed = digest(canonical(body))
    query(
        "update events set body = %(body)s::jsonb, hash = %(hash)s where (account_id, n) = (%(id)s, %(n)s) returning 1",
        body=json.dumps(body),
        hash=rehashed,
        id=SHORT,
        n=n,
    )
    query("update accounts set chain_hash = %(hash)s where account_id = %(id)s returning 1", hash=rehashed, id=SHORT)
    for name, value in (("insurance", 4000), ("house_pnl", -19000)):
        query(
            "update ledger_lines set amount = %(value)s where account_id = %(id)s and ledger_account = %(name)s"
            " and event_id = (select event_id from events where type = 'DELEVERAGING') returning 1",
            value=value,
            id=SHORT,
            name=name,
        )
    report = await engine.reconcile.reconcile()
    assert [one.what for one in report.differences] == [
        "Redis holds another chain hash",
        f"event {n}: the ledger of the deleveraging is not what it comes to",
        f"the amount of step 1 of liquidation {body['detail']['liquidation_id']} is not what its event says",
    ]


async def test_losses_of_two_positions_are_shared_by_their_notional(engine: Engine, query: Query) -> None:
    await mark(engine, "50000")
    await mark(engine, "2000", ETH)
    await deposit(engine, BANKRUPT, "30000")
    await buy(engine, BANKRUPT, "1", "50000")
    await sell(engine, BANKRUPT, "25", "2000", symbol=ETH)
    await deposit(engine, SHORT, "60000")
    await sell(engine, SHORT, "1", "50000")
    await deposit(engine, LONG, "60000")
    await buy(engine, LONG, "25", "2000", symbol=ETH)
    await engine.marks.set_marks({BTC: Decimal(35000), ETH: Decimal(2800)})
    report = await settle(engine)
    assert (report.settlements, report.deleveragings, report.uncovered) == (2, 2, 0)
    # 5000 for 35000 and 70000 of notional.
    received = {account_id: Decimal(detail["received"]) for account_id, detail in events(query, EventType.DELEVERAGING)}
    assert abs(received[SHORT] - Decimal(5000) / 3) < Decimal("1e-6")
    assert abs(received[LONG] - Decimal(10000) / 3) < Decimal("1e-6")
    fund = await engine.insurance_fund.fund()
    assert 0 <= fund.balance < Decimal("1e-6")
    await assert_sound(engine, query, balance=str(fund.balance))


async def _two_positions(engine: Engine, *, holders: tuple[int, ...] = (SHORT,)) -> None:
    """Account 1 loses 25000 with BTC and nothing with ETH, and leaves 5000 unpaid; its BTC bears a third of it."""
    await mark(engine, "50000")
    await mark(engine, "2000", ETH)
    await deposit(engine, BANKRUPT, "20000")
    await buy(engine, BANKRUPT, "1", "50000")
    await buy(engine, BANKRUPT, "25", "2000", symbol=ETH)
    for account_id in holders:
        await deposit(engine, account_id, "600000")
        await sell(engine, account_id, "1", "50000")
        await sell(engine, account_id, "25", "2000", symbol=ETH)
    assert (await mark(engine, "25000")).liquidated == (BANKRUPT,)


async def test_position_with_winners_brings_what_nobody_can_be_closed_for_at_another(
    engine: Engine, query: Query
) -> None:
    """ETH stands where everybody entered, so at its bankruptcy price everybody would lose."""
    await _two_positions(engine)
    assert (await settle(engine)).uncovered == 0
    ((account_id, detail),) = events(query, EventType.DELEVERAGING)
    (closed,) = detail["positions"]
    assert (account_id, closed["symbol"], closed["quantity"], closed["price"]) == (SHORT, BTC, "-1", "30000")
    assert (detail["received"], detail["uncovered"], detail["shared_notional"]) == ("5000", "5000", "25000")
    await assert_sound(engine, query, balance="0")


@pytest.mark.parametrize(("field", "value"), [("uncovered", "5001"), ("shared_notional", "20000")])
async def test_price_that_is_not_the_share_of_what_was_uncovered_is_found(
    engine: Engine, query: Query, field: str, value: str
) -> None:
    await _two_positions(engine)
    await settle(engine)
    query(
        "update events set body = jsonb_set(body, array['detail', %(field)s], to_jsonb(%(value)s::text))"
        " where type = 'DELEVERAGING' returning 1",
        field=field,
        value=value,
    )
    ((body, n),) = query("select body, n from events where type = 'DELEVERAGING'")
    rehashed = digest(canonical(body))
    query("update events set hash = %(hash)s where type = 'DELEVERAGING' returning 1", hash=rehashed)
    query("update accounts set chain_hash = %(hash)s where account_id = %(id)s returning 1", hash=rehashed, id=SHORT)
    found = [one.what for one in (await engine.reconcile.reconcile()).differences]
    assert f"event {n}: the price of the deleveraging is not its share of what was uncovered" in found


async def test_position_whose_bankruptcy_price_is_not_above_zero_hinders_nobody(engine: Engine, query: Query) -> None:
    """A long falls by nine tenths beside a short that stands still."""
    await mark(engine, "100")
    await mark(engine, "10", ETH)
    await deposit(engine, BANKRUPT, "22")
    await buy(engine, BANKRUPT, "1", "100")
    await sell(engine, BANKRUPT, "1", "10", symbol=ETH)
    await deposit(engine, SHORT, "60000")
    await sell(engine, SHORT, "10", "100")
    await buy(engine, SHORT, "10", "10", symbol=ETH)
    await mark(engine, "10")
    ((positions,),) = query("select positions from liquidations where shortfall > 0")
    assert {one["symbol"]: one["bankruptcy_price"] for one in positions} == {BTC: "44", ETH: None}
    assert (await settle(engine)).uncovered == 0
    ((_, detail),) = events(query, EventType.DELEVERAGING)
    assert (detail["positions"][0]["price"], detail["received"]) == ("78", "68")
    await assert_sound(engine, query, balance="0")


async def test_what_few_holders_of_one_position_cannot_bring_is_had_from_another_before_that_is_used_up(
    engine: Engine, query: Query
) -> None:
    """5000 for 32500 of each; a fifth of ETH can be closed, and all of BTC, but no more than all."""
    await mark(engine, "50000")
    await mark(engine, "2000", ETH)
    await deposit(engine, BANKRUPT, "30000")
    await buy(engine, BANKRUPT, "1", "50000")
    await buy(engine, BANKRUPT, "25", "2000", symbol=ETH)
    await deposit(engine, SHORT, "60000")
    await sell(engine, SHORT, "1", "50000")
    await deposit(engine, SMALL_SHORT, "60000")
    await sell(engine, SMALL_SHORT, "5", "2000", symbol=ETH)
    await engine.marks.set_marks({BTC: Decimal(32500), ETH: Decimal(1300)})
    assert (await settle(engine)).uncovered == 0
    taken = [
        (account_id, one["positions"][0]["quantity"], one["positions"][0]["price"], one["received"])
        for account_id, one in events(query, EventType.DELEVERAGING)
    ]
    assert taken == [(SMALL_SHORT, "-5", "1400", "500"), (SHORT, "-1", "37000", "4500")]
    await assert_sound(engine, query, balance="0")


async def test_nobody_is_asked_for_more_while_another_position_is_only_paused(engine: Engine, query: Query) -> None:
    await _two_positions(engine)
    await switch(engine, symbol_control(ETH), ControlState.PAUSED)
    report = await settle(engine)
    # Whoever can be closed against BTC holds ETH too, and is as little to be closed while that is paused.
    assert (report.deleveragings, report.waiting, report.uncovered) == (0, 1, 5000)
    assert report.put_off > 0


async def test_bankruptcy_prices_are_what_is_asked_for_while_another_partition_is_not_loaded(
    make_engine: MakeEngine, store: redis.Redis, query: Query
) -> None:
    """Somebody there may yet be closed against the other position."""
    engine = await make_engine(partitions=3)
    await _two_positions(engine)
    assert store.delete("{p0}:marker") == 1
    report = await engine.settlement.settle()
    assert (report.deleveragings, report.complete) == (1, False)
    ((_, detail),) = events(query, EventType.DELEVERAGING)
    assert detail["positions"][0]["price"] == "26666.66666667"


async def test_share_that_comes_late_brings_no_more_than_is_missing(engine: Engine, query: Query) -> None:
    """Half of it the fund has paid, most of the rest the other position beyond its share."""
    await mark(engine, "50000")
    await mark(engine, "50000", ETH)
    await deposit(engine, DONOR, "90000")
    await contribute(engine, DONOR, "10000")
    await deposit(engine, BANKRUPT, "30000")
    for symbol in (BTC, ETH):
        await buy(engine, BANKRUPT, "1", "50000", symbol=symbol)
    await deposit(engine, SHORT, "60000")
    await sell(engine, SHORT, "0.9", "50000")
    await deposit(engine, LONG, "60000")
    await sell(engine, LONG, "1", "50000", symbol=ETH)
    await engine.marks.set_marks({BTC: Decimal(25000), ETH: Decimal(25000)})
    await switch(engine, symbol_control(ETH), ControlState.PAUSED)
    await settle(engine)
    await switch(engine, symbol_control(ETH), ControlState.ACTIVE)
    assert (await settle(engine)).uncovered == 0
    await assert_sound(engine, query, balance="0")


async def test_shortfalls_that_nobody_can_pay_do_not_keep_a_younger_one_from_its_turn(
    engine: Engine, query: Query
) -> None:
    for number in range(6):
        symbol = f"S{number}-PERP"
        await mark(engine, "50000", symbol)
        await deposit(engine, 100 + number, "15000")
        await buy(engine, 100 + number, "1", "50000", symbol=symbol)
        assert (await mark(engine, "30000", symbol)).liquidated == (100 + number,)
    await go_bankrupt(engine)
    for _ in range(20):
        calls = itertools.count()
        report = await engine.settlement.settle(keep_going=lambda calls=calls: next(calls) < 6)
        assert not report.complete
        if report.uncovered == 30000:
            break
    assert report.uncovered == 30000
    assert [account_id for account_id, _ in events(query, EventType.SETTLEMENT)] == [BANKRUPT]
    await assert_sound(engine, query, balance="0", uncovered="30000")
    report = await settle(engine)
    assert (report.waiting, report.deleveragings) == (6, 0)


async def test_oldest_shortfall_is_the_one_that_happened_first_whatever_its_partition(
    make_engine: MakeEngine, query: Query
) -> None:
    """Ids of events count in each partition for itself."""
    engine = await make_engine(partitions=2)
    await mark(engine, "50000")
    await mark(engine, "50000", ETH)
    for account_id in (11, 13, 15, 17, 19):
        await deposit(engine, account_id, "1")
    for account_id, symbol in ((21, BTC), (22, ETH)):
        await deposit(engine, account_id, "15000")
        await buy(engine, account_id, "1", "50000", symbol=symbol)
        assert (await mark(engine, "30000", symbol)).liquidated == (account_id,)
    ids = dict(query("select account_id, id from liquidations"))
    assert ids[22] % 2**32 < ids[21] % 2**32
    await deposit(engine, DONOR, "8000")
    await contribute(engine, DONOR, "5000")
    assert (await settle(engine)).settlements == 1
    assert [account_id for account_id, _ in events(query, EventType.SETTLEMENT)] == [21]
    await assert_sound(engine, query, balance="0", uncovered="5000")


async def test_what_waits_is_counted_and_says_why(
    make_engine: MakeEngine, query: Query, caplog: pytest.LogCaptureFixture
) -> None:
    engine = await make_engine()
    await go_bankrupt(engine, counterparties=())
    report = await settle(engine)
    assert (report.waiting, report.uncovered) == (1, 5000)
    off = await make_engine(auto_deleveraging=False, opened=False)
    assert (await settle(off)).waiting == 1
    await deposit(engine, DONOR, "8000")
    await contribute(engine, DONOR, "5000")
    hold = await engine.accounts.hold(BANKRUPT, 60)
    assert (await settle(engine)).waiting == 1
    await engine.accounts.release(BANKRUPT, hold)
    reasons = [record.reason for record in caplog.records if record.message == "shortfall_waits"]
    assert reasons == [str(Waiting.NOBODY), str(Waiting.SWITCHED_OFF), str(Waiting.ACCOUNT_NOT_READY)]
    report = await settle(engine)
    assert (report.waiting, report.uncovered) == (0, 0)


async def test_partition_that_is_not_loaded_hinders_only_its_own(
    make_engine: MakeEngine, query: Query, store: redis.Redis
) -> None:
    engine = await make_engine(partitions=3)
    await go_bankrupt(engine, counterparties=((SHORT, "1", "60000"),))
    assert store.delete("{p0}:marker") == 1
    report = await engine.settlement.settle()
    assert (report.deleveragings, report.uncovered, report.complete) == (1, 0, False)


async def test_plan_that_was_lost_pays_nothing_twice(make_engine: MakeEngine, query: Query) -> None:
    """A standby that lacks the last rows is promoted; the event comes back from Redis."""
    engine = await make_engine()
    await deposit(engine, DONOR, "8000")
    await contribute(engine, DONOR, "7000")
    await go_bankrupt(engine)
    assert (await settle(engine)).settlements == 1
    query("delete from settlement_steps returning 1")
    query("update liquidations set settled = false returning 1")
    report = await settle(engine)
    assert (report.settlements, report.balance, report.uncovered) == (0, 2000, 0)
    (difference,) = (await engine.reconcile.reconcile()).differences
    assert (difference.account_id, difference.found) == (BANKRUPT, "1")
    assert "that no step planned" in difference.what


async def test_deleveraging_whose_plan_was_lost_and_step_whose_event_was_lost_are_found(
    engine: Engine, query: Query
) -> None:
    await go_bankrupt(engine)
    await settle(engine)
    query("update settlement_steps set key = 'another' where type = 'DELEVERAGING' returning 1")
    found = [(one.account_id, one.what) for one in (await engine.reconcile.reconcile()).differences]
    assert [account_id for account_id, _ in found] == [BANKRUPT, SHORT]
    assert "noted as executed without their event" in found[0][1]
    assert "happened that no step planned" in found[1][1]


async def test_more_paid_than_was_missing_is_found_and_pays_nothing_more(engine: Engine, query: Query) -> None:
    """As if two engines had each their own plans of one shortfall."""
    await deposit(engine, DONOR, "8000")
    await contribute(engine, DONOR, "7000")
    await go_bankrupt(engine)
    await settle(engine)
    query("update liquidations set settled = false, shortfall = 4000 where shortfall > 0 returning 1")
    query("update ledger_lines set amount = -4000 where ledger_account = 'uncovered' and amount < 0 returning 1")
    report = await settle(engine)
    assert (report.settlements, report.uncovered) == (0, -1000)
    differences = (await engine.reconcile.reconcile()).differences
    assert [one.expected for one in differences if "more was paid" in one.what] == ["4000"]


async def test_what_is_settled_is_noted_and_not_looked_at_again(engine: Engine, query: Query) -> None:
    await go_bankrupt(engine)
    await settle(engine)
    await settle(engine)
    assert query("select settled from liquidations where shortfall > 0") == [(True,)]
    assert query("select type, spent from settlement_steps order by id") == [
        ("DELEVERAGING", True),
        ("SETTLEMENT", False),
    ]


async def test_shortfall_of_the_first_version_is_paid_from_the_fund_alone(engine: Engine, query: Query) -> None:
    """It recorded no bankruptcy prices, and its marks are long gone."""
    await go_bankrupt(engine)
    query(
        "update liquidations set positions = (select jsonb_agg(one - 'bankruptcy_price')"
        " from jsonb_array_elements(positions) as one) returning 1"
    )
    report = await settle(engine)
    assert (report.deleveragings, report.waiting, report.uncovered) == (0, 1, 5000)
    await deposit(engine, DONOR, "8000")
    await contribute(engine, DONOR, "7000")
    assert (await settle(engine)).uncovered == 0


# --- others at the same time ---


async def test_second_settler_leaves_it_to_the_first(make_engine: MakeEngine, query: Query) -> None:
    first, second = await make_engine(), await make_engine()
    await go_bankrupt(first)
    async with first._settlement_history.session() as session:
        assert session is not None
        report = await second.settlement.settle()
        assert (report.complete, report.settlements, report.uncovered) == (False, 0, 5000)
    assert (await settle(second)).uncovered == 0
    await assert_sound(first, query, balance="0")


async def test_settlers_that_all_take_themselves_for_the_only_one_pay_once(
    make_engine: MakeEngine, query: Query
) -> None:
    engine = await make_engine()
    await deposit(engine, DONOR, "8000")
    await contribute(engine, DONOR, "7000")
    await mark(engine, "50000")
    for account_id in (11, 12, 13):
        await deposit(engine, account_id, "15000")
        await buy(engine, account_id, "1", "50000")
    for account_id in (21, 22, 23, 24):
        await deposit(engine, account_id, "50000")
        await sell(engine, account_id, "1", "50000")
    assert len((await mark(engine, "30000")).liquidated) == 3
    settlers = [await make_engine(kind=LocklessSettler) for _ in range(4)]
    for _ in range(3):
        await asyncio.gather(*(settler.settlement.settle() for settler in settlers))
    paid = query(
        "select account_id, sum((body -> 'detail' ->> 'amount')::numeric) from events"
        " where type = 'SETTLEMENT' group by 1 order by 1"
    )
    assert paid == [(11, 5000), (12, 5000), (13, 5000)]
    await assert_sound(engine, query, balance="0")
    assert query("select sum(amount) from ledger_lines where ledger_account = 'insurance' and amount > 0") == [(15000,)]
    # At no moment had the fund paid more than it had.
    lines = query(
        "select amount from ledger_lines join events using (account_id, event_id)"
        " where ledger_account = 'insurance' order by recorded_at, event_id"
    )
    balance = Decimal(0)
    for (amount,) in lines:
        balance += amount
        assert balance >= 0


@pytest.mark.parametrize(("reduces", "uncovered"), [(True, "500"), (False, "0")])
async def test_counterparty_that_moves_meanwhile_is_asked_again_at_its_new_version(
    make_engine: MakeEngine, query: Query, *, reduces: bool, uncovered: str
) -> None:
    engine = await make_engine(kind=InterruptedEngine)
    assert isinstance(engine, InterruptedEngine)
    other = await make_engine()
    await go_bankrupt(engine)
    engine.before_commit(lambda: buy(other, SHORT, "0.1", "30000") if reduces else deposit(other, SHORT, "1"))
    report = await settle(engine)
    assert (report.void, report.deleveragings, report.uncovered) == (1, 1, Decimal(uncovered))
    assert query("select type, number, outcome from settlement_steps order by id") == [
        ("DELEVERAGING", 1, "void"),
        ("DELEVERAGING", 2, "executed"),
        ("SETTLEMENT", 3, "executed"),
    ]
    assert len(events(query, EventType.DELEVERAGING)) == 1
    await assert_sound(engine, query, balance="0", uncovered=uncovered)


async def test_of_two_steps_that_are_made_of_the_same_state_only_one_is_planned(
    make_engine: MakeEngine, query: Query
) -> None:
    """Each alone the fund could pay, both together it could not."""
    engine = await make_engine(kind=LocklessSettler)
    await deposit(engine, DONOR, "8000")
    await contribute(engine, DONOR, "5000")
    await mark(engine, "50000")
    for account_id in (11, 12):
        await deposit(engine, account_id, "15000")
        await buy(engine, account_id, "1", "50000")
    assert len((await mark(engine, "30000")).liquidated) == 2
    history = engine._settlement_history
    async with history.session() as first, history.session() as second:
        assert first is not None
        assert second is not None
        planned = []
        for session, shortfall in zip((first, second), await first.open_shortfalls(Place(), 10), strict=True):
            standing = await session.standing(shortfall.account_id, shortfall.liquidation_id)
            assert standing is not None
            assert standing.available == 5000
            planned.append((session, standing))
        steps = [await _payment(engine, session, standing) for session, standing in planned]
        assert [await session.plan(step) for (session, _), step in zip(planned, steps, strict=True)] == [True, False]
        # What is going to be paid is not there any more.
        left = await second.standing(steps[1].account_id, steps[1].liquidation_id)
        assert left is not None
        assert (left.available, left.last_step_id) == (0, 1)
    await assert_sound(engine, query, balance="5000", uncovered="10000")
    assert (await settle(engine)).uncovered == 5000


async def _payment(engine: Engine, session: SettlementSession, standing: Standing) -> SettlementStep:
    shortfall = standing.shortfall
    view = await engine.settlement._steps.settled_view(shortfall.account_id, session)
    assert view is not None
    return SettlementStep(
        id=standing.last_step_id + 1,
        account_id=shortfall.account_id,
        liquidation_id=shortfall.liquidation_id,
        number=shortfall.last_number + 1,
        type=EventType.SETTLEMENT,
        fence=fence_of(view, shortfall.account_id),
        amount=Decimal(5000),
        uncovered=Decimal(0),
    )


async def test_what_was_raised_for_one_shortfall_does_not_pay_another(make_engine: MakeEngine, query: Query) -> None:
    """An older shortfall that nobody can be deleveraged for waits; a settler dies before it pays what it has raised."""
    engine = await make_engine()
    await mark(engine, "2000", ETH)
    await deposit(engine, LONG, "15000")
    await buy(engine, LONG, "25", "2000", symbol=ETH)
    assert (await mark(engine, "1200", ETH)).liquidated == (LONG,)
    await go_bankrupt(engine)
    settler = await make_engine(kind=DyingSettler)
    assert isinstance(settler, DyingSettler)
    settler.death.at = 9  # after it is known that the deleveraging has happened
    with pytest.raises(FunctionDiedError):
        await settler.settlement.settle()
    await settler.close()
    fund = await engine.insurance_fund.fund()
    assert (fund.balance, [one.account_id for one in fund.open_shortfalls]) == (5000, [LONG, BANKRUPT])
    assert (await settle(engine)).uncovered == 5000
    assert [account_id for account_id, _ in events(query, EventType.SETTLEMENT)] == [BANKRUPT]
    await assert_sound(engine, query, balance="0", uncovered="5000")


async def test_account_that_keeps_moving_is_passed_over_in_this_run(make_engine: MakeEngine, query: Query) -> None:
    engine = await make_engine(kind=InterruptedEngine)
    assert isinstance(engine, InterruptedEngine)
    other = await make_engine()
    await go_bankrupt(engine, counterparties=((SHORT, "1", "60000"), (SMALL_SHORT, "0.4", "8000")))

    async def move() -> None:
        moved = await deposit(other, SMALL_SHORT, "1")
        if Decimal(str(moved.result["balance"])) < 8000 + TRIES_MAX:
            engine.before_commit(move)

    engine.before_commit(move)
    report = await settle(engine)
    assert report.uncovered == 0
    assert report.void == TRIES_MAX
    assert [account_id for account_id, _ in events(query, EventType.DELEVERAGING)] == [SHORT]
    await assert_sound(engine, query, balance="0")


async def test_step_whose_conditions_went_away_is_given_up_for_ever(make_engine: MakeEngine, query: Query) -> None:
    engine = await make_engine(kind=InterruptedEngine)
    assert isinstance(engine, InterruptedEngine)
    other = await make_engine()
    await go_bankrupt(engine)
    engine.before_commit(lambda: mark(other, "51000"))
    report = await settle(engine)
    assert (report.void, report.deleveragings, report.uncovered) == (1, 0, 5000)
    # Somebody who has been asleep since the step was planned finds the market as it was, and may not carry it out.
    await mark(other, "30000")
    async with engine._settlement_history.session() as session:
        assert session is not None
        (row,) = query("select row_to_json(step) from settlement_steps as step")
        assert row[0]["outcome"] == "void"
        query("update settlement_steps set outcome = null returning 1")
        (step,) = await session.open_steps(10)
        query("update settlement_steps set outcome = 'void' returning 1")
        assert await engine.settlement._steps.carry_out(step, session) is StepOutcome.VOID
    assert events(query, EventType.DELEVERAGING) == []
    assert (await settle(engine)).uncovered == 0
    await assert_sound(engine, query, balance="0")


async def test_pause_that_comes_between_plan_and_commit_is_obeyed(make_engine: MakeEngine, query: Query) -> None:
    engine = await make_engine(kind=InterruptedEngine)
    assert isinstance(engine, InterruptedEngine)
    other = await make_engine()
    await go_bankrupt(engine)
    engine.before_commit(lambda: switch(other, symbol_control(BTC), ControlState.PAUSED))
    report = await settle(engine)
    assert (report.void, report.deleveragings, report.uncovered) == (1, 0, 5000)
    await switch(other, symbol_control(BTC), ControlState.ACTIVE)
    assert (await settle(engine)).uncovered == 0
    await assert_sound(engine, query, balance="0")


# --- death ---


@pytest.mark.parametrize("changes", [{}, {"history": "drain"}, {"partitions": 3}])
async def test_settler_that_dies_anywhere_leaves_nothing_undone_and_nothing_done_twice(
    make_engine: MakeEngine, query: Query, changes: dict[str, Any]
) -> None:
    """One shortfall after the other, each in a market of its own, until one is settled without dying."""
    engine = await make_engine(**changes)
    await deposit(engine, DONOR, "1000000")
    for place in itertools.count(1):
        symbol, first = f"S{place}", 100 * place
        await mark(engine, "50000", symbol)
        for number, money in ((first, "15000"), (first + 1, "60000"), (first + 2, "8000")):
            await deposit(engine, number, money)
        await buy(engine, first, "1", "50000", symbol=symbol)
        await sell(engine, first + 1, "1", "50000", symbol=symbol)
        await sell(engine, first + 2, "0.4", "50000", symbol=symbol)
        await contribute(engine, DONOR, "1000")
        await mark(engine, "30000", symbol)
        await engine.drain.drain()
        settler = await make_engine(kind=DyingSettler, **changes)
        assert isinstance(settler, DyingSettler)
        settler.death.at = place
        died = False
        try:
            await settler.settlement.settle()
        except FunctionDiedError:
            died = True
        await settler.close()
        assert (await settle(engine)).uncovered == 0
        taken = query(
            "select account_id, body -> 'detail' -> 'positions' -> 0 ->> 'quantity' from events"
            " where type = 'DELEVERAGING' and account_id between %(first)s and %(last)s order by 1",
            first=first,
            last=first + 2,
        )
        assert taken == [(first + 1, "-0.4"), (first + 2, "-0.4")]
        paid = query(
            "select body -> 'detail' ->> 'amount' from events where type = 'SETTLEMENT' and account_id = %(first)s"
            " order by n",
            first=first,
        )
        assert [amount for (amount,) in paid] == ["1000", "2000", "2000"]
        assert query("select count(*) from settlement_steps where outcome is null") == [(0,)]
        if not died:
            break
    assert place > 30, "it died at few places"
    await assert_sound(engine, query, balance="0")


async def test_settler_that_dies_while_it_gives_a_step_up_leaves_nothing_undone(
    make_engine: MakeEngine, query: Query
) -> None:
    """Between plan and commit the mark goes where the counterparty has won nothing, and comes back afterwards."""
    engine = await make_engine()
    for place in itertools.count(1):
        symbol, first = f"S{place}", 100 * place
        await mark(engine, "50000", symbol)
        for number, money in ((first, "15000"), (first + 1, "60000")):
            await deposit(engine, number, money)
        await buy(engine, first, "1", "50000", symbol=symbol)
        await sell(engine, first + 1, "1", "50000", symbol=symbol)
        await mark(engine, "30000", symbol)
        settler = await make_engine(kind=DyingSettler)
        assert isinstance(settler, DyingSettler)
        settler.interrupted.interruption = functools.partial(mark, engine, "51000", symbol)
        settler.death.at = place
        died = False
        try:
            await settler.settlement.settle()
        except FunctionDiedError:
            died = True
        await settler.close()
        await mark(engine, "30000", symbol)
        # A hold that nobody released ends by itself, within a second.
        for _ in range(10_000):
            if (await engine.settlement.settle()).uncovered == 0:
                break
        taken = query("select count(*) from events where type = 'DELEVERAGING' and account_id = %(id)s", id=first + 1)
        assert taken == [(1,)]
        if not died:
            break
    assert place > 10, "it died at few places"
    outcomes = dict(query("select coalesce(outcome, 'open'), count(*) from settlement_steps group by 1"))
    assert "open" not in outcomes
    assert outcomes["void"] > 5
    await assert_sound(engine, query, balance="0")


async def test_held_account_hinders_nobody_else(engine: Engine, query: Query) -> None:
    await go_bankrupt(engine, counterparties=((SHORT, "1", "60000"), (SMALL_SHORT, "0.4", "8000")))
    hold = await engine.accounts.hold(SMALL_SHORT, 60)
    report = await settle(engine)
    assert (report.deleveragings, report.uncovered) == (1, 0)
    assert [account_id for account_id, _ in events(query, EventType.DELEVERAGING)] == [SHORT]
    await engine.accounts.release(SMALL_SHORT, hold)
    await assert_sound(engine, query, balance="0")


async def test_counterparty_trades_after_its_settler_has_died(make_engine: MakeEngine, query: Query) -> None:
    engine = await make_engine()
    await go_bankrupt(engine, counterparties=((SHORT, "1", "60000"), (SMALL_SHORT, "0.4", "8000")))
    settler = await make_engine(kind=DyingSettler)
    assert isinstance(settler, DyingSettler)
    settler.death.at = 3  # after the plan, before the commit
    with pytest.raises(FunctionDiedError):
        await settler.settlement.settle()
    await settler.close()
    assert query("select executed_on, outcome from settlement_steps") == [(SMALL_SHORT, None)]
    await deposit(engine, SMALL_SHORT, "1")
    report = await settle(engine)
    assert (report.deleveragings, report.uncovered) == (2, 0)
    outcomes = query("select outcome from settlement_steps where type = 'DELEVERAGING' order by id")
    assert outcomes == [("void",), ("executed",), ("executed",)]
    await assert_sound(engine, query, balance="0")


async def test_state_that_is_opened_anew_after_a_settler_died_voids_what_it_planned(
    make_engine: MakeEngine, query: Query, store: redis.Redis
) -> None:
    engine = await make_engine()
    await go_bankrupt(engine)
    settler = await make_engine(kind=DyingSettler)
    assert isinstance(settler, DyingSettler)
    settler.death.at = 3
    with pytest.raises(FunctionDiedError):
        await settler.settlement.settle()
    await settler.close()
    await engine.mark_records.save()
    store.flushall()
    await engine.opening.open()
    await mark(engine, "30000")
    report = await settle(engine)
    assert (report.void, report.deleveragings, report.uncovered) == (1, 1, 0)
    await assert_sound(engine, query, balance="0")


# --- the index ---


@pytest.mark.parametrize("partitions", [1, 3])
async def test_holders_of_a_side_come_in_pages_those_furthest_from_their_trigger_first(
    make_engine: MakeEngine, store: redis.Redis, partitions: int
) -> None:
    engine = await make_engine(partitions=partitions)
    await mark(engine, "50000")
    for number in range(3, 33):
        await deposit(engine, number, str(20000 + number))
        await (sell if number % 2 else buy)(engine, number, "1", "50000")
    seen: list[int] = []
    for partition in range(partitions):
        for side, wanted in ((TriggerSide.CEILING, 1), (TriggerSide.FLOOR, 0)):
            page = await engine.accounts.holders(partition, BTC, side, "0")
            ids = [one.row.account.account_id for one in page.accounts]
            assert page.cursor == "0"
            assert ids == sorted(ids, reverse=True)
            assert {account_id % 2 for account_id in ids} == {wanted}
            assert all(one.row.account.positions[BTC].quantity == 1 - 2 * wanted for one in page.accounts)
            assert page.market.mark_price(BTC) == 50000
            seen += ids
    assert sorted(seen) == list(range(3, 33))


async def test_page_of_holders_ends_where_the_next_begins(engine: Engine, store: redis.Redis) -> None:
    held = ACCOUNTS_PER_PAGE * 2 + 1
    await mark(engine, "50000")
    with store.pipeline() as pipeline:
        for number in range(1, held + 1):
            pipeline.zadd("triggers:BTC-PERP:floor", {str(number): number})
            pipeline.hset("balances", str(number), "1")
            pipeline.hset("versions", str(number), "1:1")
            pipeline.sadd(f"positions:{number}", BTC)
            pipeline.hset(f"position:{number}:{BTC}", mapping={"quantity": "1", "entry_cost": "50000"})
        pipeline.execute()
    seen, cursor, pages = [], "0", 0
    while pages == 0 or cursor != "0":
        page = await engine.accounts.holders(0, BTC, TriggerSide.FLOOR, cursor)
        seen += [one.row.account.account_id for one in page.accounts]
        cursor, pages = page.cursor, pages + 1
    assert seen == list(range(1, held + 1))
    assert pages == 3
