"""Mark prices: storing them, and looking at once at everyone whom they put at risk."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from margin.errors import OutcomeUnknownError, RedisTimeoutError, UnavailableError
from margin.observability import MetricName, count, logger

if TYPE_CHECKING:
    from collections.abc import Mapping
    from decimal import Decimal

    from margin.ports import LiquidationQueue, MarketStore
    from margin.services.liquidation import LiquidationService


EVALUATION_BUDGET_S = 1.0
"""After this no evaluation is begun: one that is under way may take two seconds more when a store is frozen."""


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
        How many crossed accounts are evaluated before the call answers, where there is a queue for the others.
    crossed_queued_max : int
        How many crossed accounts of each symbol one call sees to at all; the scan sees to the others.
    queue : LiquidationQueue or None
        Takes those beyond ``crossed_inline_max``, and those for whom no time was left. Without one all are evaluated
        before the call answers, as long as there is time; the scan sees to the rest.
    """

    def __init__(
        self,
        market: MarketStore,
        liquidations: LiquidationService,
        *,
        crossed_inline_max: int,
        crossed_queued_max: int,
        queue: LiquidationQueue | None = None,
    ) -> None:
        self._market = market
        self._liquidations = liquidations
        self._crossed_inline_max = crossed_inline_max
        self._crossed_max = max(crossed_inline_max, crossed_queued_max)
        self._queue = queue

    async def set_marks(self, prices: Mapping[str, Decimal]) -> MarkOutcome:
        """Store mark prices and evaluate the accounts whose triggers they cross.

        Raises
        ------
        LimitExceededError
            Too many symbols.
        OutcomeUnknownError
            Redis did not answer in time.
        UnavailableError
        """
        try:
            updates = await self._market.set_marks(prices, crossed_max=self._crossed_max)
        except RedisTimeoutError as error:
            # A frozen server may still read the script when it thaws, and then stores the price.
            message = f"{error.detail} The price may be stored all the same: send the present one."
            raise OutcomeUnknownError(message) from error
        count(MetricName.MARK_PRICES, len(updates))
        crossed = list(dict.fromkeys(account_id for update in updates for account_id in update.crossed))
        at_risk = sum(update.crossed_count for update in updates)
        at_once = crossed if self._queue is None else crossed[: self._crossed_inline_max]
        evaluations = await self._liquidations.evaluate_quietly(at_once, budget_s=EVALUATION_BUDGET_S)
        await self._pass_on([*evaluations.left, *crossed[len(at_once) :]])
        liquidated = evaluations.liquidated
        for update in updates:
            logger.info(
                "mark_price_set",
                symbol=update.symbol,
                stamp_us=update.stamp_us,
                at_risk=update.crossed_count,
                liquidated=len(liquidated),
            )
        return MarkOutcome(at_risk, tuple(liquidated))

    async def _pass_on(self, account_ids: list[int]) -> None:
        """Queue what this call does not evaluate; a price that was stored stays stored when the queue is down."""
        if not account_ids:
            return
        try:
            if self._queue is not None:
                await self._queue.send(account_ids)
                return
        except UnavailableError as error:
            logger.warning("crossed_accounts_not_queued", accounts=len(account_ids), code=error.code)
        logger.warning("crossed_accounts_left_to_the_scan", accounts=len(account_ids))
