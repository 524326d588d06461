"""Preview and trade never disagree, whatever the account, the market, the switches and the order are."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from margin.caller import NOBODY
from margin.domain.controls import ENGINE_CONTROL, ControlState
from margin.domain.decimals import plain
from margin.domain.funding import Funding
from margin.errors import RefusedError
from tests.actions import deposit
from tests.fakes import Exchange
from tests.property.strategies import NOW_US, units
from tests.property.test_largest_order_properties import Ask, asks

if TYPE_CHECKING:
    from decimal import Decimal

    from margin.domain.order import Order


async def exchange_of(ask: Ask, index: Decimal, state: ControlState) -> Exchange:
    """Return an exchange in which the account of an ask lives."""
    exchange = await Exchange().open()
    await deposit(exchange, 1, "1")
    redis, market = exchange.redis, ask.book.market
    redis.accounts[1].account = ask.book.account
    aged = exchange.clock.now_us - NOW_US
    redis.marks.update({symbol: replace(mark, stamp_us=mark.stamp_us + aged) for symbol, mark in market.marks.items()})
    redis.instruments.update(market.instruments)
    redis.funding[ask.order.symbol] = Funding(n=1, index=index)
    redis.controls[ENGINE_CONTROL] = state
    return exchange


async def compare(ask: Ask, order: Order, index: Decimal, state: ControlState) -> None:
    exchange = await exchange_of(ask, index, state)
    before = exchange.redis.save()
    foreseen = await exchange.previews.preview(order)
    assert exchange.redis.save() == before
    for side, largest in foreseen.largest.items():
        if largest > 0:
            asked = replace(order, side=side, quantity=largest)
            assert (await exchange.previews.preview(asked)).refusal is None
    if foreseen.refusal is not None:
        with pytest.raises(RefusedError) as refused:
            await exchange.trading.trade(order, key=None, caller=NOBODY)
        assert foreseen.result is None
        assert (foreseen.refusal.code, foreseen.refusal.detail) == (refused.value.code, refused.value.detail)
        assert exchange.redis.save() == before
        return
    outcome = await exchange.trading.trade(order, key=None, caller=NOBODY)
    assert (foreseen.refusal, foreseen.result) == (None, outcome.result)
    assert foreseen.after is not None
    assert plain(foreseen.after.balance) == outcome.result["balance"]
    assert order.quantity <= foreseen.largest[order.side]


@settings(deadline=None, max_examples=100)
@given(
    asks(),
    st.integers(0, 150),
    units(-(10**6), 10**6),
    st.sampled_from([ControlState.ACTIVE, ControlState.ACTIVE, *ControlState]),
)
def test_preview_and_trade_never_disagree(ask: Ask, hundredths: int, index: Decimal, state: ControlState) -> None:
    lot_size = ask.instrument.lot_size
    part = ask.largest * hundredths / 100 // lot_size * lot_size
    order = replace(ask.order, quantity=max(part, lot_size))
    asyncio.run(compare(ask, order, index, state))
