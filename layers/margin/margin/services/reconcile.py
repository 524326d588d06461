"""Compares Redis with PostgreSQL while trading goes on, and looks whether what PostgreSQL holds is sound in itself.

It only finds. Nothing is put right here, because what differs is evidence: of a defect, of a store that came back
older, or of somebody who wrote past the engine.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from margin.domain.chain import Head, Mismatch, UnreadableError
from margin.domain.decimals import plain
from margin.domain.safe_zone import TriggerSide
from margin.observability import MetricName, count, logger
from margin.ports.audit import BEFORE_ALL, TABLES_OF_ACCOUNTS, ChangeChain
from margin.services.audit_chain import ChainAudit, head_of, ownerless
from margin.services.audit_changes import audit_changes
from margin.services.audit_cycle import Cycle, Stage
from margin.services.audit_settlement import unsound_settlement, unsound_step
from margin.services.audit_state import Comparison, compare

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from margin.ports.audit import AuditedAccount, HistoryAudit, HotAccount, HotAudit

DIFFERENCES_MAX = 100
"""How many differences a report lists; all are counted and logged."""

PENDING_READ_MAX = 10
PENDING_READ_AGAIN_MAX = 1000
"""How many of an account's pending events are read at the first look, and at the second; see `ReconcileReport`."""

_FIRST_N = -(2**63)
_ID_DIGITS_MAX = 18


@dataclasses.dataclass(frozen=True, slots=True)
class PageSizes:
    """How much is read at once: accounts in a page and events in all their chains, events, ledger lines, and so on."""

    accounts: int = 100
    batch_events: int = 10_000
    events: int = 1000
    strangers: int = 1000
    ledger_lines: int = 100_000
    settlements: int = 1000
    steps: int = 1000
    changes: int = 1000


PAGE_SIZES = PageSizes()


@dataclasses.dataclass(frozen=True, slots=True)
class Difference:
    """Something that is not as it must be; ``account_id`` is None where it belongs to no account."""

    account_id: int | None
    what: str
    expected: str
    found: str


@dataclasses.dataclass(slots=True)
class ReconcileReport:
    """What one run looked at and found.

    ``unverified`` are accounts about which nothing can be said: more than 1000 of their events wait for history, or
    their chain is too long for a whole run. ``age_s`` says since when everything was looked at.
    """

    accounts: int = 0
    events: int = 0
    differences: list[Difference] = dataclasses.field(default_factory=list)
    differences_count: int = 0
    unverified: list[int] = dataclasses.field(default_factory=list)
    complete: bool = False
    cycle_started_us: int = 0
    age_s: float = 0.0


class ReconcileService:
    """Goes through all accounts, then through Redis, the ledger, the shortfalls and changes, and begins anew.

    Parameters
    ----------
    history, hot : HistoryAudit, HotAudit
        What is compared.
    sizes : PageSizes
        How much is read at once.
    """

    def __init__(self, history: HistoryAudit, hot: HotAudit, sizes: PageSizes = PAGE_SIZES) -> None:
        self._history = history
        self._hot = hot
        self._sizes = sizes

    async def reconcile(self, *, keep_going: Callable[[], bool] = lambda: True) -> ReconcileReport:
        """Go on where the last run stopped, to the end of the cycle at the most.

        The stages of a cycle:

        1. Every account that history knows, in pages. Its row and then Redis are read and compared, a difference counts
           only when it is there at a second look as well; then its chain is followed from the first event to the one
           that the row named, with all that is derived from each event.
        2. Every partition of Redis: accounts that history does not know, and triggers of symbols that are not held.
        3. Every account that has any row in history: that it has one among the accounts. Of each only the first of its
           rows in a table is read; rows too many of an account that is known were found with its chain.
        4. The whole ledger: its sum.
        5. Every shortfall and every deleveraging: that it is planned what happened, that it happened what is noted as
           executed, that no more was paid than was missing, and no less where it is noted as settled.
        6. Every planned step: that it is what its event says, that it is for a shortfall, and that what it raised was
           paid out where that is noted.
        7. Every chain of changes: switches, rules of symbols, funding, openings, rebuilds, migrations.

        Within an account there is no place to stop at, because what a chain comes to is known only at its end: an
        account whose chain is too long for what is left of the time is begun anew by the next run. One that is too long
        for a whole run, which is a matter of millions of events in the 15 minutes of the function, is reported as
        unverified and passed over, so that it does not hinder the others.

        Parameters
        ----------
        keep_going : callable
            Asked before each page; False ends the run, and the next one goes on from there.

        Raises
        ------
        UnavailableError
            What was found until then is counted and logged, and the next run goes on behind it.
        """
        saved, now_us = await self._hot.progress()
        cycle = Cycle.resume(saved, now_us)
        report = ReconcileReport(cycle_started_us=cycle.started_us)
        stages = {
            Stage.ACCOUNTS: self._accounts,
            Stage.PARTITIONS: self._partitions,
            Stage.STRANGERS: self._strangers,
            Stage.LEDGER: self._ledger,
            Stage.SETTLEMENT: self._settlement,
            Stage.STEPS: self._steps,
            Stage.CHANGES: self._changes,
        }
        while cycle.stage is not Stage.DONE and keep_going():
            await stages[cycle.stage](cycle, report, keep_going)
            now_us = await self._hot.save_progress(cycle.text())
        report.complete = cycle.stage is Stage.DONE
        report.age_s = cycle.age_s(now_us)
        return report

    async def _accounts(self, cycle: Cycle, report: ReconcileReport, keep_going: Callable[[], bool]) -> None:
        """Look at a page of accounts."""
        after, last = cycle.place
        # Accounts that are opened meanwhile are left to the next cycle, or this one might never end.
        last = last or await self._history.last_account()
        page = await self._history.accounts(after, last, self._sizes.accounts)
        if not page:
            cycle.enter(Stage.PARTITIONS)
            return
        for batch in _batches(page, self._sizes.batch_events):
            done = await self._batch(batch, report, keep_going)
            if done is None:
                return
            cycle.place = (done, last)
            if done != batch[-1]:
                return
            await self._hot.save_progress(cycle.text())

    async def _batch(
        self, account_ids: Sequence[int], report: ReconcileReport, keep_going: Callable[[], bool]
    ) -> int | None:
        """Look at some accounts; the last one that is done, None when none is."""
        run_began_here = not report.accounts
        rows = await self._history.rows(account_ids)
        hot = await self._hot.accounts(list(rows), PENDING_READ_MAX)
        compared = {
            account_id: await self._compare(account_id, rows[account_id], hot[account_id]) for account_id in rows
        }
        audits = {account_id: ChainAudit(rows[account_id]) for account_id in sorted(rows)}
        finished = await self._follow(audits, keep_going)
        done = None
        for account_id in finished:
            audit = audits[account_id]
            report.accounts += 1
            report.events += audit.events
            self._record(account_id, compared[account_id], audit.end(), report)
            done = account_id
        first = next(iter(audits), None)
        if first is not None and not finished and run_began_here and audits[first].events:
            done = first
            report.accounts += 1
            report.events += audits[first].events
            self._record(first, Comparison(compared[first].mismatches, judged=False), (), report)
        return account_ids[-1] if len(finished) == len(audits) else done

    async def _follow(self, audits: Mapping[int, ChainAudit], keep_going: Callable[[], bool]) -> list[int]:
        """Follow the chains of some accounts, page by page; those that were followed to their ends, in order."""
        if not audits:
            return []
        last_account_id = max(audits)
        place = (min(audits), _FIRST_N)
        while keep_going():
            events = await self._history.events(place, last_account_id, self._sizes.events)
            for event in events:
                # Accounts that were opened since the page was read belong to none of its chains.
                if event.link.account_id in audits:
                    audits[event.link.account_id].take(event)
            if len(events) < self._sizes.events:
                return list(audits)
            place = (events[-1].link.account_id, events[-1].link.n)
        return [account_id for account_id in audits if account_id < place[0]]

    async def _compare(self, account_id: int, row: AuditedAccount, hot: HotAccount) -> Comparison:
        """Compare an account as it was read with others; a difference only counts when it is there alone as well."""
        try:
            comparison = compare(head_of(row), hot)
        except UnreadableError:
            return Comparison(())  # Said when the row is compared with its chain.
        return comparison if comparison.judged and not comparison.mismatches else await self._look_again(account_id)

    async def _look_again(self, account_id: int) -> Comparison:
        """Compare one account that may have moved between the reads, or that history does not know."""
        row = (await self._history.rows([account_id])).get(account_id)
        hot = (await self._hot.accounts([account_id], PENDING_READ_AGAIN_MAX))[account_id]
        try:
            head = head_of(row) if row is not None else Head.unopened(account_id)
        except UnreadableError:
            return Comparison(())
        later = await self._history.events((account_id, head.n), account_id, PENDING_READ_AGAIN_MAX)
        if row is None and later and account_id not in await self._history.known([account_id]):
            return Comparison((Mismatch("the account has events and no row in accounts", "a row", "none"),))
        return compare(head, hot, [event.link for event in later])

    async def _partitions(self, cycle: Cycle, report: ReconcileReport, keep_going: Callable[[], bool]) -> None:
        """Look through one partition of Redis; when time is up before its end, the next run begins it anew."""
        (partition,) = cycle.place
        if partition >= self._hot.partitions:
            cycle.enter(Stage.STRANGERS)
            return
        if await self._unknown_accounts(partition, report, keep_going) and await self._strays(
            partition, report, keep_going
        ):
            cycle.place = (partition + 1,)

    async def _unknown_accounts(self, partition: int, report: ReconcileReport, keep_going: Callable[[], bool]) -> bool:
        """Find accounts in Redis that history does not know, and will not know either; False when time is up."""
        seen: set[str] = set()
        cursor = "0"
        while keep_going():
            cursor, found = await self._hot.account_ids(partition, cursor)
            account_ids = [int(text) for text in found if _is_id(text)]
            known = {str(account_id) for account_id in await self._history.known(account_ids)}
            for text in found:
                if text in seen or (text in known and int(text) % self._hot.partitions == partition):
                    continue
                seen.add(text)
                if not _is_id(text) or int(text) % self._hot.partitions != partition:
                    stray = Mismatch("Redis holds an account that is not of this partition", "nothing", text)
                    self._record(None, Comparison((stray,)), (), report)
                else:
                    self._record(int(text), await self._look_again(int(text)), (), report)
            if cursor == "0":
                return True
        return False

    async def _strays(self, partition: int, report: ReconcileReport, keep_going: Callable[[], bool]) -> bool:
        """Find triggers of symbols that their account does not hold; False when time is up."""
        for symbol in await self._hot.symbols(partition):
            for side in TriggerSide:
                seen: set[str] = set()
                cursor = "0"
                while True:
                    if not keep_going():
                        return False
                    cursor, found = await self._hot.stray_triggers(partition, symbol, side, cursor)
                    for text in set(found) - seen:
                        stray = Mismatch(f"a {side} of {symbol} has no position", "no trigger", text)
                        account_id = int(text) if _is_id(text) else None
                        self._record(account_id, Comparison((stray,)), (), report)
                    seen.update(found)
                    if cursor == "0":
                        break
        return True

    async def _strangers(self, cycle: Cycle, report: ReconcileReport, _keep_going: Callable[[], bool]) -> None:
        """Walk from account to account through a table, and find those that have no row in accounts."""
        index, after = cycle.place
        if index >= len(TABLES_OF_ACCOUNTS):
            cycle.enter(Stage.LEDGER)
            return
        table = TABLES_OF_ACCOUNTS[index]
        last, strangers = await self._history.strangers(table, after, self._sizes.strangers)
        for account_id in strangers:
            self._record(account_id, Comparison((ownerless(table),)), (), report)
        cycle.place = (index, last) if last is not None else (index + 1, BEFORE_ALL)

    async def _ledger(self, cycle: Cycle, report: ReconcileReport, _keep_going: Callable[[], bool]) -> None:
        """Add a page of ledger lines up."""
        account_id, event_id, line = cycle.place
        page = await self._history.ledger((account_id, event_id, line), cycle.total, self._sizes.ledger_lines)
        cycle.total = page.total
        if page.last is not None:
            cycle.place = page.last
            return
        if cycle.total != 0:
            total = plain(cycle.total) if cycle.total.is_finite() else str(cycle.total)
            imbalance = Mismatch("the whole ledger does not sum to zero", "0", total)
            self._record(None, Comparison((imbalance,)), (), report)
        cycle.enter(Stage.SETTLEMENT)

    async def _settlement(self, cycle: Cycle, report: ReconcileReport, _keep_going: Callable[[], bool]) -> None:
        """Look at what became of a page of shortfalls, and at a page of deleveragings."""
        account_id, liquidation_id = cycle.place
        page = await self._history.settlements((account_id, liquidation_id), self._sizes.settlements)
        for settled in page:
            if mismatches := unsound_settlement(settled):
                self._record(settled.account_id, Comparison(mismatches), (), report)
            cycle.place = (settled.account_id, settled.liquidation_id)
        if len(page) < self._sizes.settlements:
            cycle.enter(Stage.STEPS)

    async def _steps(self, cycle: Cycle, report: ReconcileReport, _keep_going: Callable[[], bool]) -> None:
        """Look at a page of planned steps."""
        (after_id,) = cycle.place
        page = await self._history.steps(after_id, self._sizes.steps)
        for step in page:
            if mismatches := unsound_step(step):
                self._record(step.account_id, Comparison(mismatches), (), report)
            cycle.place = (step.id,)
        if len(page) < self._sizes.steps:
            cycle.enter(Stage.CHANGES)

    async def _changes(self, cycle: Cycle, report: ReconcileReport, keep_going: Callable[[], bool]) -> None:
        """Follow all chains of one kind; when time is up before their end, the next run begins them anew."""
        (index,) = cycle.place
        chains = list(ChangeChain)
        if index >= len(chains):
            cycle.enter(Stage.DONE)
            return
        audited = await audit_changes(self._history, chains[index], limit=self._sizes.changes, keep_going=keep_going)
        if not audited.complete:
            return
        for one in audited.unsound:
            what = f"change {one.n} of {one.name} in {one.chain}: {one.mismatch.what}"
            mismatch = Mismatch(what, one.mismatch.expected, one.mismatch.found)
            self._record(None, Comparison((mismatch,)), (), report)
        cycle.place = (index + 1,)

    @staticmethod
    def _record(
        account_id: int | None, comparison: Comparison, others: Sequence[Mismatch], report: ReconcileReport
    ) -> None:
        """Count, log and, while there is room, list what was found of an account."""
        if not comparison.judged and account_id is not None:
            logger.warning("reconcile_unverified", account_id=account_id)
            report.unverified = [*report.unverified, account_id][:DIFFERENCES_MAX]
        for mismatch in (*comparison.mismatches, *others):
            difference = Difference(account_id, mismatch.what, mismatch.expected, mismatch.found)
            count(MetricName.RECONCILE_DIFFERENCES)
            logger.error("reconcile_difference", **dataclasses.asdict(difference))
            report.differences_count += 1
            if len(report.differences) < DIFFERENCES_MAX:
                report.differences.append(difference)


def _is_id(text: str) -> bool:
    """Whether a text from Redis can be the id of an account at all."""
    return text.isascii() and text.isdecimal() and len(text) <= _ID_DIGITS_MAX


def _batches(page: Mapping[int, int], events_max: int) -> Iterator[list[int]]:
    """Divide a page into accounts whose chains together have about so many events, at least one of them in each."""
    batch: list[int] = []
    events = 0
    for account_id, n in page.items():
        if batch and events + n > events_max:
            yield batch
            batch, events = [], 0
        batch.append(account_id)
        events += n
    if batch:
        yield batch
