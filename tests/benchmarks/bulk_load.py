"""Puts many accounts straight into a Valkey: the engine's own keys, by plain commands, thousands in one round trip.

What stands in Redis afterwards is what the engine's own script for loading an account leaves there, key by key:
tests/integration/stores/test_bulk_load.py compares the two. It takes a third less time than that, nearly all of it for
the triggers, which come from the domain. They are sent in a second step, so that the memory that each step takes can be
measured.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Self

import hiredis

from margin.clients.account_format import position_fields, trigger_fields
from margin.domain.decimals import plain
from margin.domain.event import version_of
from margin.domain.safe_zone import triggers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from margin.domain.account import Account
    from margin.domain.market import Market

ACCOUNTS_PER_BATCH = 1000
_REPLY_TIMEOUT_S = 30.0
_READ_BYTES = 1 << 16


def version(account_id: int, epoch: int) -> str:
    """Version of a loaded account: as if its first event had the number of the account in the epoch's sequence."""
    return version_of(1, (epoch << 32) + account_id)


def chain_hash(account_id: int) -> str:
    """Hash of that event: one as long as any other."""
    return hashlib.sha256(str(account_id).encode()).hexdigest()


class BulkLoad:
    """Loads accounts into an opened server with one partition, whose marks are set.

    Parameters
    ----------
    host, port : str, int
        Where the server is.
    market : Market
        What triggers are anchored to.
    epoch : int
        That of the opened partition.
    """

    def __init__(self, host: str, port: int, market: Market, *, epoch: int) -> None:
        self._host = host
        self._port = port
        self._market = market
        self._epoch = epoch
        self._index: list[tuple[int, bytes]] = []

    async def load_state(self, accounts: Iterable[Account], *, progress: Callable[[int], None]) -> int:
        """Write balances, versions and positions, and calculate triggers; how many accounts that were.

        Parameters
        ----------
        accounts : iterable of Account
            New ones, with ids above 0.
        progress : callable
            Told after each batch how many are loaded.
        """
        loaded = last = 0
        remaining = iter(accounts)
        async with _Connection(self._host, self._port) as connection:
            while batch := list(itertools.islice(remaining, ACCOUNTS_PER_BATCH)):
                await connection.send(*_packed(self._state_commands(batch)))
                self._index.append(_packed(self._index_commands(batch)))
                loaded += len(batch)
                last = max(last, *(account.account_id for account in batch))
                progress(loaded)
            # Events that come after these have ids above theirs.
            await connection.send(*_packed([("SET", "event_seq", str(last))]))
        return loaded

    async def load_index(self) -> None:
        """Write the triggers of all that was loaded."""
        async with _Connection(self._host, self._port) as connection:
            for replies, commands in self._index:
                await connection.send(replies, commands)
        self._index.clear()

    def _state_commands(self, batch: list[Account]) -> list[tuple[str, ...]]:
        balances, versions, hashes = ["HSET", "balances"], ["HSET", "versions"], ["HSET", "chain_hashes"]
        commands: list[tuple[str, ...]] = []
        for account in batch:
            account_id = str(account.account_id)
            balances += (account_id, plain(account.balance))
            versions += (account_id, version(account.account_id, self._epoch))
            hashes += (account_id, chain_hash(account.account_id))
            for symbol in account.positions:
                _, quantity, entry_price, entry_cost, _ = position_fields(symbol, account)
                fields = ("quantity", quantity, "entry_price", entry_price, "entry_cost", entry_cost)
                commands.append(("HSET", f"position:{account_id}:{symbol}", *fields))
            if account.positions:
                commands.append(("SADD", f"positions:{account_id}", *account.positions))
        return [*commands, tuple(balances), tuple(versions), tuple(hashes)]

    def _index_commands(self, batch: list[Account]) -> list[tuple[str, ...]]:
        members: defaultdict[str, list[str]] = defaultdict(list)
        for account in batch:
            for symbol, side, score in trigger_fields(triggers(account, self._market)):
                members[f"triggers:{symbol}:{side}"] += (score, str(account.account_id))
        return [("ZADD", name, *pairs) for name, pairs in members.items()]


def _packed(commands: list[tuple[str, ...]]) -> tuple[int, bytes]:
    """How many replies to expect, and the commands as they go over the wire."""
    packed = (hiredis.pack_command(command) for command in commands)  # type: ignore[arg-type]  # its stub allows one word
    return len(commands), b"".join(packed)


class _Connection:
    """One connection that sends commands and takes as many replies."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port

    async def __aenter__(self) -> Self:
        async with asyncio.timeout(_REPLY_TIMEOUT_S):
            self._reader, self._writer = await asyncio.open_connection(self._host, self._port)
        self._replies = hiredis.Reader()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()

    async def send(self, replies: int, commands: bytes) -> None:
        """Send commands and wait for all replies.

        Raises
        ------
        RuntimeError
            The server refused one, or hung up.
        TimeoutError
        """
        async with asyncio.timeout(_REPLY_TIMEOUT_S):
            self._writer.write(commands)
            await self._writer.drain()
            answers = [await self._next_reply() for _ in range(replies)]
        refused = next((answer for answer in answers if isinstance(answer, hiredis.ReplyError)), None)
        if refused is not None:
            message = f"the server refused a command: {refused}"
            raise RuntimeError(message)

    async def _next_reply(self) -> Any:
        while (reply := self._replies.gets()) is False:
            read = await self._reader.read(_READ_BYTES)
            if not read:
                message = "the server hung up"
                raise RuntimeError(message)
            self._replies.feed(read)
        return reply
