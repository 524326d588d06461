"""Settlers on real stores that die at a chosen call, or that settle without the lock."""

from __future__ import annotations

import contextlib
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from margin.clients.postgres import PostgresClient
from margin.clients.settlement_postgres import SettlementPostgresClient, SettlementPostgresSession
from margin.runtime import Engine
from tests.integration.stores.dying import FunctionDiedError
from tests.integration.stores.interrupted import InterruptedAccounts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from margin.clients.account_redis import AccountRedisClient

_ACCOUNTS = frozenset({"commit", "forget_pending", "hold", "release"})
_SESSION = frozenset({"plan", "outcome", "give_up"})


class Death:
    """Comes at the n-th place before or after a call that writes; 0: never."""

    def __init__(self) -> None:
        self.at = 0
        self.passed = 0

    def pass_by(self) -> None:
        self.passed += 1
        if self.passed == self.at:
            raise FunctionDiedError


class _Mortal:
    """Somebody some of whose calls death stands before and behind."""

    def __init__(self, one: Any, death: Death, calls: frozenset[str]) -> None:
        self._one = one
        self._death = death
        self._calls = calls

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._one, name)
        if name not in self._calls:
            return method

        async def call(*args: Any, **kwargs: Any) -> Any:
            self._death.pass_by()
            result = await method(*args, **kwargs)
            self._death.pass_by()
            return result

        return call


class _MortalHistory(PostgresClient):
    death: Death

    @contextlib.asynccontextmanager
    async def reserve(self) -> AsyncIterator[Any]:
        async with super().reserve() as writer:
            yield _Mortal(writer, self.death, frozenset({"append"}))


class _MortalSettlement(SettlementPostgresClient):
    death: Death

    @contextlib.asynccontextmanager
    async def session(self) -> AsyncIterator[Any]:
        async with super().session() as session:
            yield session and _Mortal(session, self.death, _SESSION)


class DyingSettler(Engine):
    """An engine that dies before or after a commit, an append, or a change of what is planned."""

    @cached_property
    def death(self) -> Death:
        return Death()

    @cached_property
    def accounts(self) -> AccountRedisClient:
        return cast("AccountRedisClient", _Mortal(self.interrupted, self.death, _ACCOUNTS))

    @cached_property
    def interrupted(self) -> InterruptedAccounts:
        return InterruptedAccounts(self._redis, self.settings.partitions)

    @cached_property
    def history_store(self) -> PostgresClient:
        store = _MortalHistory(self.settings)
        store.death = self.death
        return store

    @cached_property
    def _settlement_history(self) -> SettlementPostgresClient:
        history = _MortalSettlement(self.settings)
        history.death = self.death
        return history


class _Lockless(SettlementPostgresClient):
    @contextlib.asynccontextmanager
    async def session(self) -> AsyncIterator[SettlementPostgresSession]:
        async with self._pool.lease() as lease:
            yield SettlementPostgresSession(lease)


class LocklessSettler(Engine):
    """An engine that settles whoever else does."""

    @cached_property
    def _settlement_history(self) -> SettlementPostgresClient:
        return _Lockless(self.settings)
