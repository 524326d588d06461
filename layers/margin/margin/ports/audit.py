"""What the reconciliation asks of the stores."""

from __future__ import annotations

import dataclasses
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from decimal import Decimal

    from margin.domain.chain import Link
    from margin.domain.change_chain import Change, ChangeHead
    from margin.domain.event import StoredEvent
    from margin.domain.safe_zone import TriggerSide


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AuditedAccount:
    """An account's row in history as it is, and how many rows of each kind history had of it at that moment.

    ``positions`` are JSON values that nobody has looked at; None when they are not even that.
    """

    account_id: int
    n: int
    event_id: int
    chain_hash: str
    balance: Decimal
    positions: Any
    events: int
    ledger_lines: int
    trades: int
    liquidations: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AuditedEvent:
    """An event in history as it is, with what is derived from it.

    ``columns`` repeat fields of the body by the same names. ``lines`` are the numbers, ledger accounts and amounts of
    its ledger lines in order; ``trade`` and ``liquidation`` the rows of its id, amounts as text, None where there is
    none.
    """

    link: Link
    columns: Mapping[str, object]
    lines: tuple[tuple[int, str, str], ...]
    trade: Mapping[str, Any] | None
    liquidation: Mapping[str, Any] | None


@dataclasses.dataclass(frozen=True, slots=True)
class LedgerPage:
    """Sum of the ledger lines up to ``last`` (account id, event id, line), which is None when there are no more."""

    last: tuple[int, int, int] | None
    total: Decimal


@dataclasses.dataclass(frozen=True, slots=True)
class HotPosition:
    """A position in Redis as it is ("" for what is missing), and on which sides it has a trigger."""

    quantity: str
    entry_cost: str
    entry_funding: str
    sides: tuple[TriggerSide, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HotAccount:
    """An account in Redis as it is at one moment; "" stands for what is missing.

    ``pending`` are the first of its ``pending_count`` waiting events; ``waits`` says whether the account is among those
    that the drain looks at.
    """

    version: str
    chain_hash: str
    balance: str
    positions: Mapping[str, HotPosition]
    pending: tuple[StoredEvent, ...]
    pending_count: int
    waits: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AuditedSettlement:
    """What became of a liquidation's shortfall, or of the plan of a deleveraging, at one moment.

    ``settled`` is what SETTLEMENT events come to, ``is_noted`` whether the row says that this is all of the shortfall;
    ``unplanned`` counts events without their step, ``missing`` executed steps without their event.
    """

    account_id: int
    liquidation_id: int
    shortfall: Decimal
    settled: Decimal
    is_noted: bool
    unplanned: int
    missing: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AuditedStep:
    """A planned step of settling, with the event that it became, at one moment.

    ``columns`` repeat what that event says, amounts as text; ``source`` is the event that raised the money (account id,
    event id), None for none. ``body`` is the event's as JSON values that nobody has looked at, and
    ``previous_event_id`` its column; both None where the step's account has no event of its key at its place.
    ``has_shortfall`` says whether its liquidation left anything unpaid, ``is_spent`` what is noted, and
    ``was_paid_out`` whether a step that paid out what this one raised has happened, or this one cannot happen any more.
    """

    id: int
    account_id: int
    liquidation_id: int
    number: int
    columns: Mapping[str, str | None]
    source: tuple[int, int] | None
    previous_event_id: int | None
    body: Any
    has_shortfall: bool
    is_spent: bool
    was_paid_out: bool


TABLES_OF_ACCOUNTS = ("events", "trades", "liquidations", "ledger_lines")

BEFORE_ALL = -(2**63) - 1
"""Where to begin behind so that no row is left out, whatever its id: no account has one below 1, but a row may."""


class ChangeChain(StrEnum):
    """Kinds of changes that have chains of their own, by the tables that hold them."""

    CONTROLS = "control_changes"
    """One for each pause switch."""
    INSTRUMENTS = "instruments"
    """One for each symbol, as of funding."""
    FUNDING = "funding_rates"
    OPENINGS = "openings"
    """One for each partition."""
    REBUILDS = "account_rebuilds"
    """One for each account."""
    SCHEMA = "schema_changes"


@dataclasses.dataclass(frozen=True, slots=True)
class AuditedChange:
    """A change, and the head of its chain at that moment; None for none."""

    change: Change
    head: ChangeHead | None


class HistoryAudit(Protocol):
    """History, read as it is and never written."""

    async def check(self) -> None:
        """Raise when PostgreSQL cannot be used, or its schema is older than this release."""

    async def last_account(self) -> int:
        """Highest id of an account; 0 when there is none."""

    async def accounts(self, after_account_id: int, last_account_id: int, limit: int) -> dict[int, int]:
        """Numbers of the last events of some accounts, in order of the accounts' ids."""

    async def rows(self, account_ids: Sequence[int]) -> dict[int, AuditedAccount]:
        """Rows of accounts; those that history does not know are left out."""

    async def known(self, account_ids: Sequence[int]) -> set[int]:
        """Those of some accounts that history knows."""

    async def events(self, after: tuple[int, int], last_account_id: int, limit: int) -> list[AuditedEvent]:
        """Events behind a place (account id, n), up to an account's last, in order of account id and n."""

    async def settlements(self, after: tuple[int, int], limit: int) -> list[AuditedSettlement]:
        """Shortfalls and deleveragings behind a place (account id, liquidation id), in this order."""

    async def steps(self, after_id: int, limit: int) -> list[AuditedStep]:
        """Read the steps of settling behind an id, in order of their ids."""

    async def changes(
        self, chain: ChangeChain, start: tuple[str, int] | None, limit: int, *, name: str | None = None
    ) -> list[AuditedChange]:
        """Read changes from a place (name, n) on, this one included, in order; of one name where one is given."""

    async def lost_chains(self, chain: ChangeChain, limit: int, *, name: str | None = None) -> list[ChangeHead]:
        """Heads of chains of which no change is left."""

    async def strangers(self, table: str, after_account_id: int, limit: int) -> tuple[int | None, list[int]]:
        """Accounts with rows in one of `TABLES_OF_ACCOUNTS` that have none in accounts, of so many that have some.

        The next account to go on behind is None at the end.
        """

    async def ledger(self, after: tuple[int, int, int], total: Decimal, limit: int) -> LedgerPage:
        """Sum of ``total`` and the ledger lines behind a place (account id, event id, line)."""


class HotAudit(Protocol):
    """Redis, read as it is; the only key that is written is the one that says how far the reconciling has got."""

    @property
    def partitions(self) -> int:
        """Number of partitions."""

    async def accounts(self, account_ids: Sequence[int], pending_max: int) -> dict[int, HotAccount]:
        """Accounts, each at one moment; also of those that Redis does not have."""

    async def account_ids(self, partition: int, cursor: str) -> tuple[str, tuple[str, ...]]:
        """Ids of some accounts of a partition as they are, and the next cursor; "0" begins and ends."""

    async def symbols(self, partition: int) -> tuple[str, ...]:
        """Symbols with a mark price or an instrument."""

    async def stray_triggers(
        self, partition: int, symbol: str, side: TriggerSide, cursor: str
    ) -> tuple[str, list[str]]:
        """Accounts that have a trigger there and do not hold the symbol, and the next cursor."""

    async def progress(self) -> tuple[str, int]:
        """Return what was saved last ("" for nothing), and the time in microseconds."""

    async def save_progress(self, text: str) -> int:
        """Save how far the reconciling has got; the time in microseconds."""
