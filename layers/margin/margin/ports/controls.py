"""What the pause switches ask of the stores."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from margin.caller import Caller
    from margin.domain.controls import ControlState


@dataclasses.dataclass(frozen=True, slots=True)
class ControlChange:
    """One change of a pause switch; of several of one name that with the highest id is in force."""

    id: int
    name: str
    state: ControlState
    reason: str
    subject: str | None
    changed_at_us: int


@dataclasses.dataclass(frozen=True, slots=True)
class ControlsInForce:
    """What Redis has after changes were put in place.

    ``aligned_to``: up to which change of history it has them all, in the partition of these that lags most.
    ``stood``: the highest id of a newer change that stood in the way of one of them; 0 when none did.
    """

    aligned_to: int
    stood: int


class ControlStore(Protocol):
    """Pause switches in Redis. None of these looks at markers: a switch can be set while the state is rebuilt."""

    async def put(self, changes: Sequence[ControlChange], *, over: int = 0) -> ControlsInForce:
        """Put changes in place wherever they belong, where no newer one of their name is.

        Ids up to ``over`` give way to them: the caller knows that history does not have those for these names, and
        never will.
        """

    async def state(self, name: str) -> ControlState:
        """Read a switch as Redis has it, where it belongs."""

    async def aligned_to(self) -> tuple[int, int]:
        """Up to which changes Redis has them all, in the partition that lags most and the one that lags least."""

    async def align(self, changes: Sequence[ControlChange], *, after_id: int) -> ControlsInForce:
        """Put in place all changes of history from after one to the last given."""

    async def unalign(self) -> None:
        """Claim in no partition any more to have any changes."""

    def stopped(self) -> AsyncIterator[list[str]]:
        """Names of the switches that are not active in Redis, in pages."""


class ControlHistory(Protocol):
    """Pause switches in PostgreSQL."""

    async def record(self, name: str, state: ControlState, reason: str, caller: Caller) -> ControlChange:
        """Write a change down; ids rise in the order in which changes become visible."""

    async def changes(self, after_id: int, limit: int) -> list[ControlChange]:
        """Read the changes after one, by id, without those that a newer one of the same name has replaced."""

    async def in_force(self, after_name: str, limit: int) -> list[ControlChange]:
        """Read the switches that are not active, by name."""

    async def newest(self, name: str) -> ControlChange:
        """Read the newest change of a name that has one."""

    async def known(self, names: Sequence[str]) -> set[str]:
        """Tell which of some names were ever changed."""

    async def last_id(self, at_most: int) -> int:
        """Read the highest id of a change up to one; 0 when there is none."""

    async def skip_ids(self, up_to: int) -> None:
        """Give no change an id up to this one any more; those that have one are visible to whoever looks next."""
