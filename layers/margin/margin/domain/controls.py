"""Pause switches: what may happen while the engine, a symbol or an account is not active.

A switch that was never set is active. Names are ``engine``, ``symbol:BTC-PERP`` and ``account:1``.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from margin.domain.order import Order, purely_reduces
from margin.errors import NotActiveError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from margin.domain.account import Account


class ControlState(StrEnum):
    """State of one pause switch."""

    ACTIVE = "active"
    REDUCE_ONLY = "reduce-only"
    PAUSED = "paused"


def allow_trade(controls: Mapping[str, str], account: Account, order: Order) -> None:
    """Refuse a trade that a switch forbids; reduce-only lets through what purely reduces a position.

    Raises
    ------
    NotActiveError
    """
    reduces = purely_reduces(account.positions.get(order.symbol), order)
    for name, state in controls.items():
        if state == ControlState.PAUSED:
            message = f"Trading is paused ({name})."
            raise NotActiveError(message)
        if state == ControlState.REDUCE_ONLY and not reduces:
            message = f"Only trades that reduce a position are accepted now ({name} is reduce-only)."
            raise NotActiveError(message)


def allow_withdrawal(controls: Mapping[str, str]) -> None:
    """Refuse a withdrawal while a switch is paused.

    Raises
    ------
    NotActiveError
    """
    for name, state in controls.items():
        if state == ControlState.PAUSED:
            message = f"Withdrawals are paused ({name})."
            raise NotActiveError(message)
