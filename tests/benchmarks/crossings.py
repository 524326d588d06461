"""Mark prices that cross exactly so many accounts, each of which is evaluated."""

from __future__ import annotations

import dataclasses
import json
from decimal import ROUND_DOWN, ROUND_UP, Decimal
from typing import TYPE_CHECKING, Any, cast

import psycopg

from margin.domain.event import parse_version, position_changes
from margin.domain.safe_zone import TriggerSide
from margin.services.crossed import CrossedAccountsService
from margin.services.liquidation import Evaluations
from margin.services.marks import MarkPriceService
from tests.database import OWNER

if TYPE_CHECKING:
    from collections.abc import Iterable

    from margin.runtime import Engine
    from margin.services.liquidation import LiquidationService

_TICK = Decimal("0.00000001")

_KNOWN = """
    insert into accounts (account_id, n, event_id, chain_hash, balance, positions, opened_at, changed_at)
    values (%(account_id)s, %(n)s, %(event_id)s, %(chain_hash)s, %(balance)s, %(positions)s, now(), now())
    on conflict do nothing
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Crossing:
    """A mark price, and the accounts whose triggers it crosses."""

    symbol: str
    price: Decimal
    account_ids: tuple[int, ...]


async def find_crossing(engine: Engine, symbol: str, side: TriggerSide, size: int) -> Crossing:
    """Read in the index which price crosses exactly so many triggers on one side of a symbol, and none on the other."""
    redis: Any = engine.accounts.redis
    floors, ceilings = (f"triggers:{symbol}:{name}" for name in TriggerSide)
    if side is TriggerSide.FLOOR:
        found = await redis.zrevrange(floors, 0, size, withscores=True)
        rounding = ROUND_DOWN
    else:
        found = await redis.zrange(ceilings, 0, size, withscores=True)
        rounding = ROUND_UP
    # As near to the last trigger as prices are written: it is crossed, and the next one is not.
    price = Decimal(found[size - 1][1]).quantize(_TICK, rounding=rounding)
    crossed = await redis.zcount(floors, str(price), "+inf") + await redis.zcount(ceilings, "-inf", str(price))
    assert crossed == size, f"{price} of {symbol} crosses {crossed} triggers instead of {size}"
    return Crossing(symbol, price, tuple(int(account_id) for account_id, _ in found[:size]))


async def make_known(engine: Engine, account_ids: Iterable[int]) -> None:
    """Give history the accounts as Redis has them: it takes a liquidation only of those that it knows."""
    rows = []
    for account_id in account_ids:
        view = await engine.accounts.read(account_id)
        assert view.account is not None
        n, event_id = parse_version(view.version)
        rows.append(
            {
                "account_id": account_id,
                "n": n,
                "event_id": event_id,
                "chain_hash": view.chain_hash,
                "balance": view.account.balance,
                "positions": json.dumps(position_changes(None, view.account)),
            }
        )
    settings = engine.settings
    async with await psycopg.AsyncConnection.connect(
        host=settings.postgres_host,
        port=settings.postgres_port,
        user=OWNER,
        dbname=settings.postgres_database,
        autocommit=True,
    ) as connection:
        await connection.cursor().executemany(_KNOWN, rows)


class UnhurriedLiquidations:
    """Evaluates as the engine does, but begins every evaluation however long others took, and keeps what came of it."""

    def __init__(self, liquidations: LiquidationService) -> None:
        self._liquidations = liquidations
        self.evaluated: list[int] = []
        self.evaluations = Evaluations([], [], [], [])

    async def evaluate_quietly(self, account_ids: Iterable[int], **_: float) -> Evaluations:
        """Evaluate accounts."""
        self.evaluated = list(account_ids)
        self.evaluations = await self._liquidations.evaluate_quietly(self.evaluated)
        return self.evaluations


def unhurried_marks(engine: Engine, crossed_max: int) -> tuple[MarkPriceService, UnhurriedLiquidations]:
    """Make a service that takes mark prices and evaluates all of so many accounts before it answers."""
    liquidations = UnhurriedLiquidations(engine.liquidations)
    crossed = CrossedAccountsService(
        cast("LiquidationService", liquidations),
        engine.warnings,
        crossed_inline_max=crossed_max,
        crossed_queued_max=crossed_max,
    )
    return MarkPriceService(engine.market, crossed), liquidations


def assert_all_judged(liquidations: UnhurriedLiquidations, crossing: Crossing) -> None:
    """Make sure that exactly the accounts of a crossing were evaluated, and none in vain."""
    assert sorted(liquidations.evaluated) == sorted(crossing.account_ids)
    evaluations = liquidations.evaluations
    assert (evaluations.put_off, evaluations.failed, evaluations.left) == ([], [], []), evaluations
