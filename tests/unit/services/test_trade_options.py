"""What an order says beyond the least: recorded, answered, part of what its key stands for."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from margin.contract.history import TradesAnswer
from margin.contract.trade import TradeAnswer, TradeRequest
from margin.domain.event import canonical, digest
from margin.domain.instrument import Instrument, InstrumentStatus
from margin.domain.order import Liquidity, Order
from margin.domain.position import Side
from margin.errors import IdempotencyKeyReusedError, InstrumentStatusError, NotReducingError
from margin.services.journal import Outcome
from tests.actions import ALICE, BTC, buy, deposit, mark
from tests.fakes import Exchange

FEES = Instrument(BTC, taker_fee=Decimal("0.0005"), maker_fee=Decimal("-0.0001"), version=1)
LEAST = {"account_id": 1, "symbol": BTC, "side": "BUY", "quantity": "0.1", "price": "50000"}
RESULT_OF_THE_FIRST_RELEASE = {
    "success": True,
    "message": "Trade executed",
    "account_id": 1,
    "symbol": BTC,
    "side": "BUY",
    "quantity": "0.1",
    "price": "50000",
    "notional": "5000",
    "realised_pnl": "0",
    "fee": "0",
    "balance": "10000",
    "equity": "10000",
    "initial_margin_required": "1000",
    "maintenance_margin_required": "500",
    "margin_utilisation_pct": "5",
    "position": {"symbol": BTC, "quantity": "0.1", "entry_price": "50000"},
}


@pytest.fixture
async def exchange() -> Exchange:
    """Return an exchange with one funded account, a mark price, and fees."""
    exchange = await Exchange().open()
    await deposit(exchange, 1, "10000")
    await mark(exchange, "50000")
    exchange.redis.instruments[BTC] = FEES
    return exchange


async def trade(exchange: Exchange, *, key: str | None = None, **options: Any) -> Outcome:
    order = TradeRequest.model_validate({**LEAST, **options}).order()
    return await exchange.trading.trade(order, key=key, caller=ALICE)


def recorded(exchange: Exchange) -> dict[str, Any]:
    """The body of the account's last event in history."""
    return exchange.history_store.chains[1][-1].body


async def test_order_with_nothing_but_the_least_has_the_hash_and_the_result_of_the_first_release(
    exchange: Exchange,
) -> None:
    del exchange.redis.instruments[BTC]
    outcome = await trade(exchange, reduce_only=False, liquidity="TAKER", client_order_id=None)
    fields = {**LEAST, "operation": "trade", "account_id": "1"}
    assert recorded(exchange)["request_hash"] == digest(canonical(fields))
    assert outcome.result == RESULT_OF_THE_FIRST_RELEASE


def test_result_of_the_first_release_is_answered_with_defaults() -> None:
    answer = TradeAnswer.of(Outcome(7, RESULT_OF_THE_FIRST_RELEASE, final=True, replayed=True))
    assert (answer.trade_id, answer.reduce_only, answer.liquidity, answer.client_order_id) == (7, False, "TAKER", None)


async def test_client_order_id_and_liquidity_are_recorded_and_answered(exchange: Exchange) -> None:
    outcome = await trade(exchange, liquidity="MAKER", client_order_id="grid-17/BUY/3")
    answer = TradeAnswer.of(outcome)
    assert (answer.liquidity, answer.client_order_id, answer.fee) == ("MAKER", "grid-17/BUY/3", Decimal("-0.5"))
    detail = recorded(exchange)["detail"]
    assert (detail["liquidity"], detail["client_order_id"], detail["fee"]) == ("MAKER", "grid-17/BUY/3", "-0.5")
    assert recorded(exchange)["ledger"] == [["cash", "0.5"], ["fees", "-0.5"]]


async def test_order_without_them_is_recorded_as_a_takers_without_an_id(exchange: Exchange) -> None:
    answer = TradeAnswer.of(await trade(exchange))
    assert (answer.liquidity, answer.client_order_id, answer.fee) == ("TAKER", None, Decimal("2.5"))
    detail = recorded(exchange)["detail"]
    assert (detail["liquidity"], detail["client_order_id"]) == ("TAKER", None)


async def test_reduce_only_is_recorded_and_answered(exchange: Exchange) -> None:
    await trade(exchange)
    outcome = await trade(exchange, side="SELL", reduce_only=True, key="k")
    assert TradeAnswer.of(outcome).reduce_only is True
    assert recorded(exchange)["detail"]["reduce_only"] is True
    again = await trade(exchange, side="SELL", reduce_only=True, key="k")
    assert (again.replayed, TradeAnswer.of(again)) == (True, TradeAnswer.of(outcome))
    page = TradesAnswer.of(await exchange.history.trades(1))
    assert [row.reduce_only for row in page.trades] == [True, False]


async def test_order_that_may_do_more_than_reduce_says_nothing_of_it_in_its_event(exchange: Exchange) -> None:
    outcome = await trade(exchange, reduce_only=False)
    assert TradeAnswer.of(outcome).reduce_only is False
    assert "reduce_only" not in recorded(exchange)["detail"]
    assert "reduce_only" not in outcome.result


async def test_hash_of_a_reduce_only_order_is_that_of_the_release_that_brought_it(exchange: Exchange) -> None:
    await trade(exchange)
    await trade(exchange, side="SELL", reduce_only=True)
    fields = {**LEAST, "operation": "trade", "account_id": "1", "side": "SELL", "reduce_only": "true"}
    assert recorded(exchange)["request_hash"] == digest(canonical(fields))


async def test_history_of_trades_has_both(exchange: Exchange) -> None:
    await trade(exchange)
    await trade(exchange, liquidity="MAKER", client_order_id="mine")
    page = TradesAnswer.of(await exchange.history.trades(1))
    assert [(row.liquidity, row.client_order_id) for row in page.trades] == [("MAKER", "mine"), ("TAKER", None)]


async def test_replay_answers_what_the_first_one_said(exchange: Exchange) -> None:
    first = await trade(exchange, key="k", liquidity="MAKER", client_order_id="mine")
    again = await trade(exchange, key="k", liquidity="MAKER", client_order_id="mine")
    assert again.replayed
    assert TradeAnswer.of(again) == TradeAnswer.of(first)


@pytest.mark.parametrize(
    "other", [{"client_order_id": "other"}, {"client_order_id": None}, {"liquidity": "TAKER"}, {"reduce_only": True}]
)
async def test_key_with_another_option_is_another_request(exchange: Exchange, other: dict[str, Any]) -> None:
    options = {"liquidity": "MAKER", "client_order_id": "mine"}
    await trade(exchange, key="k", **options)
    with pytest.raises(IdempotencyKeyReusedError):
        await trade(exchange, key="k", **{**options, **other})


async def test_two_trades_may_have_one_client_order_id(exchange: Exchange) -> None:
    first, second = [await trade(exchange, client_order_id="partly filled") for _ in range(2)]
    assert first.event_id != second.event_id


async def test_reduce_only_refuses_what_does_not_reduce_and_writes_nothing(exchange: Exchange) -> None:
    before = exchange.redis.save()
    with pytest.raises(NotReducingError):
        await trade(exchange, reduce_only=True)
    assert exchange.redis.save() == before


async def test_status_that_changes_before_the_commit_is_obeyed(exchange: Exchange) -> None:
    async def close() -> None:
        exchange.redis.instruments[BTC] = Instrument(BTC, status=InstrumentStatus.CLOSED, version=2)

    exchange.faults.call("accounts.commit.before", close)
    with pytest.raises(InstrumentStatusError):
        await buy(exchange, 1, "0.1", "50000")


def test_request_without_options_is_the_order_of_before() -> None:
    order = TradeRequest.model_validate(LEAST).order()
    assert order == Order(1, BTC, Side.BUY, Decimal("0.1"), Decimal(50000))
    assert (order.reduce_only, order.liquidity, order.client_order_id) == (False, Liquidity.TAKER, None)
