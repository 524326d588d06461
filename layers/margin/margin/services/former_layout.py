"""Leaving another number of partitions than the one in force: all of it goes to history, then none of it stays.

What stayed there would be taken for the truth by whoever returns to that number.
"""

from __future__ import annotations

import dataclasses
import uuid
from typing import TYPE_CHECKING

from margin.errors import StateNotLoadedError
from margin.observability import logger
from margin.ports import Dropped
from margin.services.layout import require_ours
from margin.services.mark_records import MarkRecordService

if TYPE_CHECKING:
    from collections.abc import Callable

    from margin.ports.history import History
    from margin.ports.opening import Opening
    from margin.services.layout import Layout


@dataclasses.dataclass(frozen=True, slots=True)
class FormerLayoutLeft:
    """How many events went to history, and whether nothing of the former layout is left; else time was up."""

    drained: int = 0
    complete: bool = True


class FormerLayoutService:
    """Empties layouts.

    Parameters
    ----------
    history : History
        Knows which layout was opened last.
    make : callable
        Makes the layout of a number of partitions.
    """

    def __init__(self, history: History, make: Callable[[int], Layout]) -> None:
        self._history = history
        self._make = make

    async def leave(self, partitions: int, keep_going: Callable[[], bool]) -> FormerLayoutLeft:
        """Empty the layout that was opened last, unless it is that of ``partitions``.

        Parameters
        ----------
        partitions : int
            The number in force.
        keep_going : callable
            Asked between pages of accounts; False breaks off.

        Raises
        ------
        StateNotLoadedError
            History refuses events that wait there, or another process has taken over.
        UnavailableError
        """
        count = await self._history.last_partitions()
        if count is None or count == partitions:
            return FormerLayoutLeft()
        former = self._make(count)
        token = uuid.uuid4().hex
        epoch = await self._history.next_epoch()
        begun = [await former.partitions.begin(partition, token, epoch) for partition in range(count)]
        openings = [opening for opening in begun if opening is not None]
        require_ours(len(openings) == count)
        drained = await former.drain.drain(keep_going=keep_going, epoch=epoch)
        if not keep_going():
            return FormerLayoutLeft(drained.stored, complete=False)
        if drained.waiting_accounts:
            message = (
                f"{drained.waiting_accounts} accounts of the layout with PARTITIONS={count} have events that are not in"
                f" history yet; they go there first."
            )
            raise StateNotLoadedError(message)
        for opening in openings:
            require_ours(await self._history.raise_fence(opening.partition, count, epoch) == epoch)
        await MarkRecordService(former.market, self._history).save()
        dropped = 0
        for opening in openings:
            gone = await self._empty(former, opening, keep_going)
            if gone is None:
                return FormerLayoutLeft(drained.stored, complete=False)
            dropped += gone
        logger.info("former_layout_left", partitions=count, drained=drained.stored, accounts=dropped)
        return FormerLayoutLeft(drained.stored)

    @staticmethod
    async def _empty(former: Layout, opening: Opening, keep_going: Callable[[], bool]) -> int | None:
        """Drop every account of a partition, then its marks; how many accounts, None when time was up."""
        dropped, cursor = 0, "0"
        while True:
            cursor, ids = await former.accounts.ids(opening.partition, cursor)
            for account_id in ids:
                outcome = await former.accounts.drop(account_id, opening.partition, opening.token)
                require_ours(outcome is not Dropped.TAKEN_OVER)
                dropped += outcome is Dropped.DONE
            if not keep_going():
                return None
            if cursor == "0":
                break
        await former.market.forget_marks(opening.partition)
        return dropped
