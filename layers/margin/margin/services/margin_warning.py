"""Margin warnings: an event of the account that changes nothing else, so that history says when its owner was told.

They come after everything that liquidations need: an evaluation never waits for one, and what there is no time for is
found by the next mark price or scan.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from margin.domain.decimals import plain
from margin.domain.event import EventType
from margin.domain.risk import assess, is_liquidatable
from margin.errors import NoMarkPriceError
from margin.observability import MetricName, count, logger
from margin.services.anchors import anchor_of
from margin.services.journal import Decision, Journal, WriteRequest
from margin.services.quietly import each_quietly

if TYPE_CHECKING:
    from collections.abc import Iterable

    from margin.domain.account import Account
    from margin.domain.margin_warning import MarginWarnings
    from margin.domain.market import Market
    from margin.ports import AccountStore, AccountView, IndexedAccount
    from margin.services.journal import Outcome
    from margin.services.liquidation import LiquidationService

_ATTEMPTS_MAX = 5


class MarginWarningService:
    """Warns accounts.

    Parameters
    ----------
    accounts : AccountStore
        Hot state.
    journal : Journal
        The write path.
    warnings : MarginWarnings
        From when on accounts are warned.
    liquidations : LiquidationService
        Evaluates those whom a mark price crosses meanwhile.
    """

    def __init__(
        self, accounts: AccountStore, journal: Journal, warnings: MarginWarnings, liquidations: LiquidationService
    ) -> None:
        self._accounts = accounts
        self._liquidations = liquidations
        self._journal = journal
        self._warnings = warnings

    async def warn_quietly(self, account_ids: Iterable[int], *, budget_s: float = math.inf) -> list[int]:
        """Look at accounts whose trigger of the warning is crossed; who was warned. What fails is logged, not raised.

        Parameters
        ----------
        account_ids : iterable of int
        budget_s : float
            After this many seconds no account is looked at any more.
        """
        warned: list[int] = []

        async def warn(account_id: int) -> None:
            if await self.warn(account_id):
                warned.append(account_id)

        await each_quietly(account_ids, warn, budget_s=budget_s, failure="margin_warning_failed")
        return warned

    async def warn(self, account_id: int) -> bool:
        """Warn an account that has reached the level, once however many look at the same time; else anchor it anew.

        One that is to be liquidated is left to that. Whether it was warned, by this call or by one beside it.

        Raises
        ------
        ConflictError, UnavailableError
            The account's triggers stay crossed.
        """
        for _ in range(_ATTEMPTS_MAX):
            view = await self._accounts.read(account_id)
            account, market = view.account, view.market
            if account is None or not account.positions or view.warned or _is_someone_elses(account, market):
                return False
            if self._warnings.is_due(account, market):
                outcome = await self._tell(account_id, view.version)
                if outcome is None:
                    continue
                await self._look_on(account_id, crossed=outcome.crossed)
                return True
            anchor = anchor_of(account, view.version, market, self._warnings, warned=view.warned)
            anchored = await self._accounts.anchor(anchor, epoch=view.epoch)
            if anchored is not None:
                await self._look_on(account_id, crossed=anchored)
                return False
        return False

    async def _look_on(self, account_id: int, *, crossed: bool) -> None:
        """Evaluate an account whose new triggers a mark price crossed that came in between."""
        if crossed:
            await self._liquidations.evaluate_quietly([account_id])

    def watches(self, indexed: IndexedAccount, market: Market) -> bool:
        """Tell whether the index of warnings is as it should be for an account, by the level that holds now."""
        account = indexed.row.account
        try:
            return self._warnings.watches(account, market, indexed.warnings, warned=indexed.warned)
        except NoMarkPriceError:
            return True

    async def _tell(self, account_id: int, version: str) -> Outcome | None:
        """Write the event, if the account is still at this version and due."""

        def decide(view: AccountView) -> Decision | None:
            account, market = view.account, view.market
            if account is None or view.version != version or _is_someone_elses(account, market):
                return None
            return self._decision(account, market) if self._warnings.is_due(account, market) else None

        fields = {"operation": "margin_warning", "version": version}
        request = WriteRequest(account_id=account_id, fields=fields, key=f"~margin_warning:{version}")
        outcome = await self._journal.execute(request, decide)
        if outcome is not None and not outcome.replayed:
            count(MetricName.MARGIN_WARNINGS)
            logger.warning(
                "margin_warning",
                account_id=account_id,
                event_id=outcome.event_id,
                utilisation_pct=outcome.result["margin_utilisation_pct"],
            )
        return outcome

    def _decision(self, account: Account, market: Market) -> Decision:
        risk = assess(account, market)
        utilisation = risk.utilisation_pct
        detail = {
            "equity": plain(risk.equity),
            "maintenance_margin": plain(risk.maintenance_margin),
            "margin_utilisation_pct": None if utilisation is None else plain(utilisation),
            "warning_pct": plain(self._warnings.utilisation_pct),
            "marks": {symbol: plain(market.mark_price(symbol)) for symbol in sorted(account.positions)},
        }
        return Decision(
            type=EventType.MARGIN_WARNING,
            account=account,
            ledger_lines=(),
            detail=detail,
            result={"account_id": account.account_id, **detail},
        )


def _is_someone_elses(account: Account, market: Market) -> bool:
    """Whether liquidation is to see to an account, or nobody can say anything of it."""
    try:
        return is_liquidatable(account, market)
    except NoMarkPriceError:
        return True
