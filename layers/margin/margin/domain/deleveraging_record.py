"""What is recorded of a deleveraging, so that anyone can recompute it: what a liquidation has, and what it was for."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from margin.domain.chain import Mismatch, shown
from margin.domain.decimals import exact, plain
from margin.domain.deleveraging import (
    AUTO_DELEVERAGING,
    BankruptPosition,
    Deleveraging,
    deleverage,
    most_to_deleverage,
)
from margin.domain.funding import settle_funding
from margin.domain.ledger import balanced, ledger_amounts
from margin.domain.market_record import mark_age_s, market_of, market_record
from margin.errors import NoMarkPriceError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from margin.domain.account import Account
    from margin.domain.market import Market
    from margin.domain.settlement import SettlementStep

__all__ = ["DELEVERAGING_RULES", "deleveraging_record", "verify_deleveraging"]

DELEVERAGING_RULES: Final = 2
"""Grows with every change of what a deleveraging comes to. 1: without funding, which is 2 where there was none."""

_RECOMPUTED: Final = frozenset({1, DELEVERAGING_RULES})

_UNREADABLE: Final = (NoMarkPriceError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


def deleveraging_record(
    step: SettlementStep, account: Account, market: Market, bankrupt: BankruptPosition, result: Deleveraging
) -> dict[str, object]:
    """Return a deleveraging as JSON values; decimals are strings, amounts in quote currency.

    Parameters
    ----------
    step : SettlementStep
        What it was planned as.
    account : Account
        Before it, its funding settled.
    market, bankrupt
        What it was decided on.
    result : Deleveraging
        What :func:`margin.domain.deleveraging.deleverage` answered.

    Returns
    -------
    dict
        The fields of a liquidation, where ``bankruptcy_price`` is that of the liquidated account, or beyond it where
        what was ``uncovered`` was shared anew among ``shared_notional``, which is None else; mark_price, the mark in
        force; liquidation_price, the mark that the liquidation closed at; received, what the fund got; which
        liquidation of whom, and the how manieth step for it; and the marks and instruments that it was decided on.
    """
    return {
        "rules": DELEVERAGING_RULES,
        **_computed(market, bankrupt, result),
        "liquidation_id": step.liquidation_id,
        "liquidated_account_id": step.account_id,
        "number": step.number,
        "uncovered": plain(step.uncovered),
        "shared_notional": None if step.shared_notional is None else plain(step.shared_notional),
        "market": market_record(market, account.positions),
    }


def verify_deleveraging(
    record: Mapping[str, Any], before: Account, after: Account, ledger: Sequence[tuple[str, Decimal]]
) -> list[Mismatch]:
    """Recompute a recorded deleveraging from the account before it, and say what differs.

    Parameters
    ----------
    record : mapping
        As :func:`deleveraging_record` wrote it, read back from JSON.
    before, after : Account
        The account as the events until then, and this one, left it.
    ledger : sequence of (str, Decimal)
        Ledger lines of the event.

    Returns
    -------
    list of Mismatch
        Nothing where the account could be deleveraged by that much, and every figure comes out the same, or where it
        was by rules that this version does not know.
    """
    if record.get("rules") not in _RECOMPUTED:
        return []
    try:
        market = market_of(record["market"])
        (closed,) = record["positions"]
        quantity = Decimal(closed["quantity"])
        bankrupt = BankruptPosition(
            closed["symbol"], -quantity, Decimal(record["liquidation_price"]), Decimal(closed["bankruptcy_price"])
        )
        settlement = settle_funding(before, market)
        before = settlement.account
        mismatch = _wrongly_shared(record, bankrupt)
        if mismatch is None and most_to_deleverage(before, market, bankrupt, abs(quantity)) != abs(quantity):
            what = "the account was not to be deleveraged by that much"
            mismatch = Mismatch(what, "a profit and margin", shown(closed))
        if mismatch is not None:
            return [mismatch]
        result = deleverage(before, market, bankrupt, abs(quantity))
        expected = _computed(market, bankrupt, result)
    except _UNREADABLE as error:
        return [Mismatch("what the deleveraging was decided on cannot be read", "a record of the engine", shown(error))]
    if result.account != after:
        return [Mismatch("the deleveraging comes to another account", shown(result.account), shown(after))]
    if (lines := ledger_amounts(balanced((*settlement.ledger_lines, *result.ledger_lines)))) != list(ledger):
        return [Mismatch("the ledger of the deleveraging is not what it comes to", shown(lines), shown(ledger))]
    return [
        Mismatch(f"the {name} of the deleveraging is not what it comes to", shown(value), shown(record.get(name)))
        for name, value in expected.items()
        if record.get(name) != value
    ]


@exact
def _wrongly_shared(record: Mapping[str, Any], bankrupt: BankruptPosition) -> Mismatch | None:
    """Recompute a price at which the debt was shared anew."""
    if record["shared_notional"] is None:
        return None
    notional = Decimal(record["shared_notional"])
    sharing = bankrupt.sharing(Decimal(record["uncovered"]), notional)
    if sharing == bankrupt and abs(bankrupt.quantity) * bankrupt.price <= notional:
        return None
    what = "the price of the deleveraging is not its share of what was uncovered"
    return Mismatch(what, shown(sharing.bankruptcy_price), shown(bankrupt.bankruptcy_price))


def _computed(market: Market, bankrupt: BankruptPosition, result: Deleveraging) -> dict[str, object]:
    return {
        "equity": plain(result.before.equity),
        "maintenance_margin": plain(result.before.maintenance_margin),
        "equity_after": plain(result.after.equity),
        "maintenance_margin_after": plain(result.after.maintenance_margin),
        "reason": AUTO_DELEVERAGING,
        "fee": "0",
        "shortfall": "0",
        "positions": [
            {
                "symbol": result.symbol,
                "quantity": plain(result.quantity),
                "remaining": plain(result.remaining),
                "entry_price": plain(result.entry_price),
                "price": plain(result.price),
                "mark_age_s": mark_age_s(market, result.symbol),
                "bankruptcy_price": None if bankrupt.bankruptcy_price is None else plain(bankrupt.bankruptcy_price),
                "realised_pnl": plain(result.realised_pnl),
                "fee": "0",
            }
        ],
        "mark_price": plain(result.mark_price),
        "liquidation_price": plain(bankrupt.price),
        "received": plain(result.received),
    }
