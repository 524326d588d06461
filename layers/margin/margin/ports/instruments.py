"""What instruments ask of the stores, and the values that cross that line."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Protocol

from margin.domain.instrument import default_instrument
from margin.domain.safe_zone import TriggerSide

if TYPE_CHECKING:
    from collections.abc import Mapping

    from margin.caller import Caller
    from margin.domain.instrument import Instrument
    from margin.ports.opening import Opening

SYMBOLS_MAX = 1000


@dataclasses.dataclass(frozen=True, slots=True)
class InstrumentChange:
    """One version of the rules of a symbol: who made it and when, and since when it is in force everywhere."""

    instrument: Instrument
    subject: str | None
    changed_at_us: int
    effective_at_us: int | None


@dataclasses.dataclass(frozen=True, slots=True)
class ConfiguredInstrument:
    """The rules of a symbol as history has them: the version in force, and the one that is under way, if any."""

    symbol: str
    in_force: InstrumentChange | None = None
    under_way: InstrumentChange | None = None

    @property
    def instrument(self) -> Instrument:
        """Return the rules in force, the default ones where the symbol has none of its own."""
        return default_instrument(self.symbol) if self.in_force is None else self.in_force.instrument

    @property
    def last_version(self) -> int:
        """Return the highest version that there is, 0 before the first."""
        changes = (self.in_force, self.under_way)
        return max((change.instrument.version for change in changes if change is not None), default=0)


@dataclasses.dataclass(frozen=True, slots=True)
class AnchoringProgress:
    """How far the holders of a symbol in one partition are anchored: on which side, from which cursor on.

    ``side`` is None when all of them are.
    """

    side: TriggerSide | None = TriggerSide.FLOOR
    cursor: str = "0"

    @property
    def is_done(self) -> bool:
        """Whether all holders are anchored."""
        return self.side is None

    def after(self, cursor: str) -> AnchoringProgress:
        """Return the progress after a page that answered this cursor, "0" on the last of its side."""
        if cursor != "0":
            return AnchoringProgress(self.side, cursor)
        return AnchoringProgress(TriggerSide.CEILING if self.side is TriggerSide.FLOOR else None)


ALL_ANCHORED = AnchoringProgress(None)


@dataclasses.dataclass(frozen=True, slots=True)
class InstrumentState:
    """The rules of a symbol in one partition of Redis, at one moment of one epoch; ``written`` is the store's own form.

    ``progress`` is that of anchoring the ``holders`` to the staged rules. ``dropped`` is the highest version that was
    staged and taken away again, as long as no later one has come.
    """

    partition: int
    epoch: int
    in_force: Instrument
    staged: Instrument | None
    progress: AnchoringProgress
    holders: int
    dropped: int = 0
    written: str = ""

    @property
    def last_version(self) -> int:
        """Return the highest version that the partition has, or has had and dropped."""
        return max(self.dropped, (self.staged or self.in_force).version)


class InstrumentHistory(Protocol):
    """Instruments in PostgreSQL: every version that there ever was."""

    async def configured(self, symbol: str) -> ConfiguredInstrument:
        """Read the rules of one symbol, configured or not."""

    async def page(self, after_symbol: str, limit: int) -> list[ConfiguredInstrument]:
        """Read the rules of configured symbols, by symbol."""

    async def record(self, instrument: Instrument, after_version: int, caller: Caller) -> InstrumentChange | None:
        """Write a version down; None, and nothing written, unless the symbol's last one is so and none is under way."""

    async def set_effective(self, symbol: str, version: int) -> None:
        """Note that a version is in force everywhere; it stays so."""


class InstrumentStore(Protocol):
    """Instruments in Redis, where every decision reads them."""

    @property
    def partitions(self) -> int:
        """Number of partitions."""

    async def read(self, partition: int, symbol: str) -> InstrumentState:
        """Read the rules of a symbol in one partition."""

    async def all(self, partition: int) -> dict[str, tuple[Instrument, Instrument | None]]:
        """Read all rules of a partition, those in force and those staged, by symbol."""

    async def stage(self, state: InstrumentState, following: Instrument) -> bool:
        """Stage rules beside those in force; False, and nothing written, when the partition has others than were read.

        From then on nothing is decided or anchored that was read before.
        """

    async def drop_staged(self, state: InstrumentState) -> bool:
        """Take staged rules away; False, and nothing written, when the partition has others than were read.

        Whoever is anchored to the stricter of both is guarded by those in force all the same.
        """

    async def note(self, state: InstrumentState, progress: AnchoringProgress) -> bool:
        """Note how far holders are anchored; False when the partition has other rules than were read."""

    async def activate(self, state: InstrumentState) -> bool:
        """Put the staged rules in force; False, and nothing written, unless all holders are known to be anchored."""


class InstrumentRestore(Protocol):
    """Instruments in a partition of Redis that is being opened, whatever its marker says."""

    async def all(self, partition: int) -> dict[str, tuple[Instrument, Instrument | None]]:
        """Read all rules, those in force and those staged, by symbol."""

    async def restore(self, opening: Opening, instruments: Mapping[str, Instrument], *, reload: bool) -> bool:
        """Put rules in force, or default ones, in an opening's partition; False when another has taken it over.

        With ``reload`` the opening begins anew and has to load every account, also when it is broken off.
        """
