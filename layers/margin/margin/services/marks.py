"""Mark prices: storing them, and looking at once at everyone whom they put at risk."""

from __future__ import annotations

import dataclasses
from itertools import chain, zip_longest
from typing import TYPE_CHECKING

from margin.errors import UnavailableError
from margin.observability import MetricName, count, logger

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from decimal import Decimal

    from margin.ports import LiquidationQueue, MarketStore, MarkUpdate
    from margin.services.liquidation import LiquidationService
    from margin.services.margin_warning import MarginWarningService


EVALUATION_BUDGET_S = 1.0
"""After this no evaluation is begun: one that is under way may take two seconds more when a store is frozen."""

WARNING_BUDGET_S = 0.25
"""After this nobody is warned any more: the sender has the next price to send, and the scan warns the others."""


@dataclasses.dataclass(frozen=True, slots=True)
class MarkOutcome:
    """What mark prices did: how many accounts they brought to evaluation, and who was liquidated.

    ``at_risk`` counts each account once, whichever of the prices crossed it, as long as all those crossed are named;
    those beyond that are counted for each symbol that crossed them, so that it is the most that it can be.
    ``at_risk_by_symbol`` is exact.
    """

    at_risk: int
    liquidated: tuple[int, ...]
    at_risk_by_symbol: Mapping[str, int]


class MarkPriceService:
    """Takes mark prices.

    Parameters
    ----------
    market : MarketStore
        Where marks are.
    liquidations : LiquidationService
        Evaluates crossed accounts.
    warnings : MarginWarningService
        Warns others, in the time that is left.
    crossed_inline_max : int
        How many crossed accounts are evaluated before the call answers, where there is a queue for the others.
    crossed_queued_max : int
        How many crossed accounts of each partition one call sees to at all; the scan sees to the others.
    queue : LiquidationQueue or None
        Takes those beyond ``crossed_inline_max``, and those for whom no time was left. Without one all are evaluated
        before the call answers, as long as there is time; the scan sees to the rest.
    """

    def __init__(
        self,
        market: MarketStore,
        liquidations: LiquidationService,
        warnings: MarginWarningService,
        *,
        crossed_inline_max: int,
        crossed_queued_max: int,
        queue: LiquidationQueue | None = None,
    ) -> None:
        self._market = market
        self._liquidations = liquidations
        self._warnings = warnings
        self._crossed_inline_max = crossed_inline_max
        self._crossed_max = max(crossed_inline_max, crossed_queued_max)
        self._queue = queue

    async def set_marks(
        self, prices: Mapping[str, Decimal], *, observed_us: Mapping[str, int] | None = None
    ) -> MarkOutcome:
        """Store mark prices, all or none, and then evaluate the accounts whose triggers they cross, each once.

        Parameters
        ----------
        prices : mapping of str to Decimal
            Price by symbol.
        observed_us : mapping of str to int, optional
            When a price was observed, as its sender says, by symbol, in microseconds since the epoch; those without
            are of now.

        Raises
        ------
        FutureTimestampError, OlderMarkPriceError
            A price says that it is from the future, or older than the stored one; none of them was stored.
        LimitExceededError
            Too many symbols.
        OutcomeUnknownError
            Redis did not answer; the prices may be stored all the same.
        UnavailableError
        """
        updates = await self._market.set_marks(prices, crossed_max=self._crossed_max, observed_us=observed_us)
        count(MetricName.MARK_PRICES, len(updates))
        crossed = _most_urgent_first(updates)
        beyond_those_named = sum(update.crossed_count - len(update.crossed) for update in updates)
        at_once = crossed if self._queue is None else crossed[: self._crossed_inline_max]
        evaluations = await self._liquidations.evaluate_quietly(at_once, budget_s=EVALUATION_BUDGET_S)
        await self._pass_on([*evaluations.left, *crossed[len(at_once) :]])
        liquidated = evaluations.liquidated
        if not evaluations.left:
            to_warn = [account_id for update in updates for account_id in update.to_warn]
            await self._warnings.warn_quietly(to_warn, budget_s=WARNING_BUDGET_S)
        by_symbol = {update.symbol: update.crossed_count for update in updates}
        logger.info(
            "mark_price_set",
            stamps_us={update.symbol: update.stamp_us for update in updates},
            at_risk=by_symbol,
            liquidated=len(liquidated),
        )
        return MarkOutcome(len(crossed) + beyond_those_named, tuple(liquidated), by_symbol)

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


def _most_urgent_first(updates: Sequence[MarkUpdate]) -> list[int]:
    """Accounts that are named, each once: of each symbol the one furthest beyond its trigger, then the next of each."""
    ranks = zip_longest(*(update.crossed for update in updates))
    return list(dict.fromkeys(account_id for account_id in chain.from_iterable(ranks) if account_id is not None))
