"""Whether what was planned to settle a shortfall, and what the chains say that happened, are the same."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

from margin.domain.chain import Mismatch, shown
from margin.domain.decimals import plain
from margin.domain.event import EventType
from margin.domain.settlement import INSURANCE_FUND

if TYPE_CHECKING:
    from collections.abc import Mapping

    from margin.ports.audit import AuditedSettlement, AuditedStep

_UNREADABLE = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


def unsound_settlement(settled: AuditedSettlement) -> tuple[Mismatch, ...]:
    """Say what is not as it must be with what became of a shortfall, or with a deleveraging.

    Parameters
    ----------
    settled : AuditedSettlement
        All of one moment.
    """
    found = []
    where = f"of liquidation {settled.liquidation_id}"
    if settled.settled > settled.shortfall:
        what = f"more was paid {where} than it left unpaid"
        found.append(Mismatch(what, plain(settled.shortfall), plain(settled.settled)))
    if settled.is_noted and settled.settled < settled.shortfall:
        what = f"liquidation {settled.liquidation_id} is noted as settled and is not paid"
        found.append(Mismatch(what, plain(settled.shortfall), plain(settled.settled)))
    if settled.unplanned:
        found.append(Mismatch(f"events {where} happened that no step planned", "0", str(settled.unplanned)))
    if settled.missing:
        found.append(Mismatch(f"steps {where} are noted as executed without their event", "0", str(settled.missing)))
    return tuple(found)


def unsound_step(step: AuditedStep) -> tuple[Mismatch, ...]:
    """Say what is not as it must be with a planned step: it is in no chain, but the event that it became is.

    Of a step that has not happened nothing can be said but whether there is something that it can be for.

    Parameters
    ----------
    step : AuditedStep
        All of one moment.
    """
    found = []
    if not step.has_shortfall:
        what = f"step {step.number} is planned of liquidation {step.liquidation_id}, which left nothing unpaid"
        found.append(Mismatch(what, "a shortfall", "none"))
    where = f"step {step.number} of liquidation {step.liquidation_id}"
    if step.is_spent and not step.was_paid_out:
        found.append(Mismatch(f"{where} is noted as spent and was not paid out", "a payment of it", "none"))
    if step.previous_event_id is None:
        return tuple(found)
    try:
        stated = _stated(step.body)
    except _UNREADABLE as error:
        what = f"the event of {where} cannot be read"
        return (*found, Mismatch(what, "a body of the engine", f"{type(error).__name__}"))
    stated["after_event_id"] = str(step.previous_event_id)
    planned = {**step.columns, "source": _source(step)}
    found += [
        Mismatch(f"the {name} of {where} is not what its event says", shown(stated[name]), shown(planned[name]))
        for name in stated
        if _read(stated[name]) != _read(planned[name])
    ]
    return tuple(found)


def _stated(body: Mapping[str, Any]) -> dict[str, Any]:
    """Read from an event what the step that it was planned as must be, by the step's columns."""
    detail = body["detail"]
    stated = {name: detail[name] for name in ("liquidation_id", "number", "uncovered")}
    if body["type"] == EventType.SETTLEMENT:
        raised = detail["source"]
        source = None if raised == INSURANCE_FUND else (raised["account_id"], raised["event_id"])
        nothing = dict.fromkeys(("symbol", "quantity", "liquidation_price", "bankruptcy_price", "shared_notional"))
        own = {"account_id": body["account_id"], "amount": detail["amount"], "source": source, **nothing}
    else:
        (closed,) = detail["positions"]
        own = {
            "account_id": detail["liquidated_account_id"],
            "amount": detail["received"],
            "source": None,
            "symbol": closed["symbol"],
            "quantity": abs(Decimal(closed["quantity"])),
            "bankruptcy_price": closed["bankruptcy_price"],
            **{name: detail[name] for name in ("liquidation_price", "shared_notional")},
        }
    return {"type": body["type"], **stated, **own}


def _source(step: AuditedStep) -> tuple[int, int] | str | None:
    """Say whose money a step was planned to pay: that of an event, or of a step that there is none of."""
    number = step.columns["source_number"]
    return step.source if step.source is not None or number is None else f"step {number}"


def _read(value: Any) -> Any:
    """Read whatever is a number as one, so that it equals the same number that is written otherwise."""
    try:
        return Decimal(str(value))
    except ArithmeticError:
        return value
