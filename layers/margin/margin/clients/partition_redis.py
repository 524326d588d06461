"""Markers: whether Redis holds a partition's whole state. The only client that connects without that being so."""

from __future__ import annotations

from margin.clients.base_redis import BaseRedisClient, redis_errors, server_run_id
from margin.errors import RedisUnavailableError, StateNotLoadedError
from margin.ports import PartitionState

_EPOCH_MAX = 2**21
"""Event ids are epoch * 2^32 + sequence and must stay below 2^53, where doubles (Lua, JavaScript) stop being exact."""


class PartitionRedisClient(BaseRedisClient):
    """Reads, takes away and sets markers."""

    async def state(self, partition: int) -> PartitionState:
        """Read the marker of a partition and the run_id of the server that holds it."""
        name = self.key(partition, "marker")
        fields = await self.twice(lambda redis: redis.hmget(name, ["epoch", "partitions", "run_id"]))
        info = await self.twice(lambda redis: redis.execute_command("INFO", "server"))
        run_id = info["run_id"] if isinstance(info, dict) else server_run_id(info)
        epoch, partitions, marker_run_id = (field or "" for field in fields)
        return PartitionState(epoch, partitions, marker_run_id, str(run_id))

    async def close(self, partition: int) -> None:
        """Take the marker away."""
        name = self.key(partition, "marker")
        await self.twice(lambda redis: redis.delete(name))

    async def open(self, partition: int, epoch: int, run_id: str) -> None:
        """Start a new epoch on the server with ``run_id``; its event ids begin at 1 again, under the new epoch.

        Never tried twice: the sequence must not start again under an epoch that is in use. Whoever failed takes a new
        epoch.
        """
        if epoch >= _EPOCH_MAX:
            message = f"epoch {epoch} is out of range"
            raise ValueError(message)
        marker = {"epoch": str(epoch), "partitions": str(self.partitions), "run_id": run_id}
        async with redis_errors(), self.redis.pipeline(transaction=True) as pipeline:
            pipeline.set(self.key(partition, "event_seq"), 0)
            pipeline.hset(self.key(partition, "marker"), mapping=marker)
            await pipeline.execute()

    async def check(self) -> None:
        """Raise when calls that need state would fail, or when Redis may evict keys.

        Raises
        ------
        StateNotLoadedError, RedisUnavailableError
        """
        for partition in range(self.partitions):
            if not (await self.state(partition)).whole(self.partitions):
                message = (
                    f"Redis does not hold the whole state of partition {partition}; it is rebuilt from history first."
                )
                raise StateNotLoadedError(message)
        memory = await self.twice(lambda redis: redis.info("memory"))
        policy = memory.get("maxmemory_policy")
        if policy != "noeviction":
            message = f"Redis may evict keys (maxmemory-policy is {policy}); it must be noeviction."
            raise RedisUnavailableError(message)
