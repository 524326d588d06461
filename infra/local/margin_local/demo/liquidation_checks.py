"""Whether a recorded liquidation was due, went far enough, and no further: by its record, and independently of it."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from margin.domain.decimals import exact, multiple_up, plain
from margin.domain.liquidation_record import verify_liquidation
from margin.domain.risk import assess

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from margin.domain.account import Account
    from margin.domain.liquidation import LiquidationPolicy
    from margin.domain.market import Market
    from margin.domain.risk import AccountRisk
    from margin_local.demo.evidence import Step
    from margin_local.demo.mark_path import MarkPath

__all__ = ["JudgedLiquidation", "judge_liquidation"]


@dataclass(frozen=True, slots=True)
class JudgedLiquidation:
    """What is wrong with a liquidation, "" for nothing, and the account's margin before it, recomputed.

    ``before`` is None where the record does not go with the marks that were posted.
    """

    problem: str
    before: AccountRisk | None = None


def judge_liquidation(step: Step, path: MarkPath, policy: LiquidationPolicy) -> JudgedLiquidation:
    """Judge one liquidation between the states before and after it.

    Parameters
    ----------
    step : Step
    path : MarkPath
        The marks that were posted; none of them was stale.
    policy : LiquidationPolicy
        How far the engine was told to go.
    """
    detail, number = step.event.body["detail"], path.number_at(step.event.body["at_us"])
    problem = _wrong_inputs(detail, step.before, path, number, policy)
    if problem:
        return JudgedLiquidation(problem)
    market = path.market(number)
    before = assess(step.before, market)
    problem = (
        _not_due(before)
        or _wrong_state(detail["positions"], step)
        or _wrong_order(detail["positions"], step.before, market)
        or _too_little(step.after, market, policy)
        or _too_much(detail, step.after, market, policy)
        or _wrong_record(detail, step)
    )
    return JudgedLiquidation(problem, before)


def _wrong_inputs(
    detail: Mapping[str, Any], before: Account, path: MarkPath, number: int, policy: LiquidationPolicy
) -> str:
    """Compare what the record says it was decided on with the marks in force and the policy."""
    inputs = detail.get("inputs")
    if inputs is None:
        return "its record does not say what it was decided on"
    if inputs["marks"].keys() != before.positions.keys():
        return f"it was decided on marks of {sorted(inputs['marks'])}, held were {sorted(before.positions)}"
    for symbol, recorded in inputs["marks"].items():
        mark = path.mark(symbol, number)
        if mark is None or (Decimal(recorded["price"]), recorded["stamp_us"]) != (mark.price, mark.stamp_us):
            shown = "none" if mark is None else f"{plain(mark.price)} of {mark.stamp_us}"
            return f"it was decided at {symbol} {recorded['price']} of {recorded['stamp_us']}, in force was {shown}"
    told = (Decimal(inputs["buffer"]), Decimal(inputs["remaining_notional_min"]))
    if told != (policy.buffer, policy.remaining_notional_min):
        return f"it was decided by buffer {told[0]} and least notional {told[1]}, which are not the engine's"
    return ""


def _not_due(before: AccountRisk) -> str:
    if before.equity < before.maintenance_margin:
        return ""
    return f"equity {plain(before.equity)} was not below {plain(before.maintenance_margin)}"


@exact
def _wrong_state(closed: Sequence[Mapping[str, Any]], step: Step) -> str:
    """Compare what was closed with the positions before and after."""
    if not closed:
        return "it closed nothing"
    quantities = {one["symbol"]: Decimal(one["quantity"]) for one in closed}
    for symbol, position in step.before.positions.items():
        held = step.after.positions.get(symbol)
        left = Decimal(0) if held is None else held.quantity
        if left != position.quantity - quantities.pop(symbol, Decimal(0)):
            return f"it left {plain(left)} {symbol}, which is not what was held less what was closed"
    return f"it closed {sorted(quantities)}, which were not held" if quantities else ""


@exact
def _wrong_order(closed: Sequence[Mapping[str, Any]], before: Account, market: Market) -> str:
    """Those with the largest maintenance margin come first, and none is begun before the one before it is closed."""
    margins = {
        symbol: market.instrument(symbol).maintenance_margin(position.notional(market.mark_price(symbol)))
        for symbol, position in before.positions.items()
    }
    order = sorted(margins, key=lambda symbol: (-margins[symbol], symbol))
    named = [one["symbol"] for one in closed]
    if named != order[: len(named)]:
        return f"it closed {', '.join(named)}; by their maintenance margin {', '.join(order)} is the order"
    if any(Decimal(one["remaining"]) != 0 for one in closed[:-1]):
        return "it began a position before the one before it was closed"
    return ""


@exact
def _too_little(after: Account, market: Market, policy: LiquidationPolicy) -> str:
    if not after.positions:
        return ""
    left = assess(after, market)
    target = (1 + policy.buffer) * left.maintenance_margin
    if left.equity >= target:
        return ""
    return f"it left equity {plain(left.equity)} with positions open, below the target {plain(target)}"


@exact
def _too_much(detail: Mapping[str, Any], after: Account, market: Market, policy: LiquidationPolicy) -> str:
    """One lot less of the last position, or the least that may be left of it, would not have been enough.

    What closes less costs no more, so equity would have been at least what it is now without what was forgiven.
    """
    last = detail["positions"][-1]
    symbol = last["symbol"]
    price, instrument = market.mark_price(symbol), market.instrument(symbol)
    remaining = abs(Decimal(last["remaining"]))
    least = instrument.lot_size
    if remaining == 0:
        notional_min = multiple_up(policy.remaining_notional_min, price, instrument.lot_size)
        least = max(least, instrument.min_quantity, notional_min)
    more = min(remaining + least, remaining + abs(Decimal(last["quantity"])))
    risk = assess(after, market)
    margin = (
        risk.maintenance_margin
        - instrument.maintenance_margin(remaining * price)
        + instrument.maintenance_margin(more * price)
    )
    if risk.equity - Decimal(detail["shortfall"]) < (1 + policy.buffer) * margin:
        return ""
    return f"it left {plain(remaining)} {symbol}, and could have left {plain(more)}"


def _wrong_record(detail: Mapping[str, Any], step: Step) -> str:
    for mismatch in verify_liquidation(detail, step.before, step.after):
        return f"{mismatch.what}: {mismatch.found} is recorded, by the rules it is {mismatch.expected}"
    return ""
