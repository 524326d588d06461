"""Pause switches in memory: history's and Redis's side of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from margin.domain.controls import ControlState, state_of
from margin.ports.controls import ControlChange, ControlsInForce

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from margin.caller import Caller
    from tests.fakes.faults import Clock, Faults
    from tests.fakes.redis import FakeRedis


class FakeControlHistory:
    """Implements `margin.ports.controls.ControlHistory`."""

    def __init__(self, clock: Clock, faults: Faults) -> None:
        self.recorded: list[ControlChange] = []
        self.given_out = 0
        self._clock = clock
        self._faults = faults

    async def record(self, name: str, state: ControlState, reason: str, caller: Caller) -> ControlChange:
        await self._faults.before("controls.record")
        self.given_out += 1
        change = ControlChange(self.given_out, name, state, reason, caller.subject, self._clock.now_us)
        self.recorded.append(change)
        await self._faults.after("controls.record")
        return change

    async def changes(self, after_id: int, limit: int) -> list[ControlChange]:
        await self._faults.before("controls.changes")
        newest = sorted(self._newest(), key=lambda change: change.id)
        return [change for change in newest if change.id > after_id][:limit]

    async def in_force(self, after_name: str, limit: int) -> list[ControlChange]:
        await self._faults.before("controls.in_force")
        newest = sorted(self._newest(), key=lambda change: change.name)
        wanted = (change for change in newest if change.state is not ControlState.ACTIVE and change.name > after_name)
        return list(wanted)[:limit]

    async def newest(self, name: str) -> ControlChange:
        await self._faults.before("controls.newest")
        return next(change for change in self._newest() if change.name == name)

    async def known(self, names: Sequence[str]) -> set[str]:
        await self._faults.before("controls.known")
        return {change.name for change in self.recorded if change.name in names}

    async def last_id(self, at_most: int) -> int:
        await self._faults.before("controls.last_id")
        return max((change.id for change in self.recorded if change.id <= at_most), default=0)

    async def skip_ids(self, up_to: int) -> None:
        await self._faults.before("controls.skip_ids")
        self.given_out = max(self.given_out, up_to)

    def restore(self, recorded: Sequence[ControlChange]) -> None:
        """Come back as of an earlier moment, from which on ids are given out again."""
        self.recorded = list(recorded)
        self.given_out = max((change.id for change in recorded), default=0)

    def _newest(self) -> list[ControlChange]:
        return list({change.name: change for change in self.recorded}.values())


class FakeControls:
    """Implements `margin.ports.controls.ControlStore`; the fake's partitions share their switches."""

    def __init__(self, redis: FakeRedis) -> None:
        self._redis = redis

    async def put(self, changes: Sequence[ControlChange], *, over: int = 0) -> ControlsInForce:
        await self._redis.faults.before("controls.put")
        stood = max(self._put(change, over) for change in changes)
        await self._redis.faults.after("controls.put")
        return ControlsInForce(self._aligned_to(), stood)

    async def aligned_to(self) -> tuple[int, int]:
        await self._redis.faults.before("controls.aligned_to")
        return self._aligned_to(), self._aligned_to()

    async def state(self, name: str) -> ControlState:
        await self._redis.faults.before("controls.state")
        return state_of(self._redis.controls.get(name, ""))

    async def align(self, changes: Sequence[ControlChange], *, after_id: int) -> ControlsInForce:
        redis = self._redis
        await redis.faults.before("controls.align")
        stood = max(self._put(change, 0) for change in changes)
        if not stood and self._aligned_to() >= after_id:
            redis.controls_aligned_to["all"] = max(self._aligned_to(), changes[-1].id)
        await redis.faults.after("controls.align")
        return ControlsInForce(self._aligned_to(), stood)

    async def unalign(self) -> None:
        await self._redis.faults.before("controls.unalign")
        self._redis.controls_aligned_to.clear()

    async def stopped(self) -> AsyncIterator[list[str]]:
        await self._redis.faults.before("controls.stopped")
        if self._redis.controls:
            yield list(self._redis.controls)

    def _put(self, change: ControlChange, over: int) -> int:
        """Put a change in place and return 0, or return the id that stands in its way."""
        redis = self._redis
        present = redis.control_ids.get(change.name, 0)
        if present > max(change.id, over):
            return present
        redis.control_ids[change.name] = change.id
        if change.state is ControlState.ACTIVE:
            redis.controls.pop(change.name, None)
        else:
            redis.controls[change.name] = str(change.state)
        return 0

    def _aligned_to(self) -> int:
        return self._redis.controls_aligned_to.get("all", 0)
