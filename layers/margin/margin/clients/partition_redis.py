"""Markers: whether Redis holds a partition's whole state. The only client that connects without that being so."""

from __future__ import annotations

from typing import Any

from margin.clients import keys
from margin.clients.base_redis import BaseRedisClient, Script, redis_errors, server_run_id
from margin.errors import EpochsExhaustedError, RedisUnavailableError, StateNotLoadedError
from margin.ports.opening import Opening, PartitionState

_BEGIN = Script("begin_opening")
_NOTE = Script("note_opening")
_FINISH = Script("finish_opening")

_EPOCH_MAX = 2**21
"""Event ids are epoch * 2^32 + sequence and must stay below 2^53, where doubles (Lua, JavaScript) stop being exact."""


class PartitionRedisClient(BaseRedisClient):
    """Reads markers, takes them away and sets them."""

    async def state(self, partition: int) -> PartitionState:
        """Read the marker of a partition and the run_id of the server that holds it."""
        marker, opening = self.key(partition, "marker"), self.key(partition, "opening")

        async def read(redis: Any) -> list[Any]:
            async with redis.pipeline(transaction=False) as pipeline:
                pipeline.hmget(marker, ["epoch", "partitions", "run_id"])
                pipeline.hmget(opening, ["rebuild", "epoch", "basis", "run_id", "partitions"])
                pipeline.execute_command("INFO", "server")
                replies: list[Any] = await pipeline.execute()
            return replies

        fields, (rebuild_epoch, opening_epoch, basis, *begun_for), info = await self.twice(read)
        run_id = str(info["run_id"] if isinstance(info, dict) else server_run_id(info))
        epoch, partitions, marker_run_id = (field or "" for field in fields)
        return PartitionState(
            epoch=epoch,
            partitions=partitions,
            run_id=marker_run_id,
            server_run_id=run_id,
            rebuild_epoch=int(rebuild_epoch or 0),
            opening_epoch=int(opening_epoch or 0) if begun_for == [run_id, str(self.partitions)] else 0,
            opening_basis=int(basis or 0),
        )

    async def begin(
        self, partition: int, token: str, epoch: int, *, basis: int = 0, rebuild_epoch: int = 0
    ) -> Opening | None:
        """Take the marker away and say where an opening that was broken off on this server got to.

        Whoever begins with a later epoch, or goes on under the same, takes over: with another token nobody can load, go
        on or finish. A rebuild that was broken off stays one until it is finished.

        Parameters
        ----------
        partition : int
        token : str
            Whose opening it is.
        epoch : int
            The epoch that is to begin with it.
        basis : int
            Epoch of the last opening in history after which the partition can have changed: progress that was noted on
            another basis does not count.
        rebuild_epoch : int
            Of a rebuild, the epoch that it took when it began.

        Returns
        -------
        Opening or None
            None when another has begun or finished with a later epoch; nothing was done then.

        Raises
        ------
        EpochsExhaustedError
            No later epoch has room in an event id; the marker stays.
        RedisUnavailableError
        """
        if epoch >= _EPOCH_MAX:
            message = f"Epoch {epoch} has no room in an event id, which must stay below 2^53."
            raise EpochsExhaustedError(message)
        run_id = (await self.state(partition)).server_run_id
        marker = keys.marker(partition, self.partitions)
        arguments = (token, run_id, self.partitions, rebuild_epoch, epoch, basis)
        reply = await self.twice(lambda redis: _BEGIN.run(redis, marker, *arguments))
        if reply[0] == "TAKEN_OVER":
            return None
        rebuild, after, accounts, loaded = (int(field) for field in reply[1:5])
        return Opening(
            partition=partition,
            token=token,
            run_id=run_id,
            rebuild_epoch=rebuild,
            epoch=epoch,
            basis=basis,
            after=after,
            accounts=accounts,
            loaded=loaded,
            sweep_cursor=str(reply[5]),
            reload=bool(reply[6]),
        )

    async def note(self, opening: Opening) -> bool:
        """Note how far an opening has got; False when another has taken it over."""
        marker = keys.marker(opening.partition, self.partitions)
        progress = (opening.after, opening.accounts, opening.loaded, opening.sweep_cursor)
        reply = await self.twice(lambda redis: _NOTE.run(redis, marker, opening.token, *progress))
        return bool(reply[0] == "OK")

    async def finish(self, opening: Opening) -> bool:
        """Start its epoch on the server that was compared; its event ids begin at 1 again, under the new epoch.

        Never tried twice: the sequence must not start again under an epoch that is in use. Whoever failed takes a new
        epoch. Where another server has taken the place of the one that was compared, the marker names the wrong one
        and vouches for nothing.

        Returns
        -------
        bool
            False when another has taken the opening over; nothing was written then.
        """
        marker = keys.marker(opening.partition, self.partitions)
        await self.freshen()
        async with redis_errors():
            reply = await _FINISH.run(self.redis, marker, opening.token, opening.epoch, self.partitions, opening.run_id)
        return bool(reply[0] == "OK")

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
