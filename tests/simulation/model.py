"""What must be true, whatever goes wrong: the judge of every reply and of every step.

It knows the events that history has, derives money from them anew, and remembers what clients were told. Of Redis it
knows what was lost with it, because the simulation tells it when it takes Redis back.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from bisect import bisect_left
from collections import Counter, defaultdict
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from tests.simulation.arithmetic import Book, SeenMark, WrongError, require, same
from tests.simulation.asks import Kind
from tests.simulation.stores import KEY_TTL_S

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from margin.domain.event import StoredEvent
    from tests.simulation.asks import Ask, Reply
    from tests.simulation.stores import Stores

_TTL_US = KEY_TTL_S * 1_000_000
_NEVER_REFUSED = frozenset({Kind.DEPOSIT})


@dataclasses.dataclass(frozen=True, slots=True)
class Told:
    """A client was told that this is done."""

    account_id: int
    event_id: int
    hash: str
    ask: str
    at_us: int


@dataclasses.dataclass(frozen=True, slots=True)
class Loss:
    """When Redis lost an event, and whether anybody could notice."""

    at_us: int
    silent: bool


@dataclasses.dataclass(slots=True)
class Chain:
    """What was verified of an account's history."""

    book: Book = dataclasses.field(default_factory=Book)
    hashes: list[str] = dataclasses.field(default_factory=list)
    ids: list[int] = dataclasses.field(default_factory=list)
    by_id: dict[int, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    by_key: dict[str, list[tuple[int, int]]] = dataclasses.field(default_factory=lambda: defaultdict(list))

    @property
    def version(self) -> str:
        return f"{len(self.ids)}:{self.ids[-1]}" if self.ids else ""

    def has(self, event_id: int, hashed: str) -> bool:
        return event_id in self.by_id and hashed in self.hashes


@dataclasses.dataclass(frozen=True, slots=True)
class Before:
    """What could be seen when a request was sent: whatever still is so when it is answered was so all the time."""

    at_us: int
    versions: tuple[str, str]
    marks: Mapping[str, Decimal]
    indexes: Mapping[str, Decimal]
    switched: int
    disturbances: int


class Model:
    """Judges.

    Parameters
    ----------
    stores : Stores
        What is looked at; never changed.
    inline : bool
        Whether an event has to be in history before its caller is told that it is done; else in Redis.
    """

    def __init__(self, stores: Stores, *, inline: bool) -> None:
        self._stores = stores
        self._inline = inline
        self._seen: dict[int, tuple[object, ...]] = {}
        self.chains: dict[int, Chain] = defaultdict(Chain)
        self.told: list[Told] = []
        self.answers: dict[tuple[int, str, str], tuple[int, str, int]] = {}
        self.asked: dict[tuple[int, str], set[str]] = defaultdict(set)
        self.lost: dict[tuple[int, str], Loss] = {}
        self.astray: set[int] = set()
        self.went_back_us: list[int] = []
        self.disturbances = 0
        self.resurrected = 0
        self.verified = 0
        self._marks_from_us: list[int] = []
        self._marks: list[tuple[dict[str, SeenMark], dict[str, Decimal]]] = []
        self.paid: set[tuple[str, str]] = set()

    # What the simulation tells.

    def redis_goes_back(
        self, pending: Mapping[int, list[StoredEvent]], before: Mapping[int, str], *, silent: bool
    ) -> None:
        """Redis lost what it had; ``pending`` and ``before`` are what waited there and its versions until now."""
        redis = self._stores.redis
        self.disturbances += 1
        self.went_back_us.append(self._stores.clock.now_us)
        for account_id, events in pending.items():
            left = {(event.event_id, event.body) for event in redis.pending.get(account_id, [])}
            gone = [event for event in events if (event.event_id, event.body) not in left]
            loss = Loss(self._stores.clock.now_us, silent=silent)
            self.lost.update({(account_id, _digest(event.body)): loss for event in gone})
        if silent:
            after = self._versions()
            self.astray.update(
                account_id for account_id in {*before, *after} if before.get(account_id) != after.get(account_id)
            )
        self._seen.clear()
        self._note_marks()

    @property
    def liquidations(self) -> Counter[str]:
        """Count the liquidations in history, by what they were like."""
        return sum((chain.book.tally for chain in self.chains.values()), start=Counter())

    # Which marks and funding indexes were in force when.

    def _note_marks(self) -> None:
        """Look at the marks and at funding, which no step changes twice."""
        marks = {
            symbol: SeenMark(mark.price, mark.stamp_us, mark.observed_us)
            for symbol, mark in self._stores.redis.marks.items()
        }
        indexes = self._indexes()
        if not self._marks or self._marks[-1] != (marks, indexes):
            self._marks_from_us.append(self._stores.clock.now_us)
            self._marks.append((marks, indexes))

    def _indexes(self) -> dict[str, Decimal]:
        """Funding indexes in Redis, which must be what the payments in history add up to."""
        indexes = {}
        for symbol, funding in self._stores.redis.funding.items():
            made = self._stores.funding_records.payments_of.get(symbol, [])[: funding.n]
            require(len(made) == funding.n, f"{symbol} has {funding.n} payments in Redis, {len(made)} in history")
            risen = sum((Fraction(one.rate) * Fraction(one.mark_price) for one in made), start=Fraction(0))
            require(funding.index == risen, f"the funding index of {symbol} is {funding.index}, and should be {risen}")
            indexes[symbol] = funding.index
        return indexes

    def _marks_at(self, at_us: int) -> tuple[Mapping[str, SeenMark], Mapping[str, Decimal]]:
        """Marks and indexes that a read at this time has found: those that the last step before it has left."""
        place = bisect_left(self._marks_from_us, at_us)
        return self._marks[place - 1] if place else ({}, {})

    # What must be true after every step.

    def check_step(self) -> None:
        """Verify what is new in history, and compare Redis with it where it changed.

        Raises
        ------
        WrongError
        """
        self._note_marks()
        redis, history = self._stores.redis, self._stores.history
        for account_id, links in history.chains.items():
            chain = self.chains[account_id]
            if len(links) != len(chain.ids):
                self._verify(account_id, chain, links)
        for account_id, hot in redis.accounts.items():
            pending = redis.pending.get(account_id, ())
            open_ = self._is_open(account_id)
            looked = (hot.version, hot.chain_hash, len(pending), self.chains[account_id].version, open_)
            if self._seen.get(account_id) != looked:
                self._seen[account_id] = looked
                if open_:
                    self._compare(account_id, hot, pending)

    def _verify(self, account_id: int, chain: Chain, links: list[Any]) -> None:
        require(len(links) > len(chain.ids), f"history of {account_id} became shorter")
        require(
            not chain.ids or links[len(chain.ids) - 1].hash == chain.hashes[-1],
            f"history of {account_id} was rewritten",
        )
        for link in links[len(chain.ids) :]:
            self._extend(account_id, chain, link.event_id, link.hash, link.body)
            loss = self.lost.get((account_id, link.hash))
            if loss is not None:
                # An append that was under way: history has now what Redis lost, and Redis does not know.
                self.resurrected += 1
                self.astray.add(account_id)
                self._excuse_since(account_id, loss)
        total = sum((sum(one.book.ledger.values(), start=Decimal(0)) for one in self.chains.values()), start=Decimal(0))
        require(total == 0, f"the ledger sums to {total}")

    def _excuse_since(self, account_id: int, loss: Loss) -> None:
        """Nobody could know that Redis had gone back: what it was told since goes another way than history."""
        if loss.silent:
            since = [told for told in self.told if told.account_id == account_id and told.at_us >= loss.at_us]
            self.lost.update({(account_id, told.hash): loss for told in since})

    def _extend(self, account_id: int, chain: Chain, event_id: int, hashed: str, body: Mapping[str, Any]) -> None:
        place = f"event {body['n']} ({event_id}) of {account_id}"
        require(body["account_id"] == account_id, f"{place} is another's")
        require(body["n"] == len(chain.ids) + 1, f"{place} stands in place {len(chain.ids) + 1}")
        require(body["previous_event_id"] == (chain.ids[-1] if chain.ids else 0), f"{place} names another before it")
        require(body["previous_hash"] == (chain.hashes[-1] if chain.hashes else ""), f"{place} has another hash before")
        recomputed = _digest(json.dumps(body, sort_keys=True, separators=(",", ":")))
        require(hashed == recomputed, f"{place} does not have its hash")
        require(event_id not in chain.by_id, f"{place} has an id that another has")
        for earlier_us, earlier_id in chain.by_key[body["key"]]:
            self._allow_key_again(place, body, earlier_us, earlier_id)
        chain.by_key[body["key"]].append((body["at_us"], event_id))
        chain.book.apply(body, *self._marks_at(body["at_us"]))
        chain.ids.append(event_id)
        chain.hashes.append(hashed)
        chain.by_id[event_id] = body
        self.verified += 1

    def _allow_key_again(self, place: str, body: Mapping[str, Any], earlier_us: int, earlier_id: int) -> None:
        """Where Redis alone acknowledges, a key is forgotten with Redis or after its time; in history it never is."""
        again = f"{place} has the key of {earlier_id}"
        require(not self._inline, again)
        expired = body["at_us"] - earlier_us >= _TTL_US
        require(expired or any(earlier_us <= at_us for at_us in self.went_back_us), f"{again}, too early")

    def _compare(self, account_id: int, hot: Any, pending: Iterable[StoredEvent]) -> None:
        """Redis must be where history and what is pending lead."""
        chain = self.chains[account_id]
        waiting = [(event, _digest(event.body)) for event in pending]
        while waiting and chain.has(waiting[0][0].event_id, waiting[0][1]):
            waiting.pop(0)
        ids, hashes, book = len(chain.ids), chain.hashes[-1:] or [""], chain.book
        last_id = chain.ids[-1] if chain.ids else 0
        if waiting:
            book = book.copy()
        try:
            for event, hashed in waiting:
                body = json.loads(event.body)
                place = f"pending event {event.event_id} of {account_id}"
                require(body["n"] == ids + 1, f"{place} is number {body['n']}, history is at {ids}")
                require(body["previous_event_id"] == last_id, f"{place} does not follow {last_id}")
                require(body["previous_hash"] == hashes[-1], f"{place} does not follow by its hash")
                book.apply(body, *self._marks_at(body["at_us"]))
                ids, last_id = ids + 1, event.event_id
                hashes.append(hashed)
            require(
                hot.version == f"{ids}:{last_id}", f"Redis has {account_id} at {hot.version}, not at {ids}:{last_id}"
            )
            require(hot.chain_hash == hashes[-1], f"Redis has {account_id} with another hash")
            same(f"balance of {account_id} in Redis", hot.account.balance, book.balance)
            held = {symbol: (held.quantity, held.cost, held.funding) for symbol, held in book.holdings.items()}
            found = {
                symbol: (held.quantity, held.entry_cost, held.entry_funding)
                for symbol, held in hot.account.positions.items()
            }
            require(found == held, f"positions of {account_id} in Redis are {found}, and should be {held}")
        except AssertionError:
            if account_id in self.astray:
                return
            raise
        if account_id in self.astray and not waiting:
            self.astray.discard(account_id)

    # Replies.

    def before(self, ask: Ask) -> Before:
        """Look at what a request is sent to."""
        redis = self._stores.redis
        if ask.key is not None:
            self.asked[ask.account_id, ask.key].add(_canonical({"kind": ask.kind, **ask.detail()}))
        return Before(
            self._stores.clock.now_us,
            self._version(ask.account_id),
            {symbol: mark.price for symbol, mark in redis.marks.items()},
            self._indexes(),
            len(self._stores.switch_records.recorded),
            self.disturbances,
        )

    def judge(self, ask: Ask, reply: Reply, before: Before) -> None:
        """Compare a reply with what is known.

        Raises
        ------
        WrongError
        """
        self.check_step()
        if reply.outcome is not None:
            self._judge_outcome(ask, reply)
        elif reply.error is not None and reply.error.status in (400, 404):
            self._judge_refusal(ask, reply.error.code, before)
        elif reply.error is not None and reply.error.code == "IDEMPOTENCY_KEY_REUSED":
            asked = self.asked[ask.account_id, ask.key or ""]
            require(len(asked) > 1, f"{ask}: its key was never used for anything else")
        elif reply.error is not None and reply.error.code == "HISTORY_FORK":
            require(self.disturbances, f"{ask}: Redis never went back, and no time passed")

    def _judge_outcome(self, ask: Ask, reply: Reply) -> None:
        outcome = reply.outcome
        assert outcome is not None
        chain, event_id = self.chains[ask.account_id], outcome.event_id
        result = json.dumps(outcome.result, sort_keys=True, separators=(",", ":"))
        body: Mapping[str, Any] | None = chain.by_id.get(event_id)
        hashed = chain.hashes[chain.ids.index(event_id)] if body is not None else ""
        if self._inline:
            require(body is not None or not outcome.final, f"{ask}: {reply}, and history does not have it")
        else:
            require(outcome.final, f"{ask}: {reply} where Redis acknowledges")
        if body is None:
            body, hashed = self._pending(ask.account_id, event_id) or (None, "")
        if body is None:
            require(self.disturbances, f"{ask}: {reply}, and nobody has it")
            return
        if not (self._inline and outcome.final) and ask.account_id in self.astray:
            return
        require(body["type"] == ask.kind, f"{ask}: {reply} is a {body['type']}")
        if ask.key is not None:
            require(body["key"] == ask.key, f"{ask}: {reply} has the key {body['key']}")
        detail = {name: body["detail"][name] for name in ask.detail()}
        require(detail == ask.detail(), f"{ask}: {reply} recorded {detail}")
        require(
            _canonical(body["result"]) == result, f"{ask}: {reply} was answered {result}, recorded {body['result']}"
        )
        if not outcome.final:
            return
        self.told.append(Told(ask.account_id, event_id, hashed, str(ask), self._stores.clock.now_us))
        if ask.key is not None:
            self._compare_answers(ask, reply, event_id, result)

    def _compare_answers(self, ask: Ask, reply: Reply, event_id: int, result: str) -> None:
        """Every answer under a key is the first one, byte for byte."""
        name = (ask.account_id, ask.key or "", _canonical({"kind": ask.kind, **ask.detail()}))
        now_us = self._stores.clock.now_us
        first_id, first_result, at_us = self.answers.setdefault(name, (event_id, result, now_us))
        if (first_id, first_result) == (event_id, result):
            return
        forgotten = now_us - at_us >= _TTL_US or any(at_us <= back_us for back_us in self.went_back_us)
        require(not self._inline and forgotten, f"{ask}: {reply}, first it was {first_id} with {first_result}")
        self.answers[name] = (event_id, result, now_us)

    def _judge_refusal(self, ask: Ask, code: str, before: Before) -> None:
        require(ask.kind not in _NEVER_REFUSED, f"{ask}: {code}")
        self._judge_refusal_of_what_was_done(ask, code)
        undisturbed = before.disturbances == self.disturbances and ask.account_id not in self.astray
        if not undisturbed or before.versions != self._version(ask.account_id):
            return
        chain = self.chains[ask.account_id]
        if self._pending_count(ask.account_id) or before.versions[0] != before.versions[1]:
            return
        if code == "UNKNOWN_ACCOUNT":
            require(not chain.ids, f"{ask}: it is known to history")
            return
        if code == "NOT_ACTIVE":
            ever = self._stores.switch_records.recorded
            require(ever, f"{ask}: {code}, and no switch was ever set")
            return
        marks = {symbol: mark.price for symbol, mark in self._stores.redis.marks.items()}
        if (marks, self._indexes()) != (before.marks, before.indexes):
            return
        if not {*chain.book.holdings, *filter(None, [ask.symbol])} <= marks.keys():
            return
        self._judge_by_arithmetic(ask, code, self._settled(chain.book), marks)

    def _settled(self, book: Book) -> Book:
        """Return a book as every decision about it finds it now."""
        now = book.copy()
        now.indexes = self._indexes()
        now.settle()
        return now

    def _judge_by_arithmetic(self, ask: Ask, code: str, book: Book, marks: Mapping[str, Decimal]) -> None:
        """Nothing changed between request and answer, so it can be derived whether the refusal was right."""
        equity = book.equity(marks)
        if code == "NO_MARK_PRICE":
            raise WrongError(f"{ask}: {code}, and there are {marks}")
        if code == "INSUFFICIENT_WITHDRAWABLE":
            withdrawable = max(Decimal(0), min(book.balance, equity - book.initial_margin(marks)))
            require(ask.amount > withdrawable, f"{ask}: {code}, and {withdrawable} are withdrawable")
        if code == "OUTSIDE_PRICE_BAND":
            mark = marks[ask.symbol]
            require(abs(ask.price - mark) > mark / 5, f"{ask}: {code} at a mark of {mark}")
        if code == "IN_LIQUIDATION":
            require(book.holdings and equity <= 0, f"{ask}: {code} with an equity of {equity}")
        if code == "INSUFFICIENT_MARGIN":
            signed = ask.amount if ask.side == "BUY" else -ask.amount
            after = book.copy()
            after.fill(ask.symbol, signed, ask.price)
            tested = equity + min(Decimal(0), signed * (marks[ask.symbol] - ask.price))
            needed = after.initial_margin(marks)
            require(tested < needed, f"{ask}: {code}, and it has {tested} where {needed} are needed")

    def _judge_refusal_of_what_was_done(self, ask: Ask, code: str) -> None:
        """What was told to be done cannot be refused, as long as its key is remembered in Redis."""
        name = (ask.account_id, ask.key or "", _canonical({"kind": ask.kind, **ask.detail()}))
        if ask.key is None or name not in self.answers:
            return
        event_id, _, _ = self.answers[name]
        body = self.chains[ask.account_id].by_id.get(event_id)
        if body is None:
            return
        expired = self._stores.clock.now_us - body["at_us"] >= _TTL_US
        went_back = any(body["at_us"] <= at_us for at_us in self.went_back_us)
        require(expired or went_back, f"{ask}: {code}, but it was told to be done as {event_id}")

    # The end.

    def check_end(self, *, blocked: set[int]) -> None:
        """Verify that all is at rest: everything in history, Redis equal, nobody forgotten.

        Raises
        ------
        WrongError
        """
        self._seen.clear()
        self.check_step()
        redis = self._stores.redis
        for account_id in self.chains.keys() | redis.accounts.keys():
            if account_id in blocked:
                continue
            require(not redis.pending.get(account_id), f"{account_id} still has pending events")
            require(account_id not in redis.pending_since_us, f"{account_id} is still named as waiting")
            require(account_id in redis.accounts, f"{account_id} is not in Redis")
            require(account_id not in self.astray, f"{account_id} is still astray")
            require(self._is_open(account_id), f"the partition of {account_id} is not open")
        for told in self.told:
            self._require_kept(told, blocked)
        self._check_funding()
        self._check_nobody_missed(blocked)

    def _check_funding(self) -> None:
        """Each payment that somebody was told of was made, none twice, and Redis has them all."""
        made = {symbol: [one.key for one in paid] for symbol, paid in self._stores.funding_records.payments_of.items()}
        for symbol, keys in made.items():
            require(len(keys) == len(set(keys)), f"{symbol} has paid funding twice under one key: {keys}")
            funding = self._stores.redis.funding.get(symbol)
            require(
                funding is not None and funding.n == len(keys), f"{symbol}: Redis lacks one of {len(keys)} payments"
            )
        for symbol, key in self.paid:
            require(key in made.get(symbol, ()), f"{symbol} was told to have paid funding under {key}")

    def _require_kept(self, told: Told, blocked: set[int]) -> None:
        if self.chains[told.account_id].has(told.event_id, told.hash):
            return
        sentence = f"{told.ask} was told to be done as {told.event_id}, and history does not have it"
        require(not self._inline, sentence)
        waits = told.account_id in blocked and self._pending(told.account_id, told.event_id)
        require(waits or (told.account_id, told.hash) in self.lost, sentence)

    def _check_nobody_missed(self, blocked: set[int]) -> None:
        marks = {symbol: mark.price for symbol, mark in self._stores.redis.marks.items()}
        for account_id, chain in self.chains.items():
            if account_id in blocked or not chain.book.holdings:
                continue
            book = self._settled(chain.book)
            equity, maintenance = book.equity(marks), book.maintenance_margin(marks)
            require(equity >= maintenance, f"{account_id} has {equity}, needs {maintenance}, and was not liquidated")

    # Looking.

    def _versions(self) -> dict[int, str]:
        return {account_id: hot.version for account_id, hot in self._stores.redis.accounts.items()}

    def _version(self, account_id: int) -> tuple[str, str]:
        """Of an account in Redis and in history."""
        hot = self._stores.redis.accounts.get(account_id)
        return hot.version if hot else "", self.chains[account_id].version

    def _is_open(self, account_id: int) -> bool:
        redis = self._stores.redis
        marker = redis.markers.get(redis.partition_of(account_id))
        return marker is not None and marker.run_id == redis.run_id

    def _pending(self, account_id: int, event_id: int) -> tuple[Mapping[str, Any], str] | None:
        for event in self._stores.redis.pending.get(account_id, []):
            if event.event_id == event_id:
                return json.loads(event.body), _digest(event.body)
        return None

    def _pending_count(self, account_id: int) -> int:
        return len(self._stores.redis.pending.get(account_id, []))


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
