"""The scheduled function: it stops in time, and its answer is JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

import reconcile_handler
from margin import runtime
from margin.lambda_entry import LOOP
from margin.services.reconcile import ReconcileService
from margin.services.verification import VerificationService
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
        self.history = FakeHistoryAudit(exchange.history_store)
        self.reconcile = ReconcileService(self.history, self.hot)
        self.verification = VerificationService(self.history)


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


def test_operator_verifies_one_account(audited: Audited) -> None:
    wanted = {"command": "verify", "account_id": 1}
    answer = json.loads(json.dumps(reconcile_handler.handler(wanted, LambdaContext(timeout_s=900))))
    sizes = {"events": 1, "accounts": 1, "changes": 0}
    assert answer == {**sizes, "breaks": 0, "complete": True, "found": []}
    audited.history.event_rows[1, 1]["subject"] = "mallory"
    answer = json.loads(json.dumps(reconcile_handler.handler(wanted, LambdaContext(timeout_s=900))))
    assert (answer["breaks"], answer["found"][0]["n"], answer["found"][0]["found"]) == (1, 1, "mallory")
    assert answer["found"][0]["event_id"] == audited.history.event_rows[1, 1]["event_id"]


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        *(
            ({"command": "verify", **others}, "INVALID_REQUEST: Give")
            for others in ({}, {"account_id": "1"}, {"account_id": True}, {"account_id": 1, "all": True})
        ),
        ({"command": "reconcile", "account_id": 1}, "INVALID_REQUEST: Give"),
        ({"command": "verify", "account_id": 42}, "UNKNOWN_ACCOUNT: Account 42"),
    ],
)
def test_verification_that_fails_begins_with_its_code(
    audited: Audited, payload: dict[str, object], message: str
) -> None:
    with pytest.raises(reconcile_handler.VerifyError, match=message):
        reconcile_handler.handler(payload, LambdaContext(timeout_s=900))


def test_verification_without_time_says_that_it_is_not_complete(audited: Audited) -> None:
    wanted = {"command": "verify", "account_id": 1}
    answer = reconcile_handler.handler(wanted, LambdaContext(timeout_s=reconcile_handler.RESERVE_S))
    assert (answer["complete"], answer["events"]) == (False, 0)
