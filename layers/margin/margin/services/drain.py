"""Moves to history what a dead function or an outage left on the pending lists."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from margin.errors import ContentionError, PostgresUnavailableError
from margin.observability import logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from margin.ports import AccountStore, History
    from margin.services.journal import Journal

ACCOUNTS_PER_ROUND = 100


@dataclasses.dataclass(slots=True)
class DrainReport:
    """What a drain did, and what still waits."""

    stored: int = 0
    accounts: int = 0
    waiting_accounts: int = 0
    oldest_s: float = 0.0


class DrainService:
    """Completes step 4 of the write path for others.

    Parameters
    ----------
    accounts, history : AccountStore, History
        From where to where.
    journal : Journal
        The write path.
    """

    def __init__(self, accounts: AccountStore, history: History, journal: Journal) -> None:
        self._accounts = accounts
        self._history = history
        self._journal = journal

    async def drain(self, *, keep_going: Callable[[], bool] = lambda: True) -> DrainReport:
        """Store pending events, account by account, longest waiting first, until none moves or time is up.

        Drains at the same time, and the functions that executed the events, do no harm: history takes each event once.

        Raises
        ------
        UnavailableError
        """
        report = DrainReport()
        for partition in range(self._accounts.partitions):
            stuck: set[int] = set()
            while keep_going():
                waiting = await self._accounts.pending_accounts(partition, ACCOUNTS_PER_ROUND + len(stuck))
                todo = [account_id for account_id in waiting if account_id not in stuck][:ACCOUNTS_PER_ROUND]
                if not todo:
                    break
                for account_id in todo:
                    stored = await self._drain_account(account_id)
                    report.stored += stored
                    report.accounts += 1
                    if not stored:
                        stuck.add(account_id)
        report.waiting_accounts, report.oldest_s = await self._accounts.pending_stats()
        if report.accounts:
            logger.info("journal_drained", **dataclasses.asdict(report))
        return report

    async def _drain_account(self, account_id: int) -> int:
        """Store what an account has pending; how much of it that was.

        What hinders one account does not hinder the others: it is logged, and the account waits for the next drain.
        """
        async with self._history.reserve() as writer:
            pending = await self._accounts.pending(account_id)
            try:
                return len((await self._journal.settle(account_id, pending, writer)).stored)
            except (PostgresUnavailableError, ContentionError) as error:
                logger.warning("account_not_drained", account_id=account_id, code=error.code)
                return 0
