"""A function that dies between the commit and the append."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from margin.services.journal import Journal
from margin.services.trading import TradingService

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from margin.domain.event import StoredEvent
    from margin.ports.history import Appended, History, HistoryWriter, ReadAt
    from margin.runtime import Engine


class FunctionDiedError(BaseException):
    """The process is gone: nothing catches this."""


class DyingFunction:
    """Trades like an engine, and dies after each commit."""

    def __init__(self, engine: Engine) -> None:
        history = _DyingHistory(engine.history_store)
        journal = Journal(engine.accounts, history, engine._healing, idempotency_ttl_s=3600)
        self.trading = TradingService(journal, engine.liquidations)
        self.funds, self.marks, self.controls = engine.funds, engine.marks, engine.controls


class _DyingHistory:
    def __init__(self, history: History) -> None:
        self._history = history

    def __getattr__(self, name: str) -> Any:
        return getattr(self._history, name)

    @contextlib.asynccontextmanager
    async def reserve(self) -> AsyncIterator[HistoryWriter]:
        async with self._history.reserve():
            yield _DyingWriter()


class _DyingWriter:
    async def append(self, events: Sequence[StoredEvent], read_at: ReadAt) -> dict[int, Appended]:
        raise FunctionDiedError
