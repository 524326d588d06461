"""A few kept connections to PostgreSQL, each call on them bounded in time.

A Lambda execution environment is frozen between invocations, so a pool with tasks of its own has no place here:
connections are opened when asked for, kept when they come back sound, and hung up by their deadline. Cancelling a task
that waits for a frozen server takes the driver ten seconds more; shutting the socket down under it does not, so that
is what a deadline does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.rows import dict_row

from margin.clients.credentials import REFUSALS_MAX, PostgresLogins
from margin.clients.tls import postgres_tls
from margin.errors import PostgresUnavailableError

if TYPE_CHECKING:
    from margin.clients.credentials import Login
    from margin.config import Settings

Connection = psycopg.AsyncConnection[dict[str, Any]]
Row = dict[str, Any]
Parameters = Mapping[str, object] | Sequence[object]

_UNAVAILABLE = "PostgreSQL did not answer in time, or refused the connection or the statement."

_READ_ONLY = "PostgreSQL is read-only."
_READ_ONLY_SIGNS = ("session is read-only", "server is in hot standby mode")
"""How the driver's library says it; in another language it is merely unavailable."""


class PostgresPool:
    """Connections of one event loop, opened lazily.

    Parameters
    ----------
    settings : Settings
        Where PostgreSQL is, how many connections to keep at the most, how long a call may take.
    """

    def __init__(self, settings: Settings) -> None:
        self.connect_timeout_s = settings.postgres_connect_timeout_s
        self._settings = settings
        self._logins = PostgresLogins(settings)
        self._idle: list[Connection] = []
        self._free = asyncio.Semaphore(settings.postgres_connections_max)

    @contextlib.asynccontextmanager
    async def lease(self) -> AsyncIterator[Lease]:
        """Reserve a connection.

        Raises
        ------
        PostgresUnavailableError
            None could be had within the connect timeout.
        """
        loop = asyncio.get_running_loop()
        until_s = loop.time() + self._settings.postgres_connect_timeout_s
        try:
            await asyncio.wait_for(self._free.acquire(), self._settings.postgres_connect_timeout_s)
        except TimeoutError as error:
            message = "All connections to PostgreSQL are in use."
            raise PostgresUnavailableError(message) from error
        try:
            kept = self._take_idle()
            lease = Lease(self, kept or await self.connect(until_s), kept=kept is not None)
            try:
                yield lease
            finally:
                self._give_back(lease.connection)
        finally:
            self._free.release()

    async def query(self, query: str, parameters: Parameters = ()) -> list[Row]:
        """Execute one statement on any connection.

        Raises
        ------
        PostgresUnavailableError
        """
        async with self.lease() as lease:
            return await lease.fetch(query, parameters)

    async def connect(self, until_s: float) -> Connection:
        """Open a connection until a moment of the event loop's clock.

        Where the server refuses the login, with another one, if there is one by then: passwords are exchanged while
        the engine runs.

        Raises
        ------
        PostgresUnavailableError
        SecretUnavailableError
            The login cannot be read, or not in time.
        """
        loop = asyncio.get_running_loop()
        left_s = until_s - loop.time()
        login: Login | None = await self._logins.next_login(left_s / 2, left_s)
        refused: Exception | None = None
        for _ in range(1 + REFUSALS_MAX):
            if login is None:
                break
            try:
                return await asyncio.wait_for(self._open(login), until_s - loop.time())
            except (psycopg.Error, TimeoutError, OSError) as error:
                refused = error
                if not _may_be_the_password(error):
                    break
            login = await self._logins.login_instead_of(login, until_s - loop.time())
        message = _READ_ONLY if any(sign in str(refused) for sign in _READ_ONLY_SIGNS) else _UNAVAILABLE
        raise PostgresUnavailableError(message) from refused

    async def _open(self, login: Login) -> Connection:
        settings = self._settings
        return await psycopg.AsyncConnection.connect(
            host=settings.postgres_host,
            port=settings.postgres_port,
            user=login.username,
            password=login.password or None,
            dbname=settings.postgres_database,
            **postgres_tls(settings),
            application_name=settings.app_name,
            autocommit=True,
            # A server that does not write must not be found out by the append, when Redis has the event already. From
            # version 14 on it says so while the connection is made, which costs nothing.
            target_session_attrs="read-write",
            prepare_threshold=None,
            row_factory=dict_row,
        )

    async def execute(self, connection: Connection, query: str, parameters: Parameters) -> list[Row]:
        """Execute one statement in one round trip, within the deadline."""
        loop = asyncio.get_running_loop()
        deadline = loop.call_later(self._settings.postgres_timeout_s, _hang_up, connection)
        try:
            cursor = await connection.execute(query.encode(), parameters)
            return await cursor.fetchall() if cursor.description is not None else []
        finally:
            deadline.cancel()

    def forget_idle(self) -> None:
        """Close the kept connections: where one of them was found dead, the others are as old."""
        while self._idle:
            connection = self._idle.pop()
            connection.pgconn.finish()

    async def close(self) -> None:
        """Close the kept connections in good order."""
        while self._idle:
            await self._idle.pop().close()

    def _take_idle(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed:
                return connection
        return None

    def _give_back(self, connection: Connection) -> None:
        if connection.closed or connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
            connection.pgconn.finish()
        else:
            self._idle.append(connection)


def _may_be_the_password(error: Exception) -> bool:
    """Whether the server gave up after it had asked for a password.

    It says why in its own language alone: the driver hands on no code of an error before there is a session. To take
    another refusal for this one costs two calls to Secrets Manager, and those are bounded.
    """
    if not isinstance(error, psycopg.OperationalError) or error.pgconn is None:
        return False
    return error.pgconn.used_password and not any(sign in str(error) for sign in _READ_ONLY_SIGNS)


def _hang_up(connection: Connection) -> None:
    """End a conversation that somebody still waits on, who thereby learns that it is over.

    The descriptor stays open until the connection is given back: the driver waits on its number, and a number that is
    free is taken by the next socket of the process, whoever that is.
    """
    with (
        contextlib.suppress(OSError, psycopg.Error),
        socket.socket(fileno=os.dup(connection.pgconn.socket)) as twin,
    ):
        twin.shutdown(socket.SHUT_RDWR)


class Lease:
    """One reserved connection."""

    def __init__(self, pool: PostgresPool, connection: Connection, *, kept: bool) -> None:
        self._pool = pool
        self._kept = kept
        self.connection = connection

    async def fetch(self, query: str, parameters: Parameters = ()) -> list[Row]:
        """Execute one statement and answer its rows.

        A kept connection can have died while nobody looked (a thawed environment, a restarted server). That shows at
        its first use, and then the statement is executed once more on a new one: every statement of the engine may
        be.

        Raises
        ------
        PostgresUnavailableError
            The deadline passed or the connection broke; whether the statement took effect is not known.
        """
        started_s = asyncio.get_running_loop().time()
        try:
            return await self._execute(query, parameters)
        except PostgresUnavailableError:
            waited_s = asyncio.get_running_loop().time() - started_s
            if not self._kept or waited_s > _DEAD_AT_ONCE_S:
                raise
        self._kept = False
        self._pool.forget_idle()
        self.connection = await self._pool.connect(started_s + self._pool.connect_timeout_s)
        return await self._execute(query, parameters)

    def discard(self) -> None:
        """Close the connection instead of keeping it."""
        self.connection.pgconn.finish()

    async def _execute(self, query: str, parameters: Parameters) -> list[Row]:
        try:
            rows = await self._pool.execute(self.connection, query, parameters)
        except (psycopg.DataError, psycopg.IntegrityError):
            raise
        except psycopg.Error as error:
            # Broken, or not the server it should be: read-only after a fail-over, without the schema, without rights.
            self.discard()
            if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
                # The others lead to the same server, and a new one is refused before anything is written to Redis.
                self._pool.forget_idle()
            raise PostgresUnavailableError(_UNAVAILABLE) from error
        self._kept = False
        return rows


_DEAD_AT_ONCE_S = 0.25
"""A dead connection fails at once; what took longer was a slow server, and asking it again would double the wait."""
