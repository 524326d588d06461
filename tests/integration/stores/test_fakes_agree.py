"""The stores in memory behave as the real ones: the same requests lead to the same answers and the same state."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

from margin.domain.controls import ENGINE_CONTROL, ControlState, account_control, symbol_control
from margin.errors import MarginError
from tests.actions import BTC, ETH, buy, deposit, fund, mark, sell, switch, withdraw
from tests.fakes import Exchange

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from margin.ports import AccountStore
    from margin.services.scan import ScanService
    from tests.actions import Services
    from tests.integration.conftest import MakeEngine

    Step = Callable[[Services], Awaitable[object]]

ACCOUNTS = (1, 2, 3)
SWITCHES = (ENGINE_CONTROL, symbol_control(BTC), symbol_control(ETH), *(account_control(number) for number in ACCOUNTS))
STEPS = 120


def _steps(seed: int) -> list[tuple[str, Step]]:
    """Requests that mostly make sense, some of them under a key that was used before."""
    chance = random.Random(seed)  # noqa: S311 - a test's own sequence
    prices = {BTC: 50000, ETH: 2000}
    steps: list[tuple[str, Step]] = []
    for symbol, price in prices.items():
        steps.append((f"mark {symbol} {price}", lambda services, s=symbol, p=price: mark(services, str(p), s)))
    for _ in range(STEPS):
        account_id, symbol = chance.choice(ACCOUNTS), chance.choice([BTC, ETH])
        amount, quantity = f"{chance.randint(1, 9000)}.{chance.randint(0, 99999999):08}", f"0.{chance.randint(1, 9)}"
        key = chance.choice([None, None, f"key-{chance.randint(1, 15)}"])
        action = chance.choices([deposit, withdraw, buy, sell, mark, switch, fund], [4, 2, 8, 8, 6, 3, 3])[0]
        if action is switch:
            arguments = (chance.choice(SWITCHES), chance.choices(list(ControlState), [4, 1, 1])[0])
            steps.append((f"switch {arguments}", _call(switch, arguments, {})))
        elif action is fund:
            rate = f"{chance.randint(-300, 300) / 10000:.4f}"
            steps.append((f"fund {symbol} {rate} {key}", _call(fund, (rate, symbol), {"key": key})))
        elif action is mark:
            prices[symbol] = int(prices[symbol] * chance.uniform(0.75, 1.3))
            steps.append((f"mark {symbol}", lambda services, s=symbol, p=prices[symbol]: mark(services, str(p), s)))
        elif action in {buy, sell}:
            price = f"{int(prices[symbol] * chance.uniform(0.95, 1.05))}.5"
            arguments = (account_id, quantity, price)
            options = {"symbol": symbol, "key": key}
            steps.append((f"{action.__name__} {arguments} {options}", _call(action, arguments, options)))
        else:
            arguments = (account_id, amount)
            steps.append((f"{action.__name__} {arguments} {key}", _call(action, arguments, {"key": key})))
    return steps


def _call(action: Callable[..., Awaitable[object]], arguments: tuple[Any, ...], options: dict[str, Any]) -> Step:
    return lambda services: action(services, *arguments, **options)


async def _answer(step: Step, services: Services) -> object:
    """What a request came to, without what is a server's own: ids of events and changes, its clock."""
    try:
        answer = await step(services)
    except MarginError as error:
        return error.code, error.detail
    if hasattr(answer, "result"):
        return answer.result, answer.final, answer.replayed, answer.crossed
    if hasattr(answer, "liquidated"):
        return answer.at_risk, sorted(answer.liquidated)
    if hasattr(answer, "effective"):
        return answer.change.name, answer.change.state, answer.change.reason, answer.change.subject, answer.effective
    return answer


async def _state(accounts: AccountStore, scans: ScanService) -> list[tuple[object, ...]]:
    scan = await scans.scan()
    views = [await accounts.read(account_id) for account_id in ACCOUNTS]
    return [
        (scan.crossed, scan.swept, scan.missed, scan.put_off),
        *((view.account, view.version.partition(":")[0], sorted(view.market.marks)) for view in views),
        *(view.controls for view in views),
    ]


@pytest.mark.parametrize("partitions", [1, 2])
@pytest.mark.parametrize("seed", [1, 3, 4])
async def test_same_requests_have_the_same_answers_and_leave_the_same_state(
    make_engine: MakeEngine, seed: int, partitions: int
) -> None:
    engine = await make_engine(partitions=partitions, sweep_cycle_s=0)
    exchange = await Exchange(partitions=partitions, margin_warning_pct=80).open()
    codes = set()
    for name, step in _steps(seed):
        real, fake = await _answer(step, engine), await _answer(step, exchange)
        assert fake == real, name
        codes.add(real[0] if isinstance(real, tuple) and isinstance(real[1], str) else "")
        assert await _state(exchange.accounts, exchange.scans) == await _state(engine.accounts, engine.scans), name
    assert len(codes) > 3, "the sequence must also be refused in several ways"

    trades = 0
    for account_id in ACCOUNTS:
        pages = [await services.history.trades(account_id, limit=200) for services in (exchange, engine)]
        rows = [[{**row, "id": 0, "timestamp_us": 0} for row in page.rows] for page in pages]
        assert rows[0] == rows[1]
        trades += len(rows[0])
    assert trades > len(ACCOUNTS), "the sequence must also be accepted"
    listed = [(await services.controls.list()).changes for services in (exchange, engine)]
    states = [[(change.name, change.state) for change in changes] for changes in listed]
    assert states[0] == states[1]
    aligned = [await services.controls.align() for services in (exchange, engine)]
    assert aligned[0] == aligned[1] > 0
    paid = [(await services.funding_list.rates(limit=1000)).rows for services in (exchange, engine)]
    numbers = [sorted((row["symbol"], row["n"], row["funding_index"]) for row in rows) for rows in paid]
    assert numbers[0] == numbers[1] != []
    for account_id in ACCOUNTS:
        funded = [await services.funding_list.payments(account_id, limit=1000) for services in (exchange, engine)]
        assert funded[0].pending == funded[1].pending
        moved = [[(row["symbol"], row["amount"], row["funding_index"]) for row in page.rows] for page in funded]
        assert moved[0] == moved[1]
    reports = [await services.report.page(limit=10, cursor=None) for services in (exchange, engine)]
    assert reports[0].rows == reports[1].rows
