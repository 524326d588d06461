"""The local runner from its first start over restarts and kills to its end."""

from __future__ import annotations

import http.client
import json
import signal
import threading
import urllib.request
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from margin_local.access import WARNING
from tests.integration.local.conftest import has_ended
from tests.integration.local.runner import Runner, descendants, home, poll

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class House:
    """A directory and the runner that lives there at present."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.runner = Runner(directory).await_ready()

    def restart(self) -> Runner:
        assert self.runner.process.poll() is not None
        self.runner = Runner(self.directory).await_ready()
        return self.runner


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with home() as directory:
        house = House(directory)
        yield house
        if house.runner.process.poll() is None:
            house.runner.stop()


@pytest.fixture
def runner(house: House) -> Runner:
    return house.runner


def test_a_first_start_prints_one_line_and_opens_the_demo(runner: Runner) -> None:
    report = runner.get("/margin-report")
    demo = {row["account_id"]: row["balance"] for row in report["accounts_detail"] if row["account_id"] <= 3}
    assert {account_id: demo[account_id] for account_id in (2, 3)} == {2: "5000", 3: "15000"}
    assert Decimal(demo[1]) == 100_000
    assert runner.get("/health") == {"status": "healthy"}
    assert runner.stdout == f"ready {runner.url}\n"
    assert runner.stderr == f"{WARNING}\n"


SEED_TRADE = (
    b"{\n"
    b'    "account_id": 1,\n'
    b'    "symbol": "BTC-PERP", \n'
    b'    "side": "BUY",\n'
    b'    "quantity": 0.1,\n'
    b'    "price": 50000\n'
    b"  }"
)
SEED_MARK = b'{"symbol": "BTC-PERP", "price": 51000}'


def test_the_engine_logs_in_to_its_own_postgresql_as_one_who_cannot_change_history(runner: Runner) -> None:
    _, port = (runner.directory / ".data" / "postgres" / "port").read_text(encoding="ascii").split()
    with psycopg.connect(host="127.0.0.1", port=int(port), user="postgres", dbname="margin") as connection:
        users = connection.execute("select distinct usename from pg_stat_activity where application_name = 'margin'")
        assert users.fetchall() == [("margin_functions",)]


def curl(runner: Runner, path: str, data: bytes | None = None) -> Any:
    request = urllib.request.Request(
        f"http://localhost:{runner.port}{path}",
        data,
        {"Content-Type": "application/json"} if data else {},
        method="POST" if data else "GET",
    )
    with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310
        assert response.status == 200
        body = response.read()
    return json.loads(body)


def test_the_three_calls_of_the_description_work_byte_for_byte(runner: Runner) -> None:
    traded = curl(runner, "/trade", SEED_TRADE)
    assert (traded["success"], traded["notional"], traded["initial_margin_required"]) == (True, "5000", "1000")
    (position,) = curl(runner, "/positions/1")["positions"]
    assert (position["quantity"], position["entry_price"], position["mark_price"]) == ("0.1", "50000", "50000")
    assert curl(runner, "/mark-price", SEED_MARK)["price"] == "51000"
    assert curl(runner, "/positions/1")["equity"] == "100100"
    curl(runner, "/mark-price", SEED_MARK.replace(b"51000", b"50000"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_everything_and_the_next_start_has_all_data(house: House, number: signal.Signals) -> None:
    runner = house.runner
    account_id = 100 + number
    runner.post(f"/accounts/{account_id}/deposits", amount="1000.12345678")
    assert runner.buy(account_id, "0.01").status == 200
    before = [runner.get(f"/{what}/{account_id}") for what in ("positions", "trades")]
    children = descendants(runner.process.pid)
    assert children >= {runner.server_pid("valkey"), runner.server_pid("postgres")}

    assert runner.stop(number) == 0

    assert [pid for pid in children if not has_ended(pid)] == []
    assert runner.stdout == f"ready {runner.url}\n"
    assert runner.stderr == f"{WARNING}\n"
    runner = house.restart()
    assert [runner.get(f"/{what}/{account_id}") for what in ("positions", "trades")] == before
    assert runner.get("/health") == {"status": "healthy"}


def test_what_was_acknowledged_before_a_kill_is_there_at_the_next_start(house: House) -> None:
    runner = house.runner
    accounts = (201, 202, 203, 204)
    for account_id in accounts:
        runner.post(f"/accounts/{account_id}/deposits", amount="100000")
    acknowledged: dict[int, list[int]] = {account_id: [] for account_id in accounts}

    def trade(account_id: int) -> None:
        try:
            while True:
                answer = runner.buy(account_id)
                assert answer.status == 200, answer.text
                acknowledged[account_id].append(answer.json["trade_id"])
        except (OSError, http.client.HTTPException):
            return

    threads = [threading.Thread(target=trade, args=[account_id]) for account_id in accounts]
    for thread in threads:
        thread.start()
    poll(lambda: min(len(ids) for ids in acknowledged.values()) >= 10)
    runner.kill()
    for thread in threads:
        thread.join()

    runner = house.restart()

    for account_id, ids in acknowledged.items():
        trades = runner.trades(account_id)
        stored = [trade["id"] for trade in trades]
        assert len(stored) == len(set(stored))
        # One more may have been executed whose answer was cut off.
        assert set(ids) <= set(stored)
        assert len(stored) <= len(ids) + 1
        (position,) = runner.get(f"/positions/{account_id}")["positions"]
        assert Decimal(position["quantity"]) == sum(Decimal(trade["quantity"]) for trade in trades)


def refused(directory: Path, **environment: str) -> str:
    """Start a runner that is expected to give up; its one line."""
    runner = Runner(directory, **environment)
    try:
        assert runner.await_exit() == 1
    finally:
        runner.process.kill()
    assert runner.stdout == ""
    (line,) = runner.stderr.splitlines()
    return line


def test_a_taken_port_is_one_line_and_nothing_is_started(runner: Runner) -> None:
    with home() as directory:
        line = refused(directory, PORT=str(runner.port))
        assert f"127.0.0.1:{runner.port}" in line
        assert "PORT" in line
        assert not (directory / ".data").exists()


def test_a_second_runner_on_the_same_data_is_refused_in_one_line(runner: Runner) -> None:
    with home() as directory:
        line = refused(directory, DATA_DIR=str(runner.directory / ".data"))
    assert f"in use by process {runner.process.pid}" in line
    assert runner.get("/health") == {"status": "healthy"}


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [("PORT", "abc", "PORT must be a whole number"), ("PARTITIONS", "0", "PARTITIONS must be from 1 to")],
)
def test_a_wrong_setting_is_one_line_that_names_it(variable: str, value: str, expected: str) -> None:
    with home() as directory:
        assert expected in refused(directory, **{variable: value})
        assert not (directory / ".data").exists()
