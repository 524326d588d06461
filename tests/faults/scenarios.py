"""What goes wrong, one scenario for each row of the table."""

from __future__ import annotations

import dataclasses
import itertools
import signal
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import psycopg
import redis.asyncio

from margin.services.journal import COMMIT_ATTEMPTS_MAX
from tests.faults.ledger import Kind, Told
from tests.faults.points import Fault, FaultKind, FaultPoint

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from margin_local.servers import EmbeddedServer
    from tests.faults.house import House, ServingProcess
    from tests.faults.load import Load
    from tests.proxy import Proxy

COMMIT = b'"event_hash"'
"""Found in the request of a commit and of nothing else."""
APPEND = b"append_events"
"""Found in the request of an append and of nothing else."""
CROWD = 64


@dataclasses.dataclass(frozen=True, slots=True)
class Pace:
    """How much callers do between faults, in operations that are answered with 200.

    Parameters
    ----------
    before : tuple of int
        The least and the most of them before a fault; also calls, before one at a fault point.
    after : int
        How many show that the engine works again.
    """

    before: tuple[int, int] = (5, 60)
    after: int = 20


@dataclasses.dataclass(slots=True, kw_only=True)
class Stage:
    """What a scenario plays on.

    Parameters
    ----------
    house : House
        The stores and the processes that serve.
    load : Load
        Callers at work.
    proxy : Proxy, optional
        Between the processes and the store that the scenario names.
    chance : random.Random
        Decides when something happens.
    seconds : float
        How long to go on; everything happens once at least.
    pace : Pace
        How much happens between faults.
    faults : int
        How many happened.
    note : str
        What is to be said beside the table.
    """

    house: House
    load: Load
    proxy: Proxy | None
    chance: random.Random
    seconds: float
    pace: Pace = dataclasses.field(default_factory=Pace)
    faults: int = 0
    note: str = ""

    @property
    def process(self) -> ServingProcess:
        """The process that serves, or the first of them."""
        return self.house.processes[0]

    def rounds(self, least: int = 1) -> Iterator[int]:
        """Count rounds until the time is over."""
        until_s = time.monotonic() + self.seconds
        for number in itertools.count():
            if number >= least and time.monotonic() >= until_s:
                return
            yield number

    async def some_work(self) -> None:
        """Let callers work until a moment that chance decides."""
        await self.load.answers(self.calls_before())

    def calls_before(self) -> int:
        """How much work before a fault, as chance decides."""
        return self.chance.randint(*self.pace.before)

    async def recovered(self) -> None:
        """Wait until callers work again; the fault has ended before."""
        await self.load.answers(self.pace.after)


class Act(Protocol):
    """What happens in a scenario."""

    async def __call__(self, stage: Stage) -> None: ...


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One row.

    Parameters
    ----------
    name : str
        For the command line.
    title : str
        For the table.
    act : Act
        What happens.
    accounts, callers : int
        How many of them.
    keyed : float
        Share of the callers who give keys.
    processes : int
        How many serve.
    proxied : str
        The store with a proxy before it: "redis", "postgres" or "".
    settings : mapping
        Of the processes that serve.
    """

    name: str
    title: str
    act: Act
    accounts: int = 4
    callers: int = 12
    keyed: float = 0.75
    processes: int = 1
    proxied: str = ""
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)


def _server(stage: Stage, name: str) -> EmbeddedServer:
    return stage.house.valkey if name == "redis" else stage.house.postgres


async def _kill_store(stage: Stage, store: str) -> None:
    server = _server(stage, store)
    for _ in stage.rounds():
        await stage.some_work()
        await stage.house.kill(server)
        await _store_comes_back(stage, server)


async def _kill_history_unnoticed(stage: Stage) -> None:
    """Kill PostgreSQL where no caller waits for it."""
    for _ in stage.rounds():
        await stage.some_work()
        await stage.house.kill(stage.house.postgres)
        stage.faults += 1
        stage.load.fault_ended()
        await stage.recovered()
        await stage.house.restart(stage.house.postgres)


async def _freeze_store(stage: Stage, store: str) -> None:
    server = _server(stage, store)
    for _ in stage.rounds():
        await stage.some_work()
        stage.house.freeze(server)
        await _store_thaws(stage)


async def _kill_store_at_points(stage: Stage, store: str, points: Sequence[FaultPoint]) -> None:
    server = _server(stage, store)
    for number in stage.rounds(len(points)):
        await _at_gate(stage, points[number % len(points)])
        await stage.house.kill(server)
        stage.process.disarm()
        await _store_comes_back(stage, server)


async def _freeze_store_at_points(stage: Stage, store: str, points: Sequence[FaultPoint]) -> None:
    server = _server(stage, store)
    for number in stage.rounds(len(points)):
        await _at_gate(stage, points[number % len(points)])
        stage.house.freeze(server)
        stage.process.disarm()
        await _store_thaws(stage)


async def _at_gate(stage: Stage, point: FaultPoint) -> None:
    stage.process.arm(Fault(point, FaultKind.GATE, after=stage.calls_before()))
    await stage.load.work_until(stage.process.arrived())


async def _store_comes_back(stage: Stage, server: EmbeddedServer) -> None:
    stage.faults += 1
    await stage.load.failures(stage.load.callers)
    await stage.house.restart(server)
    stage.load.fault_ended()
    await stage.recovered()


async def _store_thaws(stage: Stage) -> None:
    stage.faults += 1
    await stage.load.failures(stage.load.callers)
    stage.house.thaw()
    stage.load.fault_ended()
    await stage.recovered()


async def _kill_process(stage: Stage) -> None:
    for number in stage.rounds():
        process = stage.house.processes[number % len(stage.house.processes)]
        await stage.some_work()
        await process.kill()
        await _process_comes_back(stage, process)


async def _freeze_process(stage: Stage) -> None:
    """Stop one process between any two steps while the other goes on with the same accounts."""
    for number in stage.rounds():
        process = stage.house.processes[number % len(stage.house.processes)]
        await stage.some_work()
        process.freeze()
        stage.faults += 1
        await stage.recovered()
        process.thaw()
        stage.load.fault_ended()
        await stage.recovered()


async def _kill_process_at(stage: Stage, point: FaultPoint) -> None:
    for _ in stage.rounds():
        stage.process.arm(Fault(point, FaultKind.KILL_PROCESS, after=stage.calls_before()))
        status = await stage.load.work_until(stage.process.ended())
        assert status == -signal.SIGKILL, f"the process ended with {status}"
        await _process_comes_back(stage, stage.process)


async def _process_comes_back(stage: Stage, process: ServingProcess) -> None:
    stage.faults += 1
    stage.load.fault_ended()
    await process.start()
    await stage.recovered()


async def _at_every_point(stage: Stage, kind: FaultKind, points: Sequence[FaultPoint], seconds: float = 0.0) -> None:
    """Let the same happen at all points, each so many calls."""
    for point in points:
        every = stage.chance.randint(5, 9)
        stage.process.arm(Fault(point, kind, every=every, times=0, seconds=seconds))
    for _ in stage.rounds():
        await stage.load.answers(5 * stage.pace.after)
    report = await stage.process.report()
    stage.faults += sum(report["happened"].values())
    stage.process.disarm()
    missed = [point for point in points if not any(fault.startswith(point) for fault in report["happened"])]
    assert not missed, f"nothing happened at {missed}"
    stage.load.fault_ended()
    await stage.recovered()


async def _lose_replies(stage: Stage, marker: bytes) -> None:
    assert stage.proxy is not None
    for _ in stage.rounds():
        for _ in range(10):
            stage.proxy.lose_reply_to(marker)
            await stage.load.answers(stage.chance.randint(1, 10))
    stage.faults += stage.proxy.lost
    assert stage.proxy.lost, "no reply was lost"
    stage.load.fault_ended()
    await stage.recovered()


async def _kill_drain(stage: Stage) -> None:
    """Let events pile up that no one stores, end the process that serves, and kill one drain after the other."""
    for _ in stage.rounds():
        await stage.some_work()
        stage.process.arm(Fault(FaultPoint.BEFORE_HISTORY, FaultKind.DROP, times=0))
        await stage.load.failures(2 * stage.load.callers)
        await stage.process.kill()
        for point in (FaultPoint.BEFORE_HISTORY, FaultPoint.AFTER_HISTORY, FaultPoint.BEFORE_CLEANUP):
            status = await stage.house.drain(Fault(point, FaultKind.KILL_PROCESS))
            assert status == -signal.SIGKILL, f"the drain ended with {status} and not at {point}"
            stage.faults += 1
        status = await stage.house.drain()
        assert status == 0, f"the last drain ended with {status}"
        await _process_comes_back(stage, stage.process)


async def _empty_redis(stage: Stage) -> None:
    settings = stage.house.settings
    async with redis.asyncio.Redis(host=settings.redis_host, port=settings.redis_port) as client:
        for _ in stage.rounds():
            await stage.some_work()
            await client.flushall()
            stage.faults += 1
            stage.load.fault_ended()
            await stage.recovered()


async def _put_redis_back(stage: Stage) -> None:
    for _ in stage.rounds():
        copy = stage.house.copy_redis()
        await stage.load.answers(stage.pace.after)
        await stage.some_work()
        await stage.house.put_redis_back(copy)
        stage.faults += 1
        stage.load.fault_ended()
        await stage.recovered()


async def _lose_state_behind(stage: Stage, point: FaultPoint, *, emptied: bool) -> None:
    """Hold one call while Redis goes back and is opened again, and let it go on when its account is at rest."""
    for _ in stage.rounds():
        copy = stage.house.copy_redis()
        await stage.load.answers(stage.pace.after)
        await _at_gate(stage, point)
        await _lose_state(stage, copy, emptied=emptied)
        stage.process.disarm()
        await stage.recovered()
    copy = stage.house.copy_redis()
    await stage.load.answers(stage.pace.after)
    await _at_gate(stage, point)
    await _lose_state(stage, copy, emptied=emptied)
    stage.load.stop()
    stage.process.disarm()


async def _lose_state(stage: Stage, copy: Path, *, emptied: bool) -> None:
    if emptied:
        async with redis.asyncio.Redis(host=stage.house.valkey.host, port=stage.house.valkey.port) as client:
            await client.flushall()
    else:
        await stage.house.put_redis_back(copy)
    stage.faults += 1
    stage.load.fault_ended()
    await stage.recovered()


async def _make_postgres_read_only(stage: Stage) -> None:
    settings = stage.house.settings
    connection = await psycopg.AsyncConnection.connect(
        host=settings.postgres_host,
        port=settings.postgres_port,
        user=stage.house.postgres.user,
        dbname=settings.postgres_database,
        options="-c default_transaction_read_only=off",
        autocommit=True,
    )
    async with connection:
        for _ in stage.rounds():
            await stage.some_work()
            await connection.execute("alter system set default_transaction_read_only = on")
            await connection.execute("select pg_reload_conf()")
            stage.faults += 1
            await stage.load.failures(2 * stage.load.callers)
            await connection.execute("alter system reset default_transaction_read_only")
            await connection.execute("select pg_reload_conf()")
            stage.load.fault_ended()
            await stage.recovered()


async def _crowd(stage: Stage) -> None:
    """Let 64 callers trade at the same moment, and look how often each was tried."""
    for number in stage.rounds():
        await stage.load.at_once(CROWD, (Kind.BUY, Kind.SELL)[number % 2])
        stage.faults += 1
    commits_max = (await stage.process.report())["commits_max"]
    assert 1 < commits_max <= COMMIT_ATTEMPTS_MAX, f"{commits_max} commits of one request"
    contended = sum(operation.last_answer == "409 CONTENTION" for operation in stage.load.ledger.operations)
    assert contended == stage.load.ledger.count(Told.REFUSED), "a caller was refused for another reason than contention"
    stage.note = f"at most {commits_max} commits of one request; {contended} requests gave up with 409 CONTENTION"


ALL_POINTS = tuple(FaultPoint)
_WRITES = (
    FaultPoint.BEFORE_COMMIT,
    FaultPoint.AFTER_COMMIT,
    FaultPoint.BEFORE_HISTORY,
    FaultPoint.AFTER_HISTORY,
    FaultPoint.BEFORE_CLEANUP,
)
_TITLES = {"redis": "Redis", "postgres": "PostgreSQL"}
_LEFT_TO_THE_DRAIN = {"history": "drain"}
_CROWD_SETTINGS = {"postgres_connections_max": CROWD, "redis_connections_max": 2 * CROWD}


def store_killed_at(store: str, points: Sequence[FaultPoint]) -> Scenario:
    """Kill a store, "redis" or "postgres", while a call stands at one point after the other."""
    return Scenario(
        name=f"{store}-killed-at-points",
        title=f"{_TITLES[store]} killed at each point",
        act=partial(_kill_store_at_points, store=store, points=points),
    )


def _of_stores() -> Iterator[Scenario]:
    for store, title in _TITLES.items():
        yield Scenario(name=f"{store}-killed", title=f"{title} killed", act=partial(_kill_store, store=store))
        yield Scenario(name=f"{store}-frozen", title=f"{title} frozen", act=partial(_freeze_store, store=store))
        yield store_killed_at(store, ALL_POINTS)
        yield Scenario(
            name=f"{store}-frozen-at-points",
            title=f"{title} frozen at each point",
            act=partial(_freeze_store_at_points, store=store, points=ALL_POINTS),
        )
    yield Scenario(name="redis-emptied", title="Redis emptied", act=_empty_redis)
    yield Scenario(name="redis-put-back", title="Redis put back to an older copy", act=_put_redis_back)
    for point in (FaultPoint.AFTER_READ, FaultPoint.AFTER_COMMIT, FaultPoint.AFTER_HISTORY):
        for emptied, done in ((True, "emptied"), (False, "put back")):
            yield Scenario(
                name=f"redis-{done.replace(' ', '-')}-{point.replace('_', '-')}",
                title=f"Redis {done} while a call is held {point.replace('_', ' ')}",
                act=partial(_lose_state_behind, point=point, emptied=emptied),
                accounts=12,
            )
    yield Scenario(name="postgres-read-only", title="PostgreSQL read-only", act=_make_postgres_read_only)


def _of_processes() -> Iterator[Scenario]:
    yield Scenario(name="process-killed", title="Process killed", act=_kill_process)
    yield Scenario(name="one-of-two-killed", title="One of two processes killed", act=_kill_process, processes=2)
    yield Scenario(name="one-of-two-frozen", title="One of two processes frozen", act=_freeze_process, processes=2)
    for point in FaultPoint:
        yield Scenario(
            name=f"process-killed-{point.replace('_', '-')}",
            title=f"Process killed {point.replace('_', ' ')}",
            act=partial(_kill_process_at, point=point),
        )
    yield Scenario(name="drain-killed", title="Drain killed at each of its points", act=_kill_drain)


def _of_history_left_to_the_drain() -> Iterator[Scenario]:
    """Where Redis alone acknowledges: what dies beside Redis loses nothing either."""
    point = FaultPoint.AFTER_COMMIT
    yield Scenario(
        name="drain-mode-process-killed",
        title="HISTORY=drain: process killed after commit",
        act=partial(_kill_process_at, point=point),
        settings=_LEFT_TO_THE_DRAIN,
    )
    yield Scenario(
        name="drain-mode-postgres-killed",
        title="HISTORY=drain: PostgreSQL killed",
        act=_kill_history_unnoticed,
        settings=_LEFT_TO_THE_DRAIN,
    )
    yield Scenario(
        name="drain-mode-redis-killed",
        title="HISTORY=drain: Redis killed, its file kept",
        act=partial(_kill_store, store="redis"),
        settings=_LEFT_TO_THE_DRAIN,
    )


def _of_messages() -> Iterator[Scenario]:
    for step, store, marker in (("commit", "redis", COMMIT), ("append", "postgres", APPEND)):
        for keyed, named in ((1.0, "keyed"), (0.0, "no key")):
            yield Scenario(
                name=f"{step}-reply-lost-{named.replace(' ', '-')}",
                title=f"Reply of the {step} lost on the wire, {named}",
                act=partial(_lose_replies, marker=marker),
                keyed=keyed,
                proxied=store,
            )
    yield Scenario(
        name="calls-dropped",
        title="Requests and replies dropped at each point",
        act=partial(_at_every_point, kind=FaultKind.DROP, points=ALL_POINTS),
    )
    yield Scenario(
        name="calls-doubled",
        title="Calls that write delivered twice",
        act=partial(_at_every_point, kind=FaultKind.DUPLICATE, points=_WRITES),
    )
    yield Scenario(
        name="calls-delayed",
        title="Calls delayed by 0.3 s at each point",
        act=partial(_at_every_point, kind=FaultKind.DELAY, points=ALL_POINTS, seconds=0.3),
    )


def _of_crowds() -> Iterator[Scenario]:
    yield Scenario(
        name="crowd-on-one-account",
        title=f"{CROWD} callers on one account at once",
        act=_crowd,
        accounts=1,
        callers=0,
        settings=_CROWD_SETTINGS,
    )
    yield Scenario(
        name="crowd-on-many-accounts",
        title=f"{CROWD} callers on {CROWD} accounts, process killed",
        act=_kill_process,
        accounts=CROWD,
        callers=CROWD,
        settings=_CROWD_SETTINGS,
    )


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        *_of_stores(),
        *_of_processes(),
        *_of_messages(),
        *_of_history_left_to_the_drain(),
        *_of_crowds(),
    )
}
