"""Servers that die or freeze under the running engine: clear answers in time, recovery, nothing lost or doubled."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest

from tests.integration.local.runner import HANG_S, Answer, Runner, descendants, home, poll, running, signal_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Request = Callable[[], Answer]

ANSWER_S = 3.0
"""Within this time a caller has an answer while a server is frozen."""


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    with home() as directory, running(directory) as runner:
        yield runner


@pytest.fixture
def account_id(runner: Runner) -> int:
    """Return an account of the test's own, with 100000, a position of 0.001 and connections that are warm."""
    opened = {row["account_id"] for row in runner.get("/margin-report?limit=1000")["accounts_detail"]}
    account_id = max(opened) + 1
    runner.post(f"/accounts/{account_id}/deposits", amount="100000")
    assert runner.buy(account_id).status == 200
    return account_id


@contextlib.contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Stop a server and its children in their tracks, and let them run again."""
    os.kill(pid, signal.SIGSTOP)
    pids = {pid, *descendants(pid)}
    signal_all(pids, signal.SIGSTOP)
    try:
        yield
    finally:
        signal_all(pids, signal.SIGCONT)


def assert_unavailable(answer: Answer) -> None:
    assert answer.status == 503, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert int(answer.headers["Retry-After"]) >= 1
    assert answer.json["status"] == 503


def quantity(runner: Runner, account_id: int) -> Decimal:
    (position,) = runner.get(f"/positions/{account_id}")["positions"]
    return Decimal(position["quantity"])


def all_at_once(requests: dict[str, Request]) -> dict[str, Answer]:
    with ThreadPoolExecutor(len(requests)) as threads:
        sent = {name: threads.submit(request) for name, request in requests.items()}
        return {name: answer.result() for name, answer in sent.items()}


def state_requests(runner: Runner, account_id: int) -> dict[str, Request]:
    return {
        "positions": lambda: runner.send("GET", f"/positions/{account_id}"),
        "report": lambda: runner.send("GET", "/margin-report"),
        "mark price": lambda: runner.send("POST", "/mark-price", {"symbol": "BTC-PERP", "price": 50000}),
    }


def history_requests(runner: Runner, account_id: int) -> dict[str, Request]:
    return {
        "trades": lambda: runner.send("GET", f"/trades/{account_id}"),
        "liquidations": lambda: runner.send("GET", "/liquidations"),
    }


def write_requests(runner: Runner, account_id: int, key: str) -> dict[str, Request]:
    account = f"/accounts/{account_id}"
    return {
        "trade": lambda: runner.buy(account_id, key=f"{key}-trade"),
        "deposit": lambda: runner.send("POST", f"{account}/deposits", {"amount": "1"}, key=f"{key}-deposit"),
        "withdrawal": lambda: runner.send("POST", f"{account}/withdrawals", {"amount": "1"}, key=f"{key}-withdrawal"),
    }


@pytest.mark.parametrize("server", ["valkey", "postgres"])
def test_a_killed_server_comes_back_by_itself_and_nothing_is_lost_or_doubled(
    runner: Runner, account_id: int, server: str
) -> None:
    answers: dict[str, Answer] = {}
    enough = threading.Event()

    def trade() -> None:
        while not enough.is_set():
            key = f"{server}-{len(answers)}"
            answers[key] = runner.buy(account_id, key=key)

    killed = runner.server_pid(server)
    with ThreadPoolExecutor(1) as threads:
        trading = threads.submit(trade)
        try:
            poll(lambda: len(answers) >= 5)
            os.kill(killed, signal.SIGKILL)
            poll(lambda: any(answer.status != 200 for answer in answers.values()))
            poll(runner.healthy, 2 * HANG_S)
            seen = len(answers)
            poll(lambda: len(answers) >= seen + 5)
        finally:
            enough.set()
        trading.result()

    assert runner.server_pid(server) != killed
    for answer in answers.values():
        assert answer.status in {200, 202, 503}, answer.text
        assert answer.elapsed_s < HANG_S
        if answer.status == 503:
            assert_unavailable(answer)
    assert list(answers.values())[-1].status == 200
    stored = {trade["id"] for trade in runner.trades(account_id)}
    final = {answer.json["trade_id"] for answer in answers.values() if answer.status == 200}
    assert final <= stored
    # A retry finds out what became of the others, and executes what was not executed.
    for key, answer in answers.items():
        again = runner.buy(account_id, key=key)
        assert again.status == 200
        if answer.status in {200, 202}:
            assert (again.text, again.headers["Idempotent-Replayed"]) == (answer.text, "true")
    assert len(runner.trades(account_id)) == len(answers) + 1
    assert quantity(runner, account_id) == (len(answers) + 1) * Decimal("0.001")


def test_a_frozen_valkey_is_503_in_bounded_time_wherever_state_is_needed(runner: Runner, account_id: int) -> None:
    writes = write_requests(runner, account_id, "frozen-valkey")
    needing = {**state_requests(runner, account_id), **writes, "health": lambda: runner.send("GET", "/health")}

    with frozen(runner.server_pid("valkey")):
        answers = all_at_once(needing | history_requests(runner, account_id))

    for name, answer in answers.items():
        assert answer.elapsed_s < ANSWER_S, name
        if name in needing:
            assert_unavailable(answer)
        else:
            assert answer.status == 200, answer.text
    poll(runner.healthy)
    assert len(runner.trades(account_id)) == 1
    assert quantity(runner, account_id) == Decimal("0.001")
    assert runner.get(f"/positions/{account_id}")["balance"] == "100000"
    assert [request().status for request in writes.values()] == [200, 200, 200]
    assert quantity(runner, account_id) == Decimal("0.002")


def test_a_frozen_postgres_is_503_or_202_in_bounded_time_and_what_is_202_gets_into_history(
    runner: Runner, account_id: int
) -> None:
    reads = history_requests(runner, account_id) | {"health": lambda: runner.send("GET", "/health")}
    keys = [f"frozen-postgres-{number}" for number in range(6)]
    writes: dict[str, Request] = {key: (lambda key=key: runner.buy(account_id, key=key)) for key in keys}

    with frozen(runner.server_pid("postgres")):
        first = runner.buy(account_id, key="frozen-postgres-first")
        answers = all_at_once(reads | writes | state_requests(runner, account_id))
        held = quantity(runner, account_id)

    # A connection was at hand for the first, so it was executed before anybody noticed; the others found none.
    assert first.status == 202, first.text
    assert first.elapsed_s < ANSWER_S
    executed = {first.json["trade_id"]}
    for name, answer in answers.items():
        assert answer.elapsed_s < ANSWER_S, name
        if name in reads:
            assert_unavailable(answer)
        elif name in writes:
            assert answer.status in {202, 503}, answer.text
            executed |= {answer.json["trade_id"]} if answer.status == 202 else set()
        else:
            assert answer.status == 200, answer.text
    assert held == (len(executed) + 1) * Decimal("0.001")
    poll(runner.healthy)
    poll(lambda: len(runner.trades(account_id)) > len(executed))
    assert {trade["id"] for trade in runner.trades(account_id)} > executed
    assert quantity(runner, account_id) == held
    for key, request in writes.items():
        again = request()
        assert again.status == 200
        assert (again.headers["Idempotent-Replayed"] == "true") is (answers[key].status == 202)
    assert quantity(runner, account_id) == (len(keys) + 2) * Decimal("0.001")
