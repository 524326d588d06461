"""An engine in which something else happens, once, between a decision and its commit."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from margin.clients.account_redis import AccountRedisClient
from margin.runtime import Engine

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from margin.ports import Commit, CommitReply


class InterruptedAccounts(AccountRedisClient):
    """Accounts whose next commit waits for something else."""

    interruption: Callable[[], Awaitable[object]] | None = None

    async def commit(self, commit: Commit) -> CommitReply:
        interruption, self.interruption = self.interruption, None
        if interruption is not None:
            await interruption()
        return await super().commit(commit)


class InterruptedEngine(Engine):
    """An engine on the real stores."""

    @cached_property
    def accounts(self) -> InterruptedAccounts:
        return InterruptedAccounts(self._redis, self.settings.partitions)

    def before_commit(self, interruption: Callable[[], Awaitable[object]]) -> None:
        self.accounts.interruption = interruption
