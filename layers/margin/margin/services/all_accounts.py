"""Reading every account once, for what is said of all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from margin.errors import LimitExceededError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from margin.domain.account import Account
    from margin.ports import AccountStore


async def all_accounts(store: AccountStore, *, accounts_max: int) -> AsyncIterator[list[Account]]:
    """Yield all accounts in pages, in no particular order, each account once.

    Each page is of one moment, and the pages of one moment after another.

    Parameters
    ----------
    store : AccountStore
        Hot state.
    accounts_max : int
        The most accounts that there may be.

    Raises
    ------
    LimitExceededError
        There are more; none of those beyond was yielded.
    UnavailableError
    """
    seen: set[int] = set()
    for partition in range(store.partitions):
        cursor = "0"
        while True:
            page = await store.page(partition, cursor)
            # A page can name an account again, one page or many later.
            new = {row.account.account_id: row.account for row in page.rows if row.account.account_id not in seen}
            seen.update(new)
            if len(seen) > accounts_max:
                message = f"There are more than {accounts_max} accounts, the most that a report covers."
                raise LimitExceededError(message)
            yield list(new.values())
            cursor = page.cursor
            if cursor == "0":
                break
