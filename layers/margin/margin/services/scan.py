"""The scan: what mark prices left to do, and the look that trusts no index.

A mark price evaluates whom it crosses. What it had no time for, what a queue lost, and what was read around a
fail-over stays crossed, so the scan asks the index for everyone that a mark in force crosses, and evaluates them.

Beside that a sweep goes through all accounts, some at each scan, and tests of each whether the index could miss it:
that must never be found, so it is counted (`LiquidationMisses`) and logged with all that it takes to see why. The same
look puts the index of warnings right, which a changed level leaves behind. Whoever is to be warned comes last.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from margin.domain.decimals import plain
from margin.domain.risk import is_liquidatable
from margin.domain.safe_zone import covers, crosses
from margin.errors import NoMarkPriceError
from margin.observability import MetricName, count, logger
from margin.ports import SweepProgress

if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from margin.domain.account import Account
    from margin.domain.market import Market
    from margin.ports import AccountStore, IndexedAccount, MarketStore, SweepPage
    from margin.services.liquidation import LiquidationService
    from margin.services.margin_warning import MarginWarningService

CROSSED_PER_PAGE = 500
CROSSED_PAGES_MAX = 200
"""So many pages of crossed accounts at most in one scan of a partition; who stays crossed is found again."""

_EVALUATED_AT_ONCE = 200
_MICROSECONDS_PER_S = 1_000_000


@dataclasses.dataclass(slots=True)
class ScanReport:
    """What a scan did.

    ``crossed`` accounts stood beyond a trigger, ``swept`` were tested without the index, and of those ``missed`` were
    accounts that the index could miss, and ``unvalued`` have a position without a mark price; ``warned`` got their
    margin warning. Not ``complete``: time was up, and the next scan goes on.
    """

    crossed: int = 0
    swept: int = 0
    missed: list[int] = dataclasses.field(default_factory=list)
    liquidated: list[int] = dataclasses.field(default_factory=list)
    warned: int = 0
    put_off: int = 0
    unvalued: int = 0
    failed: int = 0
    oldest_mark_age_s: float = 0.0
    complete: bool = True


class ScanService:
    """Scans.

    Parameters
    ----------
    accounts, market : AccountStore, MarketStore
        Hot state.
    liquidations : LiquidationService
        Evaluates single accounts.
    warnings : MarginWarningService
        Warns accounts, after all that.
    sweep_cycle_s : int
        In how many seconds the sweep is to get through all accounts; 0: at each scan.
    crossed_per_page : int
        How many crossed accounts of each symbol one look at the index names.
    """

    def __init__(
        self,
        accounts: AccountStore,
        market: MarketStore,
        liquidations: LiquidationService,
        warnings: MarginWarningService,
        *,
        sweep_cycle_s: int,
        crossed_per_page: int = CROSSED_PER_PAGE,
    ) -> None:
        self._accounts = accounts
        self._market = market
        self._liquidations = liquidations
        self._warnings = warnings
        self._cycle_us = sweep_cycle_s * _MICROSECONDS_PER_S
        self._crossed_per_page = crossed_per_page

    async def scan(self, *, keep_going: Callable[[], bool] = lambda: True) -> ScanReport:
        """Evaluate everyone whom a mark in force crosses, then sweep on, and at last warn whom there is to warn.

        Parameters
        ----------
        keep_going : callable
            Asked between pages; False ends the scan early and says so in its report.

        Raises
        ------
        UnavailableError
        """
        report = ScanReport()
        judged: set[int] = set()
        await self._market.align_marks()
        for partition in range(self._accounts.partitions):
            crossed = await self._crossed(partition, report, keep_going)
            judged.update(crossed)
            for start in range(0, len(crossed), _EVALUATED_AT_ONCE):
                if not keep_going():
                    report.complete = False
                    break
                await self._evaluate(crossed[start : start + _EVALUATED_AT_ONCE], report)
        for partition in range(self._accounts.partitions):
            if not report.complete or not keep_going():
                report.complete = False
                break
            await self._sweep(partition, report, judged, keep_going)
        for partition in range(self._accounts.partitions):
            if report.complete:
                await self._warn(partition, report, keep_going)
        return report

    async def _crossed(self, partition: int, report: ScanReport, keep_going: Callable[[], bool]) -> list[int]:
        """Whom the index names, all before any of them is evaluated: that would change the pages."""
        size = self._crossed_per_page
        crossed: dict[int, None] = {}
        for page in range(CROSSED_PAGES_MAX):
            found = await self._accounts.crossed(partition, size, page * size)
            age_s = found.oldest_mark_age_us / _MICROSECONDS_PER_S
            report.oldest_mark_age_s = max(report.oldest_mark_age_s, age_s)
            crossed |= dict.fromkeys(account_id for named in found.by_symbol.values() for account_id in named)
            if all(len(named) < size for named in found.by_symbol.values()) or not keep_going():
                break
        report.crossed += len(crossed)
        return list(crossed)

    async def _evaluate(self, account_ids: list[int], report: ScanReport) -> None:
        evaluations = await self._liquidations.evaluate_quietly(account_ids)
        report.liquidated += evaluations.liquidated
        report.put_off += len(evaluations.put_off)
        report.failed += len(evaluations.failed) + len(evaluations.left)

    async def _warn(self, partition: int, report: ScanReport, keep_going: Callable[[], bool]) -> None:
        """Warn whom a mark in force has brought to the level; whoever is seen twice could not be, and has to wait."""
        seen: set[int] = set()
        while True:
            named = await self._accounts.to_warn(partition, self._crossed_per_page)
            due = [account_id for account_id in named if account_id not in seen]
            seen.update(due)
            for start in range(0, len(due), _EVALUATED_AT_ONCE):
                if not keep_going():
                    report.complete = False
                    return
                report.warned += len(await self._warnings.warn_quietly(due[start : start + _EVALUATED_AT_ONCE]))
            if not due:
                return

    async def _sweep(
        self, partition: int, report: ScanReport, judged: Container[int], keep_going: Callable[[], bool]
    ) -> None:
        """Go on where the last scan stopped, for as many accounts as are due since then, so that all are in one cycle.

        Those for whom there is no time now are due at the next scan.
        """
        progress = await self._accounts.sweep_progress(partition)
        size = await self._accounts.size(partition)
        # A sweep that begins in the middle has seen everybody when it ends for the second time.
        cursor, swept, ends_left = progress.cursor, 0, 1 if progress.cursor == "0" else 2
        while True:
            page = await self._accounts.sweep(partition, cursor)
            await self._evaluate(self._in_need(page, report, judged), report)
            cursor = page.cursor
            swept += len(page.accounts)
            ends_left -= cursor == "0"
            at_us = page.market.now_us
            elapsed_us = min(at_us - progress.at_us, self._cycle_us)
            due = size * elapsed_us / self._cycle_us if self._cycle_us else math.inf
            if swept >= due or not ends_left:
                break
            if not keep_going():
                report.complete = False
                at_us -= int(elapsed_us * (1 - swept / due))
                break
        report.swept += swept
        await self._accounts.note_sweep(partition, SweepProgress(cursor, at_us))

    def _in_need(self, page: SweepPage, report: ScanReport, judged: Container[int]) -> list[int]:
        """Test a page, all of it of one moment: whom the index could miss, and who was crossed since it was asked.

        Also who is anchored to a warning at another level than the present one, or was warned and has recovered.
        """
        account_ids: list[int] = []
        # While rules are staged, accounts are being anchored to them one by one; none is judged by them yet.
        market = page.market.without_staged()
        for indexed in page.accounts:
            account = indexed.row.account
            if not account.positions:
                continue
            is_liquidatable = _is_liquidatable(account, market, report)
            is_crossed = any(
                crosses(trigger, market) for trigger in indexed.triggers.values() if trigger.symbol in market.marks
            )
            # By what a trigger is the second never comes without the first; this look is there to rely on nothing.
            if not covers(account, market, indexed.triggers) or (is_liquidatable and not is_crossed):
                report.missed.append(account.account_id)
                _record_miss(indexed, market)
                account_ids.append(account.account_id)
            elif is_liquidatable:
                account_ids += [] if account.account_id in judged else [account.account_id]
            elif _is_of_an_early_release(indexed) or not self._warnings.watches(indexed, market):
                account_ids.append(account.account_id)
        return account_ids


def _is_of_an_early_release(indexed: IndexedAccount) -> bool:
    """Whether funding could not move a trigger of the account: it has to be anchored anew before there is any."""
    return any(trigger.is_never_crossed for trigger in indexed.triggers.values())


def _is_liquidatable(account: Account, market: Market, report: ScanReport) -> bool:
    try:
        return is_liquidatable(account, market)
    except NoMarkPriceError:
        report.unvalued += 1
        return False


def _record_miss(indexed: IndexedAccount, market: Market) -> None:
    """Count an account that the index could miss, and log its whole state."""
    account = indexed.row.account
    count(MetricName.LIQUIDATION_MISSES)
    logger.error(
        "liquidation_missed",
        account_id=account.account_id,
        version=indexed.row.version,
        balance=plain(account.balance),
        positions={
            symbol: [plain(position.quantity), plain(position.entry_cost), plain(position.entry_funding)]
            for symbol, position in account.positions.items()
        },
        triggers={symbol: [str(trigger.side), repr(trigger.score)] for symbol, trigger in indexed.triggers.items()},
        marks={
            symbol: [plain(market.marks[symbol].price), market.marks[symbol].stamp_us]
            for symbol in account.positions
            if symbol in market.marks
        },
        instruments={symbol: market.instrument(symbol).version for symbol in account.positions},
        funding={
            symbol: plain(market.funding_index(symbol)) for symbol in account.positions if symbol in market.funding
        },
    )
