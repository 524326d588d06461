"""Moves to history what waits on the pending lists: what a dead function or an outage left there, or everything.

Many accounts go in one commit of PostgreSQL. An event that history refuses, whoever tries, is never dropped and never
jumped over: its account is tried alone from then on, and after some tries in vain it is paused, until somebody has put
right what stands in the way.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from margin.caller import ENGINE
from margin.domain.controls import ControlState, account_control
from margin.errors import ContentionError, MarginError, PostgresUnavailableError, StateNotLoadedError
from margin.observability import logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from margin.domain.event import StoredEvent
    from margin.ports import AccountStore
    from margin.ports.history import Appended, History, HistoryWriter
    from margin.services.controls import ControlService
    from margin.services.healing import HealingService
    from margin.services.journal import Journal

ACCOUNTS_PER_ROUND = 100
EVENTS_PER_COMMIT = 500
BLOCKED_TRIES_MAX = 3
"""After so many tries in vain to store an event its account is paused."""

RECENT_S = 900
RECENT_ACCOUNTS_MAX = 1000
_ROUNDS_OF_ONE_ACCOUNT_MAX = 10_000
_FAILURES_MAX = 3
"""After so many failures of history in a row the rest of the partition is left to the next drain."""


@dataclasses.dataclass(slots=True)
class DrainReport:
    """What a drain did, and what still waits.

    ``set_aside`` are paused accounts whose next event history refuses; ``healed`` had gone another way than history.
    """

    stored: int = 0
    accounts: int = 0
    waiting_accounts: int = 0
    oldest_s: float = 0.0
    set_aside: int = 0
    healed: int = 0


class DrainService:
    """Completes step 4 of the write path for others.

    Parameters
    ----------
    accounts, history : AccountStore, History
        From where to where.
    journal : Journal
        The write path.
    healing : HealingService
        Puts right what has gone another way than history.
    controls : ControlService
        Pauses accounts.
    """

    def __init__(
        self,
        accounts: AccountStore,
        history: History,
        journal: Journal,
        healing: HealingService,
        controls: ControlService,
    ) -> None:
        self._accounts = accounts
        self._history = history
        self._journal = journal
        self._healing = healing
        self._controls = controls

    async def drain(
        self,
        partitions: Iterable[int] | None = None,
        *,
        keep_going: Callable[[], bool] = lambda: True,
        epoch: int | None = None,
    ) -> DrainReport:
        """Store pending events, longest waiting first, until none moves or time is up.

        Drains at the same time, and the functions that executed the events, do no harm: history takes each event once.

        Parameters
        ----------
        partitions : iterable of int or None
            Which partitions; all when None.
        keep_going : callable
            Asked before each commit; False ends the drain.
        epoch : int or None
            The epoch that is about to begin, for who opens the partitions. None: the one in force; while there is
            none, history takes nothing.

        Raises
        ------
        UnavailableError
        """
        report = DrainReport()
        run = _Run(report, keep_going, epoch)
        for partition in range(self._accounts.partitions) if partitions is None else partitions:
            try:
                await self._drain_partition(partition, run)
            except _StuckError as error:
                # Whatever hinders this one need not hinder the others.
                logger.warning("partition_not_drained", partition=partition, code=error.reason.code)
                run.stuck, run.failures_in_a_row = error.reason, 0
        if run.stuck is not None and not report.stored:
            raise run.stuck
        report.waiting_accounts, report.oldest_s = await self._accounts.pending_stats()
        if report.accounts:
            logger.info("journal_drained", **dataclasses.asdict(report))
        return report

    async def compare_recent(self, report: DrainReport) -> None:
        """Compare the accounts that changed last in history with Redis, and heal those where Redis is behind.

        Redis commits first and history follows, so an account of which Redis knows less than history was lost there,
        or put back to an older state, without anyone having noticed.

        Raises
        ------
        UnavailableError
        """
        rows = await self._history.recent_accounts(RECENT_S, RECENT_ACCOUNTS_MAX)
        async with self._history.reserve() as writer:
            for partition in range(self._accounts.partitions):
                mine = [row for row in rows if row.account.account_id % self._accounts.partitions == partition]
                for account_id in await self._healing.behind(mine):
                    report.healed += await self._heal(account_id, writer)

    async def drain_account(self, account_id: int, *, epoch: int | None = None) -> bool:
        """Store what one account has pending, under an epoch as `drain`; whether nothing waits any more.

        Raises
        ------
        StateNotLoadedError
            The partition is being opened by another.
        ContentionError, UnavailableError
        """
        partition = account_id % self._accounts.partitions
        async with self._history.reserve() as writer:
            for _ in range(_ROUNDS_OF_ONE_ACCOUNT_MAX):
                read_under = await self._accounts.epoch(partition) if epoch is None else epoch
                waiting = (await self._accounts.pending([account_id])).get(account_id, ())
                if not waiting:
                    return True
                taken = (await self._journal.settle({account_id: waiting}, writer, epoch=read_under))[account_id]
                await self._journal.undo_fork(account_id, waiting, taken, writer)
                if taken.blocked:
                    return False
                if taken.fenced:
                    message = "The partition is being opened."
                    raise StateNotLoadedError(message)
        message = f"Account {account_id} gets new events faster than they can be stored."
        raise ContentionError(message)

    async def _drain_partition(self, partition: int, run: _Run) -> None:
        """Drain round after round; an account of which nothing could be stored is left until the next drain."""
        tries = await self._accounts.blocked(partition)
        run.report.set_aside += sum(times >= BLOCKED_TRIES_MAX for times in tries.values())
        left: set[int] = set()
        alone = set(tries)
        while run.keep_going():
            # The epoch first: what is read after it is at least as new.
            epoch = await self._accounts.epoch(partition) if run.epoch is None else run.epoch
            waiting = await self._accounts.pending_accounts(partition, ACCOUNTS_PER_ROUND + len(left))
            todo = [account_id for account_id in waiting if account_id not in left][:ACCOUNTS_PER_ROUND]
            if not todo:
                break
            pending = await self._accounts.pending(todo)
            if gone := [account_id for account_id in todo if account_id not in pending]:
                # Stored by others meanwhile; a name without a list would be looked at for ever.
                await self._accounts.forget_pending(dict.fromkeys(gone, ()))
                left.update(gone)
            for batch in _batches(pending, alone):
                if not run.keep_going():
                    break
                moving = await self._store(batch, epoch, run)
                if moving is None:
                    # Perhaps one of them hinders all: each by itself in the next round, and whoever fails then is left.
                    left.update(batch if len(batch) == 1 else ())
                    alone.update(batch)
                else:
                    left.update(batch.keys() - moving)

    async def _store(self, batch: Mapping[int, Sequence[StoredEvent]], epoch: int, run: _Run) -> set[int] | None:
        """Store a batch in one commit; the accounts whose turn may come again, None when history failed."""
        async with self._history.reserve() as writer:
            try:
                appended = await self._journal.settle(batch, writer, epoch=epoch)
                for account_id, taken in appended.items():
                    await self._look_after(account_id, batch[account_id], taken, writer)
            except PostgresUnavailableError as error:
                run.failed(error)
                logger.warning("accounts_not_drained", accounts=len(batch), account_id=min(batch), code=error.code)
                return None
        run.failures_in_a_row = 0
        run.report.stored += sum(len(taken.stored) for taken in appended.values())
        run.report.accounts += len(appended)
        return {account_id for account_id, taken in appended.items() if taken.stored and not taken.blocked}

    async def _look_after(
        self,
        account_id: int,
        waiting: Sequence[StoredEvent],
        taken: Appended,
        writer: HistoryWriter,
    ) -> None:
        """Heal an account that forked, count a try in vain, pause after too many of them."""
        try:
            await self._journal.undo_fork(account_id, waiting, taken, writer)
        except ContentionError as error:
            logger.warning("account_not_drained", account_id=account_id, code=error.code)
        if not taken.blocked:
            return
        name, event_id = account_control(account_id), taken.first_left(waiting)
        # Whatever became of former pauses: it is paused from then on until nothing is refused any more.
        if (
            await self._accounts.note_blocked(account_id) >= BLOCKED_TRIES_MAX
            and await self._controls.state(name) is not ControlState.PAUSED
        ):
            reason = f"Event {event_id} cannot be stored in history ({'gap' if taken.gap else 'rejected'})."
            await self._controls.set(name, ControlState.PAUSED, reason, ENGINE)
            logger.error("account_set_aside", account_id=account_id, event_id=event_id, gap=taken.gap)

    async def _heal(self, account_id: int, writer: HistoryWriter) -> bool:
        try:
            return await self._healing.heal(account_id, writer)
        except MarginError as error:
            logger.warning("account_not_healed", account_id=account_id, code=error.code)
            return False


class _StuckError(Exception):
    """History fails again and again with what one partition has."""

    def __init__(self, reason: PostgresUnavailableError) -> None:
        super().__init__(reason.detail)
        self.reason = reason


@dataclasses.dataclass(slots=True)
class _Run:
    """One drain: what it has done, how long it may go on, under which epoch, and how often history failed in a row."""

    report: DrainReport
    keep_going: Callable[[], bool]
    epoch: int | None
    failures_in_a_row: int = 0
    stuck: PostgresUnavailableError | None = None

    def failed(self, error: PostgresUnavailableError) -> None:
        """Count a failure; give the partition up when it is one too many."""
        self.failures_in_a_row += 1
        if self.failures_in_a_row >= _FAILURES_MAX:
            raise _StuckError(error)


def _batches(
    pending: Mapping[int, Sequence[StoredEvent]], alone: set[int]
) -> Iterator[dict[int, Sequence[StoredEvent]]]:
    """Put accounts together until a commit has enough events; those that may spoil it go alone, and last."""
    batch: dict[int, Sequence[StoredEvent]] = {}
    for account_id, events in pending.items():
        if account_id in alone:
            continue
        batch[account_id] = events
        if sum(map(len, batch.values())) >= EVENTS_PER_COMMIT:
            yield batch
            batch = {}
    if batch:
        yield batch
    for account_id, events in pending.items():
        if account_id in alone:
            yield {account_id: events}
