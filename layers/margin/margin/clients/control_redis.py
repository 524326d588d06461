"""Pause switches in Redis: those of the engine and of symbols in every partition, an account's in its own."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from margin.clients import keys
from margin.clients.base_redis import BaseRedisClient, Script
from margin.domain.controls import ControlState, controlled_account, state_of
from margin.ports.controls import ControlsInForce

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Iterable, Sequence

    from margin.ports.controls import ControlChange

T = TypeVar("T")

_SET = Script("set_controls")
_PER_PAGE = 1000


class ControlRedisClient(BaseRedisClient):
    """Sets pause switches; it needs connections that do not look at markers."""

    async def put(self, changes: Sequence[ControlChange], *, over: int = 0) -> ControlsInForce:
        """Put changes in place in each partition they belong to, where no newer one of their name is.

        Raises
        ------
        RedisUnavailableError
            They may be in place in some partitions and not in others.
        """
        return await self._set(changes, over=over)

    async def state(self, name: str) -> ControlState:
        """Read a switch where it belongs: an account's in its partition, the others in the first.

        Raises
        ------
        RedisUnavailableError
        """
        account_id = controlled_account(name)
        partition = 0 if account_id is None else keys.partition_of(account_id, self.partitions)
        field = self.key(partition, "controls")
        return state_of(await self.twice(lambda redis: redis.hget(field, name)) or "")

    async def aligned_to(self) -> tuple[int, int]:
        """Up to which changes of history the partitions have them all: the one that lags most, the one that lags least.

        Raises
        ------
        RedisUnavailableError
        """
        reached = await _all(self._aligned_to(partition) for partition in range(self.partitions))
        return min(reached), max(reached)

    async def align(self, changes: Sequence[ControlChange], *, after_id: int) -> ControlsInForce:
        """Put in place all changes of history from after ``after_id`` to the last of ``changes``, one at the least.

        A partition that was emptied meanwhile, or holds a newer change of one of the names, does not move on.

        Raises
        ------
        RedisUnavailableError
        """
        return await self._set(changes, after_id=after_id)

    async def unalign(self) -> None:
        """Let no partition claim any more to have changes: all are put in place anew by the next `align`.

        Raises
        ------
        RedisUnavailableError
        """
        await _all(self._unalign(partition) for partition in range(self.partitions))

    async def stopped(self) -> AsyncIterator[list[str]]:
        """Names of the switches that are not active in Redis, in pages; a name can be there more than once.

        Raises
        ------
        RedisUnavailableError
        """
        for partition in range(self.partitions):
            field, cursor = self.key(partition, "controls"), 0
            while True:
                cursor, found = await self._scan(field, cursor)
                if found:
                    yield found
                if cursor == 0:
                    break

    async def _aligned_to(self, partition: int) -> int:
        name = self.key(partition, "controls_aligned_to")
        return int(await self.twice(lambda redis: redis.get(name)) or "0")

    async def _scan(self, field: str, cursor: int) -> tuple[int, list[str]]:
        next_cursor, found = await self.twice(lambda redis: redis.hscan(field, cursor, count=_PER_PAGE))
        return int(next_cursor), list(found)

    async def _unalign(self, partition: int) -> None:
        name = self.key(partition, "controls_aligned_to")
        await self.twice(lambda redis: redis.delete(name))

    async def _set(
        self, changes: Sequence[ControlChange], *, over: int = 0, after_id: int | None = None
    ) -> ControlsInForce:
        partitions: Sequence[int] = range(self.partitions)
        if after_id is None:
            partitions = [each for each in partitions if any(self._belongs(change, each) for change in changes)]
        replies = await _all(self._set_in(each, changes, over, after_id) for each in partitions)
        return ControlsInForce(min(reply[0] for reply in replies), max(reply[1] for reply in replies))

    async def _set_in(
        self, partition: int, changes: Sequence[ControlChange], over: int, after_id: int | None
    ) -> tuple[int, int]:
        mine = (change for change in changes if self._belongs(change, partition))
        triples = [text for change in mine for text in (change.name, str(change.state), str(change.id))]
        span = ("", "") if after_id is None else (str(after_id), str(changes[-1].id))
        reply = await self.ask(_SET, partition, str(over), *span, *triples)
        return int(reply[1]), int(reply[2])

    def _belongs(self, change: ControlChange, partition: int) -> bool:
        account_id = controlled_account(change.name)
        return account_id is None or keys.partition_of(account_id, self.partitions) == partition


async def _all(calls: Iterable[Awaitable[T]]) -> list[T]:
    """Make calls at the same time; none is left running when one of them fails."""
    answers = await asyncio.gather(*calls, return_exceptions=True)
    done: list[T] = []
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
        done.append(answer)
    return done
