"""Whatever the engine does is sound; whatever is changed afterwards, in any one place of either store, is found."""

from __future__ import annotations

import contextlib
import json
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from margin.domain.event import StoredEvent, canonical
from margin.domain.safe_zone import TriggerSide
from margin.errors import MarginError, PostgresUnavailableError
from margin.services.reconcile import PageSizes, ReconcileService
from tests.actions import BTC, ETH, buy, deposit, mark, sell, withdraw
from tests.fakes import Exchange
from tests.fakes.audit import FakeHistoryAudit, FakeHotAudit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from margin.services.reconcile import ReconcileReport
    from tests.fakes.audit import HotKeys

    Change = Callable[[], object]

ACCOUNTS = (1, 2, 3)
SIZES = PageSizes(accounts=2, batch_events=6, events=3, ledger_lines=5)

account_ids = st.sampled_from(ACCOUNTS)
symbols = st.sampled_from([BTC, ETH])
steps = st.one_of(
    st.tuples(st.just("deposit"), account_ids, st.integers(1, 10**12)),
    st.tuples(st.just("withdraw"), account_ids, st.integers(1, 10**11)),
    st.tuples(st.just("buy"), account_ids, symbols, st.integers(1, 2 * 10**8)),
    st.tuples(st.just("sell"), account_ids, symbols, st.integers(1, 2 * 10**8)),
    st.tuples(st.just("mark"), symbols, st.integers(-20, 20)),
    st.tuples(st.just("outage"), st.booleans()),
)


class Day:
    """An exchange on which a script is played, as far as the engine lets it."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.prices = {BTC: Decimal(50000), ETH: Decimal(2000)}
        self.out = False

    async def deposit(self, account_id: int, units: int) -> None:
        await deposit(self.exchange, account_id, _amount(units))

    async def withdraw(self, account_id: int, units: int) -> None:
        await withdraw(self.exchange, account_id, _amount(units))

    async def buy(self, account_id: int, symbol: str, units: int) -> None:
        await buy(self.exchange, account_id, _amount(units), str(self.prices[symbol]), symbol=symbol)

    async def sell(self, account_id: int, symbol: str, units: int) -> None:
        await sell(self.exchange, account_id, _amount(units), str(self.prices[symbol]), symbol=symbol)

    async def mark(self, symbol: str, percent: int) -> None:
        self.prices[symbol] = (self.prices[symbol] * (100 + percent) / 100).quantize(Decimal("0.01"))
        await mark(self.exchange, str(self.prices[symbol]), symbol)

    async def outage(self, begins: bool) -> None:
        """Let history take no more events, or take them again."""
        if begins and not self.out:
            self.exchange.faults.take_down("history.append", PostgresUnavailableError("PostgreSQL is down."))
        if self.out and not begins:
            self.exchange.faults.bring_up("history.append")
        self.out = begins


def _amount(units: int) -> str:
    return str(Decimal(units).scaleb(-8))


async def trade_through(script: list[tuple[Any, ...]]) -> Exchange:
    day = Day(await Exchange().open())
    for symbol in day.prices:
        await day.mark(symbol, 0)
    for account_id in ACCOUNTS:
        await deposit(day.exchange, account_id, "20000")
    for name, *arguments in script:
        day.exchange.clock.advance(1)
        with contextlib.suppress(MarginError):
            await getattr(day, name)(*arguments)
    return day.exchange


async def reconcile(history: FakeHistoryAudit, hot: FakeHotAudit) -> ReconcileReport:
    report = await ReconcileService(history, hot, SIZES).reconcile()
    assert report.complete
    return report


def mutations(history: FakeHistoryAudit, hot: FakeHotAudit) -> Iterator[tuple[str, Change]]:
    """Every single change that can be made, by name."""
    yield from history_mutations(history)
    for owner, keys in hot.keys.items():
        yield f"{owner} deleted", partial(hot.keys.pop, owner)
        yield from _of_hot_account(owner, keys)
        for symbol in hot.marked:
            for side in TriggerSide:
                trigger = (symbol, side, owner)
                yield f"trigger {trigger}", partial(hot.triggers.symmetric_difference_update, {trigger})
    yield "an account of nobody", partial(hot.keys.update, {"99": next(iter(hot.keys.values()))})
    yield "a trigger of nobody", partial(hot.triggers.add, (BTC, TriggerSide.FLOOR, "99"))


def history_mutations(history: FakeHistoryAudit) -> Iterator[tuple[str, Change]]:
    """Every single change that can be made in history, by name."""
    yield from _of_events(history)
    yield from _of_derived_rows(history)


def _of_events(history: FakeHistoryAudit) -> Iterator[tuple[str, Change]]:
    for place, row in history.event_rows.items():
        yield f"event {place} deleted", partial(history.event_rows.pop, place)
        yield from ((f"{name} of {place}", partial(_change, row, name)) for name in sorted(row.keys() - {"body"}))
        yield from ((f"body of {place} at {path}", change) for path, change in _leaves(row["body"]))
    for account_id, row in history.account_rows.items():
        yield f"row of {account_id} deleted", partial(history.account_rows.pop, account_id)
        yield from ((f"{name} of {account_id}", partial(_change, row, name)) for name in row)


def _of_derived_rows(history: FakeHistoryAudit) -> Iterator[tuple[str, Change]]:
    for table in (history.trades, history.liquidations):
        for place, row in table.items():
            yield f"row {place} deleted", partial(table.pop, place)
            yield from ((f"{name} of row {place}", partial(_change, row, name)) for name in row)
    for place, (account, amount) in history.lines.items():
        yield f"line {place} deleted", partial(history.lines.pop, place)
        yield f"amount of {place}", partial(history.lines.update, {place: (account, other(amount))})
        yield f"account of {place}", partial(history.lines.update, {place: ("uncovered", amount)})
    events = [(account_id, row["event_id"]) for (account_id, _), row in history.event_rows.items()]
    for event in (*events, *((account_id, 5) for account_id in history.account_rows)):
        balanced = {(*event, 8): ("fees", "1"), (*event, 9): ("external", "-1")}
        yield f"lines of {event} added", partial(history.lines.update, balanced)
        for table in (history.trades, history.liquidations):
            if event not in table:
                yield f"row of {event} added", partial(table.update, {event: {}})
    yield "lines of nobody", partial(history.lines.update, {(99, 5, 1): ("cash", "1")})


def _of_hot_account(owner: str, keys: HotKeys) -> Iterator[tuple[str, Change]]:
    for name in ("version", "chain_hash", "balance"):
        yield f"{name} of {owner}", partial(setattr, keys, name, other(getattr(keys, name)))
    yield f"{owner} waits or not", partial(setattr, keys, "waits", not keys.waits)
    for symbol, fields in keys.positions.items():
        yield f"{symbol} of {owner} deleted", partial(keys.positions.pop, symbol)
        yield from ((f"{name} of {symbol} of {owner}", partial(_change, fields, name)) for name in fields)
    for number, event in enumerate(keys.pending):
        yield f"pending {number} of {owner} deleted", partial(keys.pending.pop, number)
        renamed = StoredEvent(event.event_id + 1000, event.body)
        yield f"pending {number} of {owner} renamed", partial(keys.pending.__setitem__, number, renamed)
        for leaf, (path, _) in enumerate(_leaves(json.loads(event.body))):
            yield f"pending {number} of {owner} at {path}", partial(_edit, keys.pending, number, leaf)


def _change(row: dict[str, Any], name: str) -> None:
    row[name] = other(row[name])


def _edit(pending: list[StoredEvent], number: int, leaf: int) -> None:
    """Change one place in a pending event."""
    body = json.loads(pending[number].body)
    _, change = list(_leaves(body))[leaf]
    change()
    pending[number] = StoredEvent(pending[number].event_id, canonical(body))


def other(value: Any) -> Any:
    """Another value of the same kind."""
    if isinstance(value, dict):
        return {**value, "X-PERP": {"quantity": "1", "entry_cost": "1"}}
    if isinstance(value, list):
        return [*value, "x"]
    if isinstance(value, int | Decimal):
        return value + 1
    if isinstance(value, str):
        return f"{value}1"
    return "x"


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Change]]:
    """Every place in a JSON value with a way to change what is there."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in items:
        here = f"{path}/{name}"
        yield here, partial(_change, value, name)
        yield from _leaves(inner, here)
    if isinstance(value, dict):
        for name in value:
            yield f"{path}/{name} deleted", partial(value.pop, name)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(script=st.lists(steps, max_size=25), data=st.data())
async def test_what_the_engine_does_is_sound_and_any_single_change_of_it_is_found(
    script: list[tuple[Any, ...]], data: st.DataObject
) -> None:
    exchange = await trade_through(script)
    history, hot = FakeHistoryAudit(exchange.history_store), FakeHotAudit(exchange.redis)
    sound = await reconcile(history, hot)
    assert sound.differences == []
    assert sound.accounts == len(exchange.history_store.chains)
    assert sound.events == sum(len(chain) for chain in exchange.history_store.chains.values())
    names = [name for name, _ in mutations(history, hot)]
    for number in data.draw(st.lists(st.integers(0, len(names) - 1), min_size=20, max_size=20)):
        history, hot = FakeHistoryAudit(exchange.history_store), FakeHotAudit(exchange.redis)
        name, change = list(mutations(history, hot))[number]
        change()
        assert (await reconcile(history, hot)).differences, name


async def test_every_single_change_of_a_day_with_everything_in_it_is_found() -> None:
    exchange = await trade_through(
        [
            ("buy", 1, BTC, 2 * 10**8),
            ("sell", 2, ETH, 10**8),
            ("sell", 1, BTC, 10**7),
            ("withdraw", 3, 5 * 10**9),
            ("mark", BTC, -20),
            ("buy", 2, BTC, 10**6),
            ("outage", True),
            ("deposit", 3, 10**8),
            ("sell", 3, ETH, 10**7),
        ]
    )
    history, hot = FakeHistoryAudit(exchange.history_store), FakeHotAudit(exchange.redis)
    assert history.liquidations
    assert [len(hot.keys[owner].pending) for owner in ("1", "2", "3")] == [0, 0, 2]
    count = len(list(mutations(history, hot)))
    assert count > 500
    unnoticed = []
    for number in range(count):
        history, hot = FakeHistoryAudit(exchange.history_store), FakeHotAudit(exchange.redis)
        name, change = list(mutations(history, hot))[number]
        change()
        if not (await reconcile(history, hot)).differences:
            unnoticed.append(name)
    assert unnoticed == []
