"""What came of a scenario: what callers were told, against what both stores hold."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from margin_local import demo_accounts
from margin_local.demo.checks import chains_are_unbroken, ledger_sums_to_zero, stores_agree
from margin_local.demo.evidence import collect
from tests.faults.ledger import Kind, Told
from tests.faults.load import SYMBOL

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from margin.config import Settings
    from margin.domain.account import Account
    from margin_local.demo.evidence import Evidence, RecordedEvent
    from tests.faults.ledger import CallersLedger, Operation

_TRADE = "TRADE"
_SIGNS = {Kind.DEPOSIT: 1, Kind.WITHDRAWAL: -1, Kind.BUY: 1, Kind.SELL: -1}


@dataclass(slots=True)
class Verdict:
    """Sentences about what should not be; all of them empty when all is well.

    ``lost``: answered with 200 and not in history. ``doubled``: happened more than once. ``wrong``: history or Redis
    contradicts an answer, the other, or itself.
    """

    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether nothing was found."""
        return not (self.lost or self.doubled or self.wrong)


async def judge(settings: Settings, ledger: CallersLedger) -> Verdict:
    """Read both stores as they are and compare.

    The engine's state has to be open, and nobody may be at work.
    """
    ours = {operation.account_id for operation in ledger.operations}
    evidence = await asyncio.to_thread(collect, settings, {*ours, *demo_accounts.DEPOSITS})
    verdict = Verdict(wrong=list(ledger.findings))
    for check in (ledger_sums_to_zero(evidence), stores_agree(evidence), chains_are_unbroken(evidence)):
        verdict.wrong += [f"{check.title}: {failure}" for failure in check.failures]
    _compare(evidence, ledger.operations, verdict)
    return verdict


def _compare(evidence: Evidence, operations: Sequence[Operation], verdict: Verdict) -> None:
    by_amount: dict[tuple[int, str, Decimal], list[RecordedEvent]] = defaultdict(list)
    by_key: dict[tuple[int, str], list[RecordedEvent]] = defaultdict(list)
    ours = {operation.account_id for operation in operations}
    explained = 0
    for account_id in ours:
        for event in evidence.chains.get(account_id, ()):
            by_amount[account_id, event.type, _amount(event)].append(event)
            by_key[account_id, event.body["key"]].append(event)
    happened: list[Operation] = []
    for operation in operations:
        found = by_amount[operation.account_id, _type(operation), operation.amount]
        explained += len(found)
        happened += [operation] * min(1, len(found))
        keyed = found if operation.key is None else by_key[operation.account_id, operation.key]
        _judge(operation, found, keyed, verdict)
    events = sum(len(evidence.chains.get(account_id, ())) for account_id in ours)
    if events != explained:
        verdict.wrong.append(f"history holds {events} events of these accounts, {explained} are somebody's operation")
    for account_id in ours:
        _compare_sums(evidence, account_id, [one for one in happened if one.account_id == account_id], verdict)


def _judge(
    operation: Operation, found: Sequence[RecordedEvent], keyed: Sequence[RecordedEvent], verdict: Verdict
) -> None:
    """Compare one operation with the events that have its amount, and those that have its key."""
    name = f"{operation.kind} {operation.number} of account {operation.account_id} ({operation.key or 'no key'})"
    ids = [event.event_id for event in found]
    if len(found) > 1 or len(keyed) > 1:
        verdict.doubled.append(f"{name} happened as {ids}, its key as {[event.event_id for event in keyed]}")
    elif [event.event_id for event in keyed] != ids:
        verdict.wrong.append(f"{name} happened as {ids}, its key as {[event.event_id for event in keyed]}")
    if operation.told is Told.DONE and operation.event_id not in ids:
        verdict.lost.append(f"{name} was answered with 200 as {operation.event_id}; history has {ids}")
    if operation.told is Told.REFUSED and ids:
        verdict.wrong.append(f"{name} was refused ({operation.last_answer}) and happened as {ids}")
    if operation.told is Told.NOTHING:
        verdict.wrong.append(f"{name} was never answered, last {operation.last_answer}; history has {ids}")


def _compare_sums(evidence: Evidence, account_id: int, happened: Iterable[Operation], verdict: Verdict) -> None:
    """Add up what happened, each operation once, past the engine: all trades are at the mark price and cost nothing."""
    balance = quantity = Decimal(0)
    for operation in happened:
        signed = _SIGNS.get(operation.kind, 1) * operation.amount
        if operation.symbol_side:
            quantity += signed
        else:
            balance += signed
    held: dict[str, Any] = {"Redis": evidence.redis.get(account_id), "PostgreSQL": evidence.history.get(account_id)}
    for store, row in held.items():
        there = (Decimal(0), Decimal(0)) if row is None else _sums(row.account)
        if there != (balance, quantity):
            verdict.wrong.append(
                f"account {account_id}: its operations come to {balance} and {quantity} {SYMBOL}; "
                f"{store} holds {there[0]} and {there[1]}"
            )


def _sums(account: Account) -> tuple[Decimal, Decimal]:
    position = account.positions.get(SYMBOL)
    return account.balance, Decimal(0) if position is None else position.quantity


def _amount(event: RecordedEvent) -> Decimal:
    detail = event.body["detail"]
    return Decimal(detail["quantity"] if event.type == _TRADE else detail["amount"])


def _type(operation: Operation) -> str:
    return _TRADE if operation.symbol_side else str(operation.kind)
