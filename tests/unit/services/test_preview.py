"""Previews: what a trade would come to, and that nothing but the trade makes it happen."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest

from margin.contract.preview import PreviewAnswer
from margin.contract.trade import TradeAnswer
from margin.domain.controls import ENGINE_CONTROL, ControlState
from margin.domain.instrument import Instrument, InstrumentStatus
from margin.domain.market import RESTORED_STAMP_US, Mark
from margin.domain.order import Liquidity, Order
from margin.domain.position import Side
from margin.errors import PostgresUnavailableError, RedisUnavailableError, RefusedError, UnknownAccountError
from margin.services.trading import SYMBOLS_PER_ACCOUNT_MAX
from tests.actions import ALICE, BTC, ETH, buy, deposit, fund, mark, switch
from tests.fakes import Exchange

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

OF_THE_EVENT = {"success", "message", "trade_id"}


@pytest.fixture
async def exchange() -> Exchange:
    """Return an exchange with one account that holds 0.2 and could hold five times that."""
    exchange = await Exchange().open()
    await deposit(exchange, 1, "10000")
    await mark(exchange, "50000")
    await buy(exchange, 1, "0.2", "50000")
    return exchange


def order(quantity: str = "0.1", price: str = "50000", side: Side = Side.BUY, **options: Any) -> Order:
    return Order(1, BTC, side, Decimal(quantity), Decimal(price), **options)


async def preview(exchange: Exchange, asked: Order) -> dict[str, Any]:
    """Answer as the API would; the state is compared before and after."""
    before = exchange.redis.save()
    answer = PreviewAnswer.of(await exchange.previews.preview(asked)).model_dump(mode="json")
    assert exchange.redis.save() == before
    return answer


async def test_preview_of_a_trade_is_the_answer_of_the_trade_without_its_id(exchange: Exchange) -> None:
    asked = order("0.1", "50100", liquidity=Liquidity.MAKER, client_order_id="grid-1")
    exchange.redis.instruments[BTC] = Instrument(
        BTC, taker_fee=Decimal("0.001"), maker_fee=Decimal("0.0005"), version=1
    )
    foreseen = await preview(exchange, asked)
    trade = TradeAnswer.of(await exchange.trading.trade(asked, key=None, caller=ALICE)).model_dump(mode="json")
    assert (foreseen["accepted"], foreseen["refusal"]) == (True, None)
    assert set(trade) - set(foreseen["trade"]) == OF_THE_EVENT
    assert foreseen["trade"] == {name: value for name, value in trade.items() if name not in OF_THE_EVENT}
    assert (trade["fee"], trade["client_order_id"]) == ("2.505", "grid-1")


async def test_account_before_and_after_is_what_positions_show(exchange: Exchange) -> None:
    foreseen = await preview(exchange, order("0.3"))
    assert foreseen["before"] == {
        "balance": "10000",
        "equity": "10000",
        "initial_margin_required": "2000",
        "maintenance_margin_required": "1000",
        "margin_utilisation_pct": "10",
        "withdrawable": "8000",
        "liquidation_price": None,
        "position": {"symbol": BTC, "quantity": "0.2", "entry_price": "50000"},
    }
    await buy(exchange, 1, "0.3", "50000")
    margin = await exchange.margin.account_margin(1)
    after = foreseen["after"]
    assert after["liquidation_price"] == str(margin.positions[0].liquidation_price) == "33333.33333334"
    assert (after["equity"], after["withdrawable"]) == ("10000", "5000")
    assert after["position"] == {"symbol": BTC, "quantity": "0.5", "entry_price": "50000"}


async def test_trade_that_margin_refuses_shows_what_it_would_have_come_to(exchange: Exchange) -> None:
    foreseen = await preview(exchange, order("2"))
    assert foreseen["refusal"] == {
        "status": 400,
        "code": "INSUFFICIENT_MARGIN",
        "title": "Insufficient margin",
        "detail": "Insufficient equity. Required: 22000, Available: 10000",
    }
    assert (foreseen["accepted"], foreseen["trade"]) == (False, None)
    assert foreseen["after"]["initial_margin_required"] == "22000"
    assert foreseen["largest"] == {"buy": "0.8", "sell": "1.2"}


async def test_reduction_that_margin_refuses_is_told_what_would_be_enough_for_it(exchange: Exchange) -> None:
    hot = exchange.redis.accounts[1]
    hot.account = replace(hot.account, balance=Decimal(3000))
    exchange.redis.marks[BTC] = replace(exchange.redis.marks[BTC], price=Decimal(40000))
    # E = 1000 and MM = 800: half of E is enough for half the position, whose IM' is 800.
    foreseen = await preview(exchange, order("0.1", "34999", Side.SELL))
    assert foreseen["refusal"]["detail"] == "Insufficient equity. Required: 500, Available: 499.9"
    assert foreseen["after"]["initial_margin_required"] == "800"
    assert (await preview(exchange, order("0.1", "35000", Side.SELL)))["accepted"]


async def test_largest_quantities_are_executed_and_one_lot_more_is_not(exchange: Exchange) -> None:
    exchange.redis.instruments[BTC] = Instrument(BTC, lot_size=Decimal("0.001"), taker_fee=Decimal("0.0005"), version=1)
    for side in Side:
        largest = Decimal((await preview(exchange, order(side=side)))["largest"][str(side).lower()])
        with pytest.raises(RefusedError):
            await exchange.trading.trade(order(str(largest + Decimal("0.001")), side=side), key=None, caller=ALICE)
        assert (await preview(exchange, order(str(largest), side=side)))["accepted"]
    await exchange.trading.trade(order(str(largest), side=side), key=None, caller=ALICE)


def _terms(**terms: Any) -> Callable[[Exchange], None]:
    def put(exchange: Exchange) -> None:
        exchange.redis.instruments[BTC] = Instrument(BTC, version=1, **terms)

    return put


def _stale(exchange: Exchange) -> None:
    exchange.redis.marks[BTC] = Mark(Decimal(50000), RESTORED_STAMP_US)


def _no_mark(exchange: Exchange) -> None:
    del exchange.redis.marks[BTC]


def _bankrupt(exchange: Exchange) -> None:
    hot = exchange.redis.accounts[1]
    hot.account = replace(hot.account, balance=Decimal(-1))


def _everything_held(exchange: Exchange) -> None:
    hot = exchange.redis.accounts[1]
    held = hot.account.positions[BTC]
    symbols = [f"S{number}-PERP" for number in range(SYMBOLS_PER_ACCOUNT_MAX)]
    hot.account = replace(
        hot.account,
        positions={symbol: replace(held, symbol=symbol, quantity=Decimal("1e-8")) for symbol in symbols},
    )
    exchange.redis.marks.update(dict.fromkeys(symbols, exchange.redis.marks[BTC]))


REFUSALS: dict[str, tuple[Callable[[Exchange], None], Order]] = {
    "INSUFFICIENT_MARGIN": (_terms(), order("2")),
    "OUTSIDE_PRICE_BAND": (_terms(), order(price="60000.01")),
    "NO_MARK_PRICE": (_no_mark, order()),
    "STALE_MARK_PRICE": (_stale, order()),
    "IN_LIQUIDATION": (_bankrupt, order()),
    "LIMIT_EXCEEDED": (_everything_held, order()),
    "PRICE_OFF_TICK": (_terms(tick_size=Decimal("0.5")), order(price="50000.1")),
    "QUANTITY_OFF_LOT": (_terms(lot_size=Decimal("0.1")), order("0.15")),
    "QUANTITY_TOO_SMALL": (_terms(min_quantity=Decimal("0.1")), order("0.09")),
    "QUANTITY_TOO_LARGE": (_terms(max_quantity=Decimal("0.1")), order("0.11")),
    "POSITION_LIMIT": (_terms(position_limit=Decimal("0.25")), order()),
    "REDUCE_ONLY": (_terms(), order(reduce_only=True)),
    "INSTRUMENT_STATUS": (_terms(status=InstrumentStatus.CLOSED), order()),
}
NOTHING_AT_ALL = {"OUTSIDE_PRICE_BAND", "NO_MARK_PRICE", "IN_LIQUIDATION", "LIMIT_EXCEEDED", "PRICE_OFF_TICK"}


@pytest.mark.parametrize("code", REFUSALS)
async def test_preview_names_each_refusal_in_the_words_of_the_trade(exchange: Exchange, code: str) -> None:
    prepare, asked = REFUSALS[code]
    prepare(exchange)
    foreseen = await preview(exchange, asked)
    with pytest.raises(RefusedError) as refused:
        await exchange.trading.trade(asked, key=None, caller=ALICE)
    error = refused.value
    assert error.code == code
    assert foreseen["refusal"] == {
        "status": error.status,
        "code": error.code,
        "title": error.title,
        "detail": error.detail,
    }
    assert (foreseen["after"] is not None) is (code == "INSUFFICIENT_MARGIN")
    assert (foreseen["before"] is None) is (code == "NO_MARK_PRICE")
    if code in NOTHING_AT_ALL:
        assert foreseen["largest"] == {"buy": "0", "sell": "0"}


@pytest.mark.parametrize(
    ("state", "largest"),
    [
        (ControlState.PAUSED, {"buy": "0", "sell": "0"}),
        (ControlState.REDUCE_ONLY, {"buy": "0", "sell": "0.2"}),
    ],
)
async def test_preview_heeds_pause_switches(exchange: Exchange, state: ControlState, largest: dict[str, str]) -> None:
    await switch(exchange, ENGINE_CONTROL, state)
    foreseen = await preview(exchange, order())
    assert foreseen["refusal"]["code"] == "NOT_ACTIVE"
    assert foreseen["largest"] == largest


async def test_stale_mark_leaves_only_what_reduces(exchange: Exchange) -> None:
    _stale(exchange)
    assert (await preview(exchange, order()))["largest"] == {"buy": "0", "sell": "0.2"}


async def test_preview_has_the_funding_settled_as_the_trade_settles_it(exchange: Exchange) -> None:
    await fund(exchange, "0.00012345")
    foreseen = await preview(exchange, order())
    trade = TradeAnswer.of(await buy(exchange, 1, "0.1", "50000")).model_dump(mode="json")
    assert foreseen["before"]["balance"] == "9998.7655"
    assert foreseen["trade"]["balance"] == trade["balance"] == "9998.7655"
    assert foreseen["after"]["equity"] == trade["equity"]


async def test_position_without_a_mark_price_elsewhere_leaves_nothing_to_tell(exchange: Exchange) -> None:
    await mark(exchange, "3000", ETH)
    await buy(exchange, 1, "1", "3000", symbol=ETH)
    del exchange.redis.marks[ETH]
    foreseen = await preview(exchange, order())
    assert foreseen["refusal"]["code"] == "NO_MARK_PRICE"
    assert (foreseen["before"], foreseen["after"]) == (None, None)
    assert foreseen["largest"] == {"buy": "0", "sell": "0"}


async def test_preview_of_an_unknown_account_is_not_found(exchange: Exchange) -> None:
    with pytest.raises(UnknownAccountError):
        await exchange.previews.preview(replace(order(), account_id=2))


async def test_preview_needs_no_history(exchange: Exchange) -> None:
    exchange.faults.take_down("history", PostgresUnavailableError("PostgreSQL is down."))
    read = exchange.faults.calls["accounts.read"]
    assert (await preview(exchange, order()))["accepted"]
    assert exchange.faults.calls["accounts.read"] - read == 1


async def test_preview_without_redis_is_an_error(exchange: Exchange) -> None:
    exchange.faults.take_down("accounts", RedisUnavailableError("Redis is down."))
    with pytest.raises(RedisUnavailableError):
        await exchange.previews.preview(order())
