"""What services ask of the stores, and the values that cross that line.

Clients implement these protocols against Redis and PostgreSQL; tests implement them in memory. Nothing here does I/O.
"""

from __future__ import annotations

import dataclasses
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractAsyncContextManager
    from decimal import Decimal

    from margin.domain.account import Account
    from margin.domain.event import Event, StoredEvent
    from margin.domain.ledger import LedgerAccount
    from margin.domain.market import Market
    from margin.domain.safe_zone import Trigger

ENGINE_CONTROL = "engine"


def account_control(account_id: int) -> str:
    """Name of an account's pause switch in ``controls``."""
    return f"account:{account_id}"


def symbol_control(symbol: str) -> str:
    """Name of a symbol's pause switch in ``controls``."""
    return f"symbol:{symbol}"


@dataclasses.dataclass(frozen=True, slots=True)
class StoredResult:
    """The outcome that an idempotency key stands for, with the account's events that history may not have yet."""

    event_id: int
    request_hash: str
    result: str
    pending: tuple[StoredEvent, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class AccountView:
    """One account as Redis holds it at one moment, with all that a decision about it needs.

    ``version`` is "n:event_id" ("" for an account that was never opened), ``chain_hash`` the hash of its last event,
    ``controls`` the pause switches that concern it by name.
    """

    epoch: int
    account: Account | None
    version: str
    chain_hash: str
    market: Market
    controls: Mapping[str, str]
    replay: StoredResult | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """One event of one account, and everything that must still be as it was when the event was decided."""

    event: Event
    body: str
    event_hash: str
    epoch: int
    expected_version: str
    account: Account
    triggers: Mapping[str, Trigger]
    instrument_versions: Mapping[str, int]
    controls: Mapping[str, str]
    marks: Mapping[str, Decimal]
    result: str
    key_ttl_s: int


@dataclasses.dataclass(frozen=True, slots=True)
class Committed:
    """The event happened. ``pending`` are the account's events that history may not have, oldest first."""

    event_id: int
    crossed: bool
    pending: tuple[StoredEvent, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Conflict:
    """Nothing happened: ``changed`` names what was no longer as it was."""

    changed: str


CommitReply = Committed | StoredResult | Conflict


@dataclasses.dataclass(frozen=True, slots=True)
class AccountRow:
    """One account in a bulk read: its version and its state."""

    version: str
    account: Account


@dataclasses.dataclass(frozen=True, slots=True)
class AccountPage:
    """Some accounts of one partition; ``cursor`` is "0" when there are no more."""

    cursor: str
    rows: tuple[AccountRow, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class MarkUpdate:
    """What a mark price did in one partition or, summed up, in all: who is at risk, and the first of them."""

    symbol: str
    stamp_us: int
    crossed_count: int
    crossed: tuple[int, ...]


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
class Appended:
    """How history took the events of one account.

    ``stored`` are safe. ``forked``: another event stands in the place of the next one, or its key is another's
    (``key_used_by`` is its id then), so it can never be stored. ``gap``: events before the next one are missing.
    ``rejected``: the next one cannot be stored as it is, whoever tries; a defect of the engine.
    """

    stored: tuple[int, ...]
    forked: bool = False
    key_used_by: int | None = None
    gap: bool = False
    rejected: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class PartitionState:
    """What Redis says of one partition: the marker's fields as text ("" when absent) and the server that answers."""

    epoch: str
    partitions: str
    run_id: str
    server_run_id: str

    def whole(self, partitions: int) -> bool:
        """Whether the marker vouches for this server and this number of partitions."""
        return self.epoch != "" and self.partitions == str(partitions) and self.run_id == self.server_run_id


class Loaded(StrEnum):
    """What came of replacing an account by what history holds."""

    DONE = "done"
    CHANGED = "changed"
    HEALED_BEFORE = "healed before"


class AccountStore(Protocol):
    """Accounts in Redis."""

    @property
    def partitions(self) -> int:
        """Number of partitions."""

    async def read(self, account_id: int, *, symbol: str = "", key: str = "") -> AccountView:
        """Read one account and what concerns it, in one round trip."""

    async def commit(self, commit: Commit) -> CommitReply:
        """Write one event, all or nothing, in one round trip."""

    async def anchor(self, account_id: int, version: str, triggers: Mapping[str, Trigger]) -> bool | None:
        """Replace an account's triggers; True when one is crossed already, None when the account has changed."""

    async def pending(self, account_id: int) -> tuple[StoredEvent, ...]:
        """Events of the account that history may not have yet, oldest first."""

    async def pending_accounts(self, partition: int, limit: int) -> tuple[int, ...]:
        """Accounts with such events, longest waiting first."""

    async def pending_stats(self) -> tuple[int, float]:
        """How many accounts wait for history, and for how many seconds the longest."""

    async def forget_pending(self, account_id: int, event_ids: Sequence[int]) -> None:
        """Take events that are in history off the pending list."""

    async def page(self, partition: int, cursor: str) -> AccountPage:
        """Read some accounts of a partition, in no particular order; every account is seen once at least."""

    async def versions(self, account_ids: Sequence[int]) -> dict[int, str]:
        """Versions of accounts of one partition ("" for those that Redis does not have)."""

    async def size(self, partition: int) -> int:
        """Count the accounts of a partition."""

    async def load(
        self,
        row: HistoryAccount,
        keys: Sequence[HistoryKey],
        triggers: Mapping[str, Trigger],
        *,
        expected_version: str,
        forked_event_id: int | None = None,
    ) -> Loaded:
        """Replace an account by what history holds, if it is as expected and the forked event still waits."""

    async def save_report(self, snapshot_id: str, chunks: Mapping[str, str], ttl_s: int) -> None:
        """Keep a report for some minutes."""

    async def report_chunk(self, snapshot_id: str, chunk: str) -> str | None:
        """One part of a kept report, None when it is gone."""


class MarketStore(Protocol):
    """Mark prices and instruments in Redis."""

    async def market(self) -> Market:
        """All marks and instruments, as partition 0 holds them."""

    async def set_marks(self, prices: Mapping[str, Decimal], *, crossed_max: int) -> list[MarkUpdate]:
        """Store mark prices in every partition and answer whom they bring to evaluation."""

    async def align_marks(self) -> int:
        """Bring partitions that lag behind partition 0 up to its marks; how many marks that took."""


class LiquidationQueue(Protocol):
    """Accounts to be evaluated elsewhere."""

    async def send(self, account_ids: Sequence[int]) -> None:
        """Queue accounts; raises when not all of them could be."""


class PartitionStore(Protocol):
    """Markers: whether a partition's state is whole."""

    async def state(self, partition: int) -> PartitionState:
        """Read the marker and the server's run_id."""

    async def close(self, partition: int) -> None:
        """Take the marker away: no read or commit passes until it is opened."""

    async def open(self, partition: int, epoch: int, run_id: str) -> None:
        """Set the marker for a new epoch on this very server."""

    async def check(self) -> None:
        """Raise when Redis cannot be used: down, frozen, not loaded, or allowed to evict."""


class HistoryWriter(Protocol):
    """One reserved connection to history."""

    async def append(self, events: Sequence[StoredEvent]) -> dict[int, Appended]:
        """Store events, by account in order, in one round trip; the outcome of each account by its id."""

    async def account(self, account_id: int) -> HistoryAccount | None:
        """One account's last state; None when history does not know it."""

    async def live_keys(self, account_id: int) -> list[HistoryKey]:
        """Idempotency keys of an account that Redis should still know."""

    async def result(self, account_id: int, key: str) -> StoredResult | None:
        """Recall what an idempotency key did, however long ago."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TradeQuery:
    """Which trades, newest first; ``before_id`` continues a page."""

    account_id: int
    symbol: str | None = None
    since_us: int | None = None
    until_us: int | None = None
    before_id: int | None = None
    limit: int = 100


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LiquidationQuery:
    """Which liquidations, newest first; ``before`` (timestamp in us, id) continues a page."""

    account_id: int | None = None
    before: tuple[int, int] | None = None
    limit: int = 100


class History(Protocol):
    """Events, trades, liquidations and the ledger in PostgreSQL."""

    def reserve(self) -> AbstractAsyncContextManager[HistoryWriter]:
        """Take a connection; raises at once when there is none to be had."""

    async def account_exists(self, account_id: int) -> bool:
        """Whether history knows the account."""

    async def trades(self, query: TradeQuery) -> list[dict[str, Any]]:
        """Trades of an account."""

    async def liquidations(self, query: LiquidationQuery) -> list[dict[str, Any]]:
        """Liquidations of an account or of all."""

    async def accounts(self, after_account_id: int, limit: int) -> list[HistoryAccount]:
        """Accounts in order of their ids."""

    async def ledger_sums(self, ledger_accounts: Sequence[LedgerAccount]) -> dict[LedgerAccount, Decimal]:
        """Sum of each of some ledger accounts over all accounts; those without a line are left out."""

    async def next_epoch(self) -> int:
        """Take a new epoch."""

    def opening_lock(self) -> AbstractAsyncContextManager[bool]:
        """Be the only one that opens partitions; False when another is."""

    async def check(self) -> None:
        """Raise when PostgreSQL cannot be used."""
