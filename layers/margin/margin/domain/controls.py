"""Pause switches: what may happen while the engine, a symbol or an account is not active.

A switch that was never set is active. Names are ``engine``, ``symbol:BTC-PERP`` and ``account:1``. What each state
means, and why, is in ``infra/decisions/0006-pause-switches.md``; in short:

============================== ========================= ==================
of                             paused stops              reduce-only stops
============================== ========================= ==================
the engine                     trades, withdrawals,      trades that do not
                               liquidations              purely reduce
a symbol                       its trades; withdrawals   its trades that do
                               and liquidations of those not purely reduce
                               who hold it
an account                     its trades and            its trades that do
                               withdrawals               not purely reduce
============================== ========================= ==================

Deposits are stopped by nothing.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from margin.domain.order import Order, purely_reduces
from margin.errors import NotActiveError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from margin.domain.account import Account

ENGINE_CONTROL = "engine"
_ACCOUNT = "account:"
_SYMBOL = "symbol:"


class ControlState(StrEnum):
    """State of one pause switch."""

    ACTIVE = "active"
    REDUCE_ONLY = "reduce-only"
    PAUSED = "paused"


def account_control(account_id: int) -> str:
    """Name of an account's pause switch."""
    return f"{_ACCOUNT}{account_id}"


def symbol_control(symbol: str) -> str:
    """Name of a symbol's pause switch."""
    return f"{_SYMBOL}{symbol}"


def controlled_account(name: str) -> int | None:
    """Account that a switch is about; None for one of the engine or of a symbol."""
    return int(name.removeprefix(_ACCOUNT)) if name.startswith(_ACCOUNT) else None


def allow_trade(controls: Mapping[str, str], account: Account, order: Order) -> None:
    """Refuse a trade that a switch of the engine, the account or the order's symbol forbids.

    Reduce-only lets through what purely reduces a position.

    Raises
    ------
    NotActiveError
    """
    names = (ENGINE_CONTROL, account_control(order.account_id), symbol_control(order.symbol))
    paused = _first(ControlState.PAUSED, controls, names)
    if paused is not None:
        raise NotActiveError(f"Trading is paused ({paused}).")
    reduce_only = _first(ControlState.REDUCE_ONLY, controls, names)
    if reduce_only is not None and not purely_reduces(account.positions.get(order.symbol), order):
        raise NotActiveError(f"Only trades that reduce a position are accepted now ({reduce_only} is reduce-only).")


def allow_withdrawal(controls: Mapping[str, str], account: Account) -> None:
    """Refuse a withdrawal while the engine, the account or a symbol that it holds is paused.

    What may be withdrawn is reckoned with the prices of all symbols held, and those of a paused one may be wrong.

    Raises
    ------
    NotActiveError
    """
    names = (ENGINE_CONTROL, account_control(account.account_id), *_held(account))
    paused = _first(ControlState.PAUSED, controls, names)
    if paused is not None:
        raise NotActiveError(f"Withdrawals are paused ({paused}).")


def liquidation_put_off_by(controls: Mapping[str, str], account: Account) -> str | None:
    """Name the switch that forbids to liquidate an account now, or None.

    That of the account itself never does: pausing an account stops its owner, not the engine.
    """
    return _first(ControlState.PAUSED, controls, (ENGINE_CONTROL, *_held(account)))


def _held(account: Account) -> list[str]:
    return [symbol_control(symbol) for symbol in sorted(account.positions)]


def _first(wanted: ControlState, controls: Mapping[str, str], names: Iterable[str]) -> str | None:
    return next((name for name in names if state_of(controls.get(name, "")) is wanted), None)


def state_of(text: str) -> ControlState:
    """Read a state; a text that is none, set past the engine, was hardly meant to let anything through."""
    if text == "":
        return ControlState.ACTIVE
    try:
        return ControlState(text)
    except ValueError:
        return ControlState.PAUSED
