"""Accounts in Redis: balances, positions, versions, pending events, idempotency results."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from margin.clients import keys
from margin.clients.account_format import (
    account_row,
    anchor_fields,
    commit_fields,
    entry_digest,
    key_record,
    load_fields,
    market_of,
    positions_of,
    remembered_key,
    stored_events,
    stored_result,
    trigger_of,
    ttl_ms,
)
from margin.clients.base_redis import BaseRedisClient, Script, redis_errors
from margin.clients.rate_limit_format import limits_text, require_unlimited, too_many_keys
from margin.domain.account import Account
from margin.ports import (
    AccountLoad,
    AccountPage,
    AccountView,
    Anchor,
    Commit,
    CommitReply,
    Committed,
    Conflict,
    CrossedAccounts,
    Dropped,
    IndexedAccount,
    Loaded,
    RateLimit,
    SweepPage,
    SweepProgress,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from margin.domain.event import StoredEvent
    from margin.domain.safe_zone import Trigger, TriggerSide
    from margin.ports.history import HistoryKey, RememberedKey


ACCOUNTS_PER_PAGE = 200
_MICROSECONDS_PER_S = 1_000_000

KEYS_PER_PAGE = 1000
"""How many keys of all kinds one page of a search for idempotency keys looks at."""

PENDING_SHOWN_MAX = 200
"""How many of an account's pending events are read at once; the scripts name it too."""

_LOADED = {
    "OK": Loaded.DONE,
    "CONFLICT": Loaded.CHANGED,
    "GONE": Loaded.HEALED_BEFORE,
    "TAKEN_OVER": Loaded.TAKEN_OVER,
}
_DROPPED = {"OK": Dropped.DONE, "PENDING": Dropped.PENDING, "TAKEN_OVER": Dropped.TAKEN_OVER}

_READ = Script("read_account")
_COMMIT = Script("commit")
_ANCHOR = Script("anchor")
_FORGET = Script("forget_pending")
_PENDING_HOLDS = Script("pending_holds")
_PAGE = Script("page_accounts")
_LOAD = Script("load_account")
_RESTORE_KEYS = Script("restore_keys")
_DROP = Script("drop_account")
_SWEEP = Script("sweep_accounts")
_CROSSED = Script("crossed_accounts")
_TO_WARN = Script("accounts_to_warn")
_HOLD = Script("hold_account")
_CROSS = Script("cross_account")
_FORGET_KEYS = Script("forget_keys")


class AccountRedisClient(BaseRedisClient):
    """Account-specific operations; one script, one round trip each."""

    async def read(
        self, account_id: int, *, symbol: str = "", key: str = "", limits: Sequence[RateLimit] = ()
    ) -> AccountView:
        """Read an account with its positions and with the marks, instruments and pause switches that concern it.

        Parameters
        ----------
        account_id : int
            Which account.
        symbol : str
            A symbol to read beside those of the positions.
        key : str
            An idempotency key whose stored result is wanted.
        limits : sequence of RateLimit
            How often this may be asked: counted in the same step, unless one of them forbids it.

        Raises
        ------
        RateLimitedError
            Nothing was read or counted.
        StateNotLoadedError, RedisUnavailableError
        """
        partition, limited = self._partition(account_id), limits_text(limits)
        reply = await self.ask(_READ, partition, self.partitions, account_id, symbol, key, limited)
        require_unlimited(reply)
        _, epoch, now_us, balance, version, chain_hash, rows, controls, record, pending, hold, warned = reply
        market = market_of([row[1] for row in rows], int(now_us))
        positions = positions_of([row[0] for row in rows])
        account = Account(account_id, Decimal(balance), positions) if version else None
        return AccountView(
            epoch=int(epoch),
            account=account,
            version=version,
            chain_hash=chain_hash,
            market=market,
            controls=dict(controls),
            hold=hold,
            warned=bool(warned),
            replay=stored_result(record, pending) if record else None,
        )

    async def commit(self, commit: Commit) -> CommitReply:
        """Commit one event, or learn that it happened already, or that something it relied on has changed.

        Raises
        ------
        StateNotLoadedError
            Nothing was written.
        RedisUnavailableError
            Unknown: the caller must ask by the commit's key.
        RateLimitedError
            The account has as many keys as it may; nothing was written.
        """
        reply = await self.run(
            _COMMIT, self._partition(commit.event.account_id), self.partitions, json.dumps(commit_fields(commit))
        )
        if reply[0] == "TOO_MANY_KEYS":
            raise too_many_keys(commit.keys_max, int(reply[1]))
        if reply[0] == "REPLAY":
            return stored_result(reply[1], reply[2])
        if reply[0] == "CONFLICT":
            return Conflict(reply[1])
        return Committed(int(reply[1]), bool(reply[2]), stored_events(reply[3]))

    async def anchor(self, anchor: Anchor, *, epoch: int | None = None) -> bool | None:
        """Replace the triggers of an account that was evaluated and found healthy, in ``epoch`` where one is given.

        Returns
        -------
        bool or None
            Whether one of liquidation is crossed by the mark now in force; None when the account is no longer at the
            anchor's version, or the rules of its symbols are others than the anchor was made for.
        """
        fields = anchor_fields(anchor, epoch)
        reply = await self.run(_ANCHOR, self._partition(anchor.account_id), self.partitions, *fields)
        return None if reply[0] == "CONFLICT" else bool(reply[1])

    async def anchor_all(self, partition: int, anchors: Sequence[Anchor], *, epoch: int) -> list[bool | None]:
        """Do what `anchor` does for accounts of one partition, each by itself, in one round trip after the first.

        Raises
        ------
        StateNotLoadedError, RedisUnavailableError
        """
        calls = [(self.partitions, *anchor_fields(anchor, epoch)) for anchor in anchors]
        # One that is repeated finds another version, or puts the same triggers in place.
        replies = await self.ask_each(_ANCHOR, partition, calls) if calls else []
        return [None if reply[0] == "CONFLICT" else bool(reply[1]) for reply in replies]

    async def pending(self, account_ids: Sequence[int]) -> dict[int, tuple[StoredEvent, ...]]:
        """Events of accounts of one partition that history may not have yet, oldest first, at most 200 of each.

        One round trip; accounts without such an event are left out.
        """
        if not account_ids:
            return {}
        partition = self._partition(account_ids[0])

        async def read(redis: Any) -> list[list[str]]:
            async with redis.pipeline(transaction=False) as pipeline:
                for account_id in account_ids:
                    pipeline.lrange(self.key(partition, f"pending:{account_id}"), 0, PENDING_SHOWN_MAX - 1)
                entries: list[list[str]] = await pipeline.execute()
            return entries

        found = zip(account_ids, await self.twice(read), strict=True)
        return {account_id: stored_events(entries) for account_id, entries in found if entries}

    async def is_pending(self, account_id: int, event_id: int) -> bool:
        """Whether an event waits on the account's pending list, however long that is."""
        marker = keys.marker(self._partition(account_id), self.partitions)
        reply = await self.twice(lambda redis: _PENDING_HOLDS.run(redis, marker, account_id, event_id))
        return bool(reply[1])

    async def pending_accounts(self, partition: int, limit: int) -> tuple[int, ...]:
        """Accounts with pending events, longest waiting first."""
        name = self.key(partition, "pending")
        members = await self.twice(lambda redis: redis.zrange(name, 0, limit - 1))
        return tuple(int(member) for member in members)

    async def pending_stats(self) -> tuple[int, float]:
        """How many accounts wait for history, and for how many seconds the longest of them."""
        return await self.twice(self._pending_stats)

    async def forget_pending(self, stored: Mapping[int, Sequence[StoredEvent]]) -> None:
        """Take stored events of accounts of one partition off the heads of their pending lists."""
        taken = [[str(account_id), [entry_digest(event) for event in events]] for account_id, events in stored.items()]
        if not taken:
            return
        marker = keys.marker(self._partition(int(next(iter(stored)))), self.partitions)
        await self.twice(lambda redis: _FORGET.run(redis, marker, json.dumps(taken)))

    async def epoch(self, partition: int) -> int:
        """Epoch in the marker of a partition; 0 while it has none."""
        name = keys.marker(partition, self.partitions)
        return int(await self.twice(lambda redis: redis.hget(name, "epoch")) or "0")

    async def blocked(self, partition: int) -> dict[int, int]:
        """How often in vain it was tried to store the next event, by account; only accounts where it was."""
        name = self.key(partition, "blocked")
        tries = await self.twice(lambda redis: redis.hgetall(name))
        return {int(account_id): int(times) for account_id, times in tries.items()}

    async def note_blocked(self, account_id: int) -> int:
        """Count one more try in vain; how many that makes."""
        name = self.key(self._partition(account_id), "blocked")
        # A try counted twice because a connection died only calls for somebody a little earlier.
        return int(await self.twice(lambda redis: redis.hincrby(name, account_id, 1)))

    async def hold(self, account_id: int, for_s: float) -> str:
        """Let nothing commit on an account for so long; what names this hold."""
        marker = keys.marker(self._partition(account_id), self.partitions)
        for_us = int(for_s * _MICROSECONDS_PER_S)
        reply = await self.twice(lambda redis: _HOLD.run(redis, marker, account_id, for_us))
        return str(reply[1])

    async def release(self, account_id: int, hold: str) -> None:
        """End this hold, unless another has taken its place."""
        marker = keys.marker(self._partition(account_id), self.partitions)
        await self.twice(lambda redis: _HOLD.run(redis, marker, account_id, 0, hold))

    async def page(self, partition: int, cursor: str) -> AccountPage:
        """Read some accounts of a partition; start and end with cursor "0". One can be seen twice, none is missed."""
        reply = await self.ask(_PAGE, partition, self.partitions, cursor, ACCOUNTS_PER_PAGE)
        return AccountPage(cursor=reply[1], rows=tuple(account_row(*row) for row in reply[2]))

    async def sweep(self, partition: int, cursor: str) -> SweepPage:
        """Read some accounts with their triggers and their market, all of one moment; start and end with "0".

        Raises
        ------
        StateNotLoadedError, RedisUnavailableError
        """
        return _sweep_page(await self.ask(_SWEEP, partition, self.partitions, cursor, ACCOUNTS_PER_PAGE))

    async def holders(self, partition: int, symbol: str, side: TriggerSide, cursor: str) -> SweepPage:
        """Read some accounts that hold a symbol on one side, as `sweep` does, those furthest from their trigger first.

        The cursor is a place in the index: who moves in it meanwhile can be seen twice or not at all.

        Raises
        ------
        StateNotLoadedError, RedisUnavailableError
        """
        where = (self.partitions, cursor, ACCOUNTS_PER_PAGE, symbol, str(side))
        return _sweep_page(await self.ask(_SWEEP, partition, *where))

    async def scan_holders(self, partition: int, symbol: str, side: TriggerSide, cursor: str) -> SweepPage:
        """Read some accounts that hold a symbol on one side; start and end with "0".

        One can be seen twice; none is missed that held it all the while.

        Raises
        ------
        StateNotLoadedError, RedisUnavailableError
        """
        where = (self.partitions, cursor, ACCOUNTS_PER_PAGE, symbol, str(side), "scan")
        return _sweep_page(await self.ask(_SWEEP, partition, *where))

    async def to_warn(self, partition: int, limit: int) -> tuple[int, ...]:
        """Accounts of which a mark in force crosses a trigger of the warning, at most ``limit`` of each symbol.

        Raises
        ------
        StateNotLoadedError, RedisUnavailableError
        """
        _, named = await self.ask(_TO_WARN, partition, self.partitions, limit)
        return tuple(dict.fromkeys(int(account_id) for account_id in named))

    async def sweep_progress(self, partition: int) -> SweepProgress:
        """Read how far the sweep of a partition has got."""
        name = self.key(partition, "sweep")
        cursor, at_us = await self.twice(lambda redis: redis.hmget(name, ["cursor", "at_us"]))
        return SweepProgress(cursor or "0", int(at_us or 0))

    async def note_sweep(self, partition: int, progress: SweepProgress) -> None:
        """Note how far the sweep of a partition has got."""
        name = self.key(partition, "sweep")
        fields = {"cursor": progress.cursor, "at_us": progress.at_us}
        await self.twice(lambda redis: redis.hset(name, mapping=fields))

    async def crossed(self, partition: int, limit: int, passed: int) -> CrossedAccounts:
        """Accounts of which a mark in force crosses a trigger, those furthest beyond first.

        Parameters
        ----------
        partition : int
        limit, passed : int
            How many to name for each symbol, after passing over how many.

        Returns
        -------
        CrossedAccounts
            Only symbols with some.

        Raises
        ------
        StateNotLoadedError, RedisUnavailableError
        """
        _, crossed, oldest_us, now_us = await self.ask(_CROSSED, partition, self.partitions, limit, passed)
        by_symbol = {symbol: tuple(int(account_id) for account_id in named) for symbol, named in crossed}
        return CrossedAccounts(by_symbol, int(now_us) - int(oldest_us) if oldest_us else 0)

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

    async def load(self, load: AccountLoad) -> Loaded:
        """Replace an account by what history holds, without a look at the marker; see `load_all`."""
        (loaded,) = await self.load_all([load])
        return loaded

    async def load_all(self, loads: Sequence[AccountLoad]) -> list[Loaded]:
        """Replace accounts of one partition by what history holds, without a look at the marker.

        One script for each, in one round trip after the first; each is all or nothing by itself.

        Returns
        -------
        list of Loaded
            CHANGED where the account is no longer at the expected version, HEALED_BEFORE where the forked event does
            not wait any more, TAKEN_OVER where the guard is not in force; nothing was written then.
        """
        if not loads:
            return []
        marker = keys.marker(self._partition(loads[0].row.account.account_id), self.partitions)
        # A loading that is repeated finds another version: it is CHANGED, or ends at the same state.
        async with redis_errors():
            replies = await _LOAD.run_each(self.redis, marker, [[json.dumps(load_fields(load))] for load in loads])
        return [_LOADED[reply[0]] for reply in replies]

    async def restore_keys(self, load: AccountLoad, restored: Sequence[HistoryKey]) -> list[str] | None:
        """Put further keys back before the account is loaded, under the same conditions but for the forked event.

        Returns
        -------
        list of str or None
            Those whose events wait as well, which the loading has to leave alone; None where it is not to be loaded any
            more, and nothing was written.
        """
        marker = keys.marker(self._partition(load.row.account.account_id), self.partitions)
        conditions = (load.row.account.account_id, load.guard, load.expected_version)
        fields = [field for key in restored for field in (key.key, key_record(key), ttl_ms(key.ttl_s))]
        reply = await self.twice(lambda redis: _RESTORE_KEYS.run(redis, marker, *conditions, *fields))
        return [str(key) for key in reply[1]] if reply[0] == "OK" else None

    async def drop(self, account_id: int, partition: int, guard: str) -> Dropped:
        """Remove an account from a partition while the guard is in force, but never one with pending events."""
        marker = keys.marker(partition, self.partitions)
        reply = await self.twice(lambda redis: _DROP.run(redis, marker, account_id, guard))
        return _DROPPED[reply[0]]

    async def cross(self, account_id: int, guard: str) -> bool:
        """Let every price cross an account's triggers, so that it is evaluated; False without the guard in force."""
        marker = keys.marker(self._partition(account_id), self.partitions)
        reply = await self.twice(lambda redis: _CROSS.run(redis, marker, account_id, guard))
        return bool(reply[0] == "OK")

    async def ids(self, partition: int, cursor: str) -> tuple[str, tuple[int, ...]]:
        """Ids of some accounts of a partition and the next cursor ("0" begins and ends), whatever the marker says."""
        name = self.key(partition, "versions")
        next_cursor, found = await self.twice(lambda redis: redis.hscan(name, int(cursor), count=ACCOUNTS_PER_PAGE))
        return str(next_cursor), tuple(int(account_id) for account_id in found)

    async def remembered_keys(
        self, partition: int, cursor: str, *, account_id: int | None = None
    ) -> tuple[str, list[RememberedKey]]:
        """Page through the idempotency keys of a partition, or of one of its accounts; cursor "0" begins and ends.

        It goes through all keys of the server, which the request path never does.
        """
        start = self.key(partition, "idempotency:")
        pattern = f"{start}*" if account_id is None else f"{start}{account_id}:*"

        async def read(redis: Any) -> tuple[str, list[str], list[str | None]]:
            next_cursor, names = await redis.scan(int(cursor), match=pattern, count=KEYS_PER_PAGE)
            return str(next_cursor), names, await redis.mget(names) if names else []

        next_cursor, names, records = await self.twice(read)
        found = ((name.removeprefix(start), record) for name, record in zip(names, records, strict=True) if record)
        return next_cursor, [remembered_key(name, record) for name, record in found]

    async def forget_keys(self, partition: int, remembered: Sequence[RememberedKey], guard: str) -> int | None:
        """Remove idempotency keys, but of no account with pending events; how many, None without the guard in force."""
        if not remembered:
            return 0
        marker = keys.marker(partition, self.partitions)
        fields = [field for key in remembered for field in (key.account_id, key.key, key.event_id)]
        reply = await self.twice(lambda redis: _FORGET_KEYS.run(redis, marker, guard, *fields))
        return int(reply[1]) if reply[0] == "OK" else None

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


def _sweep_page(reply: list[Any]) -> SweepPage:
    _, next_cursor, rows, market, now_us = reply
    accounts = tuple(
        IndexedAccount(
            account_row(account_id, balance, version, [held[0] for held in positions]),
            _triggers(positions, 1),
            _triggers(positions, 3),
            bool(warned),
        )
        for account_id, balance, version, positions, warned in rows
    )
    return SweepPage(next_cursor, accounts, market_of(market, int(now_us)))


def _triggers(positions: list[Any], floor_at: int) -> dict[str, Trigger]:
    """Read the triggers of one index: floor and ceiling stand beside each position."""
    found = (trigger_of(held[0][0], *held[floor_at : floor_at + 2]) for held in positions)
    return {trigger.symbol: trigger for trigger in found if trigger is not None}
