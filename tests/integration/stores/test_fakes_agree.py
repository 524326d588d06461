"""The stores in memory behave as the real ones: the same requests lead to the same answers and the same state."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

from margin.errors import MarginError
from tests.actions import BTC, ETH, buy, deposit, mark, sell, withdraw
from tests.fakes import Exchange

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from margin.ports import AccountStore
    from margin.services.liquidation import LiquidationService
    from tests.actions import Services
    from tests.integration.conftest import MakeEngine

    Step = Callable[[Services], Awaitable[object]]

ACCOUNTS = (1, 2, 3)
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
        action = chance.choices([deposit, withdraw, buy, sell, mark], [2, 1, 4, 4, 3])[0]
        if action is mark:
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
    """What a request came to, without what is a server's own: event ids."""
    try:
        answer = await step(services)
    except MarginError as error:
        return error.code, error.detail
    if hasattr(answer, "result"):
        return answer.result, answer.final, answer.replayed, answer.crossed
    return answer


async def _state(accounts: AccountStore, liquidations: LiquidationService) -> list[tuple[object, ...]]:
    scan = await liquidations.scan()
    views = [await accounts.read(account_id) for account_id in ACCOUNTS]
    return [
        (scan.accounts, scan.candidates),
        *((view.account, view.version.partition(":")[0], sorted(view.market.marks)) for view in views),
    ]


@pytest.mark.parametrize("partitions", [1, 2])
@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_same_requests_have_the_same_answers_and_leave_the_same_state(
    make_engine: MakeEngine, seed: int, partitions: int
) -> None:
    engine = await make_engine(partitions=partitions)
    exchange = await Exchange(partitions=partitions).open()
    codes = set()
    for name, step in _steps(seed):
        real, fake = await _answer(step, engine), await _answer(step, exchange)
        assert fake == real, name
        codes.add(real[0] if isinstance(real, tuple) and isinstance(real[0], str) else "")
        assert await _state(exchange.accounts, exchange.liquidations) == await _state(
            engine.accounts, engine.liquidations
        ), name
    assert len(codes) > 3, "the sequence must also be refused in several ways"

    for account_id in ACCOUNTS:
        pages = [await services.history.trades(account_id, limit=200) for services in (exchange, engine)]
        rows = [[{**row, "id": 0, "timestamp_us": 0} for row in page.rows] for page in pages]
        assert rows[0] == rows[1]
        assert rows[0]
    reports = [await services.report.page(limit=10, cursor=None) for services in (exchange, engine)]
    assert reports[0].rows == reports[1].rows
