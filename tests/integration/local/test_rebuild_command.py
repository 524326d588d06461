"""`make rebuild`: on the stores of an engine that runs, of one that does not, and on stores that are given."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from margin_local.servers import EmbeddedPostgres, EmbeddedServerError, EmbeddedValkey
from tests.integration.local.conftest import Kind, has_ended
from tests.integration.local.runner import descendants, home, poll, running, start_command

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.integration.local.conftest import Launcher

_COMMAND = "margin_local.rebuild"
_TIMEOUT_S = 60
MANY = 3000
VERY_MANY = 20_000


def _rebuild(directory: Path, *arguments: str, **environment: str) -> tuple[int, str, str]:
    with start_command(_COMMAND, directory, *arguments, **environment) as process:
        output, errors = process.communicate(timeout=_TIMEOUT_S)
    return process.returncode, output, errors


def _report(output: str) -> dict[str, Any]:
    (line,) = output.splitlines()
    report: dict[str, Any] = json.loads(line)
    return report


def _ports(directory: Path) -> dict[str, int]:
    """Ports of the servers that run, as they left word of them."""
    told = {name: (directory / ".data" / name / "port").read_text(encoding="ascii") for name in ("valkey", "postgres")}
    return {name: int(text.split()[1]) for name, text in told.items()}


@contextlib.contextmanager
def _redis(directory: Path) -> Iterator[redis.Redis]:
    never = Retry(NoBackoff(), 0)
    with redis.Redis(port=_ports(directory)["valkey"], decode_responses=True, retry=never) as client:
        yield client


def _fill_history(directory: Path, accounts: int) -> None:
    """Give history many accounts that Redis does not have."""
    address = f"host=127.0.0.1 port={_ports(directory)['postgres']} user=postgres dbname=margin"
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute(
            "insert into accounts (account_id, n, event_id, chain_hash, balance, positions, opened_at, changed_at)"
            " select id, 1, id, id, 1, '{}', now(), now() from generate_series(1000, %s) as id",
            [999 + accounts],
        )


@pytest.fixture
def servers(directory: Path) -> Iterator[tuple[EmbeddedValkey, EmbeddedPostgres]]:
    """Yield servers in the place where the engine has its own, started by this process."""
    valkey = EmbeddedValkey(directory / ".data" / "valkey")
    postgres = EmbeddedPostgres(directory / ".data" / "postgres", durable=False)
    yield valkey, postgres
    valkey.stop()
    postgres.stop()


def test_state_of_an_engine_that_runs_is_rebuilt_on_its_own_servers_and_it_trades_on() -> None:
    with home() as directory, running(directory) as runner:
        trade = runner.buy(1, "0.1", key="mine").json
        servers = {name: runner.server_pid(name) for name in ("valkey", "postgres")}
        with _redis(directory) as client:
            client.hset("balances", "1", "1")
        code, output, errors = _rebuild(directory, "--account", "1")
        assert (code, _report(output)["rebuilt"]["account_id"]) == (0, 1), errors
        assert runner.get("/positions/1")["balance"] == "100000"
        with _redis(directory) as client:
            client.hset("balances", mapping={"1": "1", "2": "2"})
        code, output, errors = _rebuild(directory, "--all")
        assert (code, _report(output)) == (
            0,
            {"rebuilt": {"partitions": [0]}, "accounts": 3, "loaded": 3}
            | {"dropped": 0, "kept": 0, "drained": 0, "complete": True},
        ), errors
        assert '"rebuild_began"' in errors
        assert {name: runner.server_pid(name) for name in servers} == servers
        assert [runner.get(f"/positions/{number}")["balance"] for number in (1, 2)] == ["100000", "5000"]
        again = runner.buy(1, "0.1", key="mine")
        assert (again.json, again.headers["idempotent-replayed"]) == (trade, "true")
        assert runner.buy(1, "0.1").status == 200


def test_engine_goes_on_while_another_process_rebuilds_and_says_once_that_it_waits() -> None:
    with home() as directory, running(directory) as runner:
        _fill_history(directory, MANY)
        answers: list[int] = []
        over = threading.Event()

        def trade() -> None:
            while not over.is_set():
                answers.append(runner.buy(1, "0.0001").status)

        client = threading.Thread(target=trade)
        client.start()
        poll(lambda: len(answers) > 10)
        code, output, errors = _rebuild(directory, "--all")
        done = len(answers)
        poll(lambda: len(answers) > done + 10)
        over.set()
        client.join()
        assert (code, _report(output)["loaded"]) == (0, MANY + 3), errors
        assert set(answers) == {200, 503}
        assert set(answers[done + 2 :]) == {200}
        stored = len(runner.trades(1))
        assert stored == answers.count(200)
        waits = [line for line in runner.stderr.splitlines() if "stores_unavailable" in line]
        assert len(waits) <= 1, runner.stderr
        assert "watch_failed" not in runner.stderr


def test_state_of_an_engine_that_does_not_run_is_rebuilt_and_nothing_is_left_running() -> None:
    with home() as directory:
        with running(directory) as runner:
            runner.buy(1, "0.1")
            _fill_history(directory, 50)
        code, output, errors = _rebuild(directory, "--all")
        assert (code, _report(output)["loaded"]) == (0, 53), errors
        for name in ("valkey", "postgres"):
            assert has_ended(int((directory / ".data" / name / "server.lock").read_text(encoding="ascii")))
        with running(directory) as runner:
            assert len(runner.get("/positions/1")["positions"]) == 1
            assert runner.get("/positions/1049")["balance"] == "1"


def _interrupted(directory: Path, number: signal.Signals, **environment: str) -> dict[str, Any]:
    """Rebuild, and stop that when the first accounts are done; the report."""
    with start_command(_COMMAND, directory, "--all", **environment) as process:
        poll(lambda: _reached(directory) > 0, 30)
        children = descendants(process.pid)
        process.send_signal(number)
        output, errors = process.communicate(timeout=_TIMEOUT_S)
    report = _report(output)
    assert (process.returncode, report["complete"]) == (130, False), errors
    assert "Traceback" not in errors
    assert "the same call goes on" in report["next"]
    assert 0 < report["loaded"] < VERY_MANY
    assert [pid for pid in children if not has_ended(pid)] == []
    return report


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_stops_cleanly_and_the_next_call_goes_on_where_it_was(
    directory: Path, servers: tuple[EmbeddedValkey, EmbeddedPostgres], number: signal.Signals
) -> None:
    given = _given(servers)
    with running(directory, **given):
        _fill_history(directory, VERY_MANY)
    first = _interrupted(directory, number, **given)
    code, output, errors = _rebuild(directory, "--all", **given)
    second = _report(output)
    assert (code, second["complete"], first["loaded"] + second["loaded"]) == (0, True, VERY_MANY + 3), errors


def test_interrupt_stops_the_servers_that_were_started_and_the_next_call_completes_it() -> None:
    """Other processes are other servers: what was done on the ones before is not relied on."""
    with home() as directory:
        with running(directory):
            _fill_history(directory, VERY_MANY)
        _interrupted(directory, signal.SIGINT)
        code, output, errors = _rebuild(directory, "--all")
        assert (code, _report(output)["loaded"]) == (0, VERY_MANY + 3), errors


def test_engine_that_runs_completes_a_rebuild_that_was_interrupted() -> None:
    with home() as directory, running(directory) as runner:
        _fill_history(directory, VERY_MANY)
        _interrupted(directory, signal.SIGINT)
        poll(runner.healthy, 30)
        with _redis(directory) as client:
            assert client.hlen("versions") == VERY_MANY + 3
            assert not client.exists("opening")


def _reached(directory: Path) -> int:
    """How many accounts the rebuild under way has done."""
    with contextlib.suppress(redis.RedisError, OSError), _redis(directory) as client:
        return int(client.hget("opening", "accounts") or 0)
    return 0


def _given(servers: tuple[EmbeddedValkey, EmbeddedPostgres]) -> dict[str, str]:
    """Start the servers; the environment that names them."""
    for server in servers:
        server.start()
    valkey, postgres = servers
    return {
        "REDIS_HOST": valkey.host,
        "REDIS_PORT": str(valkey.port),
        "POSTGRES_HOST": postgres.host,
        "POSTGRES_PORT": str(postgres.port),
        "DATA_DIR": "elsewhere",
    }


def test_given_stores_are_used_and_none_started(
    directory: Path, servers: tuple[EmbeddedValkey, EmbeddedPostgres]
) -> None:
    given = _given(servers)
    with running(directory, **given):
        pass
    code, output, errors = _rebuild(directory, "--all", **given)
    assert (code, _report(output)["loaded"]) == (0, 3), errors
    assert not (directory / "elsewhere").exists()
    code, output, errors = _rebuild(directory, "--all", **given, PARTITIONS="4")
    assert (code, output) == (1, "")
    assert errors == "margin: the state was loaded for PARTITIONS=1, this command has 4: give it the same\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--account", "4711"], "margin: UNKNOWN_ACCOUNT: Account 4711 does not exist"),
        (["--partition", "1"], "margin: INVALID_REQUEST: partition: must be from 0 to 0"),
        (["--account", "0"], "margin: INVALID_REQUEST: Give one of"),
    ],
)
def test_failure_is_one_line(directory: Path, arguments: list[str], expected: str) -> None:
    with running(directory):
        code, output, errors = _rebuild(directory, *arguments)
    assert (code, output) == (1, "")
    assert errors.splitlines()[-1].startswith(expected)
    assert "Traceback" not in errors


@pytest.mark.parametrize("arguments", [[], ["--all", "--account", "1"], ["--account", "x"]])
def test_command_line_that_does_not_say_one_thing_is_refused(directory: Path, arguments: list[str]) -> None:
    code, output, errors = _rebuild(directory, *arguments)
    assert (code, output) == (2, "")
    assert "usage" in errors
    assert not (directory / ".data").exists()


# --- joining a server ---


def test_joined_server_is_that_of_its_launcher_and_is_left_alone(
    kind: Kind, launch: Callable[[Kind], Launcher]
) -> None:
    launcher = launch(kind)
    joined = kind.make()
    joined.join()
    assert joined.port == launcher.port
    assert not joined.restart_if_dead()
    joined.stop()
    kind.write(launcher.port, "lives")
    assert kind.read(launcher.port) == "lives"


def test_server_that_nobody_runs_cannot_be_joined(kind: Kind) -> None:
    server = kind.make()
    server.start()
    server.stop()
    with pytest.raises(EmbeddedServerError, match="does not answer"):
        kind.make().join(timeout_s=0)
