"""Accounts in Redis: balances, positions, versions, pending events, idempotency results."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from margin.clients import keys
from margin.clients.base_redis import BaseRedisClient, Script, redis_errors
from margin.clients.instrument_json import parse_instrument
from margin.domain.account import Account
from margin.domain.decimals import plain
from margin.domain.event import StoredEvent
from margin.domain.market import Mark, Market
from margin.domain.position import Position
from margin.ports import (
    AccountPage,
    AccountRow,
    AccountView,
    Commit,
    CommitReply,
    Committed,
    Conflict,
    HistoryAccount,
    HistoryKey,
    Loaded,
    StoredResult,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from margin.domain.instrument import Instrument
    from margin.domain.safe_zone import Trigger

ACCOUNTS_PER_PAGE = 200
_MICROSECONDS_PER_S = 1_000_000

_LOADED = {"OK": Loaded.DONE, "CONFLICT": Loaded.CHANGED, "GONE": Loaded.HEALED_BEFORE}

_READ = Script("read_account")
_COMMIT = Script("commit")
_ANCHOR = Script("anchor")
_FORGET = Script("forget_pending")
_PAGE = Script("page_accounts")
_LOAD = Script("load_account")


class AccountRedisClient(BaseRedisClient):
    """Account-specific operations; one script, one round trip each."""

    async def read(self, account_id: int, *, symbol: str = "", key: str = "") -> AccountView:
        """Read an account with its positions and with the marks, instruments and pause switches that concern it.

        Parameters
        ----------
        account_id : int
            Which account.
        symbol : str
            A symbol to read beside those of the positions.
        key : str
            An idempotency key whose stored result is wanted.

        Raises
        ------
        StateNotLoadedError, RedisUnavailableError
        """
        reply = await self.ask(_READ, self._partition(account_id), self.partitions, account_id, symbol, key)
        _, epoch, now_us, balance, version, chain_hash, rows, controls, record, pending = reply
        market, positions = _market_and_positions(rows, int(now_us))
        account = Account(account_id, Decimal(balance), positions) if version else None
        return AccountView(
            epoch=int(epoch),
            account=account,
            version=version,
            chain_hash=chain_hash,
            market=market,
            controls=dict(controls),
            replay=_stored_result(record, pending) if record else None,
        )

    async def commit(self, commit: Commit) -> CommitReply:
        """Commit one event, or learn that it happened already, or that something it relied on has changed.

        Raises
        ------
        StateNotLoadedError
            Nothing was written.
        RedisUnavailableError
            Unknown: the caller must ask by the commit's key.
        """
        event = commit.event
        payload = {
            "account_id": str(event.account_id),
            "epoch": str(commit.epoch),
            "expected_version": commit.expected_version,
            "n": str(event.n),
            "at_us": str(event.at_us),
            "key": event.key,
            "key_ttl_ms": str(commit.key_ttl_s * 1000),
            "request_hash": event.request_hash,
            "result": commit.result,
            "body": commit.body,
            "event_hash": commit.event_hash,
            "balance": event.balance,
            "positions": [_position_fields(symbol, commit.account) for symbol in event.positions],
            "triggers": _trigger_fields(commit.triggers),
            "instruments": [[symbol, str(version)] for symbol, version in commit.instrument_versions.items()],
            "controls": [list(control) for control in commit.controls.items()],
            "marks": [[symbol, plain(price)] for symbol, price in commit.marks.items()],
        }
        reply = await self.run(_COMMIT, self._partition(event.account_id), self.partitions, json.dumps(payload))
        if reply[0] == "REPLAY":
            return _stored_result(reply[1], reply[2])
        if reply[0] == "CONFLICT":
            return Conflict(reply[1])
        return Committed(int(reply[1]), bool(reply[2]), _stored_events(reply[3]))

    async def anchor(self, account_id: int, version: str, triggers: Mapping[str, Trigger]) -> bool | None:
        """Replace the triggers of an account that was evaluated and found healthy.

        Returns
        -------
        bool or None
            Whether one is crossed by the mark now in force; None when the account is no longer at ``version``.
        """
        fields = json.dumps(_trigger_fields(triggers))
        reply = await self.run(_ANCHOR, self._partition(account_id), self.partitions, account_id, version, fields)
        return None if reply[0] == "CONFLICT" else bool(reply[1])

    async def pending(self, account_id: int) -> tuple[StoredEvent, ...]:
        """Events of the account that history may not have yet, oldest first, at most 200."""
        name = self.key(self._partition(account_id), f"pending:{account_id}")
        entries = await self.twice(lambda redis: redis.lrange(name, 0, 199))
        return _stored_events(entries)

    async def pending_accounts(self, partition: int, limit: int) -> tuple[int, ...]:
        """Accounts with pending events, longest waiting first."""
        name = self.key(partition, "pending")
        members = await self.twice(lambda redis: redis.zrange(name, 0, limit - 1))
        return tuple(int(member) for member in members)

    async def pending_stats(self) -> tuple[int, float]:
        """How many accounts wait for history, and for how many seconds the longest of them."""
        return await self.twice(self._pending_stats)

    async def forget_pending(self, account_id: int, event_ids: Sequence[int]) -> None:
        """Take stored events off the head of the pending list."""
        partition = self._partition(account_id)
        marker = keys.marker(partition, self.partitions)
        await self.twice(lambda redis: _FORGET.run(redis, marker, account_id, *event_ids))

    async def page(self, partition: int, cursor: str) -> AccountPage:
        """Read some accounts of a partition; start and end with cursor "0". One can be seen twice, none is missed."""
        reply = await self.ask(_PAGE, partition, self.partitions, cursor, ACCOUNTS_PER_PAGE)
        return AccountPage(cursor=reply[1], rows=tuple(_account_row(*row) for row in reply[2]))

    async def versions(self, account_ids: Sequence[int]) -> dict[int, str]:
        """Versions of accounts, without a look at the marker; all must be of one partition."""
        if not account_ids:
            return {}
        name = self.key(self._partition(account_ids[0]), "versions")
        fields = [str(account_id) for account_id in account_ids]
        found = await self.twice(lambda redis: redis.hmget(name, fields))
        return {account_id: version or "" for account_id, version in zip(account_ids, found, strict=True)}

    async def size(self, partition: int) -> int:
        """Count the accounts of a partition, without a look at the marker."""
        name = self.key(partition, "versions")
        return int(await self.twice(lambda redis: redis.hlen(name)))

    async def load(
        self,
        row: HistoryAccount,
        keys_: Sequence[HistoryKey],
        triggers: Mapping[str, Trigger],
        *,
        expected_version: str,
        forked_event_id: int | None = None,
    ) -> Loaded:
        """Replace an account by what history holds, without a look at the marker.

        Returns
        -------
        Loaded
            CHANGED when the account is no longer at ``expected_version``, HEALED_BEFORE when ``forked_event_id`` does
            not wait any more; nothing was written then.
        """
        account = row.account
        payload = {
            "account_id": str(account.account_id),
            "expected_version": expected_version,
            "forked_event_id": "" if forked_event_id is None else str(forked_event_id),
            "version": row.version,
            "chain_hash": row.chain_hash,
            "balance": plain(account.balance),
            "positions": [_position_fields(symbol, account) for symbol in account.positions],
            "triggers": _trigger_fields(triggers),
            "keys": [[key.key, _record(key), str(_ttl_ms(key.ttl_s))] for key in keys_],
        }
        marker = keys.marker(self._partition(account.account_id), self.partitions)
        async with redis_errors():
            reply = await _LOAD.run(self.redis, marker, json.dumps(payload))
        return _LOADED[reply[0]]

    async def save_report(self, snapshot_id: str, chunks: Mapping[str, str], ttl_s: int) -> None:
        """Keep a report in partition 0 until it expires."""
        name = self.key(0, f"report:{snapshot_id}")

        async def save(redis: Any) -> None:
            async with redis.pipeline(transaction=False) as pipeline:
                pipeline.hset(name, mapping=dict(chunks))
                pipeline.expire(name, ttl_s)
                await pipeline.execute()

        await self.twice(save)

    async def report_chunk(self, snapshot_id: str, chunk: str) -> str | None:
        """One part of a kept report; None when it has expired."""
        name = self.key(0, f"report:{snapshot_id}")
        packed: str | None = await self.twice(lambda redis: redis.hget(name, chunk))
        return packed

    async def _pending_stats(self, redis: Any) -> tuple[int, float]:
        waiting, age_s = 0, 0.0
        now_s, now_us = await redis.time()
        for partition in range(self.partitions):
            name = self.key(partition, "pending")
            waiting += await redis.zcard(name)
            for _, oldest_us in await redis.zrange(name, 0, 0, withscores=True):
                age_s = max(age_s, now_s + (now_us - oldest_us) / _MICROSECONDS_PER_S)
        return waiting, age_s

    def _partition(self, account_id: int) -> int:
        return keys.partition_of(account_id, self.partitions)


def _market_and_positions(rows: list[list[str]], now_us: int) -> tuple[Market, dict[str, Position]]:
    marks: dict[str, Mark] = {}
    instruments: dict[str, Instrument] = {}
    positions: dict[str, Position] = {}
    for symbol, quantity, entry_cost, price, stamp, instrument in rows:
        if quantity:
            positions[symbol] = Position(symbol, Decimal(quantity), Decimal(entry_cost))
        if price:
            marks[symbol] = Mark(Decimal(price), int(stamp))
        if instrument:
            instruments[symbol] = parse_instrument(instrument)
    return Market(marks, instruments, now_us), positions


def _account_row(account_id: str, balance: str, version: str, positions: list[list[str]]) -> AccountRow:
    held = {symbol: Position(symbol, Decimal(quantity), Decimal(cost)) for symbol, quantity, cost in positions}
    return AccountRow(version, Account(int(account_id), Decimal(balance), held))


def _position_fields(symbol: str, account: Account) -> list[str]:
    position = account.positions.get(symbol)
    if position is None:
        return [symbol, ""]
    return [symbol, plain(position.quantity), plain(position.entry_price), plain(position.entry_cost)]


def _trigger_fields(triggers: Mapping[str, Trigger]) -> list[list[str]]:
    """Scores as text that reads back as the very same double."""
    return [[trigger.symbol, str(trigger.side), repr(trigger.score)] for trigger in triggers.values()]


def _stored_events(entries: Sequence[str]) -> tuple[StoredEvent, ...]:
    split = (entry.partition(" ") for entry in entries)
    return tuple(StoredEvent(int(event_id), body) for event_id, _, body in split)


def _stored_result(record: str, pending: Sequence[str]) -> StoredResult:
    event_id, request_hash, result = record.split("\n", 2)
    return StoredResult(int(event_id), request_hash, result, _stored_events(pending))


def _record(key: HistoryKey) -> str:
    return f"{key.event_id}\n{key.request_hash}\n{key.result}"


def _ttl_ms(ttl_s: float) -> int:
    return max(1, int(ttl_s * 1000))
