"""Connections to Redis: timeouts, errors, scripts, and whether a connection leads to a server that holds the state.

The driver retries nothing. A reply that was lost must be asked for, never provoked by a second execution, and only
the code that knows what a script does can know that (see `margin.services.journal`).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from redis import exceptions
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from margin.clients import keys
from margin.clients.credentials import redis_logins
from margin.clients.redis_connection import RotatingConnection, RotatingTlsConnection
from margin.clients.tls import redis_tls
from margin.errors import RedisRefusedError, RedisTimeoutError, RedisUnavailableError, StateNotLoadedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from redis.asyncio.connection import AbstractConnection

    from margin.config import Settings

T = TypeVar("T")

_PAUSE_S = 1.0
"""After this long without a call an execution environment may have been frozen, and its connections be dead."""

_SCRIPTS = Path(__file__).parent
_NOT_LOADED = (
    "Redis does not hold the whole state: {reason}. The engine answers again when the state was rebuilt from history."
)


class ForeignServerError(exceptions.RedisError):
    """A new connection led to a server whose marker was not written for it."""


class Script:
    """One Lua script with the preamble in front, called by its digest and loaded when the server does not know it."""

    def __init__(self, name: str) -> None:
        preamble = (_SCRIPTS / "_preamble.lua").read_text(encoding="utf-8")
        self.name = name
        self.source = f"{preamble}\n{(_SCRIPTS / f'{name}.lua').read_text(encoding='utf-8')}"
        self.digest = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()

    async def run(self, redis: Redis, marker: str, *arguments: str | int) -> Any:
        """Execute the script on the partition of ``marker``.

        Only NOSCRIPT leads to a second call: that answer says that nothing was executed.
        """
        try:
            return await redis.evalsha(self.digest, 1, marker, *arguments)
        except exceptions.NoScriptError:
            return await redis.eval(self.source, 1, marker, *arguments)

    async def run_each(self, redis: Redis, marker: str, calls: Sequence[Sequence[str | int]]) -> list[Any]:
        """Execute the script once for the arguments of each call, in one round trip after one that makes it known."""
        await redis.script_load(self.source)
        async with redis.pipeline(transaction=False) as pipeline:
            for arguments in calls:
                pipeline.evalsha(self.digest, 1, marker, *arguments)
            return await pipeline.execute()


@contextlib.asynccontextmanager
async def redis_errors() -> AsyncIterator[None]:
    """Translate the driver's errors.

    Raises
    ------
    StateNotLoadedError
        The server is not the one that the state was loaded into.
    RedisTimeoutError
        No answer in time.
    RedisRefusedError
        It answers that it does not: out of memory, read-only, too few replicas, not allowed.
    RedisUnavailableError
        Down, loading, wrong credentials.
    """
    try:
        yield
    except ForeignServerError as error:
        raise StateNotLoadedError(_NOT_LOADED.format(reason=error)) from error
    except exceptions.TimeoutError as error:
        message = "Redis did not answer in time."
        raise RedisTimeoutError(message) from error
    except (exceptions.ConnectionError, OSError) as error:
        message = "Redis refused or broke the connection."
        raise RedisUnavailableError(message) from error
    except exceptions.ResponseError as error:
        message = "Redis refuses to work now: out of memory or disk, read-only, too few replicas, or not allowed."
        raise RedisRefusedError(message) from error


class BaseRedisClient:
    """What all Redis clients share.

    Parameters
    ----------
    redis : Redis
        A connection pool made by `make_redis`; several clients share one.
    partitions : int
        How many partitions there are.
    """

    def __init__(self, redis: Redis, partitions: int) -> None:
        # The driver types its answers for bytes and text, clusters and pipelines alike; here they are always text.
        self.redis: Any = redis
        self.partitions = partitions
        self._asked_s = 0.0

    async def run(self, script: Script, partition: int, *arguments: str | int) -> Any:
        """Execute a script that answers a list with its outcome first.

        Raises
        ------
        StateNotLoadedError
            The partition's marker is missing or names another epoch or number of partitions.
        RedisUnavailableError
            No answer in time; a script that writes may have run.
        """
        async with redis_errors():
            reply = await script.run(self.redis, keys.marker(partition, self.partitions), *arguments)
        if reply[0] == "NOT_LOADED":
            raise StateNotLoadedError(_NOT_LOADED.format(reason=reply[1]))
        return reply

    async def ask_each(self, script: Script, partition: int, calls: Sequence[Sequence[str | int]]) -> list[Any]:
        """Execute a script once for the arguments of each call, all in one round trip; each may run twice.

        Raises
        ------
        StateNotLoadedError
            As for `run`, if it is so for one of the calls.
        RedisUnavailableError
        """
        marker = keys.marker(partition, self.partitions)
        replies = await self.twice(lambda redis: script.run_each(redis, marker, calls))
        for reply in replies:
            if reply[0] == "NOT_LOADED":
                raise StateNotLoadedError(_NOT_LOADED.format(reason=reply[1]))
        return replies

    async def ask(self, script: Script, partition: int, *arguments: str | int) -> Any:
        """Execute a script that may run twice; see `twice`.

        Raises
        ------
        StateNotLoadedError, RedisUnavailableError
        """
        return await self.twice(lambda _: self.run(script, partition, *arguments))

    async def twice(self, call: Callable[[Any], Awaitable[T]]) -> T:
        """Make a call that may be made twice: again on a new connection when a kept one turns out to be dead.

        Connections die unseen while an execution environment is frozen, and all that were kept are as old.

        Raises
        ------
        StateNotLoadedError, RedisUnavailableError
        """
        try:
            async with redis_errors():
                return await call(self.redis)
        except RedisUnavailableError as error:
            if not isinstance(error.__cause__, exceptions.ConnectionError):
                raise
        async with redis_errors():
            await self.redis.connection_pool.disconnect(inuse_connections=False)
            return await call(self.redis)

    def require_loaded(self, epoch: str | None, partitions: str | None) -> None:
        """Tell by a partition's marker, read in one step with what was wanted, whether that is the whole of its state.

        Raises
        ------
        StateNotLoadedError
            Scripts say the same of such a marker.
        """
        if epoch is None:
            raise StateNotLoadedError(_NOT_LOADED.format(reason="the marker is missing"))
        if partitions != str(self.partitions):
            raise StateNotLoadedError(_NOT_LOADED.format(reason=f"the state was loaded for PARTITIONS={partitions}"))

    async def freshen(self) -> None:
        """Make sure that kept connections live before a call that must not be made twice.

        Asked only after a pause, so that a busy process pays nothing for it.
        """
        now_s = asyncio.get_running_loop().time()
        if now_s - self._asked_s > _PAUSE_S:
            await self.twice(lambda redis: redis.ping())
        self._asked_s = now_s

    def key(self, partition: int, name: str) -> str:
        """Name of a key in a partition."""
        return f"{keys.prefix(partition, self.partitions)}{name}"


def make_redis(settings: Settings, *, check_marker: bool = True) -> Redis:
    """Make a pool of connections, opened when first needed, on the event loop that needs them.

    Parameters
    ----------
    settings : Settings
        Where Redis is, how long a call may take, how many partitions there are.
    check_marker : bool
        Whether a new connection must lead to a server that every partition's marker names. Only the code that opens
        partitions goes without.
    """

    async def on_connect(connection: AbstractConnection) -> None:
        try:
            await connection.on_connect()
            if check_marker:
                await _check_markers(connection, settings.partitions)
        except BaseException:
            # After errors that are not its own the driver would keep it and use it: logged in as nobody, unchecked.
            await connection.disconnect(nowait=True)
            raise

    tls: dict[str, Any] = {"tls": redis_tls(settings.redis_ca)} if settings.redis_tls else {}
    pool = BlockingConnectionPool(
        host=settings.redis_host,
        port=settings.redis_port,
        db=settings.redis_db,
        logins=redis_logins(settings),
        connection_class=RotatingTlsConnection if settings.redis_tls else RotatingConnection,
        **tls,
        max_connections=settings.redis_connections_max,
        timeout=settings.redis_timeout_s,
        socket_timeout=settings.redis_timeout_s,
        socket_connect_timeout=settings.redis_timeout_s,
        socket_keepalive=True,
        health_check_interval=0,
        retry=Retry(NoBackoff(), 0),
        retry_on_error=[],
        decode_responses=True,
        protocol=2,
        driver_info=None,
        redis_connect_func=on_connect,
    )
    return Redis.from_pool(pool)


async def _check_markers(connection: AbstractConnection, partitions: int) -> None:
    """Compare the server's run_id with every marker: a restart or a fail-over shows before anything is read.

    Raises
    ------
    ForeignServerError
    """
    await connection.send_command("INFO", "server")
    for partition in range(partitions):
        await connection.send_command("HGET", keys.marker(partition, partitions), "run_id")
    run_id = server_run_id(await connection.read_response())
    recorded = [await connection.read_response() for _ in range(partitions)]
    if None in recorded:
        message = "the marker is missing"
        raise ForeignServerError(message)
    if any(marker_run_id != run_id for marker_run_id in recorded):
        message = "the server was restarted or replaced"
        raise ForeignServerError(message)


def server_run_id(info: str | bytes) -> str:
    """Read the run_id in the text that ``INFO server`` answers."""
    text = info.decode() if isinstance(info, bytes) else info
    for line in text.splitlines():
        if line.startswith("run_id:"):
            return line.removeprefix("run_id:").strip()
    message = "INFO server names no run_id"
    raise ForeignServerError(message)
