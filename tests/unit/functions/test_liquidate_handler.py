"""The queue of crossed accounts: one account that cannot be valued or stored does not hold up the others."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

import liquidate_handler
from margin import runtime
from margin.errors import PostgresUnavailableError
from margin.lambda_entry import LOOP
from tests.actions import BTC, ETH, buy, deposit, mark
from tests.events import LambdaContext
from tests.fakes import Exchange

if TYPE_CHECKING:
    from collections.abc import Iterator

NO_HISTORY = PostgresUnavailableError("PostgreSQL is down.")


async def _crossed() -> Exchange:
    """Three accounts below maintenance margin; the first has a position beside whose symbol has lost its mark."""
    exchange = await Exchange().open()
    await mark(exchange, "50000")
    await mark(exchange, "2000", ETH)
    for account_id in (1, 2, 3):
        await deposit(exchange, account_id, "14000")
        await buy(exchange, account_id, "1", "50000")
    await buy(exchange, 1, "0.1", "2000", symbol=ETH)
    del exchange.redis.marks[ETH]
    await exchange.market.set_marks({BTC: Decimal(39000)}, crossed_max=0)
    return exchange


@pytest.fixture
def exchange() -> Iterator[Exchange]:
    """Yield an exchange on fakes as the engine of this process."""
    exchange = LOOP.run_until_complete(_crossed())
    runtime.use(exchange)  # type: ignore[arg-type]
    yield exchange
    runtime.use(None)


def _deliver(*bodies: str) -> list[str]:
    """Hand messages to the function as the queue does; the ids of those that it will deliver again."""
    records = [
        {
            "messageId": f"message-{number}",
            "receiptHandle": "-",
            "body": body,
            "attributes": {"ApproximateReceiveCount": "1"},
            "messageAttributes": {},
            "md5OfBody": "-",
            "eventSource": "aws:sqs",
            "eventSourceARN": "arn:aws:sqs:eu-central-1:123456789012:liquidations",
            "awsRegion": "eu-central-1",
        }
        for number, body in enumerate(bodies)
    ]
    answer: dict[str, Any] = liquidate_handler.handler({"Records": records}, LambdaContext())
    return [failure["itemIdentifier"] for failure in answer["batchItemFailures"]]


def _message(*account_ids: int) -> str:
    return json.dumps({"account_ids": account_ids})


def _untouched(exchange: Exchange) -> list[int]:
    hot = exchange.redis.accounts
    return [account_id for account_id in hot if hot[account_id].account.positions[BTC].quantity == 1]


def test_account_without_a_mark_holds_up_nobody_and_its_message_is_done(exchange: Exchange) -> None:
    assert _deliver(_message(1, 2, 3)) == []
    assert _untouched(exchange) == [1]


def test_message_whose_accounts_cannot_be_evaluated_now_comes_again_and_alone(exchange: Exchange) -> None:
    exchange.faults.fail("history.reserve.before", NO_HISTORY)
    assert _deliver(_message(2), _message(3)) == ["message-0"]
    assert _untouched(exchange) == [1, 2]
    assert _deliver(_message(2)) == []
    assert _untouched(exchange) == [1]


def test_accounts_whose_turn_an_outage_took_come_again_with_their_message(exchange: Exchange) -> None:
    exchange.faults.take_down("history", NO_HISTORY)
    assert _deliver(_message(2, 3)) == ["message-0"]
    exchange.faults.bring_up("history")
    assert _deliver(_message(2, 3)) == []
    assert _untouched(exchange) == [1]


def test_account_named_twice_is_liquidated_once(exchange: Exchange) -> None:
    assert _deliver(_message(2, 2), _message(2)) == []
    types = [link.body["type"] for link in exchange.history_store.chains[2]]
    assert types == ["DEPOSIT", "TRADE", "LIQUIDATION"]


@pytest.mark.parametrize(
    "body",
    [
        "",
        "[]",
        "{}",
        '{"account_ids": []}',
        '{"account_ids": 1}',
        '{"account_ids": [0]}',
        '{"account_ids": ["1"]}',
        '{"account_ids": [true]}',
        '{"account_ids": [9223372036854775808]}',
        json.dumps({"account_ids": list(range(1, 1002))}),
    ],
)
def test_message_that_is_none_comes_again_and_hinders_no_other(exchange: Exchange, body: str) -> None:
    assert _deliver(body, _message(2)) == ["message-0"]
    assert _untouched(exchange) == [1, 3]
