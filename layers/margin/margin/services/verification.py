"""Verifies history by itself: every hash and link, what is derived from events, the ledger, and who set what.

It reads PostgreSQL alone, in pages, while trading goes on, and only finds; `ReconcileService` compares with Redis too.
"""

from __future__ import annotations

import dataclasses
from decimal import Decimal
from typing import TYPE_CHECKING

from margin.domain.decimals import plain
from margin.errors import UnknownAccountError
from margin.ports.audit import BEFORE_ALL, TABLES_OF_ACCOUNTS, ChangeChain
from margin.services.account_story import line_of_change, line_of_event
from margin.services.audit_chain import ChainAudit, ownerless
from margin.services.audit_changes import audit_changes, chains_of_account
from margin.services.audit_settlement import unsound_settlement, unsound_step
from margin.services.reconcile import PAGE_SIZES, PageSizes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from margin.domain.chain import Mismatch
    from margin.ports.audit import AuditedEvent, HistoryAudit
    from margin.services.account_story import StoryLine

_FIRST_N = -(2**63)
STORY_CHANGES_MAX = 10_000
"""How many switches and rebuilds of one account a story tells at most: they are held in memory, its events are not."""


@dataclasses.dataclass(frozen=True, slots=True)
class Break:
    """Something that is not as it must be, and where: an account and its event, or a chain and its change."""

    where: str
    what: str
    expected: str
    found: str
    account_id: int | None = None
    n: int | None = None
    event_id: int | None = None


@dataclasses.dataclass(slots=True)
class VerificationReport:
    """How much was verified so far, how many breaks there are, and whether that was all."""

    events: int = 0
    accounts: int = 0
    changes: int = 0
    breaks: int = 0
    complete: bool = False


class VerificationService:
    """Verifies one account, or everything.

    Parameters
    ----------
    history : HistoryAudit
        What is verified.
    sizes : PageSizes
        How much is read at once.
    """

    def __init__(self, history: HistoryAudit, sizes: PageSizes = PAGE_SIZES) -> None:
        self._history = history
        self._sizes = sizes

    async def verify(
        self,
        *,
        found: Callable[[Break], None],
        account_id: int | None = None,
        keep_going: Callable[[], bool] = lambda: True,
        progress: Callable[[VerificationReport], None] = lambda _report: None,
    ) -> VerificationReport:
        """Verify an account with its switches and rebuilds, or all accounts, the ledger, settlements and all changes.

        Parameters
        ----------
        found : callable
            Told each break when it is found.
        account_id : int, optional
            Which account; everything without.
        keep_going : callable
            Asked before each page; False breaks off.
        progress : callable
            Told after each page how far it has got.

        Raises
        ------
        UnknownAccountError
            History knows nothing at all of the account.
        UnavailableError
        """
        await self._history.check()
        run = _Run(found, keep_going, progress)
        if account_id is not None:
            done = await self._one_account(account_id, run)
        else:
            done = (
                await self._accounts(run)
                and await self._strangers(run)
                and await self._ledger(run)
                and await self._settlements(run)
                and await self._steps(run)
                and await self._changes(run)
            )
        run.report.complete = done
        return run.report

    async def story(self, account_id: int) -> AsyncIterator[StoryLine]:
        """Tell what happened to an account, oldest first: its events, its switches, its rebuilds.

        Raises
        ------
        UnavailableError
        """
        changes = sorted(
            [
                line_of_change(chain, audited.change)
                for chain, name in chains_of_account(account_id)
                for audited in await self._history.changes(chain, None, STORY_CHANGES_MAX, name=name)
            ],
            key=lambda line: line.at_us,
        )
        waiting = list(reversed(changes))
        async for event in self._events([account_id]):
            line = line_of_event(event)
            while waiting and waiting[-1].at_us < line.at_us:
                yield waiting.pop()
            yield line
        for line in reversed(waiting):
            yield line

    async def _one_account(self, account_id: int, run: _Run) -> bool:
        known = account_id in await self._history.known([account_id])
        if known:
            done = await self._chains([account_id], run)
        else:
            done = await self._strangers(run, account_id)
        for chain, name in chains_of_account(account_id):
            done = done and await self._change_chain(chain, run, name)
        if not known and not run.report.breaks and not run.report.changes:
            raise UnknownAccountError(account_id)
        return done

    async def _accounts(self, run: _Run) -> bool:
        after, last = BEFORE_ALL, await self._history.last_account()
        while page := await self._history.accounts(after, last, self._sizes.accounts):
            if not await self._chains(list(page), run):
                return False
            after = max(page)
        return True

    async def _chains(self, account_ids: Sequence[int], run: _Run) -> bool:
        """Follow the chains of some accounts one after the other; False when it was broken off."""
        rows = await self._history.rows(account_ids)
        # An account's row is judged when its last event was seen; of those without any, in their turn.
        left = [ChainAudit(rows[account_id]) for account_id in sorted(rows, reverse=True)]
        async for event in self._events(account_ids, run):
            while left and left[-1].row.account_id < event.link.account_id:
                run.account(left.pop())
            # Accounts between those of the page were opened since it was read.
            if left and left[-1].row.account_id == event.link.account_id:
                left[-1].take(event)
                run.report.events += event.link.n <= left[-1].row.n
        if run.stopped:
            return False
        while left:
            run.account(left.pop())
        run.tell()
        return True

    async def _events(self, account_ids: Sequence[int], run: _Run | None = None) -> AsyncIterator[AuditedEvent]:
        """Read the events of accounts, and of those between them, page by page, until the run is to stop."""
        place, last = (min(account_ids, default=0), _FIRST_N), max(account_ids, default=0)
        while run is None or run.goes_on():
            page = await self._history.events(place, last, self._sizes.events)
            for event in page:
                yield event
            if len(page) < self._sizes.events:
                return
            place = (page[-1].link.account_id, page[-1].link.n)
            if run is not None:
                run.tell()

    async def _strangers(self, run: _Run, account_id: int | None = None) -> bool:
        """Find rows of accounts that have none in accounts: whoever took that away may have left the others."""
        for table in TABLES_OF_ACCOUNTS:
            after: int | None = BEFORE_ALL if account_id is None else account_id - 1
            while after is not None:
                if not run.goes_on():
                    return False
                limit = self._sizes.strangers if account_id is None else 1
                after, strangers = await self._history.strangers(table, after, limit)
                for stranger in strangers:
                    if account_id in {None, stranger}:
                        run.of_account(stranger, ownerless(table))
                if account_id is not None:
                    break
        return True

    async def _ledger(self, run: _Run) -> bool:
        place, total = (BEFORE_ALL, 0, 0), Decimal(0)
        while run.goes_on():
            page = await self._history.ledger(place, total, self._sizes.ledger_lines)
            total = page.total
            if page.last is None:
                if total != 0:
                    text = plain(total) if total.is_finite() else str(total)
                    run.broken(Break("the ledger", "all its lines do not sum to zero", "0", text))
                return True
            place = page.last
        return False

    async def _settlements(self, run: _Run) -> bool:
        place = (BEFORE_ALL, 0)
        while run.goes_on():
            page = await self._history.settlements(place, self._sizes.settlements)
            for settled in page:
                for mismatch in unsound_settlement(settled):
                    run.of_account(settled.account_id, mismatch)
                place = (settled.account_id, settled.liquidation_id)
            if len(page) < self._sizes.settlements:
                return True
        return False

    async def _steps(self, run: _Run) -> bool:
        after_id = BEFORE_ALL
        while run.goes_on():
            page = await self._history.steps(after_id, self._sizes.steps)
            for step in page:
                for mismatch in unsound_step(step):
                    run.of_account(step.account_id, mismatch)
                after_id = step.id
            if len(page) < self._sizes.steps:
                return True
        return False

    async def _changes(self, run: _Run) -> bool:
        for chain in ChangeChain:
            if not await self._change_chain(chain, run):
                return False
        return True

    async def _change_chain(self, chain: ChangeChain, run: _Run, name: str | None = None) -> bool:
        audited = await audit_changes(
            self._history, chain, limit=self._sizes.changes, name=name, keep_going=run.goes_on
        )
        run.report.changes += audited.changes
        for one in audited.unsound:
            mismatch = one.mismatch
            where = f"{chain} {one.name}, change {one.n}"
            run.broken(Break(where, mismatch.what, mismatch.expected, mismatch.found, n=one.n))
        run.tell()
        return audited.complete


class _Run:
    """One verification: what it has found, and whether it is to go on."""

    def __init__(
        self,
        found: Callable[[Break], None],
        keep_going: Callable[[], bool],
        progress: Callable[[VerificationReport], None],
    ) -> None:
        self.report = VerificationReport()
        self.stopped = False
        self._found = found
        self._keep_going = keep_going
        self._progress = progress

    def goes_on(self) -> bool:
        self.stopped = self.stopped or not self._keep_going()
        return not self.stopped

    def tell(self) -> None:
        self._progress(self.report)

    def broken(self, one: Break) -> None:
        self.report.breaks += 1
        self._found(one)

    def account(self, audit: ChainAudit) -> None:
        """Judge an account after its last event."""
        self.report.accounts += 1
        for mismatch in audit.end():
            self.of_account(audit.row.account_id, mismatch)

    def of_account(self, account_id: int, mismatch: Mismatch) -> None:
        where = f"account {account_id}"
        if mismatch.n is not None:
            where += f", event {mismatch.n}"
        if mismatch.event_id is not None:
            where += f", id {mismatch.event_id}"
        self.broken(
            Break(where, mismatch.what, mismatch.expected, mismatch.found, account_id, mismatch.n, mismatch.event_id)
        )
