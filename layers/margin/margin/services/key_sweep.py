"""Takes idempotency keys away that history does not know: of events that were dropped, or that never were.

A retry with such a key would be answered with what never happened. Keys of accounts with pending events stay.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from margin.observability import logger

if TYPE_CHECKING:
    from collections.abc import Sequence

    from margin.ports import AccountStore
    from margin.ports.history import History, RememberedKey

SUSPECTS_PER_PAGE = 1000


class KeySweepService:
    """Compares the idempotency keys in Redis with history.

    Parameters
    ----------
    accounts, history : AccountStore, History
        Where keys are remembered, and what is right.
    """

    def __init__(self, accounts: AccountStore, history: History) -> None:
        self._accounts = accounts
        self._history = history

    async def sweep_page(self, partition: int, cursor: str, guard: str) -> str | None:
        """Take away false keys of a partition that is closed, among some of all keys.

        Parameters
        ----------
        partition : int
            Where to look.
        cursor : str
            From where on; "0" to begin.
        guard : str
            The opening of the partition, under which nobody commits.

        Returns
        -------
        str or None
            From where on to look next, "0" when all was looked at; None where the guard is not in force.

        Raises
        ------
        UnavailableError
        """
        next_cursor, remembered = await self._accounts.remembered_keys(partition, cursor)
        return next_cursor if await self.forget_false(partition, remembered, guard) else None

    async def suspects(self, account_id: int) -> list[RememberedKey]:
        """Search for keys of an account that history does not know at this moment; some may wait to be stored.

        It goes through all keys of the server, so nothing is held up for it; `forget_false` looks again.

        Raises
        ------
        UnavailableError
        """
        suspects: list[RememberedKey] = []
        partition, cursor = account_id % self._accounts.partitions, "0"
        while True:
            cursor, remembered = await self._accounts.remembered_keys(partition, cursor, account_id=account_id)
            known = await self._history.known_keys(remembered)
            suspects += [key for key in remembered if key not in known]
            if cursor == "0":
                return suspects

    async def forget_false(self, partition: int, suspects: Sequence[RememberedKey], guard: str) -> bool:
        """Take away those that stand for no event in history; False where the guard is not in force.

        Raises
        ------
        UnavailableError
        """
        taken = 0
        for start in range(0, len(suspects), SUSPECTS_PER_PAGE):
            page = suspects[start : start + SUSPECTS_PER_PAGE]
            known = await self._history.known_keys(page)
            forgotten = await self._accounts.forget_keys(partition, [key for key in page if key not in known], guard)
            if forgotten is None:
                return False
            taken += forgotten
        if taken:
            logger.warning("keys_swept", partition=partition, keys=taken)
        return True
