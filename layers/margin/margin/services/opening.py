"""Opening partitions: making sure that Redis holds the whole state before anything relies on it.

A partition is opened for one server (its run_id) and one epoch. When the marker does not vouch for that, because
Redis was emptied, restarted or failed over, every account is compared with history, put back where it differs, and a
new epoch begins.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from margin.domain.event import parse_version
from margin.errors import PostgresUnavailableError, StateNotLoadedError
from margin.observability import logger
from margin.ports import Loaded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from margin.ports import AccountStore, History, HistoryAccount, HistoryWriter, PartitionStore
    from margin.services.drain import DrainReport, DrainService
    from margin.services.healing import HealingService

ACCOUNTS_PER_PAGE = 500


@dataclasses.dataclass(slots=True)
class OpeningReport:
    """What it took to open."""

    opened: list[int] = dataclasses.field(default_factory=list)
    accounts: int = 0
    loaded: int = 0
    drained: int = 0


class OpeningService:
    """Opens partitions.

    Parameters
    ----------
    partitions : PartitionStore
        The markers.
    accounts, history : AccountStore, History
        What is compared. The account store is one that does not look at markers when it connects.
    healing, drain : HealingService, DrainService
        How what differs is put right.
    """

    def __init__(
        self,
        partitions: PartitionStore,
        accounts: AccountStore,
        history: History,
        healing: HealingService,
        drain: DrainService,
    ) -> None:
        self._partitions = partitions
        self._accounts = accounts
        self._history = history
        self._healing = healing
        self._drain = drain

    async def needed(self) -> list[int]:
        """Partitions whose marker does not vouch for the server that answers.

        Raises
        ------
        RedisUnavailableError
        """
        count = self._accounts.partitions
        return [partition for partition in range(count) if not (await self._partitions.state(partition)).whole(count)]

    async def open(self) -> OpeningReport:
        """Open every partition that needs it; nothing to do when all are whole.

        The marker goes first, so that nobody commits meanwhile; then what is pending goes to history; then every
        account is compared with history by version and loaded where it differs; then the marker is set with a new
        epoch.

        Raises
        ------
        StateNotLoadedError
            Redis holds events that history has lost, or another process is opening at this moment.
        UnavailableError
        """
        report = OpeningReport()
        if not await self.needed():
            return report
        async with self._history.opening_lock() as mine:
            if not mine:
                message = "Another process is opening the state at this moment."
                raise StateNotLoadedError(message)
            needed = await self.needed()
            # The server that is compared is the one that is vouched for: another that takes its place fails the check.
            servers = {partition: (await self._partitions.state(partition)).server_run_id for partition in needed}
            for partition in needed:
                await self._partitions.close(partition)
            drained: DrainReport = await self._drain.drain()
            report.drained = drained.stored
            async with self._history.reserve() as writer:
                await self._compare(report, needed, writer)
            for partition in needed:
                await self._partitions.open(partition, await self._history.next_epoch(), servers[partition])
                report.opened.append(partition)
        logger.info("partitions_opened", **dataclasses.asdict(report))
        return report

    async def _compare(self, report: OpeningReport, needed: Sequence[int], writer: HistoryWriter) -> None:
        """Load every account of some partitions that Redis holds at another version than history.

        Nobody commits in these partitions meanwhile; the others go on.
        """
        after = 0
        while rows := await self._history.accounts(after, ACCOUNTS_PER_PAGE):
            after = rows[-1].account.account_id
            for partition in needed:
                mine = [row for row in rows if row.account.account_id % self._accounts.partitions == partition]
                await self._compare_page(report, mine, writer)
        held = sum([await self._accounts.size(partition) for partition in needed])
        if held != report.accounts:
            message = f"Redis holds {held} accounts, history {report.accounts}: history has lost some."
            raise PostgresUnavailableError(message)

    async def _compare_page(self, report: OpeningReport, rows: Sequence[HistoryAccount], writer: HistoryWriter) -> None:
        versions = await self._accounts.versions([row.account.account_id for row in rows])
        report.accounts += len(rows)
        for row in rows:
            version = versions[row.account.account_id]
            if version == row.version:
                continue
            self._refuse_lost_history(row.account.account_id, version, row.version)
            if await self._healing.load(row, writer, expected_version=version) is not Loaded.DONE:
                message = "The state changed while it was being opened; try again."
                raise StateNotLoadedError(message)
            report.loaded += 1

    @staticmethod
    def _refuse_lost_history(account_id: int, version: str, stored: str) -> None:
        """Stop where Redis is ahead although all pending events were drained: history itself went back."""
        if parse_version(version)[0] > parse_version(stored)[0]:
            message = (
                f"Account {account_id} is at {version} in Redis and at {stored} in history: history has lost events."
            )
            raise PostgresUnavailableError(message)
