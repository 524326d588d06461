"""Mark prices: storing them, and looking at once at everyone whom they put at risk."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from margin.observability import MetricName, count, logger

if TYPE_CHECKING:
    from collections.abc import Mapping
    from decimal import Decimal

    from margin.ports import MarketStore
    from margin.services.liquidation import LiquidationService


@dataclasses.dataclass(frozen=True, slots=True)
class MarkOutcome:
    """What mark prices did: how many accounts they brought to evaluation, and who was liquidated."""

    at_risk: int
    liquidated: tuple[int, ...]


class MarkPriceService:
    """Takes mark prices.

    Parameters
    ----------
    market : MarketStore
        Where marks are.
    liquidations : LiquidationService
        Evaluates crossed accounts.
    crossed_inline_max : int
        How many crossed accounts are evaluated before the call answers; the scan sees to the others.
    """

    def __init__(self, market: MarketStore, liquidations: LiquidationService, *, crossed_inline_max: int) -> None:
        self._market = market
        self._liquidations = liquidations
        self._crossed_inline_max = crossed_inline_max

    async def set_marks(self, prices: Mapping[str, Decimal]) -> MarkOutcome:
        """Store mark prices and evaluate the accounts whose triggers they cross.

        Raises
        ------
        LimitExceededError
            Too many symbols.
        UnavailableError
        """
        updates = await self._market.set_marks(prices, crossed_max=self._crossed_inline_max)
        count(MetricName.MARK_PRICES, len(updates))
        crossed = list(dict.fromkeys(account_id for update in updates for account_id in update.crossed))
        at_risk = sum(update.crossed_count for update in updates)
        liquidated = await self._liquidations.evaluate_quietly(crossed[: self._crossed_inline_max])
        for update in updates:
            logger.info(
                "mark_price_set",
                symbol=update.symbol,
                stamp_us=update.stamp_us,
                at_risk=update.crossed_count,
                liquidated=len(liquidated),
            )
        return MarkOutcome(at_risk, tuple(liquidated))
