"""Paying what liquidated accounts could not: from the insurance fund, into which deleveraging brings what it lacks.

It is done in steps. A step is planned first: which event, on which account right after which of its versions, of what
amount. Then it happens exactly there, or never: an account that has gone on with another event has gone past it.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

from margin.domain.decimals import exact, plain, round_down
from margin.domain.event import EventType, version_of
from margin.domain.ledger import LedgerAccount, LedgerLine, balanced

if TYPE_CHECKING:
    from collections.abc import Mapping

    from margin.domain.deleveraging import BankruptPosition

__all__ = [
    "Fence",
    "MoneyRaised",
    "Place",
    "SettlementStep",
    "Shortfall",
    "Standing",
    "settlement_amount",
    "settlement_lines",
    "settlement_record",
]

INSURANCE_FUND = "INSURANCE_FUND"


@dataclass(frozen=True, slots=True)
class MoneyRaised:
    """What one deleveraging brought into the fund: its number among the steps of the liquidation, and its event."""

    number: int
    account_id: int
    event_id: int
    amount: Decimal


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """A place in the order in which shortfalls are settled; events of several partitions are not ordered by id."""

    at_us: int = 0
    liquidation_id: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortfall:
    """What a liquidation left unpaid, and what became of it.

    Parameters
    ----------
    account_id, liquidation_id : int
    shortfall, settled : Decimal
        What was unpaid, and what the fund has paid of it, in quote currency.
    positions : tuple of BankruptPosition
        What was closed.
    deleveraged : mapping of str to Decimal
        Units of others that were closed for it, by symbol.
    raised : Decimal
        What that brought into the fund.
    last_number : int
        Of the last step that was planned for it; 0 when there was none.
    unsettled : MoneyRaised or None
        What was raised last and not yet paid out.
    is_open : bool
        Whether it is not known yet what became of the last step.
    at_us : int
        When the account was liquidated, in microseconds since 1970; shortfalls are settled in this order.
    """

    account_id: int
    liquidation_id: int
    shortfall: Decimal
    settled: Decimal
    positions: tuple[BankruptPosition, ...] = ()
    deleveraged: Mapping[str, Decimal]
    raised: Decimal
    last_number: int
    unsettled: MoneyRaised | None = None
    is_open: bool = False
    at_us: int = 0

    @property
    def place(self) -> Place:
        """Its place in the order of settling."""
        return Place(self.at_us, self.liquidation_id)

    @property
    @exact
    def uncovered(self) -> Decimal:
        """What is still unpaid."""
        return self.shortfall - self.settled


@dataclass(frozen=True, slots=True)
class Standing:
    """A shortfall and the fund at one moment.

    Parameters
    ----------
    shortfall : Shortfall
    available : Decimal
        What the fund can pay of it: its balance, less what steps under way are going to pay, less what was raised for
        other shortfalls.
    last_step_id : int
        Of the last step that was planned at all; a step that is planned on this standing is the one after it.
    """

    shortfall: Shortfall
    available: Decimal
    last_step_id: int


@dataclass(frozen=True, slots=True)
class Fence:
    """Where a step happens: on which account, after which event of its chain, and as what Redis held it then.

    An event of the chain is at one place only, so an account that has another event there never gets this one. Epoch
    and hold are there to give a step up while the account stands still: they change for ever, and then no commit that
    was decided before can still arrive.
    """

    account_id: int
    n: int
    event_id: int
    epoch: int
    hold: str

    @property
    def version(self) -> str:
        """Version of the account that the step follows."""
        return version_of(self.n, self.event_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class SettlementStep:
    """One planned step.

    Parameters
    ----------
    id : int
        Steps are numbered one on from each other, so that of two that were planned on one standing only one is.
    account_id, liquidation_id, number : int
        For which shortfall, and its how manieth step it is.
    type : EventType
        SETTLEMENT or DELEVERAGING.
    fence : Fence
    amount : Decimal
        What the fund pays, or receives, in 8 decimals.
    uncovered : Decimal
        What is unpaid when it has happened.
    bankrupt, quantity
        Of a deleveraging: the position that it is closed against, and how many units.
    shared_notional : Decimal or None
        Of a deleveraging beyond the recorded bankruptcy price: the notional among which what is unpaid is shared.
    source : MoneyRaised or None
        Of a settlement: where the fund's money came from; None for what it had anyhow.
    """

    id: int
    account_id: int
    liquidation_id: int
    number: int
    type: EventType
    fence: Fence
    amount: Decimal
    uncovered: Decimal
    bankrupt: BankruptPosition | None = None
    quantity: Decimal = Decimal(0)
    shared_notional: Decimal | None = None
    source: MoneyRaised | None = None

    @property
    def key(self) -> str:
        """Idempotency key of its event."""
        return f"~{self.type.lower()}:{self.liquidation_id}:{self.number}"


@exact
def settlement_amount(shortfall: Shortfall, available: Decimal) -> Decimal:
    """Compute what the fund pays now: all that is unpaid, or what it has in whole units of the 8th decimal; 0 for none.

    Parameters
    ----------
    shortfall : Shortfall
    available : Decimal
        What the fund can pay, in quote currency; it never gives more than that.
    """
    return max(Decimal(0), min(shortfall.uncovered, round_down(available)))


@exact
def settlement_lines(amount: Decimal) -> tuple[LedgerLine, ...]:
    """Lines of a settlement, of an amount above 0."""
    return balanced((LedgerLine(LedgerAccount.INSURANCE, -amount), LedgerLine(LedgerAccount.UNCOVERED, amount)))


def settlement_record(step: SettlementStep) -> dict[str, object]:
    """Return a settlement as JSON values: what it paid of which liquidation, with whose money, and what is left."""
    source = step.source
    return {
        "liquidation_id": step.liquidation_id,
        "number": step.number,
        "amount": plain(step.amount),
        "source": INSURANCE_FUND if source is None else {"account_id": source.account_id, "event_id": source.event_id},
        "uncovered": plain(step.uncovered),
    }
