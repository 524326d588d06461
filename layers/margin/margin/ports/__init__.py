"""What services ask of the stores, and the values that cross that line.

Clients implement these protocols against Redis and PostgreSQL; tests implement them in memory. Nothing here does I/O.
"""

from __future__ import annotations

import dataclasses
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from margin.caller import NOBODY

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from decimal import Decimal

    from margin.caller import Caller
    from margin.domain.account import Account
    from margin.domain.event import Event, StoredEvent
    from margin.domain.mark_jump import MarkCandidate
    from margin.domain.market import Mark, Market
    from margin.domain.safe_zone import Trigger, TriggerSide
    from margin.ports.history import HistoryAccount, HistoryKey, RememberedKey


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
    ``controls`` by name the pause switches of the engine, the account and every symbol that was read, ``hold`` the last
    hold on the account ("" for one that was never held), ``warned`` whether it has had its margin warning.
    """

    epoch: int
    account: Account | None
    version: str
    chain_hash: str
    market: Market
    controls: Mapping[str, str]
    hold: str = ""
    warned: bool = False
    replay: StoredResult | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class RateLimit:
    """At most ``burst`` requests at once under a name, and ``per_s`` a second on average."""

    name: str
    per_s: int
    burst: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """One event of one account, and everything that must still be as it was when the event was decided.

    ``instrument_versions`` are as `Market.instrument_version` names them, ``funding`` how many payments of each symbol
    were taken into account, ``waiting`` what waited to be confirmed beside ``marks``. ``wants_pending``: whether the
    reply is to bring the account's pending events; it does so anyhow while one of them waits that history has to
    acknowledge. ``keys_max``: how many keys of as long a life the account may have, this one included,
    unless it does not bind this one, which counts all the same; 0 for any number.
    """

    event: Event
    body: str
    event_hash: str
    epoch: int
    expected_version: str
    account: Account
    triggers: Mapping[str, Trigger]
    instrument_versions: Mapping[str, str]
    funding: Mapping[str, int]
    controls: Mapping[str, str]
    hold: str
    marks: Mapping[str, Decimal]
    waiting: Mapping[str, Decimal]
    result: str
    key_ttl_s: int
    warnings: Mapping[str, Trigger] = dataclasses.field(default_factory=dict)
    warned: bool = False
    wants_pending: bool = True
    keys_max: int = 0
    keys_max_binds: bool = True


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
class CrossedAccounts:
    """Accounts of one partition by the symbol whose mark crosses them, and the age of the oldest mark with triggers."""

    by_symbol: Mapping[str, tuple[int, ...]]
    oldest_mark_age_us: int


@dataclasses.dataclass(frozen=True, slots=True)
class IndexedAccount:
    """One account with the triggers that the indexes of liquidation and of warnings have of it, by symbol."""

    row: AccountRow
    triggers: Mapping[str, Trigger]
    warnings: Mapping[str, Trigger] = dataclasses.field(default_factory=dict)
    warned: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class SweepPage:
    """Some accounts of one partition and the market of the same moment; ``cursor`` is "0" when there are no more."""

    cursor: str
    accounts: tuple[IndexedAccount, ...]
    market: Market


@dataclasses.dataclass(frozen=True, slots=True)
class SweepProgress:
    """How far the sweep of a partition has got, and when; (``"0"``, 0) before the first."""

    cursor: str
    at_us: int


@dataclasses.dataclass(frozen=True, slots=True)
class SetAside:
    """Why a price is not the mark yet: the mark in force, and how far from it a price may be, as a share of it.

    ``moved_mark`` where the price was one more to say that the mark moved, so that the one that waited before is it.
    """

    mark_price: Decimal
    jump_max: Decimal
    moved_mark: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class MarkUpdate:
    """What a mark price did: how many are at risk, the first of them, and some of those who may have to be warned.

    One that was ``set_aside`` is not the mark; ``stamp_us`` is that of the mark in force, and whoever is crossed is
    crossed by that.
    """

    symbol: str
    stamp_us: int
    crossed_count: int
    crossed: tuple[int, ...]
    to_warn: tuple[int, ...] = ()
    set_aside: SetAside | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AccountLoad:
    """What is to replace an account in Redis: its state in history, its live keys, its triggers.

    Only if Redis still holds it at ``expected_version`` and, where one is named, the forked event still waits; and
    where there is a ``guard``, the token of an opening or a hold on the account, only while that is in force. Of
    ``swept_symbols`` the account has no triggers then but those named here. ``kept_keys`` were put back before and
    stay, though their events wait. ``instrument_versions`` are those that the triggers were made for.
    """

    row: HistoryAccount
    keys: Sequence[HistoryKey]
    triggers: Mapping[str, Trigger]
    expected_version: str
    forked_event_id: int | None = None
    warnings: Mapping[str, Trigger] = dataclasses.field(default_factory=dict)
    guard: str = ""
    swept_symbols: Sequence[str] = ()
    kept_keys: Sequence[str] = ()
    instrument_versions: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class Anchor:
    """Triggers of an account at one version, and the rules of its symbols that they were made for."""

    account_id: int
    version: str
    triggers: Mapping[str, Trigger]
    warnings: Mapping[str, Trigger] = dataclasses.field(default_factory=dict)
    warned: bool = False
    instrument_versions: Mapping[str, str] = dataclasses.field(default_factory=dict)


class Loaded(StrEnum):
    """What came of replacing an account by what history holds."""

    DONE = "done"
    CHANGED = "changed"
    HEALED_BEFORE = "healed before"
    TAKEN_OVER = "taken over"


class Dropped(StrEnum):
    """What came of removing an account."""

    DONE = "done"
    PENDING = "pending"
    TAKEN_OVER = "taken over"


class AccountStore(Protocol):
    """Accounts in Redis."""

    @property
    def partitions(self) -> int:
        """Number of partitions."""

    async def read(
        self, account_id: int, *, symbol: str = "", key: str = "", limits: Sequence[RateLimit] = ()
    ) -> AccountView:
        """Read one account and what concerns it, in one round trip, if no limit forbids the request."""

    async def commit(self, commit: Commit) -> CommitReply:
        """Write one event, all or nothing, in one round trip."""

    async def anchor(self, anchor: Anchor, *, epoch: int | None = None) -> bool | None:
        """Replace an account's triggers, those of warnings too; True when one of liquidation is crossed already.

        None when the account has changed, or the rules of a symbol that the triggers were made for.
        """

    async def anchor_all(self, partition: int, anchors: Sequence[Anchor], *, epoch: int) -> list[bool | None]:
        """Do that for accounts of one partition, each by itself."""

    async def scan_holders(self, partition: int, symbol: str, side: TriggerSide, cursor: str) -> SweepPage:
        """Read some accounts that hold a symbol on one side; everyone who keeps holding it is seen once at least."""

    async def cross(self, account_id: int, guard: str) -> bool:
        """Let every price cross an account's triggers, so that it is evaluated; False without the guard in force."""

    async def pending(self, account_ids: Sequence[int]) -> dict[int, tuple[StoredEvent, ...]]:
        """Events that history may not have yet of accounts of one partition, oldest first; only of those with some."""

    async def is_pending(self, account_id: int, event_id: int) -> bool:
        """Whether an event waits on the account's pending list, however long that is."""

    async def pending_accounts(self, partition: int, limit: int) -> tuple[int, ...]:
        """Accounts with such events, longest waiting first."""

    async def pending_stats(self) -> tuple[int, float]:
        """How many accounts wait for history, and for how many seconds the longest."""

    async def forget_pending(self, stored: Mapping[int, Sequence[StoredEvent]]) -> None:
        """Take events that are in history off the pending lists of accounts of one partition."""

    async def epoch(self, partition: int) -> int:
        """Epoch of a partition; 0 while it is closed."""

    async def blocked(self, partition: int) -> dict[int, int]:
        """How often in vain it was tried to store the next event, by account; only accounts where it was."""

    async def note_blocked(self, account_id: int) -> int:
        """Count one more try in vain; how many that makes."""

    async def hold(self, account_id: int, for_s: float) -> str:
        """Let nothing commit on an account for so long, by the clock of Redis; what names this hold."""

    async def release(self, account_id: int, hold: str) -> None:
        """End this hold, unless another has taken its place."""

    async def page(self, partition: int, cursor: str) -> AccountPage:
        """Read some accounts of a partition, in no particular order; every account is seen once at least."""

    async def sweep(self, partition: int, cursor: str) -> SweepPage:
        """Read some accounts of a partition with their triggers and the market; every account is seen once at least."""

    async def sweep_progress(self, partition: int) -> SweepProgress:
        """Read how far the sweep of a partition has got."""

    async def note_sweep(self, partition: int, progress: SweepProgress) -> None:
        """Note how far the sweep of a partition has got."""

    async def crossed(self, partition: int, limit: int, passed: int) -> CrossedAccounts:
        """Accounts of which a mark in force crosses a trigger, by symbol; some, after passing over others."""

    async def to_warn(self, partition: int, limit: int) -> tuple[int, ...]:
        """Accounts of which a mark in force crosses a trigger of the warning; of each symbol some."""

    async def versions(self, account_ids: Sequence[int]) -> dict[int, str]:
        """Versions of accounts of one partition ("" for those that Redis does not have)."""

    async def size(self, partition: int) -> int:
        """Count the accounts of a partition."""

    async def load(self, load: AccountLoad) -> Loaded:
        """Replace an account by what history holds, if it is as expected and the forked event still waits."""

    async def load_all(self, loads: Sequence[AccountLoad]) -> list[Loaded]:
        """Do that for accounts of one partition, each by itself."""

    async def restore_keys(self, load: AccountLoad, restored: Sequence[HistoryKey]) -> list[str] | None:
        """Put further keys back before an account is loaded; those whose events wait, None where all has changed."""

    async def drop(self, account_id: int, partition: int, guard: str) -> Dropped:
        """Remove an account from a partition while the guard is in force, but never one with pending events."""

    async def ids(self, partition: int, cursor: str) -> tuple[str, tuple[int, ...]]:
        """Ids of some accounts of a partition and the next cursor; "0" begins and ends."""

    async def remembered_keys(
        self, partition: int, cursor: str, *, account_id: int | None = None
    ) -> tuple[str, list[RememberedKey]]:
        """Page through the idempotency keys of a partition, or of one of its accounts; cursor "0" begins and ends."""

    async def forget_keys(self, partition: int, keys: Sequence[RememberedKey], guard: str) -> int | None:
        """Remove idempotency keys, but of no account with pending events; how many, None without the guard in force."""

    async def save_report(self, snapshot_id: str, chunks: Mapping[str, str], ttl_s: int) -> None:
        """Keep a report for some minutes."""

    async def report_chunk(self, snapshot_id: str, chunk: str) -> str | None:
        """One part of a kept report, None when it is gone."""


class MarketStore(Protocol):
    """Mark prices and instruments in Redis."""

    async def market(self, partition: int = 0) -> Market:
        """All marks, instruments and funding, as a partition holds them, open or not."""

    async def loaded_market(self) -> Market:
        """All marks, instruments and funding of partition 0, which is open at that moment."""

    async def market_and_candidates(self) -> tuple[Market, dict[str, MarkCandidate]]:
        """Read the same of partition 0, and the prices that wait to be confirmed, of one moment."""

    async def set_marks(
        self,
        prices: Mapping[str, Decimal],
        *,
        crossed_max: int,
        observed_us: Mapping[str, int] | None = None,
        sources: Mapping[str, str] | None = None,
        caller: Caller = NOBODY,
        limits: Sequence[RateLimit] = (),
    ) -> list[MarkUpdate]:
        """Store mark prices, but those that move too far, in every partition and answer whom they bring to evaluation.

        All or none where one is refused.
        """

    async def align_marks(self) -> int:
        """Bring partitions that lag behind partition 0 up to its marks; how many marks that took."""

    async def restore_marks(self, partition: int, marks: Mapping[str, Mark]) -> int:
        """Give a closed partition the marks that it lacks, or has only older than these, as stale; how many."""

    async def forget_marks(self, partition: int) -> None:
        """Drop the marks and the funding of a closed partition."""

    async def sweep_triggers(self, partition: int) -> int:
        """Take triggers away whose account does not hold their symbol; how many that were."""


class LiquidationQueue(Protocol):
    """Accounts to be evaluated elsewhere."""

    async def send(self, account_ids: Sequence[int]) -> None:
        """Queue accounts; raises when not all of them could be."""
