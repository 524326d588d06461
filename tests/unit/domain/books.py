"""Short ways to write down accounts and markets with numbers that can be followed by hand."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

from margin.domain.account import Account
from margin.domain.instrument import Instrument, Tier
from margin.domain.market import Mark, Market
from margin.domain.order import Order
from margin.domain.position import Position, Side

if TYPE_CHECKING:
    from margin.domain.ledger import LedgerLine

BTC = "BTC-PERP"
ETH = "ETH-PERP"
NOW_US = 1_700_000_000_000_000

TWO_TIERS = (
    Tier(Decimal(10000), Decimal("0.10"), Decimal("0.05")),
    Tier(None, Decimal("0.20"), Decimal("0.10")),
)


def market(btc: str | None = None, eth: str | None = None, *instruments: Instrument, btc_age_s: int = 0) -> Market:
    marks = {}
    if btc is not None:
        marks[BTC] = Mark(Decimal(btc), NOW_US - btc_age_s * 1_000_000)
    if eth is not None:
        marks[ETH] = Mark(Decimal(eth), NOW_US)
    return Market(marks, {instrument.symbol: instrument for instrument in instruments}, NOW_US)


def position(symbol: str, quantity: str, entry_price: str) -> Position:
    return Position(symbol, Decimal(quantity), Decimal(quantity) * Decimal(entry_price))


def account(balance: str, *positions: Position) -> Account:
    return Account(1, Decimal(balance), {held.symbol: held for held in positions})


def buy(quantity: str, price: str, symbol: str = BTC) -> Order:
    return Order(1, symbol, Side.BUY, Decimal(quantity), Decimal(price))


def sell(quantity: str, price: str, symbol: str = BTC) -> Order:
    return Order(1, symbol, Side.SELL, Decimal(quantity), Decimal(price))


def amounts(lines: tuple[LedgerLine, ...]) -> dict[str, Decimal]:
    return {line.ledger_account.value: line.amount for line in lines}
