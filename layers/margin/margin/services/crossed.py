"""Looking at once at the accounts that a price or a payment of funding has put at risk."""

from __future__ import annotations

import dataclasses
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Protocol

from margin.errors import UnavailableError
from margin.observability import logger

if TYPE_CHECKING:
    from collections.abc import Sequence

    from margin.ports import LiquidationQueue
    from margin.services.liquidation import LiquidationService
    from margin.services.margin_warning import MarginWarningService

EVALUATION_BUDGET_S = 1.0
"""After this no evaluation is begun: one that is under way may take two seconds more when a store is frozen."""

WARNING_BUDGET_S = 0.25
"""After this nobody is warned any more: the sender has the next price to send, and the scan warns the others."""


class Crossing(Protocol):
    """Whom one thing brought to evaluation: how many, the first of them, and some of those who may be to be warned."""

    @property
    def crossed_count(self) -> int:
        """How many accounts are crossed."""

    @property
    def crossed(self) -> Sequence[int]:
        """Those that are named, the ones beyond their triggers furthest first."""

    @property
    def to_warn(self) -> Sequence[int]:
        """Accounts beyond the level of the warning."""


@dataclasses.dataclass(frozen=True, slots=True)
class Attended:
    """How many accounts were at risk at most, see `CrossedAccountsService.attend`, and who was liquidated."""

    at_risk: int
    liquidated: tuple[int, ...]


class CrossedAccountsService:
    """Evaluates accounts whose triggers are crossed, as long as there is time; passes the others on.

    Parameters
    ----------
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
        liquidations: LiquidationService,
        warnings: MarginWarningService,
        *,
        crossed_inline_max: int,
        crossed_queued_max: int,
        queue: LiquidationQueue | None = None,
    ) -> None:
        self._liquidations = liquidations
        self._warnings = warnings
        self._crossed_inline_max = crossed_inline_max
        self._queue = queue
        self.named_max = max(crossed_inline_max, crossed_queued_max)
        """How many accounts a store is to name in each partition."""

    async def attend(self, crossings: Sequence[Crossing]) -> Attended:
        """Evaluate accounts that several things crossed, each once, then warn others.

        Each account counts once, whatever crossed it, as long as all those crossed are named; those beyond that are
        counted for each thing that crossed them, so that ``at_risk`` is the most that it can be.
        """
        crossed = _most_urgent_first(crossings)
        beyond_those_named = sum(crossing.crossed_count - len(crossing.crossed) for crossing in crossings)
        at_once = crossed if self._queue is None else crossed[: self._crossed_inline_max]
        evaluations = await self._liquidations.evaluate_quietly(at_once, budget_s=EVALUATION_BUDGET_S)
        await self._pass_on([*evaluations.left, *crossed[len(at_once) :]])
        if not evaluations.left:
            to_warn = [account_id for crossing in crossings for account_id in crossing.to_warn]
            await self._warnings.warn_quietly(to_warn, budget_s=WARNING_BUDGET_S)
        return Attended(len(crossed) + beyond_those_named, tuple(evaluations.liquidated))

    async def _pass_on(self, account_ids: list[int]) -> None:
        """Queue what this call does not evaluate; what was stored stays stored when the queue is down."""
        if not account_ids:
            return
        try:
            if self._queue is not None:
                await self._queue.send(account_ids)
                return
        except UnavailableError as error:
            logger.warning("crossed_accounts_not_queued", accounts=len(account_ids), code=error.code)
        logger.warning("crossed_accounts_left_to_the_scan", accounts=len(account_ids))


def _most_urgent_first(crossings: Sequence[Crossing]) -> list[int]:
    """Accounts that are named, each once: of each thing the one furthest beyond its trigger, then the next of each."""
    ranks = zip_longest(*(crossing.crossed for crossing in crossings))
    return list(dict.fromkeys(account_id for account_id in chain.from_iterable(ranks) if account_id is not None))
