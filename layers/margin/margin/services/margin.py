"""Margin of one account: equity, requirements, utilisation and its positions."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from margin.caller import ENGINE, Caller
from margin.domain.funding import settle_funding
from margin.domain.risk import AccountRisk, PositionRisk, assess, assess_positions, is_liquidatable
from margin.errors import UnknownAccountError
from margin.services.rate_limits import NO_LIMITS, RateLimits

if TYPE_CHECKING:
    from decimal import Decimal

    from margin.domain.account import Account
    from margin.ports import AccountStore


@dataclasses.dataclass(frozen=True, slots=True)
class AccountMargin:
    """One account with its risk at the marks in force.

    ``withdrawable`` is what may leave it after its funding is settled, as it is before anything leaves;
    ``liquidation_risk`` says that the engine is to liquidate it.
    """

    account: Account
    risk: AccountRisk
    withdrawable: Decimal
    liquidation_risk: bool
    positions: tuple[PositionRisk, ...]


class MarginService:
    """Answers questions about the margin of an account.

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

    async def account_margin(self, account_id: int, caller: Caller = ENGINE) -> AccountMargin:
        """Equity, margins and positions of one account, all of one moment.

        Raises
        ------
        UnknownAccountError
        NoMarkPriceError
            A position has no mark price, so nothing can be summed up.
        RateLimitedError, UnavailableError
        """
        view = await self._accounts.read(account_id, limits=self._limits.of(caller, account_id, reads=True))
        if view.account is None:
            raise UnknownAccountError(account_id)
        risk = assess(view.account, view.market)
        settled = settle_funding(view.account, view.market).account
        return AccountMargin(
            account=view.account,
            risk=risk,
            withdrawable=risk.withdrawable(settled.balance),
            liquidation_risk=is_liquidatable(view.account, view.market),
            positions=tuple(assess_positions(view.account, view.market)),
        )
