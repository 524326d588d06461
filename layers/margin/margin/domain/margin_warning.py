"""Margin warnings: the utilisation from which on an account is told, before it is liquidated.

They are found as liquidations are, by an index of their own: triggers at the level of the warning instead of that of
liquidation. So nobody is looked at for warnings alone, what proves that no liquidation is missed proves it of warnings,
and however many are to be warned, none of them stands before an account that is to be liquidated.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Final

from margin.domain.decimals import exact
from margin.domain.risk import assess
from margin.domain.safe_zone import LIQUIDATION_PCT, covers, triggers

if TYPE_CHECKING:
    from collections.abc import Mapping

    from margin.domain.account import Account
    from margin.domain.market import Market
    from margin.domain.safe_zone import Trigger

__all__ = ["MarginWarnings"]

_RELIEF: Final = Decimal("0.95")


@dataclass(frozen=True, slots=True)
class MarginWarnings:
    """From when on accounts are warned.

    Parameters
    ----------
    utilisation_pct : Decimal
        Maintenance margin in % of equity, above 0; 100 is where liquidation begins, so nobody is warned.

    Raises
    ------
    ValueError
        When it is not above 0 and at most 100.
    """

    utilisation_pct: Decimal = LIQUIDATION_PCT

    def __post_init__(self) -> None:
        if not 0 < self.utilisation_pct <= LIQUIDATION_PCT:
            raise ValueError("margin warnings begin above 0 %, at most at 100 %")

    @exact
    def is_due(self, account: Account, market: Market) -> bool:
        """Whether an account has reached the level: utilisation above it, all marks known and fresh."""
        level_pct = self._level_pct(account, market)
        if level_pct == LIQUIDATION_PCT or not market.are_fresh(account.positions):
            return False
        risk = assess(account, market)
        return risk.equity * level_pct < risk.maintenance_margin * 100

    @exact
    def is_relieved(self, account: Account, market: Market) -> bool:
        """Whether a warned account is far enough below the level to be warned anew when it comes back to it.

        A twentieth of the level below: nobody is warned again and again because a price trembles around it.
        """
        if not market.are_fresh(account.positions):
            return False
        risk = assess(account, market)
        return risk.equity * self.utilisation_pct * _RELIEF >= risk.maintenance_margin * 100

    def triggers(self, account: Account, market: Market, *, warned: bool) -> tuple[dict[str, Trigger], bool]:
        """Return the triggers of the warning, and whether the account still counts as warned.

        One that has reached the level and was not warned has triggers that are always crossed. A warned one has none.
        """
        level_pct = self._level_pct(account, market)
        if warned and not self.is_relieved(account, market):
            return {}, True
        return ({} if level_pct == LIQUIDATION_PCT else triggers(account, market, level_pct=level_pct)), False

    def watches(self, account: Account, market: Market, held: Mapping[str, Trigger], *, warned: bool) -> bool:
        """Tell whether these triggers of the index cannot miss that an account is to be warned, or need not.

        They can where the level was another when the account was anchored, and where a warned one has recovered.
        """
        level_pct = self._level_pct(account, market)
        if level_pct == LIQUIDATION_PCT or not account.positions:
            return True
        if warned:
            return not self.is_relieved(account, market)
        return covers(account, market, held, level_pct=level_pct)

    def _level_pct(self, account: Account, market: Market) -> Decimal:
        """Return the level at which an account is warned: liquidation's where a position's own rate is no lower.

        Such a position has reached the level by being open, and prices that hurt it would be those that help otherwise.
        """
        rates = (rate for symbol in account.positions for rate, _ in market.guarded_lines(symbol))
        return LIQUIDATION_PCT if any(rate * 100 >= self.utilisation_pct for rate in rates) else self.utilisation_pct
