"""Whether chains of changes are sound: those that belong to no account, and the switches and rebuilds of each."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from margin.domain.chain import Mismatch
from margin.domain.change_chain import follow_change, unended
from margin.domain.controls import account_control
from margin.ports.audit import ChangeChain

if TYPE_CHECKING:
    from collections.abc import Callable

    from margin.domain.change_chain import Change, ChangeHead
    from margin.ports.audit import AuditedChange, HistoryAudit

LOST_CHAINS_MAX = 1000
"""How many chains of which nothing is left are named; when there are more, there are none too few to worry."""


@dataclasses.dataclass(frozen=True, slots=True)
class UnsoundChange:
    """What is not as it must be with a change, or with a chain of changes: then ``n`` is the last that is there."""

    chain: ChangeChain
    name: str
    n: int
    mismatch: Mismatch


@dataclasses.dataclass(slots=True)
class ChangesReport:
    """How many changes were looked at, what is wrong with them, and whether those were all of the chain."""

    changes: int = 0
    unsound: list[UnsoundChange] = dataclasses.field(default_factory=list)
    complete: bool = False


def chains_of_account(account_id: int) -> tuple[tuple[ChangeChain, str], ...]:
    """Name the chains of changes that are about one account."""
    return (ChangeChain.CONTROLS, account_control(account_id)), (ChangeChain.REBUILDS, str(account_id))


async def audit_changes(
    history: HistoryAudit,
    chain: ChangeChain,
    *,
    limit: int,
    name: str | None = None,
    keep_going: Callable[[], bool] = lambda: True,
) -> ChangesReport:
    """Follow the chains of one kind, or the one of a name, from their first changes to their heads.

    Parameters
    ----------
    history : HistoryAudit
        Where they are.
    limit : int
        How many changes are read at once, two at least.
    keep_going : callable
        Asked before each page; False breaks off.

    Raises
    ------
    UnavailableError
    """
    audit = _ChangeAudit(chain)
    place: tuple[str, int] | None = None
    while keep_going():
        page = await history.changes(chain, place, limit, name=name)
        for change in page:
            audit.take(change)
        if len(page) < limit:
            audit.end()
            for head in await history.lost_chains(chain, LOST_CHAINS_MAX, name=name):
                audit.lost(head)
            audit.report.complete = True
            break
        # From the last one on, which comes again: whether it is its chain's end is told by the next page alone.
        place = (page[-1].change.name, page[-1].change.n)
    return audit.report


class _ChangeAudit:
    """Follows changes in the order of their names and numbers."""

    def __init__(self, chain: ChangeChain) -> None:
        self.report = ChangesReport()
        self._chain = chain
        self._last: Change | None = None
        self._head: ChangeHead | None = None
        self._count = 0
        self._sound = True

    def take(self, audited: AuditedChange) -> None:
        change, last = audited.change, self._last
        if last is not None and (change.name, change.n) == (last.name, last.n):
            self._head = audited.head
            return
        if last is None or change.name != last.name:
            self.end()
            last, self._count, self._sound = None, 0, True
        mismatch = follow_change("" if last is None else last.hash, change)
        if mismatch is not None:
            self._found(change, mismatch)
        self._last, self._head = change, audited.head
        self._count += 1
        self.report.changes += 1

    def end(self) -> None:
        """Compare the end of the chain that was followed last with its head, if nothing was wrong before."""
        if self._last is not None and self._sound:
            mismatch = unended(self._last, self._count, self._head)
            if mismatch is not None:
                self._found(self._last, mismatch)

    def lost(self, head: ChangeHead) -> None:
        mismatch = Mismatch("nothing is left of this chain", f"{head.changes} changes up to {head.n}", "nothing")
        self.report.unsound.append(UnsoundChange(self._chain, head.name, head.n, mismatch))

    def _found(self, change: Change, mismatch: Mismatch) -> None:
        self._sound = False
        self.report.unsound.append(UnsoundChange(self._chain, change.name, change.n, mismatch))
