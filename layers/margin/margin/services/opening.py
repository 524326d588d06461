"""Opening partitions: making sure that Redis holds the whole state before anything relies on it.

A partition is opened for one server (its run_id) and one epoch. When the marker does not vouch for that, because
Redis was emptied, restarted or failed over, every account is compared with history, put back where it differs, and a
new epoch begins. A rebuild is the same with every account put back, whatever Redis says of it.

An opening that is broken off, by a deadline or a death, goes on where it was when the next one begins. Until it is
done nobody commits in its partition, and the others go on.

Where a partition had other rules of symbols than history has, its triggers were made by those: then, too, every account
is put back.
"""

from __future__ import annotations

import dataclasses
import time
import uuid
from typing import TYPE_CHECKING

from margin.caller import ENGINE
from margin.domain.event import parse_version
from margin.errors import HistoryLostError, OpeningUnderWayError, StateNotLoadedError
from margin.observability import logger
from margin.ports import Dropped, Loaded
from margin.ports.opening import OpeningRecord
from margin.services.key_sweep import KeySweepService
from margin.services.layout import TAKEN_OVER, require_ours

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from margin.caller import Caller
    from margin.domain.market import Market
    from margin.ports.history import History, HistoryAccount, HistoryWriter
    from margin.ports.opening import Opening
    from margin.services.former_layout import FormerLayoutService
    from margin.services.layout import Layout

COMPARED_PER_PAGE = 500
REBUILT_PER_PAGE = 100
LOADED_AT_ONCE = 50
"""Accounts whose live keys are in memory together: each may have a thousand."""
_PROGRESS_EVERY_S = 2.0
"""After so long a line in the log says how far it has got."""


@dataclasses.dataclass(slots=True)
class OpeningReport:
    """What it took to open.

    ``accounts`` were looked at, ``loaded`` put back to history, ``dropped`` removed, ``kept`` left as they are because
    history refuses what they have pending. Not ``complete``: time was up, and the next opening goes on.
    """

    opened: list[int] = dataclasses.field(default_factory=list)
    accounts: int = 0
    loaded: int = 0
    dropped: int = 0
    kept: int = 0
    drained: int = 0
    complete: bool = True


class OpeningService:
    """Opens partitions.

    Parameters
    ----------
    layout : Layout
        Redis as it is to be divided.
    history : History
        What it is compared with.
    former : FormerLayoutService
        Empties the layout of another number of partitions.
    compared_per_page, rebuilt_per_page : int
        After how many accounts it notes how far it has got.
    """

    def __init__(
        self,
        layout: Layout,
        history: History,
        former: FormerLayoutService,
        *,
        compared_per_page: int = COMPARED_PER_PAGE,
        rebuilt_per_page: int = REBUILT_PER_PAGE,
    ) -> None:
        self._compared_per_page = compared_per_page
        self._rebuilt_per_page = rebuilt_per_page
        self._layout = layout
        self._partitions = layout.partitions
        self._accounts = layout.accounts
        self._history = history
        self._former = former
        self._key_sweep = KeySweepService(layout.accounts, history)

    async def needed(self) -> list[int]:
        """Partitions whose marker does not vouch for the server that answers.

        Raises
        ------
        RedisUnavailableError
        """
        count = self._accounts.partitions
        return [partition for partition in range(count) if not (await self._partitions.state(partition)).whole(count)]

    async def open(
        self,
        *,
        rebuild: Collection[int] = (),
        keep_going: Callable[[], bool] = lambda: True,
        caller: Caller = ENGINE,
    ) -> OpeningReport:
        """Open every partition that needs it, and rebuild some; nothing to do when all are whole.

        The marker goes first, so that nobody commits meanwhile; then what is pending goes to history; then every
        account is compared with history by version and loaded where it differs; then the marker is set with a new
        epoch.

        Parameters
        ----------
        rebuild : collection of int
            Partitions in which every account is loaded, whole or not. Where a rebuild of one of them was broken off,
            only what is left of it is done.
        keep_going : callable
            Asked between pages of accounts; False breaks off, and the report says so.
        caller : Caller
            Who wants it; the engine where it opens by itself.

        Raises
        ------
        HistoryLostError
            Redis holds events that history has lost; a rebuild accepts that.
        OpeningUnderWayError
            Another process is opening at this moment.
        UnavailableError
        """
        report = OpeningReport()
        if not rebuild and not await self.needed():
            return report
        async with self._history.opening_lock() as mine:
            if not mine:
                message = "Another process is opening the state at this moment."
                raise OpeningUnderWayError(message)
            rebuild_epoch, rebuild = await self._left_to_rebuild(rebuild)
            todo = sorted({*rebuild, *await self.needed()})
            if not todo:
                return report
            left = await self._former.leave(self._accounts.partitions, keep_going)
            report.drained += left.drained
            report.complete = left.complete
            if report.complete:
                token = uuid.uuid4().hex
                openings = [
                    await self._begin(partition, token, rebuild_epoch if partition in rebuild else 0)
                    for partition in todo
                ]
                await self._layout.controls.align(anew=todo)
                epoch = max(opening.epoch for opening in openings)
                drained = await self._layout.drain.drain(todo, keep_going=keep_going, epoch=epoch)
                report.drained += drained.stored
                for opening in openings:
                    # What others have read of the partition and not stored yet comes too late from here on.
                    fence = await self._history.raise_fence(opening.partition, self._accounts.partitions, opening.epoch)
                    require_ours(fence == opening.epoch)
                for opening in openings:
                    # Out of time the drain may have left what history would have taken.
                    report.complete = keep_going() and await self._open_one(opening, report, keep_going, caller)
                    if not report.complete:
                        break
        logger.info("partitions_opened", **dataclasses.asdict(report))
        return report

    async def _begin(self, partition: int, token: str, rebuild_epoch: int) -> Opening:
        """Close a partition for an epoch that is taken before: whoever is held up after that is found out.

        Each partition has an epoch of its own, or their event ids would be the same; one that was broken off keeps it,
        so that openings in vain use none up.
        """
        partitions = self._accounts.partitions
        state = await self._partitions.state(partition)
        basis = await self._history.opening_basis(partition, partitions)
        goes_on = state.opening_basis == basis and state.opening_epoch > rebuild_epoch
        epoch = state.opening_epoch if goes_on else await self._history.next_epoch()
        opening = await self._partitions.begin(partition, token, epoch, basis=basis, rebuild_epoch=rebuild_epoch)
        if opening is None:
            raise StateNotLoadedError(TAKEN_OVER)
        return opening

    async def _left_to_rebuild(self, chosen: Collection[int]) -> tuple[int, set[int]]:
        """Tell which partitions are still to be rebuilt, and the epoch that the rebuild took when it began.

        A partition of a rebuild that was broken off knows that epoch; those that have a later one are done.
        """
        if not chosen:
            return 0, set()
        states = {partition: await self._partitions.state(partition) for partition in chosen}
        began = max(state.rebuild_epoch for state in states.values())
        if not began:
            return await self._history.next_epoch(), set(chosen)
        count = self._accounts.partitions
        done = {partition for partition, state in states.items() if state.whole(count) and int(state.epoch) > began}
        return began, set(chosen) - done

    async def _open_one(
        self, opening: Opening, report: OpeningReport, keep_going: Callable[[], bool], caller: Caller
    ) -> bool:
        """Compare or rebuild one partition and open it; False when time was up."""
        partition, partitions = opening.partition, self._accounts.partitions
        await self._layout.instruments.restore(opening)
        await self._layout.market.restore_marks(partition, await self._history.marks())
        await self._layout.funding.restore(partition, rebuild=opening.rebuild)
        market = await self._layout.market.market(partition)
        page_size = self._rebuilt_per_page if opening.loads_all else self._compared_per_page
        progress = _Progress()
        while rows := await self._history.accounts(
            opening.after, page_size, partition=partition, partitions=partitions
        ):
            async with self._history.reserve() as writer:
                loaded = await self._put_back(opening, rows, market, writer, report)
            opening.after = rows[-1].account.account_id
            opening.loaded += loaded
            opening.accounts += len(rows)
            report.accounts += len(rows)
            report.loaded += loaded
            progress.tell(opening)
            require_ours(await self._partitions.note(opening))
            if not keep_going():
                return False
        if opening.rebuild or await self._accounts.size(partition) != opening.accounts:
            await self._judge_strangers(opening, report)
        if opening.rebuild:
            await self._layout.market.sweep_triggers(partition)
            if not await self._sweep_keys(opening, keep_going):
                return False
        counts = (opening.accounts, opening.loaded)
        who = (caller.subject, caller.source_ip)
        await self._history.record_opening(
            OpeningRecord(opening.epoch, partition, partitions, opening.run_id, *counts, *who)
        )
        require_ours(await self._partitions.finish(opening))
        report.opened.append(partition)
        return True

    async def _sweep_keys(self, opening: Opening, keep_going: Callable[[], bool]) -> bool:
        """Take false keys away, from where an opening that was broken off got to; False when time was up."""
        while True:
            cursor = await self._key_sweep.sweep_page(opening.partition, opening.sweep_cursor, opening.token)
            require_ours(cursor is not None)
            opening.sweep_cursor = cursor or "0"
            require_ours(await self._partitions.note(opening))
            if opening.sweep_cursor == "0":
                return True
            if not keep_going():
                return False

    async def _put_back(
        self,
        opening: Opening,
        rows: Sequence[HistoryAccount],
        market: Market,
        writer: HistoryWriter,
        report: OpeningReport,
    ) -> int:
        """Load those of a page that differ from history, or all of them; how many that were."""
        versions = await self._accounts.versions([row.account.account_id for row in rows])
        todo = [row for row in rows if opening.loads_all or versions[row.account.account_id] != row.version]
        # All was drained: what still waits, history refuses. It is in Redis alone, so it stays as it is.
        pending = await self._accounts.pending([row.account.account_id for row in todo])
        for account_id, events in pending.items():
            await self._keep(opening, account_id, report)
            logger.error("account_kept", account_id=account_id, version=versions[account_id], waiting=len(events))
        todo = [row for row in todo if row.account.account_id not in pending]
        if not opening.rebuild:
            for row in todo:
                self._refuse_lost_history(row, versions[row.account.account_id])
        for start in range(0, len(todo), LOADED_AT_ONCE):
            some = todo[start : start + LOADED_AT_ONCE]
            loads = await self._layout.healing.loads(some, versions, market, writer, guard=opening.token)
            outcomes = await self._accounts.load_all(loads)
            require_ours(Loaded.TAKEN_OVER not in outcomes)
            if any(outcome is not Loaded.DONE for outcome in outcomes):
                message = "The state changed while it was being opened; try again."
                raise StateNotLoadedError(message)
        return len(todo)

    async def _keep(self, opening: Opening, account_id: int, report: OpeningReport) -> None:
        """Leave an account as it is in Redis, because history refuses what it has pending.

        Where all others are loaded its triggers may be those of other rules: they are crossed until it is evaluated.
        """
        await self._require_refused(opening, account_id)
        if opening.loads_all:
            require_ours(await self._accounts.cross(account_id, opening.token))
        report.kept += 1

    async def _require_refused(self, opening: Opening, account_id: int) -> None:
        """Stop where history takes what still waits: the drain failed for a moment, and Redis may be behind history."""
        if await self._layout.drain.drain_account(account_id, epoch=opening.epoch):
            message = f"Account {account_id} had events that history takes; try again."
            raise StateNotLoadedError(message)

    async def _judge_strangers(self, opening: Opening, report: OpeningReport) -> None:
        """Look at accounts that Redis holds in a partition and history does not know there.

        Those that belong to another partition now go. One that has something pending stays: history refuses that.
        Any other means that history has lost an account; only a rebuild takes that for right.
        """
        partition, cursor = opening.partition, "0"
        while True:
            cursor, ids = await self._accounts.ids(partition, cursor)
            known = await self._history.known_accounts(ids)
            for account_id in ids:
                foreign = account_id % self._accounts.partitions != partition
                if account_id in known and not foreign:
                    continue
                if not (foreign or opening.rebuild):
                    if (await self._accounts.pending([account_id])).get(account_id):
                        await self._keep(opening, account_id, report)
                        continue
                    message = f"Redis holds account {account_id}, history does not: history has lost it. {_ACCEPT}"
                    raise HistoryLostError(message)
                dropped = await self._accounts.drop(account_id, partition, opening.token)
                require_ours(dropped is not Dropped.TAKEN_OVER)
                if dropped is Dropped.DONE:
                    report.dropped += 1
                    logger.error("account_dropped", account_id=account_id, partition=partition, foreign=foreign)
                else:
                    # As with those that `_keep` keeps: its triggers are of what Redis held before.
                    require_ours(await self._accounts.cross(account_id, opening.token))
                    report.kept += 1
            if cursor == "0":
                return

    @staticmethod
    def _refuse_lost_history(row: HistoryAccount, version: str) -> None:
        """Stop where Redis is ahead although all pending events were drained: history itself went back."""
        if parse_version(version)[0] > parse_version(row.version)[0]:
            message = (
                f"Account {row.account.account_id} is at {version} in Redis and at {row.version} in history:"
                f" history has lost events. {_ACCEPT}"
            )
            raise HistoryLostError(message)


_ACCEPT = "To take history as it is for right, rebuild the partition."


class _Progress:
    """Says now and then how far an opening has got."""

    def __init__(self) -> None:
        self._told_s = time.monotonic()

    def tell(self, opening: Opening) -> None:
        """Log what is done, when the last line is some seconds old."""
        if time.monotonic() - self._told_s < _PROGRESS_EVERY_S:
            return
        self._told_s = time.monotonic()
        logger.info(
            "opening_progress",
            partition=opening.partition,
            rebuild=opening.rebuild,
            accounts=opening.accounts,
            loaded=opening.loaded,
            after=opening.after,
        )
