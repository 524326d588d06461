"""What the opening of partitions asks of the stores."""

from __future__ import annotations

import dataclasses
from typing import Protocol


@dataclasses.dataclass(frozen=True, slots=True)
class PartitionState:
    """What Redis says of one partition: the marker's fields as text ("" when absent) and the server that answers.

    ``rebuild_epoch`` is that of a rebuild that was broken off, ``opening_epoch`` the one that an opening which was
    broken off on this very server, for the same number of partitions, took, and
    ``opening_basis`` what it began from; 0 when there is none. See `Opening`.
    """

    epoch: str
    partitions: str
    run_id: str
    server_run_id: str
    rebuild_epoch: int = 0
    opening_epoch: int = 0
    opening_basis: int = 0

    def whole(self, partitions: int) -> bool:
        """Whether the marker vouches for this server and this number of partitions."""
        return self.epoch != "" and self.partitions == str(partitions) and self.run_id == self.server_run_id


@dataclasses.dataclass(slots=True)
class Opening:
    """One opening of a partition under way: on which server, by whom (token), and how far it has got.

    ``rebuild_epoch``: above 0 it is a rebuild, which loads every account, whatever its version says, and took this
    epoch when it began: partitions with a later one are done. ``after`` is the last account that is done, ``accounts``
    and ``loaded`` count those that history has and those that were put back, so far. ``epoch`` is the one that begins
    with it, ``basis`` that of the last opening in history after which the partition can have changed. ``sweep_cursor``
    is from where on a rebuild still has to look for false keys. ``reload``: the partition was given rules of symbols
    that its triggers may not have been made by.
    """

    partition: int
    token: str
    run_id: str
    rebuild_epoch: int = 0
    epoch: int = 0
    basis: int = 0
    after: int = 0
    accounts: int = 0
    loaded: int = 0
    sweep_cursor: str = "0"
    reload: bool = False

    @property
    def rebuild(self) -> bool:
        """Whether it takes history for right whatever Redis says; every account is loaded then."""
        return self.rebuild_epoch > 0

    @property
    def loads_all(self) -> bool:
        """Whether every account is loaded, so that all triggers are made anew."""
        return self.rebuild or self.reload

    def begin_anew(self) -> None:
        """Load every account, from the first one on, as the store has noted already."""
        self.reload = True
        self.after = self.accounts = self.loaded = 0
        self.sweep_cursor = "0"


@dataclasses.dataclass(frozen=True, slots=True)
class OpeningRecord:
    """One opening of a partition, as history remembers it; ``subject`` and ``source_ip`` say who had it opened."""

    epoch: int
    partition: int
    partitions: int
    run_id: str
    accounts: int
    loaded: int
    subject: str | None = None
    source_ip: str | None = None


class PartitionStore(Protocol):
    """Markers: whether a partition's state is whole."""

    async def state(self, partition: int) -> PartitionState:
        """Read the marker and the server's run_id."""

    async def begin(
        self, partition: int, token: str, epoch: int, *, basis: int = 0, rebuild_epoch: int = 0
    ) -> Opening | None:
        """Take the marker away: no read or commit passes until it is set again. Takes over what another has begun.

        None, and nothing done, when another has begun or finished with a later epoch.
        """

    async def note(self, opening: Opening) -> bool:
        """Note how far an opening has got; False when another has taken it over."""

    async def finish(self, opening: Opening) -> bool:
        """Set the marker for its epoch on the server that it was begun on; False when another has taken over."""

    async def check(self) -> None:
        """Raise when Redis cannot be used: down, frozen, not loaded, or allowed to evict."""
