"""Redis as it is, for the reconciling: values are passed on as text, whatever they are."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from margin.clients import keys
from margin.clients.base_redis import BaseRedisClient, Script
from margin.domain.event import StoredEvent
from margin.domain.safe_zone import TriggerSide
from margin.ports.audit import HotAccount, HotPosition

if TYPE_CHECKING:
    from collections.abc import Sequence

ACCOUNTS_PER_SCRIPT = 50
"""How many accounts one script reads: it holds up everybody else for as long as it runs."""

MEMBERS_PER_PAGE = 500
_PROGRESS = "reconcile"
_MICROSECONDS_PER_S = 1_000_000

_ACCOUNTS = Script("audit_accounts")
_TRIGGERS = Script("audit_triggers")


class AuditRedisClient(BaseRedisClient):
    """Implements `margin.ports.audit.HotAudit`."""

    async def accounts(self, account_ids: Sequence[int], pending_max: int) -> dict[int, HotAccount]:
        """Read accounts with their triggers and at most ``pending_max`` of their pending events.

        Raises
        ------
        StateNotLoadedError, RedisUnavailableError
        """
        by_partition: dict[int, list[int]] = defaultdict(list)
        for account_id in account_ids:
            by_partition[keys.partition_of(account_id, self.partitions)].append(account_id)
        found: dict[int, HotAccount] = {}
        for partition, mine in by_partition.items():
            for start in range(0, len(mine), ACCOUNTS_PER_SCRIPT):
                some = mine[start : start + ACCOUNTS_PER_SCRIPT]
                _, *rows = await self.ask(_ACCOUNTS, partition, self.partitions, pending_max, *some)
                found.update(zip(some, (_hot_account(*row) for row in rows), strict=True))
        return found

    async def account_ids(self, partition: int, cursor: str) -> tuple[str, tuple[str, ...]]:
        """Ids of some accounts of a partition; one can be seen twice, none is missed."""
        name = self.key(partition, "versions")
        after, found = await self.twice(lambda redis: redis.hscan(name, int(cursor), count=MEMBERS_PER_PAGE))
        return str(after), tuple(found)

    async def symbols(self, partition: int) -> tuple[str, ...]:
        """Symbols with a mark price or an instrument, sorted."""

        async def read(redis: Any) -> set[str]:
            marked = await redis.hkeys(self.key(partition, "mark_prices"))
            return {*marked, *await redis.hkeys(self.key(partition, "instruments"))}

        return tuple(sorted(await self.twice(read)))

    async def stray_triggers(
        self, partition: int, symbol: str, side: TriggerSide, cursor: str
    ) -> tuple[str, list[str]]:
        """Accounts with a trigger there that do not hold the symbol.

        Raises
        ------
        StateNotLoadedError, RedisUnavailableError
        """
        arguments = (self.partitions, symbol, str(side), cursor, MEMBERS_PER_PAGE)
        _, after, strays = await self.ask(_TRIGGERS, partition, *arguments)
        return after, strays

    async def progress(self) -> tuple[str, int]:
        """Return what was saved last, "" for nothing, and the server's time in microseconds."""

        async def read(redis: Any) -> tuple[str, int]:
            text = await redis.get(self.key(0, _PROGRESS))
            return text or "", _microseconds(*await redis.time())

        return await self.twice(read)

    async def save_progress(self, text: str) -> int:
        """Save how far the reconciling has got; the server's time in microseconds."""

        async def save(redis: Any) -> int:
            await redis.set(self.key(0, _PROGRESS), text)
            return _microseconds(*await redis.time())

        return await self.twice(save)


def _microseconds(seconds: int, rest_us: int) -> int:
    return seconds * _MICROSECONDS_PER_S + rest_us


def _hot_account(
    version: str,
    chain_hash: str,
    balance: str,
    positions: list[tuple[str, str, str, str, int, int]],
    pending: list[str],
    pending_count: int,
    waits: int,
) -> HotAccount:
    return HotAccount(
        version=version,
        chain_hash=chain_hash,
        balance=balance,
        positions={position[0]: _hot_position(*position[1:]) for position in positions},
        pending=tuple(_stored_event(entry) for entry in pending),
        pending_count=pending_count,
        waits=bool(waits),
    )


def _hot_position(quantity: str, entry_cost: str, entry_funding: str, floor: int, ceiling: int) -> HotPosition:
    sides = ((TriggerSide.FLOOR, floor), (TriggerSide.CEILING, ceiling))
    return HotPosition(quantity, entry_cost, entry_funding, tuple(side for side, present in sides if present))


def _stored_event(entry: str) -> StoredEvent:
    """Split an entry into id and body; one that is not so has the id 0, which no event has."""
    event_id, _, body = entry.partition(" ")
    return StoredEvent(int(event_id) if event_id.isdecimal() else 0, body)
