"""Mark prices: storing them, and looking at once at everyone whom they put at risk."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from margin.caller import NOBODY
from margin.domain.decimals import plain
from margin.observability import MetricName, count, logger
from margin.services.rate_limits import NO_LIMITS, RateLimits

if TYPE_CHECKING:
    from collections.abc import Mapping
    from decimal import Decimal

    from margin.caller import Caller
    from margin.ports import MarketStore, SetAside
    from margin.services.crossed import CrossedAccountsService


@dataclasses.dataclass(frozen=True, slots=True)
class MarkOutcome:
    """What mark prices did: how many accounts they brought to evaluation, and who was liquidated.

    ``at_risk`` counts each account once, whichever of the prices crossed it, as long as all those crossed are named;
    those beyond that are counted for each symbol that crossed them, so that it is the most that it can be.
    ``at_risk_by_symbol`` is exact. A price that was ``set_aside`` is not the mark; those count whom the one in force
    brought, where that is another than before.
    """

    at_risk: int
    liquidated: tuple[int, ...]
    at_risk_by_symbol: Mapping[str, int]
    set_aside: Mapping[str, SetAside] = dataclasses.field(default_factory=dict)


class MarkPriceService:
    """Takes mark prices.

    Parameters
    ----------
    market : MarketStore
        Where marks are.
    crossed : CrossedAccountsService
        Looks at those whom they put at risk.
    limits : RateLimits
        How often callers may send some.
    """

    def __init__(self, market: MarketStore, crossed: CrossedAccountsService, limits: RateLimits = NO_LIMITS) -> None:
        self._market = market
        self._crossed = crossed
        self._limits = limits

    async def set_marks(
        self,
        prices: Mapping[str, Decimal],
        *,
        observed_us: Mapping[str, int] | None = None,
        sources: Mapping[str, str] | None = None,
        caller: Caller = NOBODY,
    ) -> MarkOutcome:
        """Store mark prices and then evaluate the accounts whose triggers they cross, each once.

        All are stored but those that are set aside because they move too far, or none where one is refused.

        Parameters
        ----------
        prices : mapping of str to Decimal
            Price by symbol.
        observed_us : mapping of str to int, optional
            When a price was observed, as its sender says, by symbol, in microseconds since the epoch; those without
            are of now.
        sources : mapping of str to str, optional
            Where a price is from, as its sender says, by symbol.
        caller : Caller
            Who sends them.

        Raises
        ------
        FutureTimestampError, OlderMarkPriceError
            A price says that it is from the future, or older than the stored one; none of them was stored.
        LimitExceededError
            Too many symbols.
        OutcomeUnknownError
            Redis did not answer; the prices may be stored all the same.
        RateLimitedError
            The caller sends too many requests; no price was stored.
        UnavailableError
        """
        answered = await self._market.set_marks(
            prices,
            crossed_max=self._crossed.named_max,
            observed_us=observed_us,
            sources=sources,
            caller=caller,
            limits=self._limits.of(caller),
        )
        set_aside = {update.symbol: update.set_aside for update in answered if update.set_aside is not None}
        updates = [update for update in answered if update.set_aside is None or update.set_aside.moved_mark]
        count(MetricName.MARK_PRICES, len(updates))
        _report(set_aside, prices, sources or {})
        attended = await self._crossed.attend(updates)
        by_symbol = {update.symbol: update.crossed_count for update in answered}
        if updates:
            logger.info(
                "mark_price_set",
                stamps_us={update.symbol: update.stamp_us for update in updates},
                at_risk=by_symbol,
                liquidated=len(attended.liquidated),
            )
        return MarkOutcome(attended.at_risk, attended.liquidated, by_symbol, set_aside)


def _report(set_aside: Mapping[str, SetAside], prices: Mapping[str, Decimal], sources: Mapping[str, str]) -> None:
    for symbol, aside in set_aside.items():
        logger.warning(
            "mark_price_set_aside",
            symbol=symbol,
            price=plain(prices[symbol]),
            mark_price=plain(aside.mark_price),
            jump_max=plain(aside.jump_max),
            source=sources.get(symbol),
        )
    if set_aside:
        count(MetricName.MARK_PRICES_SET_ASIDE, len(set_aside))
