"""Short ways to ask for things, of an engine on real stores and of an exchange on fakes alike."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Protocol

from margin.caller import NOBODY, Caller
from margin.domain.order import Order
from margin.domain.position import Side

if TYPE_CHECKING:
    from margin.domain.controls import ControlState
    from margin.services.controls import ControlOutcome, ControlService
    from margin.services.funding import FundingOutcome, FundingService
    from margin.services.funds import FundsService
    from margin.services.journal import Outcome
    from margin.services.marks import MarkOutcome, MarkPriceService
    from margin.services.trading import TradingService

BTC = "BTC-PERP"
ETH = "ETH-PERP"
ALICE = Caller(subject="alice", source_ip="192.0.2.1")


class Services(Protocol):
    """What both have."""

    @property
    def controls(self) -> ControlService: ...

    @property
    def funding(self) -> FundingService: ...

    @property
    def funds(self) -> FundsService: ...

    @property
    def marks(self) -> MarkPriceService: ...

    @property
    def trading(self) -> TradingService: ...


async def deposit(services: Services, account_id: int, amount: str, *, key: str | None = None) -> Outcome:
    return await services.funds.deposit(account_id, Decimal(amount), key=key, caller=NOBODY)


async def withdraw(services: Services, account_id: int, amount: str, *, key: str | None = None) -> Outcome:
    return await services.funds.withdraw(account_id, Decimal(amount), key=key, caller=NOBODY)


async def contribute(services: Services, account_id: int, amount: str, *, key: str | None = None) -> Outcome:
    return await services.funds.contribute(account_id, Decimal(amount), key=key, caller=NOBODY)


async def buy(
    services: Services, account_id: int, quantity: str, price: str, *, symbol: str = BTC, key: str | None = None
) -> Outcome:
    order = Order(account_id, symbol, Side.BUY, Decimal(quantity), Decimal(price))
    return await services.trading.trade(order, key=key, caller=ALICE)


async def sell(
    services: Services, account_id: int, quantity: str, price: str, *, symbol: str = BTC, key: str | None = None
) -> Outcome:
    order = Order(account_id, symbol, Side.SELL, Decimal(quantity), Decimal(price))
    return await services.trading.trade(order, key=key, caller=ALICE)


async def mark(services: Services, price: str, symbol: str = BTC) -> MarkOutcome:
    return await services.marks.set_marks({symbol: Decimal(price)})


async def fund(services: Services, rate: str, symbol: str = BTC, *, key: str | None = None) -> FundingOutcome:
    return await services.funding.pay(symbol, Decimal(rate), caller=ALICE, key=key)


async def switch(services: Services, name: str, state: ControlState) -> ControlOutcome:
    return await services.controls.set(name, state, "a test", ALICE)
