"""Instruments in Redis: the rules of each symbol that are in force, and those that are staged, in every partition."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from margin.clients import keys
from margin.clients.base_redis import BaseRedisClient, Script
from margin.clients.instrument_json import instrument_text, parse_dropped, parse_instrument
from margin.domain.instrument import default_instrument
from margin.domain.safe_zone import TriggerSide
from margin.ports.instruments import ALL_ANCHORED, AnchoringProgress, InstrumentState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from margin.domain.instrument import Instrument
    from margin.ports.opening import Opening

_READ = Script("read_instrument")
_SET = Script("set_instrument")
_NOTE = Script("note_anchoring")
_RESTORE = Script("restore_instruments")

_PER_CALL = 100


class InstrumentRedisClient(BaseRedisClient):
    """Reads, stages and activates instruments, and gives them back to a partition that is being opened."""

    async def read(self, partition: int, symbol: str) -> InstrumentState:
        """Read the rules of a symbol in one partition, in one round trip.

        Raises
        ------
        StateNotLoadedError, RedisUnavailableError
        """
        _, epoch, written, progress, holders = await self.ask(_READ, partition, self.partitions, symbol)
        in_force, staged = parse_instrument(written) if written else (default_instrument(symbol), None)
        state = InstrumentState(
            *(partition, int(epoch), in_force, staged, _progress_of(progress), int(holders)),
            dropped=parse_dropped(written) if written else 0,
            written=written,
        )
        if _progress_text(state, state.progress) == progress:
            return state
        return dataclasses.replace(state, progress=AnchoringProgress())

    async def stage(self, state: InstrumentState, following: Instrument) -> bool:
        """Stage rules beside those in force, in place of others that were staged.

        Raises
        ------
        StateNotLoadedError, RedisUnavailableError
        """
        return await self._set(state, state.in_force, following, progress="")

    async def drop_staged(self, state: InstrumentState) -> bool:
        """Take staged rules away; that their version was given out is kept.

        Raises
        ------
        StateNotLoadedError, RedisUnavailableError
        """
        return await self._set(state, state.in_force, None, progress="")

    async def note(self, state: InstrumentState, progress: AnchoringProgress) -> bool:
        """Note how far holders are anchored, unless all of them are known to be.

        Raises
        ------
        StateNotLoadedError, RedisUnavailableError
        """
        texts = (_progress_text(state, progress), _progress_text(state, ALL_ANCHORED))
        fields = (state.epoch, state.in_force.symbol, state.written, *texts)
        reply = await self.ask(_NOTE, state.partition, self.partitions, *fields)
        return bool(reply[0] == "OK")

    async def activate(self, state: InstrumentState) -> bool:
        """Put the staged rules in force, where all holders are known to be anchored.

        Raises
        ------
        StateNotLoadedError, RedisUnavailableError
        """
        if state.staged is None:
            return False
        return await self._set(state, state.staged, None, progress=_progress_text(state, ALL_ANCHORED))

    async def all(self, partition: int) -> dict[str, tuple[Instrument, Instrument | None]]:
        """Read all rules of a partition, whatever its marker says.

        Raises
        ------
        RedisUnavailableError
        """
        name = self.key(partition, "instruments")
        written = await self.twice(lambda redis: redis.hgetall(name))
        return {symbol: parse_instrument(text) for symbol, text in written.items()}

    async def restore(self, opening: Opening, instruments: Mapping[str, Instrument], *, reload: bool) -> bool:
        """Put rules in force in the partition of an opening; version 0 stands for the default ones.

        Raises
        ------
        RedisUnavailableError
        """
        marker = keys.marker(opening.partition, self.partitions)
        fields = [
            (symbol, instrument_text(instrument) if instrument.version else "")
            for symbol, instrument in instruments.items()
        ]
        for start in range(0, len(fields), _PER_CALL):
            some = [text for pair in fields[start : start + _PER_CALL] for text in pair]
            if not await self._restore(marker, opening.token, "1" if reload else "", some):
                return False
        return True

    async def _restore(self, marker: str, token: str, reload: str, fields: list[str]) -> bool:
        reply = await self.twice(lambda redis: _RESTORE.run(redis, marker, token, reload, *fields))
        return bool(reply[0] == "OK")

    async def _set(
        self, state: InstrumentState, in_force: Instrument, staged: Instrument | None, *, progress: str
    ) -> bool:
        """Replace the rules that were read.

        A lost reply is settled by reading again: whoever finds the rules that it wanted has them.
        """
        kept = state.last_version if state.last_version > (staged or in_force).version else 0
        fields = (
            *(state.epoch, in_force.symbol, state.written),
            *(instrument_text(in_force, staged, kept), progress),
        )
        reply: list[Any] = await self.ask(_SET, state.partition, self.partitions, *fields)
        return bool(reply[0] == "OK")


def _progress_text(state: InstrumentState, progress: AnchoringProgress) -> str:
    """Write progress with the epoch and the rules that it counts for, and for no other."""
    version = 0 if state.staged is None else state.staged.version
    return f"{state.epoch} {version} {progress.side or 'done'} {progress.cursor}"


def _progress_of(text: str) -> AnchoringProgress:
    """Read progress, whatever it counts for; the beginning where none is noted."""
    if not text:
        return AnchoringProgress()
    _, _, side, cursor = text.split(" ")
    return ALL_ANCHORED if side == "done" else AnchoringProgress(TriggerSide(side), cursor)
