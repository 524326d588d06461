"""The write path: how an event of an account happens, once, and gets into history.

1. Read the account from Redis, in one round trip; meanwhile reserve a connection to history.
2. Settle the account's funding and decide, with the domain alone.
3. Commit in Redis, in one round trip, if nothing that the decision used has changed.
4. Append to history, in one round trip, then take the event off the pending list.

Where Redis alone acknowledges (HISTORY=drain) step 4 is left to the drain, and no connection to history is taken.

A step that fails leaves nothing half done: before the commit nothing was written; after it the event waits on the
pending list, where the next event of the account or the drain picks it up, and the caller is told that it is not
final yet.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING

from margin.caller import ENGINE, Caller
from margin.domain.decimals import plain
from margin.domain.event import (
    AcknowledgedBy,
    Event,
    EventType,
    StoredEvent,
    canonical,
    digest,
    funding_entries,
    ledger_entries,
    parse_version,
    position_changes,
)
from margin.domain.funding import FundingSettlement, settle_funding
from margin.domain.ledger import balanced
from margin.domain.margin_warning import MarginWarnings
from margin.domain.safe_zone import triggers
from margin.errors import (
    ContentionError,
    HistoryForkError,
    IdempotencyKeyReusedError,
    MarginError,
    NotFoundError,
    OutcomeUnknownError,
    RateLimitedError,
    RedisRefusedError,
    RedisUnavailableError,
    RefusedError,
    StateNotLoadedError,
    UnavailableError,
)
from margin.observability import MetricName, count, logger
from margin.ports import AccountStore, AccountView, Commit, Committed, Conflict, RateLimit, StoredResult
from margin.ports.history import Appended, History, HistoryWriter, ReadAt
from margin.services.rate_limits import NO_LIMITS, RateLimits

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from decimal import Decimal

    from margin.domain.account import Account
    from margin.domain.ledger import LedgerLine
    from margin.services.healing import HealingService

COMMIT_ATTEMPTS_MAX = 16
REPLY_LOST = Conflict("reply lost")
_BACKOFF_S = 0.002
_BACKOFF_MAX_S = 0.05
_MADE_KEY_TTL_S = 3600
_TELL_OF_MARGIN = frozenset({EventType.MARGIN_WARNING, EventType.LIQUIDATION})
"""After these an account needs no further warning that it is short of margin."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WriteRequest:
    """Who wants what: the account, the caller's idempotency key if there is one, and what the key stands for.

    ``fields`` are the request's values in one canonical form; their hash tells a retry from another request under the
    same key. Without a ``caller`` it is the engine's own.
    """

    account_id: int
    fields: Mapping[str, str]
    key: str | None = None
    symbol: str = ""
    caller: Caller = ENGINE

    @property
    def request_hash(self) -> str:
        """Hash of the request."""
        return digest(canonical(dict(self.fields)))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What is to happen: the account after it, the money that moves, the record of it, and the answer.

    ``marks`` are mark prices without which it must not happen; a trade needs none, for it was tested against its own
    moment.
    """

    type: EventType
    account: Account
    ledger_lines: Sequence[LedgerLine]
    detail: Mapping[str, object]
    result: Mapping[str, object]
    marks: Mapping[str, Decimal] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """What happened.

    ``final``: the event is where it has to be before a caller is told that it is done. ``replayed``: it had happened
    before. ``crossed``: a mark price already crosses one of the account's new triggers, so it must be evaluated at
    once.
    """

    event_id: int
    result: Mapping[str, object]
    final: bool
    replayed: bool = False
    crossed: bool = False


class Journal:
    """Executes decisions about accounts.

    Parameters
    ----------
    accounts : AccountStore
        Hot state.
    history : History
        Where events are final.
    healing : HealingService
        Undoes what history refuses.
    idempotency_ttl_s : int
        How long a caller's key is remembered.
    acknowledged_by : AcknowledgedBy
        Where an event has to be before its caller is told that it is done.
    warnings : MarginWarnings
        From when on accounts are warned.
    limits : RateLimits
        How many requests callers may send.
    idempotency_keys_max : int
        How many keys of callers an account may have within ``idempotency_ttl_s``; 0 for any number.
    """

    def __init__(
        self,
        accounts: AccountStore,
        history: History,
        healing: HealingService,
        *,
        idempotency_ttl_s: int,
        acknowledged_by: AcknowledgedBy = AcknowledgedBy.HISTORY,
        warnings: MarginWarnings | None = None,
        limits: RateLimits = NO_LIMITS,
        idempotency_keys_max: int = 0,
    ) -> None:
        self._warnings = warnings or MarginWarnings()
        self._limits = limits
        self._idempotency_keys_max = idempotency_keys_max
        self._accounts = accounts
        self._history = history
        self._healing = healing
        self._idempotency_ttl_s = idempotency_ttl_s
        self._acknowledged_by = acknowledged_by

    async def execute(self, request: WriteRequest, decide: Callable[[AccountView], Decision | None]) -> Outcome | None:
        """Make ``decide`` happen exactly once for the request's key.

        Parameters
        ----------
        request : WriteRequest
            Whose event it is, and under which key.
        decide : callable
            A pure function of the account as it is; raises to refuse, answers None when there is nothing to do. It is
            called again when the account changed before its decision could be committed.

        Returns
        -------
        Outcome or None
            None only when ``decide`` said so.

        Raises
        ------
        PostgresUnavailableError, RedisUnavailableError, StateNotLoadedError
            Nothing was written.
        OutcomeUnknownError
            The commit's reply was lost and Redis cannot be asked; the same key asks again.
        IdempotencyKeyReusedError
            The key stands for another request.
        ContentionError
            Others changed the account each time, 16 times in a row.
        HistoryForkError
            History holds another event in this place; the event was undone.
        RateLimitedError
            The account or the caller sends too many requests, or the account has too many keys.
        """
        key = request.key or uuid.uuid4().hex
        limits = self._limits.of(request.caller, request.account_id)
        if self._acknowledged_by is AcknowledgedBy.REDIS:
            return await self._attempt(request, key, await self._read(request, key, limits), decide, None)
        reading = asyncio.ensure_future(self._read(request, key, limits))
        try:
            async with self._history.reserve() as writer:
                return await self._attempt(request, key, await reading, decide, writer)
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _attempt(
        self,
        request: WriteRequest,
        key: str,
        view: AccountView,
        decide: Callable[[AccountView], Decision | None],
        writer: HistoryWriter | None,
    ) -> Outcome | None:
        lost = False
        for attempt in range(COMMIT_ATTEMPTS_MAX):
            if view.replay is not None:
                # After a lost reply it is this very request that is replayed: nobody has looked at its triggers.
                return await self._replay(request, key, view, view.replay, writer, crossed=lost)
            try:
                settled, settlement = settled_view(view)
                decision = decide(settled)
                if decision is None and not lost:
                    return None
                if decision is None:
                    raise _unknown(key)
                reply = await self._commit(request, key, view, decision, settlement)
                if isinstance(reply, StoredResult):
                    return await self._replay(request, key, view, reply, writer, crossed=True)
                if isinstance(reply, Committed):
                    outcome = Outcome(reply.event_id, decision.result, final=False, crossed=reply.crossed)
                    return await self._finish(request, key, view.epoch, outcome, reply.pending, writer)
                count(MetricName.COMMIT_CONFLICTS)
                lost = lost or reply == REPLY_LOST
                await asyncio.sleep(_backoff_s(attempt))
                view = await self._read(request, key)
            except (RefusedError, NotFoundError, RateLimitedError, UnavailableError) as error:
                # A commit whose reply was lost may still run: until it is seen to have, "no" would be a lie.
                if lost:
                    raise _unknown(key) from error
                return await self._recall_or_raise(request, writer, error)
        if lost:
            raise _unknown(key)
        message = "The account kept changing while the request was being decided; try again."
        raise ContentionError(message)

    async def settle(
        self, pending: Mapping[int, Sequence[StoredEvent]], writer: HistoryWriter, *, epoch: int
    ) -> dict[int, Appended]:
        """Step 4 for pending events of some accounts of one partition, by account, read under ``epoch`` or a later one.

        Returns
        -------
        dict of int to Appended
            By account, what is in history now. What forked still waits; see `undo_fork`.

        Raises
        ------
        PostgresUnavailableError
        """
        events = [event for waiting in pending.values() for event in waiting]
        if not events:
            return {}
        partitions = self._accounts.partitions
        read_at = ReadAt(next(iter(pending)) % partitions, partitions, epoch)
        appended = await writer.append(events, read_at)
        with suppress(RedisUnavailableError, StateNotLoadedError):
            # Left on the list they are found to be in history by whoever looks next.
            await self._accounts.forget_pending(
                {account_id: taken.taken_of(pending[account_id]) for account_id, taken in appended.items()}
            )
        for account_id, taken in appended.items():
            if taken.blocked:
                count(MetricName.HISTORY_BLOCKED)
                event_id = taken.first_left(pending[account_id])
                logger.error("history_blocked", account_id=account_id, event_id=event_id, gap=taken.gap)
        return appended

    async def undo_fork(
        self, account_id: int, waiting: Sequence[StoredEvent], appended: Appended, writer: HistoryWriter
    ) -> None:
        """Put an account back to what history holds, if some of its events can never be stored.

        Raises
        ------
        ContentionError, PostgresUnavailableError, RedisUnavailableError
        """
        if appended.forked:
            await self._healing.heal(account_id, writer, forked_event_id=appended.first_left(waiting))

    async def _read(self, request: WriteRequest, key: str, limits: Sequence[RateLimit] = ()) -> AccountView:
        return await self._accounts.read(request.account_id, symbol=request.symbol, key=key, limits=limits)

    async def _commit(
        self,
        request: WriteRequest,
        key: str,
        view: AccountView,
        decision: Decision,
        settlement: FundingSettlement | None,
    ) -> Committed | StoredResult | Conflict:
        commit = self._build(request, key, view, decision, settlement)
        try:
            return await self._accounts.commit(commit)
        except RedisRefusedError:
            raise
        except RedisUnavailableError as error:
            # The script may have run and its reply been lost. Ask before anything else; and if it has not run,
            # whatever is tried next carries the same key, so that even a script that runs late is not joined by a
            # second one.
            try:
                asked = await self._read(request, key)
            except (RedisUnavailableError, StateNotLoadedError):
                raise _unknown(key) from error
            return asked.replay or REPLY_LOST

    def _build(
        self,
        request: WriteRequest,
        key: str,
        view: AccountView,
        decision: Decision,
        settlement: FundingSettlement | None,
    ) -> Commit:
        n, previous_event_id = parse_version(view.version)
        lines, payments = ((), ()) if settlement is None else (settlement.ledger_lines, settlement.payments)
        event = Event(
            type=decision.type,
            account_id=request.account_id,
            n=n + 1,
            previous_event_id=previous_event_id,
            previous_hash=view.chain_hash,
            at_us=view.market.now_us,
            key=key,
            acknowledged_by=self._acknowledged_by,
            request_hash=request.request_hash,
            subject=request.caller.subject,
            source_ip=request.caller.source_ip,
            balance=plain(decision.account.balance),
            positions=position_changes(view.account, decision.account),
            ledger=ledger_entries(balanced((*lines, *decision.ledger_lines))),
            detail=decision.detail,
            result=decision.result,
            funding=funding_entries(payments),
        )
        body = event.body()
        held = view.account.positions if view.account is not None else {}
        symbols = {request.symbol, *held, *decision.account.positions} - {""}
        told = view.warned or decision.type in _TELL_OF_MARGIN
        warnings, warned = self._warnings.triggers(decision.account, view.market, warned=told)
        return Commit(
            event=event,
            body=body,
            event_hash=digest(body),
            epoch=view.epoch,
            expected_version=view.version,
            account=decision.account,
            triggers=triggers(decision.account, view.market),
            warnings=warnings,
            warned=warned,
            instrument_versions={symbol: view.market.instrument_version(symbol) for symbol in sorted(symbols)},
            funding={symbol: view.market.funding_of(symbol).n for symbol in sorted(symbols)},
            controls=view.controls,
            hold=view.hold,
            marks=decision.marks,
            waiting={symbol: price for symbol, price in view.market.waiting.items() if symbol in decision.marks},
            result=canonical(dict(decision.result)),
            key_ttl_s=self._key_ttl_s(request),
            wants_pending=self._acknowledged_by is AcknowledgedBy.HISTORY,
            keys_max=0 if request.caller is ENGINE else self._idempotency_keys_max,
            keys_max_binds=not _relieves(decision, view.account),
        )

    def _key_ttl_s(self, request: WriteRequest) -> int:
        """For how long Redis remembers the key: one that was made is named to a caller who has to ask again."""
        if request.key or self._acknowledged_by is AcknowledgedBy.REDIS:
            return self._idempotency_ttl_s
        return _MADE_KEY_TTL_S

    async def _replay(
        self,
        request: WriteRequest,
        key: str,
        view: AccountView,
        replay: StoredResult,
        writer: HistoryWriter | None,
        *,
        crossed: bool,
    ) -> Outcome:
        """Answer what the key did, after completing step 4 for it."""
        _check_same_request(request, replay)
        outcome = Outcome(replay.event_id, json.loads(replay.result), final=True, replayed=True, crossed=crossed)
        # What is pending is the end of the chain, and ids rise along it; only the oldest of a long list are here.
        if not replay.pending or replay.event_id < replay.pending[0].event_id:
            return outcome
        return await self._finish(request, key, view.epoch, outcome, replay.pending, writer)

    async def _finish(
        self,
        request: WriteRequest,
        key: str,
        epoch: int,
        outcome: Outcome,
        pending: Sequence[StoredEvent],
        writer: HistoryWriter | None,
    ) -> Outcome:
        """Step 4 for an event and all that waits before it."""
        account_id, event_id = request.account_id, outcome.event_id
        if writer is None:
            return dataclasses.replace(outcome, final=_redis_may_acknowledge(event_id, pending))
        try:
            appended = (await self.settle({account_id: pending}, writer, epoch=epoch))[account_id]
            await self.undo_fork(account_id, pending, appended, writer)
            gone = (appended.forked or appended.fenced) and event_id not in appended.stored
            if gone and not await self._accounts.is_pending(account_id, event_id):
                # Another may have stored it before it left the list.
                body = next((event.body for event in pending if event.event_id == event_id), None)
                if body is None or await writer.has_event(account_id, event_id, digest(body)):
                    return dataclasses.replace(outcome, final=body is not None)
                return await self._undone(request, key, writer, by_key=appended.key_used_by == event_id)
        except (UnavailableError, ContentionError) as error:
            count(MetricName.HISTORY_PENDING)
            logger.warning("history_pending", account_id=account_id, event_id=event_id, code=error.code)
            return dataclasses.replace(outcome, final=False)
        return dataclasses.replace(outcome, final=event_id in appended.stored)

    async def _undone(self, request: WriteRequest, key: str, writer: HistoryWriter, *, by_key: bool) -> Outcome:
        """Answer for an event that history refused: what its key did before, if that is why; else that it is gone.

        Redis forgets a key after some time, or with what it loses; history does not: a key is executed once for ever.
        """
        recalled = await self._recall(request, key, writer) if by_key else None
        if recalled is None:
            message = "The request was undone: history took another way before it got there. Retry it."
            raise HistoryForkError(message)
        return recalled

    async def _recall_or_raise(
        self, request: WriteRequest, writer: HistoryWriter | None, error: MarginError
    ) -> Outcome:
        """Answer a request that was refused with what its key did before; else refuse it.

        What Redis has forgotten was executed all the same, and "no" would be a lie.
        """
        if not isinstance(error, UnavailableError) and writer is not None and request.key is not None:
            recalled = await self._recall(request, request.key, writer)
            if recalled is not None:
                return recalled
        raise error

    @staticmethod
    async def _recall(request: WriteRequest, key: str, writer: HistoryWriter) -> Outcome | None:
        """Answer what a key did before, as far as history knows; None when nothing."""
        stored = await writer.result(request.account_id, key)
        if stored is None:
            return None
        _check_same_request(request, stored)
        return Outcome(stored.event_id, json.loads(stored.result), final=True, replayed=True)


def _relieves(decision: Decision, before: Account | None) -> bool:
    """Whether nothing of a decision can add risk: money comes in, or positions only get smaller."""
    held = before.positions if before is not None else {}
    after = decision.account.positions
    shrinks = all(
        symbol in held
        and abs(position.quantity) <= abs(held[symbol].quantity)
        and (position.quantity > 0) == (held[symbol].quantity > 0)
        for symbol, position in after.items()
    )
    return decision.type is EventType.DEPOSIT or (decision.type is EventType.TRADE and shrinks)


def _redis_may_acknowledge(event_id: int, pending: Sequence[StoredEvent]) -> bool:
    """Whether nothing waits up to an event that only history can acknowledge, and could still refuse with all after it.

    ``pending`` is the oldest of what waits; an event that is not among it has something before it that nobody sees.
    """
    before = [event for event in pending if event.event_id <= event_id]
    if pending and (not before or before[-1].event_id != event_id):
        return False
    return all(json.loads(event.body)["acknowledged_by"] != AcknowledgedBy.HISTORY for event in before)


def _unknown(key: str) -> OutcomeUnknownError:
    return OutcomeUnknownError(
        f"Redis did not say whether the request was executed. Retry it with Idempotency-Key: {key}"
    )


def settled_view(view: AccountView) -> tuple[AccountView, FundingSettlement | None]:
    """Return an account as every decision finds it, its funding settled, and what that moved."""
    if view.account is None:
        return view, None
    settlement = settle_funding(view.account, view.market)
    if not settlement.payments:
        return view, None
    return dataclasses.replace(view, account=settlement.account), settlement


def _check_same_request(request: WriteRequest, replay: StoredResult) -> None:
    if replay.request_hash != request.request_hash:
        message = "This Idempotency-Key was used for another request; use a new key for a new request."
        raise IdempotencyKeyReusedError(message)


def _backoff_s(attempt: int) -> float:
    """Full jitter, growing: those who lost a race meet again at different times."""
    return random.uniform(0, min(_BACKOFF_MAX_S, _BACKOFF_S * 2**attempt))  # noqa: S311 - no secret is made of it
