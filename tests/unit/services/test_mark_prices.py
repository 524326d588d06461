"""Several mark prices of one call: who is evaluated where, and what is counted."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

import pytest

from margin.domain.instrument import Instrument
from margin.domain.mark_jump import MarkCandidate
from margin.errors import FutureTimestampError, OlderMarkPriceError
from margin.observability import MetricName, counted
from margin.ports import SetAside
from margin.services.mark_list import MarkList
from tests.actions import BTC, ETH, buy, deposit, mark, sell
from tests.fakes import Exchange

if TYPE_CHECKING:
    from margin.services.marks import MarkOutcome

START = {BTC: Decimal(50000), ETH: Decimal(50000)}
FALLEN = {BTC: Decimal(39000), ETH: Decimal(39000)}


async def _hold(exchange: Exchange, account_id: int, balance: str, *symbols: str) -> None:
    await deposit(exchange, account_id, balance)
    for symbol in symbols:
        await buy(exchange, account_id, "1", "50000", symbol=symbol)


async def _at(exchange: Exchange, prices: dict[str, Decimal], seconds: float) -> MarkOutcome:
    time_us = exchange.clock.now_us + int(seconds * 1_000_000)
    return await exchange.marks.set_marks(prices, observed_us=dict.fromkeys(prices, time_us))


async def test_queue_takes_each_account_once_and_the_most_urgent_of_every_symbol_are_evaluated_at_once() -> None:
    exchange = await Exchange(crossed_inline_max=2, crossed_queued_max=100).open()
    await exchange.marks.set_marks(START)
    for account_id in (1, 2):
        await _hold(exchange, account_id, f"1390{account_id}", BTC)
    for account_id in (3, 4):
        await _hold(exchange, account_id, f"1390{account_id}", ETH)
    await _hold(exchange, 5, "25000", BTC, ETH)
    evaluated = counted(MetricName.ACCOUNTS_EVALUATED)
    outcome = await exchange.marks.set_marks(FALLEN)
    named = {symbol: exchange.redis.crossed_by(symbol) for symbol in FALLEN}
    assert exchange.queue is not None
    assert (outcome.at_risk, outcome.at_risk_by_symbol) == (5, {BTC: 3, ETH: 3})
    assert counted(MetricName.ACCOUNTS_EVALUATED) - evaluated == 2
    assert len(set(exchange.queue.sent)) == len(exchange.queue.sent) == 3
    assert set(named[BTC]) | set(named[ETH]) == set(exchange.queue.sent)


async def test_first_symbol_of_a_call_does_not_take_all_evaluations() -> None:
    exchange = await Exchange(crossed_inline_max=2, crossed_queued_max=100).open()
    await exchange.marks.set_marks(START)
    for account_id in (1, 2, 3):
        await _hold(exchange, account_id, "13900", BTC)
    await _hold(exchange, 4, "13900", ETH)
    outcome = await exchange.marks.set_marks(FALLEN)
    assert 4 in outcome.liquidated
    assert len(outcome.liquidated) == 2


async def test_without_a_queue_all_are_evaluated_before_the_answer(exchange: Exchange) -> None:
    await exchange.marks.set_marks(START)
    for account_id, symbol in ((1, BTC), (2, ETH), (3, BTC)):
        await _hold(exchange, account_id, "13900", symbol)
    outcome = await exchange.marks.set_marks(FALLEN)
    assert (outcome.at_risk, sorted(outcome.liquidated)) == (3, [1, 2, 3])


async def test_accounts_that_are_not_named_are_counted_for_each_symbol_and_left_to_the_scan() -> None:
    exchange = await Exchange(crossed_inline_max=1, crossed_queued_max=2).open()
    await exchange.marks.set_marks(START)
    for account_id in range(1, 5):
        await _hold(exchange, account_id, "25000", BTC, ETH)
    outcome = await exchange.marks.set_marks({BTC: Decimal(37000), ETH: Decimal(37000)})
    assert outcome.at_risk_by_symbol == {BTC: 4, ETH: 4}
    # At least the four that there are, and at most one for each crossing.
    assert 4 <= outcome.at_risk <= 8
    assert exchange.queue is not None
    seen_to = {*outcome.liquidated, *exchange.queue.sent}
    assert {*seen_to, *(await exchange.scans.scan()).liquidated} == {1, 2, 3, 4}


async def test_hedged_account_survives_one_call_and_not_two(exchange: Exchange) -> None:
    await exchange.marks.set_marks(START)
    await _hold(exchange, 1, "24000", BTC)
    await sell(exchange, 1, "1", "50000", symbol=ETH)
    assert (await exchange.marks.set_marks({ETH: Decimal(90000), BTC: Decimal(90000)})).liquidated == ()
    await exchange.marks.set_marks(START)
    assert (await mark(exchange, "90000", ETH)).liquidated == (1,)


async def test_refused_call_evaluates_nobody_and_counts_no_price(exchange: Exchange) -> None:
    await _at(exchange, START, 0)
    await _hold(exchange, 1, "13900", BTC)
    reads = exchange.faults.calls["accounts.read"]
    prices = counted(MetricName.MARK_PRICES)
    with pytest.raises(OlderMarkPriceError):
        await _at(exchange, FALLEN, -1)
    with pytest.raises(FutureTimestampError):
        await _at(exchange, FALLEN, 3600)
    assert exchange.faults.calls["accounts.read"] == reads
    assert counted(MetricName.MARK_PRICES) == prices
    assert {symbol: found.price for symbol, found in exchange.redis.marks.items()} == START


async def test_price_that_is_set_aside_evaluates_nobody_and_is_counted_and_logged_as_such(
    exchange: Exchange, caplog: pytest.LogCaptureFixture
) -> None:
    exchange.redis.instruments[BTC] = Instrument(BTC, mark_jump_max=Decimal("0.1"), version=1)
    await exchange.marks.set_marks(START)
    for account_id, symbol in ((1, BTC), (2, ETH)):
        await _hold(exchange, account_id, "13900", symbol)
    names = (MetricName.MARK_PRICES, MetricName.MARK_PRICES_SET_ASIDE)
    before = [counted(name) for name in names]
    outcome = await exchange.marks.set_marks(FALLEN, sources={BTC: "index-1"})
    assert [counted(name) - count for name, count in zip(names, before, strict=True)] == [1, 1]
    assert (outcome.at_risk_by_symbol, outcome.liquidated) == ({BTC: 0, ETH: 1}, (2,))
    assert outcome.set_aside == {BTC: SetAside(Decimal(50000), Decimal("0.1"))}
    (line,) = [record for record in caplog.records if record.msg == "mark_price_set_aside"]
    told = {name: getattr(line, name) for name in ("symbol", "price", "mark_price", "jump_max", "source")}
    assert told == {"symbol": BTC, "price": "39000", "mark_price": "50000", "jump_max": "0.1", "source": "index-1"}


async def test_price_that_confirms_another_evaluates_whom_both_cross(exchange: Exchange) -> None:
    exchange.redis.instruments[BTC] = Instrument(BTC, mark_jump_max=Decimal("0.1"), version=1)
    await _at(exchange, {BTC: Decimal(50000)}, 0)
    await _hold(exchange, 1, "13900", BTC)
    assert (await _at(exchange, {BTC: Decimal(39000)}, 1)).liquidated == ()
    assert (await _at(exchange, {BTC: Decimal(39000)}, 1)).liquidated == ()
    assert (await _at(exchange, {BTC: Decimal(39500)}, 2)).liquidated == (1,)


async def test_price_that_moves_the_mark_to_another_is_counted_as_set_aside_and_as_stored(
    exchange: Exchange,
) -> None:
    exchange.redis.instruments[BTC] = Instrument(BTC, mark_jump_max=Decimal("0.1"), version=1)
    await _at(exchange, {BTC: Decimal(50000)}, 0)
    await _hold(exchange, 1, "13900", BTC)
    await _at(exchange, {BTC: Decimal(39000)}, 1)
    names = (MetricName.MARK_PRICES, MetricName.MARK_PRICES_SET_ASIDE)
    before = [counted(name) for name in names]
    outcome = await _at(exchange, {BTC: Decimal(30000)}, 2)
    assert [counted(name) - count for name, count in zip(names, before, strict=True)] == [1, 1]
    assert outcome.set_aside == {BTC: SetAside(Decimal(39000), Decimal("0.1"), moved_mark=True)}
    # Nobody is closed at a mark that is in doubt.
    assert (outcome.at_risk, outcome.liquidated) == (1, ())
    assert (await _at(exchange, {BTC: Decimal(30000)}, 3)).liquidated == (1,)


async def test_prices_are_listed_by_symbol_with_ages_and_what_waits(exchange: Exchange) -> None:
    exchange.redis.instruments[BTC] = Instrument(BTC, mark_jump_max=Decimal("0.1"), mark_max_age_s=5, version=1)
    await _at(exchange, dict(reversed(START.items())), -2)
    await _at(exchange, {BTC: Decimal(1)}, 0)
    listed = await exchange.mark_list.mark_prices()
    assert [(found.symbol, found.age_s, found.is_stale, found.age_max_s) for found in listed.marks] == [
        (BTC, 2, True, 5),
        (ETH, 2, False, None),
    ]
    candidate = MarkCandidate(Decimal(1), exchange.clock.now_us)
    assert [found.waiting for found in listed.marks] == [candidate, None]
    assert listed.as_of_us == exchange.clock.now_us
    assert await exchange.mark_list.mark_prices(symbol=ETH) == MarkList(listed.as_of_us, listed.marks[1:])
    assert (await exchange.mark_list.mark_prices(symbol="SOL-PERP")).marks == ()
