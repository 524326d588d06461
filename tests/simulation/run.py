"""One run: clients who trade, operators who open and rebuild, and a world in which things go wrong, all by one seed."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import itertools
import random
from collections import Counter, deque
from contextlib import contextmanager
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from margin.caller import NOBODY
from margin.domain.controls import ENGINE_CONTROL, ControlState, account_control, symbol_control
from margin.domain.event import AcknowledgedBy
from margin.errors import MarginError
from margin.observability import logger
from tests.simulation.asks import Ask, Kind, Reply
from tests.simulation.clockwork import ProcessKilledError
from tests.simulation.engine import SOUND, Engine, Parts
from tests.simulation.mishaps import WEATHERS
from tests.simulation.model import Model
from tests.simulation.stores import KEY_TTL_S, Stores

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

ACCOUNTS = (1, 2, 3, 4, 5, 6, 7)
SMALL = 7
"""The account that has so little that what would be left of a position is closed, too."""

SYMBOLS = {"BTC-PERP": Decimal(50_000), "ETH-PERP": Decimal(2_000)}
_CLIENTS = 6
_PROCESSES = 3
_SHOWN_MAX = 30
_TRIES_MAX = 10
_STEPS_MAX = 20_000
_STEPS_PER_OPERATION_MAX = 40
_SETTLE_ROUNDS = 4
_NOT_LOADED = "503 STATE_NOT_LOADED"
_OF_ACCOUNTS = ("accounts", "pending", "pending_since_us", "keys", "blocked")
"""What goes back when the same server loses writes: ids stay unique, or nobody could tell one event from another."""

_CROWD = 5
_CENT = Decimal("0.01")
_UNIT = Decimal("0.00000001")
_SMALLER_BY = {Kind.TRADE: 4_000, Kind.DEPOSIT: 40_000, Kind.WITHDRAWAL: 40_000, Kind.CONTRIBUTION: 40_000}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is simulated; equal plans run equally."""

    seed: int
    operations: int
    weather: str = "storm"
    partitions: int = 1
    acknowledged_by: AcknowledgedBy = AcknowledgedBy.HISTORY

    def __str__(self) -> str:
        return (
            f"--seed {self.seed} --operations {self.operations} --weather '{self.weather}'"
            f" --partitions {self.partitions} --history {'drain' if self.drains else 'inline'}"
        )

    @property
    def drains(self) -> bool:
        return self.acknowledged_by is AcknowledgedBy.REDIS


class SimulationError(AssertionError):
    """The engine did what it must not do; the message says which run shows it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Finished:
    """A run at whose end everything was as it must be."""

    trace_hash: str
    steps: int
    operations: int
    events: int
    resurrected: int
    replies: Counter[str]
    mishaps: Counter[str]
    liquidations: Counter[str]


def simulate(plan: Plan, parts: Parts = SOUND) -> Finished:
    """Run a plan to its end.

    Raises
    ------
    SimulationError
        Something was not as it must be.
    """
    simulation = _Simulation(plan, parts)
    with _quiet(plan.seed):
        try:
            simulation.run()
        except Exception as error:
            raise SimulationError(simulation.story(error)) from error
    return simulation.finished()


class _Simulation:
    def __init__(self, plan: Plan, parts: Parts) -> None:
        self._plan = plan
        self._parts = parts
        self._chance = random.Random(f"{plan}")  # noqa: S311 - chosen by a seed, for all to repeat
        self._stores = Stores(
            plan.partitions,
            self._chance,
            WEATHERS[plan.weather],
            steps_max=_STEPS_MAX + _STEPS_PER_OPERATION_MAX * plan.operations,
        )
        self._model = Model(self._stores, inline=not plan.drains)
        self._clockwork = self._stores.clockwork
        self._clockwork.between_steps = self._between_steps
        self._clockwork.trace = self._trace
        self._hash = hashlib.sha256()
        self._last: deque[str] = deque(maxlen=_SHOWN_MAX)
        self._numbers = itertools.count(1)
        self._names = itertools.count(1)
        self._begun = 0
        self._replies: Counter[str] = Counter()
        self._processes: list[Engine] = []
        self._keyed: list[Ask] = []
        self._saved: dict[str, Any] | None = None
        self._working = False
        self._blocked_left = WEATHERS[plan.weather].rejections

    def run(self) -> None:
        self._clockwork.run(self._main)

    def finished(self) -> Finished:
        return Finished(
            self._hash.hexdigest(),
            self._clockwork.steps,
            self._begun,
            self._model.verified,
            self._model.resurrected,
            self._replies,
            self._stores.happened,
            self._model.liquidations,
        )

    def story(self, error: BaseException) -> str:
        """Tell which run failed, where, and what came before."""
        lines = "\n".join(self._last)
        return (
            f"{type(error).__name__}: {error}\n"
            f"operation {self._begun}, step {self._clockwork.steps}; the last {len(self._last)} lines of the trace:\n"
            f"{lines}\n"
            f"again: python -m tests.simulation {self._plan}"
        )

    async def _main(self) -> None:
        self._processes = [self._new_process() for _ in range(_PROCESSES)]
        await self._set_up()
        self._working = True
        await asyncio.gather(*(self._client() for _ in range(_CLIENTS)))
        self._working = False
        await self._come_to_rest()

    async def _set_up(self) -> None:
        weather, self._stores.weather = self._stores.weather, WEATHERS["calm"]
        await self._operate("open", lambda engine: engine.opening.open())
        for symbol, price in SYMBOLS.items():
            await self._operate(
                "mark", lambda engine, symbol=symbol, price=price: engine.marks.set_marks({symbol: price})
            )
        for account_id in ACCOUNTS[:4]:
            await self._send(
                dataclasses.replace(self._ask(Kind.DEPOSIT, Decimal(10_000)), account_id=account_id, key=None)
            )
        self._stores.weather = weather

    # Clients.

    async def _client(self) -> None:
        """Do one thing after another until enough were done."""
        while self._begun < self._plan.operations:
            self._begun += 1
            await self._choose()()

    def _choose(self) -> Callable[[], Awaitable[None]]:
        choices: list[tuple[int, Callable[[], Awaitable[None]]]] = [
            (90, self._trade),
            (24, self._deposit),
            (20, self._withdraw),
            (4, self._contribute),
            (14, self._ask_again),
            (4, self._reuse_key),
            (14, self._mark),
            (8, self._fund),
            (10, self._drain),
            (3, self._scan),
            (1, self._open_a_little),
            (1, self._rebuild_account),
            (1, self._rebuild),
            (1, self._switch),
        ]
        (chosen,) = self._chance.choices([do for _, do in choices], [weight for weight, _ in choices])
        return chosen

    async def _trade(self) -> None:
        symbol = self._chance.choice(list(SYMBOLS))
        mark = self._stores.redis.marks.get(symbol)
        price = SYMBOLS[symbol] if mark is None else mark.price
        price = (price * Decimal(self._chance.randint(930, 1070)) / 1000).quantize(_CENT)
        if self._chance.random() < 0.03:
            price *= 2
        size = Decimal(10) ** self._chance.choice([1, 2, 3, 3, 4, 4]) * self._chance.randint(1, 30)
        quantity = max(_UNIT, (size / price).quantize(_UNIT))
        side = self._chance.choice(["BUY", "SELL"])
        await self._insist(self._scaled(self._ask(Kind.TRADE, quantity, symbol=symbol, side=side, price=price)))

    async def _deposit(self) -> None:
        await self._insist(self._scaled(self._ask(Kind.DEPOSIT, Decimal(self._chance.randint(1, 3_000_000)) / 100)))

    @staticmethod
    def _scaled(ask: Ask) -> Ask:
        if ask.account_id == SMALL:
            ask.amount = max(_UNIT, (ask.amount / _SMALLER_BY[ask.kind]).quantize(_UNIT))
        return ask

    async def _withdraw(self) -> None:
        await self._insist(self._scaled(self._ask(Kind.WITHDRAWAL, Decimal(self._chance.randint(1, 2_000_000)) / 100)))

    async def _contribute(self) -> None:
        await self._insist(self._scaled(self._ask(Kind.CONTRIBUTION, Decimal(self._chance.randint(1, 200_000)) / 100)))

    async def _ask_again(self) -> None:
        """Send what was sent before, perhaps long ago, perhaps by a client that still is about it."""
        if self._keyed:
            await self._send(self._chance.choice(self._keyed))

    async def _reuse_key(self) -> None:
        if self._keyed:
            await self._insist(self._chance.choice(self._keyed).other(next(self._numbers)))

    def _ask(self, kind: Kind, amount: Decimal, **order: Any) -> Ask:
        number = next(self._numbers)
        key = f"key-{number}" if self._chance.random() < 0.7 else None
        ask = Ask(number=number, kind=kind, account_id=self._chance.choice(ACCOUNTS), amount=amount, key=key, **order)
        if key is not None:
            self._keyed.append(ask)
            if self._blocked_left and self._chance.random() < 0.01 and self._working:
                self._blocked_left -= 1
                self._stores.history.rejected_keys.add(key)
                self._trace(f"history will reject {key}")
        return ask

    async def _insist(self, ask: Ask) -> Reply:
        """Do as the README says: repeat under the same key what is not answered; never what has none."""
        reply = await self._send(ask)
        if self._chance.random() < 0.5:
            ask.adopt_key(reply)
        for _ in range(self._chance.randint(0, _TRIES_MAX)):
            if ask.key is None or not _to_be_repeated(reply):
                break
            if str(reply) == _NOT_LOADED and self._chance.random() < 0.3:
                await self._drain()
            await asyncio.sleep(self._chance.random() * 0.2)
            reply = await self._send(ask)
        return reply

    async def _send(self, ask: Ask) -> Reply:
        before = self._model.before(ask)
        process = self._process()
        reply = await self._invoke(process, ask.send(process))
        self._trace(f"{process.name} {ask} -> {reply}")
        self._replies[str(reply).split(" ")[0] if reply.outcome else str(reply)] += 1
        self._model.judge(ask, reply, before)
        return reply

    # Operators and schedules.

    async def _mark(self) -> None:
        symbol = self._chance.choice(list(SYMBOLS))
        known = self._stores.redis.marks.get(symbol)
        price = SYMBOLS[symbol] if known is None else known.price
        change = Decimal(self._chance.choice([600, 850, 960, 990, 1005, 1010, 1045, 1150, 1500])) / 1000
        price = min(max((price * change).quantize(_CENT), SYMBOLS[symbol] / 4), SYMBOLS[symbol] * 4)
        await self._operate(f"mark {symbol} {price}", lambda engine: engine.marks.set_marks({symbol: price}))

    async def _fund(self) -> None:
        """Pay funding, and repeat it under its key whatever the answer was."""
        symbol, key = self._chance.choice(list(SYMBOLS)), f"funding-{next(self._numbers)}"
        rate = Decimal(self._chance.randint(-20_000, 20_000)) / 1_000_000
        for _ in range(self._chance.randint(1, 3)):
            paid = await self._operate(
                f"fund {symbol} {rate} {key}",
                lambda engine: engine.funding.pay(symbol, rate, caller=NOBODY, key=key),
            )
            if paid:
                self._model.paid.add((symbol, key))

    async def _drain(self) -> None:
        await self._operate("drain", lambda engine: engine.journal_drain())

    async def _scan(self) -> None:
        await self._operate("scan", lambda engine: engine.scans.scan())

    async def _open_a_little(self) -> None:
        """Open, or rebuild, with time for some pages only."""
        pages = itertools.repeat(True, self._chance.randint(0, 4))
        rebuild = range(self._plan.partitions) if self._chance.random() < 0.2 else ()
        await self._operate(
            "open a little",
            lambda engine: engine.opening.open(rebuild=rebuild, keep_going=lambda: next(pages, False)),
        )
        if self._chance.random() < 0.7:
            await self._drain()

    async def _rebuild_account(self) -> None:
        account_id = self._chance.choice(ACCOUNTS)
        await self._operate(f"rebuild {account_id}", lambda engine: engine.rebuilding.rebuild_account(account_id))

    async def _rebuild(self) -> None:
        partition = self._chance.randrange(self._plan.partitions)
        await self._operate(f"rebuild partition {partition}", lambda engine: engine.rebuilding.rebuild([partition]))

    async def _switch(self) -> None:
        name = self._chance.choice(
            [ENGINE_CONTROL, symbol_control("ETH-PERP"), account_control(self._chance.choice(ACCOUNTS))]
        )
        state = self._chance.choice([ControlState.PAUSED, ControlState.REDUCE_ONLY])
        await self._operate(f"{name} {state}", lambda engine: engine.controls.set(name, state, "chance", NOBODY))
        await asyncio.sleep(self._chance.random() * 0.05)
        active = ControlState.ACTIVE
        await self._operate(f"{name} active", lambda engine: engine.controls.set(name, active, "chance", NOBODY))

    async def _operate(self, what: str, do: Callable[[Engine], Any]) -> bool:
        process = self._process()
        reply = await self._invoke(process, _without_outcome(do(process)))
        self._trace(f"{process.name} {what} -> {reply if reply.error or process.dead else 'done'}")
        return reply.error is None and not process.dead

    async def _invoke(self, process: Engine, call: Awaitable[Any]) -> Reply:
        """Let a process do something; a process that is dead then has said nothing, whatever it was about to say."""
        try:
            outcome = await call
        except ProcessKilledError:
            outcome = None
        except MarginError as error:
            return Reply() if process.dead else Reply(error=error)
        return Reply() if process.dead else Reply(outcome=outcome)

    def _process(self) -> Engine:
        """Choose a process; a new one takes the place of a dead one."""
        place = self._chance.randrange(_PROCESSES)
        if self._processes[place].dead:
            self._processes[place] = self._new_process()
        return self._processes[place]

    def _new_process(self) -> Engine:
        return Engine(f"P{next(self._names)}", self._stores, self._plan.acknowledged_by, self._parts)

    # The world.

    def _between_steps(self) -> None:
        self._model.check_step()
        weather, chance = self._stores.weather, self._chance
        if not self._working:
            return
        if weather.outage and chance.random() < weather.outage:
            store = chance.choice(["redis", "postgres"])
            self._stores.down_until[store] = self._clockwork.steps + chance.randint(5, 120)
            self._trace(f"{store} is down")
        if (weather.restart or weather.rewind) and chance.random() < 0.005:
            self._saved = self._stores.snapshot()
        for name, rate in (("restart", weather.restart), ("rewind", weather.rewind), ("flush", weather.flush)):
            # Trouble comes in crowds: what makes an answer late makes a server fail over.
            if rate and chance.random() < rate * (_CROWD if self._stores.late else 1):
                self._take_redis_back(name)
        if weather.leap and chance.random() < weather.leap:
            self._model.disturbances += 1
            leap_s = chance.choice([70, 1_000, KEY_TTL_S + 100])
            self._clockwork.pass_time(leap_s)
            self._trace(f"{leap_s} s pass")

    def _take_redis_back(self, how: str) -> None:
        redis = self._stores.redis
        pending = {account_id: list(events) for account_id, events in redis.pending.items()}
        versions = {account_id: hot.version for account_id, hot in redis.accounts.items()}
        self._stores.happened[how] += 1
        if how == "flush":
            redis.flush()
            self._saved = None
        elif how == "rewind" and self._saved is not None:
            self._stores.restore(self._saved, _OF_ACCOUNTS)
        elif self._saved is not None and self._chance.random() < 0.7:
            self._stores.restore(self._saved)
        if how == "restart":
            redis.run_id = f"run-{self._clockwork.steps}"
        self._trace(f"redis: {how}")
        self._model.redis_goes_back(pending, versions, silent=how == "rewind")

    # The end.

    async def _come_to_rest(self) -> None:
        """Let nothing go wrong any more: the engine must be at rest after a few rounds of its schedule."""
        self._stores.calm_down()
        while self._stores.late:
            self._clockwork.hurry()
            await asyncio.sleep(0.01)
        self._clockwork.pass_time(70)
        blocked = await self._settle()
        self._model.check_end(blocked=blocked)
        self._stores.history.rejected_keys.clear()
        for account_id in sorted(blocked):
            await self._operate(
                f"put {account_id} right", lambda engine, one=account_id: engine.drain.drain_account(one)
            )
        for account_id in ACCOUNTS:
            name = account_control(account_id)
            await self._operate(
                name, lambda engine, name=name: engine.controls.set(name, ControlState.ACTIVE, "", NOBODY)
            )
        await self._settle()
        self._model.check_end(blocked=set())

    async def _settle(self) -> set[int]:
        """Run the schedules, touch every account, and answer whose events history rejects."""
        for _ in range(2):
            for _ in range(_SETTLE_ROUNDS):
                await self._operate("drain", lambda engine: engine.journal_drain())
            for account_id in ACCOUNTS:
                ask = dataclasses.replace(
                    self._ask(Kind.DEPOSIT, Decimal(1)), account_id=account_id, key=f"rest-{next(self._numbers)}"
                )
                reply = await self._send(ask)
                if _to_be_repeated(reply):
                    await self._send(ask)
        for name in (ENGINE_CONTROL, *map(symbol_control, SYMBOLS)):
            await self._operate(
                name, lambda engine, name=name: engine.controls.set(name, ControlState.ACTIVE, "", NOBODY)
            )
        for symbol, price in SYMBOLS.items():
            await self._operate(
                "mark", lambda engine, symbol=symbol, price=price: engine.marks.set_marks({symbol: price})
            )
        await self._operate("scan", lambda engine: engine.scans.scan())
        for _ in range(_SETTLE_ROUNDS):
            await self._operate("drain", lambda engine: engine.journal_drain())
        rejected = self._stores.history.rejected_keys
        return {
            account_id
            for account_id, events in self._stores.redis.pending.items()
            if any(f'"key":"{key}"' in events[0].body for key in rejected)
        }

    def _trace(self, line: str) -> None:
        line = f"{self._clockwork.steps} {self._begun} {line}"
        self._hash.update(line.encode())
        self._last.append(line)


def _to_be_repeated(reply: Reply) -> bool:
    if reply.outcome is not None:
        return not reply.outcome.final
    return reply.error is None or reply.error.retryable


async def _without_outcome(call: Awaitable[object]) -> None:
    await call


@contextmanager
def _quiet(seed: int) -> Iterator[None]:
    """Let the engine's own chance, its jitter, follow the seed, and its log say nothing."""
    state, level = random.getstate(), logger.log_level
    random.seed(seed)
    logger.setLevel("CRITICAL")
    try:
        yield
    finally:
        random.setstate(state)
        logger.setLevel(level)
