"""Instruments in memory: history's and Redis's side of them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from margin.domain.instrument import default_instrument
from margin.ports.instruments import AnchoringProgress, ConfiguredInstrument, InstrumentChange, InstrumentState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from margin.caller import Caller
    from margin.domain.instrument import Instrument
    from margin.ports.opening import Opening
    from tests.fakes.faults import Clock, Faults
    from tests.fakes.redis import FakeRedis


class FakeInstrumentHistory:
    """Implements `margin.ports.instruments.InstrumentHistory`."""

    def __init__(self, clock: Clock, faults: Faults) -> None:
        self.recorded: dict[tuple[str, int], InstrumentChange] = {}
        self._clock = clock
        self._faults = faults

    async def configured(self, symbol: str) -> ConfiguredInstrument:
        await self._faults.before("instruments.configured")
        return self._configured(symbol)

    async def page(self, after_symbol: str, limit: int) -> list[ConfiguredInstrument]:
        await self._faults.before("instruments.page")
        symbols = sorted({symbol for symbol, _ in self.recorded if symbol > after_symbol})
        return [self._configured(symbol) for symbol in symbols[:limit]]

    async def record(self, instrument: Instrument, after_version: int, caller: Caller) -> InstrumentChange | None:
        await self._faults.before("instruments.record")
        present = self._configured(instrument.symbol)
        if present.under_way is not None or present.last_version != after_version:
            return None
        change = InstrumentChange(instrument, caller.subject, self._clock.now_us, None)
        self.recorded[instrument.symbol, instrument.version] = change
        await self._faults.after("instruments.record")
        return change

    async def set_effective(self, symbol: str, version: int) -> None:
        await self._faults.before("instruments.set_effective")
        change = self.recorded[symbol, version]
        if change.effective_at_us is None:
            self.recorded[symbol, version] = dataclasses.replace(change, effective_at_us=self._clock.now_us)
        await self._faults.after("instruments.set_effective")

    def _configured(self, symbol: str) -> ConfiguredInstrument:
        changes = [self.recorded[place] for place in sorted(self.recorded) if place[0] == symbol]
        effective = [change for change in changes if change.effective_at_us is not None]
        under_way = [change for change in changes if change.effective_at_us is None]
        return ConfiguredInstrument(symbol, effective[-1] if effective else None, under_way[-1] if under_way else None)


class FakeInstruments:
    """Implements `InstrumentStore` and `InstrumentRestore`; the fake's partitions share their rules."""

    def __init__(self, redis: FakeRedis) -> None:
        self._redis = redis

    @property
    def partitions(self) -> int:
        return self._redis.partitions

    async def read(self, partition: int, symbol: str) -> InstrumentState:
        await self._redis.faults.before("instruments.read")
        self._redis.require_loaded(partition)
        return self._state(partition, symbol)

    async def all(self, partition: int) -> dict[str, tuple[Instrument, Instrument | None]]:
        redis = self._redis
        await redis.faults.before("instruments.all")
        return {
            symbol: (redis.instruments.get(symbol, default_instrument(symbol)), redis.staged.get(symbol))
            for symbol in {*redis.instruments, *redis.staged}
        }

    async def stage(self, state: InstrumentState, following: Instrument) -> bool:
        await self._redis.faults.before("instruments.stage")
        if not self._is_as_read(state):
            return False
        self._redis.staged[following.symbol] = following
        await self._redis.faults.after("instruments.stage")
        return True

    async def drop_staged(self, state: InstrumentState) -> bool:
        redis = self._redis
        await redis.faults.before("instruments.drop_staged")
        if state.staged is None or not self._is_as_read(state):
            return False
        redis.dropped[state.staged.symbol] = redis.staged.pop(state.staged.symbol).version
        await redis.faults.after("instruments.drop_staged")
        return True

    async def note(self, state: InstrumentState, progress: AnchoringProgress) -> bool:
        await self._redis.faults.before("instruments.note")
        if not self._is_as_read(state):
            return False
        place = self._place(state)
        if not self._redis.anchoring.get(place, AnchoringProgress()).is_done:
            self._redis.anchoring[place] = progress
        await self._redis.faults.after("instruments.note")
        return True

    async def activate(self, state: InstrumentState) -> bool:
        redis = self._redis
        await redis.faults.before("instruments.activate")
        done = redis.anchoring.get(self._place(state), AnchoringProgress()).is_done
        if state.staged is None or not done or not self._is_as_read(state):
            return False
        redis.instruments[state.staged.symbol] = redis.staged.pop(state.staged.symbol)
        await redis.faults.after("instruments.activate")
        return True

    async def restore(self, opening: Opening, instruments: Mapping[str, Instrument], *, reload: bool) -> bool:
        redis = self._redis
        await redis.faults.before("instruments.restore")
        present = redis.openings.get(opening.partition)
        if present is None or present.token != opening.token:
            return False
        if reload:
            present.begin_anew()
        for symbol, instrument in instruments.items():
            redis.staged.pop(symbol, None)
            redis.instruments[symbol] = instrument
        await redis.faults.after("instruments.restore")
        return True

    def _state(self, partition: int, symbol: str) -> InstrumentState:
        redis = self._redis
        in_force = redis.instruments.get(symbol, default_instrument(symbol))
        held = [account_id for account_id, hot in redis.accounts.items() if symbol in hot.account.positions]
        holders = sum(account_id % redis.partitions == partition for account_id in held)
        epoch = int(redis.markers[partition].epoch)
        state = InstrumentState(
            *(partition, epoch, in_force, redis.staged.get(symbol), AnchoringProgress(), holders),
            dropped=redis.dropped.get(symbol, 0),
        )
        return dataclasses.replace(state, progress=redis.anchoring.get(self._place(state), AnchoringProgress()))

    def _is_as_read(self, state: InstrumentState) -> bool:
        self._redis.require_loaded(state.partition, state.epoch)
        present = self._state(state.partition, state.in_force.symbol)
        return (present.in_force, present.staged) == (state.in_force, state.staged)

    @staticmethod
    def _place(state: InstrumentState) -> tuple[int, int, str, int]:
        staged = 0 if state.staged is None else state.staged.version
        return state.partition, state.epoch, state.in_force.symbol, staged
