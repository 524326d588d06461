"""What is recorded of a liquidation: all that it was decided on and came to, so that anyone can recompute it."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from margin.domain.chain import Mismatch, UnreadableError, account_of, shown
from margin.domain.decimals import plain
from margin.domain.event import position_entry
from margin.domain.funding import settle_funding
from margin.domain.ledger import balanced, ledger_amounts
from margin.domain.liquidation import LiquidationPolicy, liquidate
from margin.domain.market_record import mark_age_s, market_of, market_record
from margin.errors import NoMarkPriceError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from margin.domain.account import Account
    from margin.domain.liquidation import ClosedPosition, LiquidationResult
    from margin.domain.market import Market

__all__ = ["LIQUIDATION_RULES", "liquidation_record", "verify_liquidation"]

LIQUIDATION_RULES: Final = 2
"""Grows with every change of what a liquidation comes to: by it a later version knows what it can recompute.

1: without funding; beside a stale position it could close more than was needed, where that bounded the fee.
"""


_INPUTS: Final = "inputs"
_UNREADABLE: Final = (
    UnreadableError,
    NoMarkPriceError,
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
)


def liquidation_record(
    account: Account, market: Market, policy: LiquidationPolicy, result: LiquidationResult
) -> dict[str, object]:
    """Return a liquidation as JSON values; decimals are strings, amounts in quote currency.

    Parameters
    ----------
    account : Account
        Before it, its funding settled.
    market, policy
        That it was decided on.
    result : LiquidationResult
        What :func:`margin.domain.liquidation.liquidate` answered.

    Returns
    -------
    dict
        rules, equity, maintenance_margin, equity_after, maintenance_margin_after, reason, fee (what the insurance fund
        received), shortfall, positions (what was closed, at which price of which age), and inputs: balance, positions,
        marks with their times, instruments and policy before it.
    """
    return {
        "rules": LIQUIDATION_RULES,
        "equity": plain(result.before.equity),
        "maintenance_margin": plain(result.before.maintenance_margin),
        "equity_after": plain(result.after.equity),
        "maintenance_margin_after": plain(result.after.maintenance_margin),
        "reason": result.reason,
        "fee": plain(result.fee),
        "shortfall": plain(result.shortfall),
        "positions": [_closed(one, market) for one in result.closed],
        _INPUTS: {
            "balance": plain(account.balance),
            "positions": {symbol: position_entry(position) for symbol, position in sorted(account.positions.items())},
            **market_record(market, account.positions),
            "buffer": plain(policy.buffer),
            "remaining_notional_min": plain(policy.remaining_notional_min),
        },
    }


def verify_liquidation(
    record: Mapping[str, Any],
    before: Account,
    after: Account | None = None,
    ledger: Sequence[tuple[str, Decimal]] | None = None,
) -> list[Mismatch]:
    """Recompute a recorded liquidation from its inputs, and say what differs.

    Parameters
    ----------
    record : mapping
        As :func:`liquidation_record` wrote it, read back from JSON.
    before : Account
        The account as the events before it left it.
    after : Account, optional
        The account as the liquidation's event says that it left it.
    ledger : sequence of (str, Decimal), optional
        Ledger lines of the event.

    Returns
    -------
    list of Mismatch
        Nothing where the account was as the record says, was liquidatable, and every figure comes out the same. Of a
        record by other rules than those of `LIQUIDATION_RULES` (the engine's first version named none) nothing is said.
    """
    if record.get("rules") != LIQUIDATION_RULES:
        return []
    try:
        inputs = record[_INPUTS]
        account = account_of(before.account_id, inputs["balance"], inputs["positions"])
        market = market_of(inputs)
        policy = LiquidationPolicy(Decimal(inputs["buffer"]), Decimal(inputs["remaining_notional_min"]))
        settlement = settle_funding(before, market)
        result = liquidate(account, market, policy)
    except _UNREADABLE as error:
        return [Mismatch("the inputs of the liquidation cannot be read", "a record of the engine", shown(error))]
    if account != settlement.account:
        found = shown(account)
        return [
            Mismatch("the liquidation was decided on another state of the account", shown(settlement.account), found)
        ]
    if result is None:
        return [Mismatch("the account was not to be liquidated", "equity below maintenance margin", "neither")]
    pairs: dict[str, tuple[object, object]] = {}
    if after is not None:
        pairs["account after"] = (result.account, after)
    if ledger is not None:
        lines = balanced((*settlement.ledger_lines, *result.ledger_lines))
        pairs["ledger"] = (ledger_amounts(lines), list(ledger))
    expected = liquidation_record(account, market, policy, result)
    # Everything was computed from the inputs; terms that later versions of the engine add to them are no difference.
    pairs |= {name: (value, record.get(name)) for name, value in expected.items() if name != _INPUTS}
    return [
        Mismatch(f"the {name} of the liquidation is not what it comes to", shown(due), shown(found))
        for name, (due, found) in pairs.items()
        if due != found
    ]


def _closed(one: ClosedPosition, market: Market) -> dict[str, object]:
    return {
        "symbol": one.symbol,
        "quantity": plain(one.quantity),
        "remaining": plain(one.remaining),
        "entry_price": plain(one.entry_price),
        "price": plain(one.price),
        "mark_age_s": mark_age_s(market, one.symbol),
        "bankruptcy_price": None if one.bankruptcy_price is None else plain(one.bankruptcy_price),
        "realised_pnl": plain(one.realised_pnl),
        "fee": plain(one.fee),
    }
