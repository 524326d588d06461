"""Looking at many accounts, some at a time, where one that fails must not keep the others from being looked at."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING

from margin.errors import MarginError, UnavailableError
from margin.observability import logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

_AT_ONCE = 8


@dataclasses.dataclass(frozen=True, slots=True)
class Unfinished:
    """Accounts whose turn ended in an error, and those whose turn did not come."""

    failed: list[int]
    left: list[int]


async def each_quietly(
    account_ids: Iterable[int], work: Callable[[int], Awaitable[None]], *, budget_s: float, failure: str
) -> Unfinished:
    """Do something about accounts, each once; log what fails instead of raising it.

    Parameters
    ----------
    account_ids : iterable of int
        The most urgent first.
    work : callable
        What to do about one.
    budget_s : float
        After this many seconds, or when a store is down, nothing more is begun.
    failure : str
        What a failure is called in the log.
    """
    limit = asyncio.Semaphore(_AT_ONCE)
    until_s = asyncio.get_running_loop().time() + budget_s
    down = asyncio.Event()
    unfinished = Unfinished([], [])

    async def one(account_id: int) -> None:
        async with limit:
            if down.is_set() or asyncio.get_running_loop().time() >= until_s:
                unfinished.left.append(account_id)
                return
            try:
                await work(account_id)
            except MarginError as error:
                if isinstance(error, UnavailableError):
                    down.set()
                unfinished.failed.append(account_id)
                logger.warning(failure, account_id=account_id, code=error.code)

    await asyncio.gather(*(one(account_id) for account_id in dict.fromkeys(account_ids)))
    return unfinished
