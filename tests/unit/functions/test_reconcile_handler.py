"""The scheduled function: it stops in time, and its answer is JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

import reconcile_handler
from margin import runtime
from margin.lambda_entry import LOOP
from margin.services.reconcile import ReconcileService
from tests.actions import deposit
from tests.events import LambdaContext
from tests.fakes import Exchange
from tests.fakes.audit import FakeHistoryAudit, FakeHotAudit

if TYPE_CHECKING:
    from collections.abc import Iterator


class Audited:
    """What the function uses of an engine."""

    def __init__(self, exchange: Exchange) -> None:
        self.hot = FakeHotAudit(exchange.redis)
        self.reconcile = ReconcileService(FakeHistoryAudit(exchange.history_store), self.hot)


async def _with_account() -> Exchange:
    exchange = await Exchange().open()
    await deposit(exchange, 1, "5")
    return exchange


@pytest.fixture
def audited() -> Iterator[Audited]:
    """Yield the engine of this process, with one account."""
    engine = Audited(LOOP.run_until_complete(_with_account()))
    runtime.use(engine)  # type: ignore[arg-type]
    yield engine
    runtime.use(None)


def test_answer_lists_what_differs(audited: Audited) -> None:
    audited.hot.keys["1"].balance = "6"
    answer = json.loads(json.dumps(reconcile_handler.handler({}, LambdaContext(timeout_s=900))))
    assert (answer["accounts"], answer["events"], answer["complete"]) == (1, 1, True)
    assert answer["differences"] == [
        {"account_id": 1, "what": "Redis holds another balance", "expected": "5", "found": "6"}
    ]


def test_without_time_nothing_is_begun(audited: Audited) -> None:
    answer = reconcile_handler.handler({}, LambdaContext(timeout_s=reconcile_handler.RESERVE_S))
    assert (answer["accounts"], answer["complete"], audited.hot.saved) == (0, False, "")
