"""What services ask of history, and the values that cross that line."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractAsyncContextManager
    from decimal import Decimal

    from margin.caller import Caller
    from margin.domain.account import Account
    from margin.domain.event import StoredEvent
    from margin.domain.ledger import LedgerAccount
    from margin.domain.market import Mark
    from margin.ports import StoredResult
    from margin.ports.opening import OpeningRecord
    from margin.ports.queries import LiquidationPage, LiquidationQuery, MarkSampleQuery, TradeQuery


@dataclasses.dataclass(frozen=True, slots=True)
class HistoryAccount:
    """One account as history holds it: the state after its last event."""

    version: str
    chain_hash: str
    account: Account


@dataclasses.dataclass(frozen=True, slots=True)
class HistoryKey:
    """An idempotency key that history remembers, to be put back into Redis."""

    key: str
    event_id: int
    request_hash: str
    result: str
    ttl_s: float


@dataclasses.dataclass(frozen=True, slots=True)
class ReadAt:
    """Where events were read from Redis: from which partition of how many, and under which epoch of its marker."""

    partition: int
    partitions: int
    epoch: int


@dataclasses.dataclass(frozen=True, slots=True)
class Appended:
    """How history took the events of one account.

    ``stored`` are safe. ``forked``: another event stands in the place of the next one, or its key is another's
    (``key_used_by`` is its id then), so it can never be stored. ``gap``: events before the next one are missing.
    ``rejected``: the next one cannot be stored as it is, whoever tries; a defect of the engine. ``fenced``: the
    partition was opened anew since the next one was read, and what Redis holds now decides about it.
    """

    stored: tuple[int, ...]
    forked: bool = False
    key_used_by: int | None = None
    gap: bool = False
    rejected: bool = False
    fenced: bool = False

    @property
    def blocked(self) -> bool:
        """Whether the next event waits for somebody to put history right."""
        return self.gap or self.rejected

    def taken_of(self, events: Sequence[StoredEvent]) -> list[StoredEvent]:
        """Return those of the account's events that are in history."""
        return [event for event in events if event.event_id in self.stored]

    def first_left(self, events: Sequence[StoredEvent]) -> int:
        """Id of the first of the account's events that history did not take."""
        return next(event.event_id for event in events if event.event_id not in self.stored)


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class RememberedKey:
    """An idempotency key as Redis remembers it, and the event that it says it executed."""

    account_id: int
    key: str
    event_id: int


class HistoryWriter(Protocol):
    """One reserved connection to history."""

    async def append(self, events: Sequence[StoredEvent], read_at: ReadAt) -> dict[int, Appended]:
        """Store events, by account in order, in one round trip; the outcome of each account by its id."""

    async def account(self, account_id: int) -> HistoryAccount | None:
        """One account's last state; None when history does not know it."""

    async def live_keys(self, account_ids: Sequence[int]) -> dict[int, list[HistoryKey]]:
        """Idempotency keys that Redis should still know, by account, oldest first; of very many the newest."""

    @property
    def live_keys_max(self) -> int:
        """Return how many of one account these are at most."""

    async def older_keys(self, account_id: int, before_event_id: int) -> list[HistoryKey]:
        """Read more of an account, newest first: of those before this event, ones that nobody would recall."""

    async def has_event(self, account_id: int, event_id: int, event_hash: str) -> bool:
        """Whether history has this very event of an account."""

    async def result(self, account_id: int, key: str) -> StoredResult | None:
        """Recall what an idempotency key did, however long ago."""


class History(Protocol):
    """Events, trades, liquidations and the ledger in PostgreSQL."""

    def reserve(self) -> AbstractAsyncContextManager[HistoryWriter]:
        """Take a connection; raises at once when there is none to be had."""

    async def account_exists(self, account_id: int) -> bool:
        """Whether history knows the account."""

    async def trades(self, query: TradeQuery) -> list[dict[str, Any]]:
        """Trades of an account."""

    async def liquidations(self, query: LiquidationQuery) -> LiquidationPage:
        """Liquidations of an account or of all."""

    async def accounts(
        self, after_account_id: int, limit: int, *, partition: int = 0, partitions: int = 1
    ) -> list[HistoryAccount]:
        """Accounts of one partition in order of their ids."""

    async def known_accounts(self, account_ids: Sequence[int]) -> set[int]:
        """Which of some accounts history knows."""

    async def known_keys(self, keys: Sequence[RememberedKey]) -> set[RememberedKey]:
        """Which of some idempotency keys stand for the very event in history that Redis says."""

    async def recent_accounts(self, since_s: float, limit: int) -> list[HistoryAccount]:
        """Accounts that changed in the last seconds, the latest first."""

    async def save_marks(self, marks: Mapping[str, Mark]) -> None:
        """Keep the last mark prices, where older ones change nothing, and add all to their history, by their stamps."""

    async def marks(self) -> dict[str, Mark]:
        """Mark prices that were kept last."""

    async def forget_mark_samples(self, before_us: int, limit: int) -> int:
        """Take some of the mark prices that are from before a moment out of their history; how many."""

    async def mark_samples(self, query: MarkSampleQuery) -> list[dict[str, Any]]:
        """Mark prices that a symbol had."""

    async def ledger_sums(self, ledger_accounts: Sequence[LedgerAccount]) -> dict[LedgerAccount, Decimal]:
        """Sum of each of some ledger accounts over all accounts; those without a line are left out."""

    async def next_epoch(self) -> int:
        """Take a new epoch."""

    async def raise_fence(self, partition: int, partitions: int, epoch: int) -> int:
        """From now on take no event that was read from a partition under an earlier epoch; the epoch of the fence."""

    async def record_opening(self, record: OpeningRecord) -> None:
        """Remember that a partition was opened."""

    async def record_rebuild(self, account_id: int, dropped: str, restored: str, caller: Caller) -> None:
        """Remember that an account in Redis was made anew, which version replaced which, and for whom."""

    async def last_partitions(self) -> int | None:
        """Into how many partitions Redis was divided at the last opening; None before the first."""

    async def opening_basis(self, partition: int, partitions: int) -> int:
        """Epoch of the last opening of a partition, or of any in another number of partitions; 0 before the first."""

    def opening_lock(self) -> AbstractAsyncContextManager[bool]:
        """Be the only one that opens partitions; False when another is."""

    async def check(self) -> None:
        """Raise when PostgreSQL cannot be used."""
