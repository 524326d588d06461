"""Whether what liquidated accounts left unpaid was paid by the rules: settlements and deleveragings, event by event."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

from margin.domain.chain import ledger_of
from margin.domain.decimals import exact, plain, quotient_up
from margin.domain.event import EventType
from margin.domain.ledger import LedgerAccount
from margin.domain.position import Side, apply_fill

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

    from margin_local.demo.evidence import Evidence, RecordedEvent, Step

__all__ = ["judge_deleveraging", "judge_settlement", "overpaid"]

_UNIT = Decimal("0.00000001")


@exact
def judge_settlement(step: Step) -> str:
    """Say what is wrong with a settlement, "" for nothing: it moves money of the fund and none of the account."""
    amount = Decimal(step.event.body["detail"]["amount"])
    if step.after != step.before:
        return "a settlement changed its account"
    expected = [(str(LedgerAccount.INSURANCE), -amount), (str(LedgerAccount.UNCOVERED), amount)]
    if amount <= 0 or sorted(ledger_of(step.event.body)) != expected:
        return f"a settlement of {plain(amount)} has other ledger lines"
    return ""


@exact
def judge_deleveraging(step: Step, liquidations: Mapping[int, RecordedEvent], accounts: Container[int]) -> str:
    """Say what is wrong with a deleveraging, "" for nothing: it reduces a position at another's bankruptcy price.

    Parameters
    ----------
    step : Step
    liquidations : mapping of int to RecordedEvent
        By event id.
    accounts : container of int
        Those whose liquidations these are; of others' nothing can be said.
    """
    detail = step.event.body["detail"]
    (closed,) = detail["positions"]
    symbol, price, quantity = closed["symbol"], Decimal(closed["price"]), Decimal(closed["quantity"])
    held = step.before.positions.get(symbol)
    if held is None or held.quantity * quantity <= 0 or abs(quantity) > abs(held.quantity):
        return f"it closed {plain(quantity)} {symbol}, which is no part of what was held"
    fill = apply_fill(
        held, symbol, Side.SELL if quantity > 0 else Side.BUY, abs(quantity), price, funding_index=Decimal(0)
    )
    expected = step.before.with_position(symbol, fill.position).with_balance_change(fill.realised_pnl)
    if step.after != expected:
        return f"it did not leave what closing {plain(quantity)} {symbol} at {plain(price)} leaves"
    if detail["liquidated_account_id"] not in accounts:
        return ""
    liquidation = liquidations.get(detail["liquidation_id"])
    if liquidation is None or liquidation.account_id != detail["liquidated_account_id"]:
        return f"there was no liquidation {detail['liquidation_id']} of {detail['liquidated_account_id']}"
    for one in liquidation.body["detail"]["positions"]:
        if one["symbol"] == symbol:
            return _against(one, quantity, price, step)
    return f"the liquidation that it was for closed no {symbol}"


def _against(bankrupt: Mapping[str, str], quantity: Decimal, price: Decimal, step: Step) -> str:
    """Compare it with the position of the liquidated account: the other side, its bankruptcy price or a worse mark.

    Where the debt was shared anew, the price at which it was takes the place of the bankruptcy price.
    """
    if Decimal(bankrupt["quantity"]) * quantity >= 0:
        return "it closed a position on the side of the liquidated one"
    detail = step.event.body["detail"]
    if detail.get("shared_notional") is not None:
        bankrupt_at = _sharing(bankrupt, Decimal(detail["uncovered"]), Decimal(detail["shared_notional"]))
    elif bankrupt["bankruptcy_price"] is None:
        return f"it closed at {plain(price)}, and there was no bankruptcy price"
    else:
        bankrupt_at = Decimal(bankrupt["bankruptcy_price"])
    mark_price = Decimal(detail["mark_price"])
    if price != (max if Decimal(bankrupt["quantity"]) > 0 else min)(bankrupt_at, mark_price):
        return f"it closed at {plain(price)}: bankruptcy price {plain(bankrupt_at)}, mark {plain(mark_price)}"
    gap = abs(bankrupt_at - Decimal(bankrupt["price"]))
    received = sum(
        (amount for name, amount in ledger_of(step.event.body) if name == LedgerAccount.INSURANCE), start=Decimal(0)
    )
    if not 0 <= received - abs(quantity) * gap < _UNIT:
        return f"the fund received {plain(received)} for {plain(quantity)} at a gap of {plain(gap)}"
    return ""


def _sharing(bankrupt: Mapping[str, str], uncovered: Decimal, notional: Decimal) -> Decimal:
    """Price at which a position brings its share, by notional, of what was uncovered, rounded so that it suffices."""
    price = Decimal(bankrupt["price"])
    gap = quotient_up(uncovered * price, notional)
    return price + (gap if Decimal(bankrupt["quantity"]) > 0 else -gap)


@exact
def overpaid(evidence: Evidence) -> list[str]:
    """Say of which liquidations more was paid than they left unpaid."""
    paid: dict[int, Decimal] = {}
    unpaid: dict[int, Decimal] = {}
    for event in (event for chain in evidence.chains.values() for event in chain):
        detail = event.body["detail"]
        if event.type == EventType.SETTLEMENT:
            paid[detail["liquidation_id"]] = paid.get(detail["liquidation_id"], Decimal(0)) + Decimal(detail["amount"])
        elif event.type == EventType.LIQUIDATION:
            unpaid[event.event_id] = Decimal(detail["shortfall"])
    return [
        f"{plain(amount)} were paid of liquidation {event_id}, more than it left unpaid"
        for event_id, amount in paid.items()
        if amount > unpaid.get(event_id, Decimal(0))
    ]
