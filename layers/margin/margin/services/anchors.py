"""Making the triggers of an account: those of liquidation, those of the warning, and the rules they are made for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from margin.domain.safe_zone import triggers
from margin.ports import Anchor

if TYPE_CHECKING:
    from margin.domain.account import Account
    from margin.domain.margin_warning import MarginWarnings
    from margin.domain.market import Market


def anchor_of(account: Account, version: str, market: Market, warnings: MarginWarnings, *, warned: bool) -> Anchor:
    """Anchor an account, as it was read at a version, to the marks that were read with it.

    Parameters
    ----------
    account, version, market
        Read at one moment.
    warnings : MarginWarnings
        From when on accounts are warned.
    warned : bool
        Whether it has had its warning.
    """
    to_warn, still_warned = warnings.triggers(account, market, warned=warned)
    versions = {symbol: market.instrument_version(symbol) for symbol in account.positions}
    return Anchor(account.account_id, version, triggers(account, market), to_warn, still_warned, versions)
