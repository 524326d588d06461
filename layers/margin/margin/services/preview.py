"""Trades that are decided and not executed."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import TYPE_CHECKING

from margin.caller import ENGINE, Caller
from margin.domain.largest_order import largest_quantity
from margin.domain.liquidation_price import liquidation_price
from margin.domain.order import try_order
from margin.domain.position import Side
from margin.domain.risk import AccountRisk, assess
from margin.errors import InsufficientMarginError, NoMarkPriceError, RefusedError, UnknownAccountError
from margin.services.journal import settled_view
from margin.services.rate_limits import NO_LIMITS, RateLimits
from margin.services.trading import decide_trade

if TYPE_CHECKING:
    from collections.abc import Mapping
    from decimal import Decimal

    from margin.domain.account import Account
    from margin.domain.market import Market
    from margin.domain.order import Order
    from margin.domain.position import Position
    from margin.ports import AccountStore, AccountView


@dataclasses.dataclass(frozen=True, slots=True)
class AccountState:
    """An account before or after a trade, its funding settled, with its position in the traded symbol."""

    balance: Decimal
    risk: AccountRisk
    liquidation_price: Decimal | None
    position: Position | None


@dataclasses.dataclass(frozen=True, slots=True)
class Preview:
    """What a trade would come to.

    ``refusal`` is what it would be refused with, ``result`` the answer of POST /trade without the trade's id where it
    would be executed. ``before`` and ``after`` are None where something has no mark price, ``after`` also where a rule
    other than margin refuses the trade. ``largest`` are units by side.
    """

    refusal: RefusedError | None
    result: Mapping[str, object] | None
    before: AccountState | None
    after: AccountState | None
    largest: Mapping[Side, Decimal]


class PreviewService:
    """Answers what a trade would come to.

    Parameters
    ----------
    accounts : AccountStore
        Hot state.
    limits : RateLimits
        How often callers may ask.
    """

    def __init__(self, accounts: AccountStore, limits: RateLimits = NO_LIMITS) -> None:
        self._accounts = accounts
        self._limits = limits

    async def preview(self, order: Order, caller: Caller = ENGINE) -> Preview:
        """Decide a trade as `TradingService.trade` would, on the same reading of the account, and leave it at that.

        Raises
        ------
        UnknownAccountError, RateLimitedError, UnavailableError
        """
        limits = self._limits.of(caller, order.account_id, reads=True)
        view, _ = settled_view(await self._accounts.read(order.account_id, symbol=order.symbol, limits=limits))
        if view.account is None:
            raise UnknownAccountError(order.account_id)
        return _preview(order, view, view.account)


def _preview(order: Order, view: AccountView, account: Account) -> Preview:
    refusal: RefusedError | None = None
    result: Mapping[str, object] | None = None
    after: Account | None = None
    try:
        decision = decide_trade(order, view)
        result, after = decision.result, decision.account
    except InsufficientMarginError as error:
        refusal, after = error, try_order(account, order, view.market).result.account
    except RefusedError as error:
        refusal = error
    test = partial(decide_trade, view=view)
    return Preview(
        refusal=refusal,
        result=result,
        before=_state(account, order.symbol, view.market),
        after=None if after is None else _state(after, order.symbol, view.market),
        largest={
            side: largest_quantity(account, dataclasses.replace(order, side=side), view.market, test) for side in Side
        },
    )


def _state(account: Account, symbol: str, market: Market) -> AccountState | None:
    position = account.positions.get(symbol)
    try:
        risk = assess(account, market)
        price = None if position is None else liquidation_price(account, symbol, market)
    except NoMarkPriceError:
        return None
    return AccountState(account.balance, risk, price, position)
