"""Anchoring all who hold a symbol to the rules that are staged for it, before those take effect.

Whoever commits or is anchored after rules were staged is anchored to them already, because scripts compare the versions
that were read. So it is enough to go once through those who held the symbol then: a scan of the index of triggers sees
everyone who stays in it, and who enters it meanwhile does so under the staged rules.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from margin.errors import ContentionError
from margin.ports.instruments import ALL_ANCHORED
from margin.services.anchors import anchor_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from margin.domain.margin_warning import MarginWarnings
    from margin.ports import AccountStore, Anchor
    from margin.ports.instruments import InstrumentState, InstrumentStore

_ATTEMPTS_MAX = 5


class AnchoringService:
    """Anchors holders.

    Parameters
    ----------
    accounts, instruments : AccountStore, InstrumentStore
        Hot state.
    warnings : MarginWarnings
        Who is to be warned.
    """

    def __init__(self, accounts: AccountStore, instruments: InstrumentStore, warnings: MarginWarnings) -> None:
        self._accounts = accounts
        self._instruments = instruments
        self._warnings = warnings

    async def anchor_holders(self, state: InstrumentState, keep_going: Callable[[], bool]) -> list[int] | None:
        """Anchor everyone in one partition who holds a symbol to its staged rules, from where that was broken off.

        Parameters
        ----------
        state : InstrumentState
            With staged rules; what it was read at decides whom they have to reach.
        keep_going : callable
            Asked before each page of accounts.

        Returns
        -------
        list of int or None
            Accounts that have to be evaluated; None when time was up.

        Raises
        ------
        ContentionError
            An account kept changing.
        UnavailableError
        """
        progress, crossed = state.progress, list[int]()
        if state.staged is None:
            return crossed
        if state.staged.maintenance_lines == state.in_force.maintenance_lines:
            # What triggers guard stays the same.
            progress = ALL_ANCHORED
            await self._instruments.note(state, progress)
        while progress.side is not None:
            if not keep_going():
                return None
            page = await self._accounts.scan_holders(
                state.partition, state.in_force.symbol, progress.side, progress.cursor
            )
            anchors = [
                anchor_of(one.row.account, one.row.version, page.market, self._warnings, warned=one.warned)
                for one in page.accounts
            ]
            outcomes = await self._accounts.anchor_all(state.partition, anchors, epoch=state.epoch)
            for anchor, outcome in zip(anchors, outcomes, strict=True):
                if outcome or (outcome is None and await self._anchor_anew(anchor, state.epoch)):
                    crossed.append(anchor.account_id)
            progress = progress.after(page.cursor)
            if not await self._instruments.note(state, progress):
                # Somebody else was through before, or staged other rules: who puts them in force finds out which.
                break
        return crossed

    async def _anchor_anew(self, before: Anchor, epoch: int) -> bool:
        """Anchor an account that was not as it was read; whether it has to be evaluated."""
        for _ in range(_ATTEMPTS_MAX):
            view = await self._accounts.read(before.account_id)
            # Whatever gave it another version did so under the staged rules.
            if view.account is None or view.version != before.version:
                return False
            anchor = anchor_of(view.account, view.version, view.market, self._warnings, warned=view.warned)
            outcome = await self._accounts.anchor(anchor, epoch=epoch)
            if outcome is not None:
                return outcome
        message = f"The rules of symbols that account {before.account_id} holds kept changing; try again."
        raise ContentionError(message)
