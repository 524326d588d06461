"""`make verify`: on the history of an engine that runs, of one that does not, and of one that somebody has changed."""

from __future__ import annotations

import contextlib
import re
import signal
from typing import TYPE_CHECKING

import psycopg
import pytest

from margin_local.servers import EmbeddedPostgres
from tests.database import PAST_THE_GUARD
from tests.integration.local.runner import home, running, start_command

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_COMMAND = "margin_local.verify"
_TIMEOUT_S = 60
MANY = 5000
CLEAN = re.compile(r"verified (\d+) events of (\d+) accounts, (\d+) changes: no break")


def _verify(directory: Path, *arguments: str, **environment: str) -> tuple[int, list[str], str]:
    with start_command(_COMMAND, directory, *arguments, **environment) as process:
        output, errors = process.communicate(timeout=_TIMEOUT_S)
    return process.returncode, output.splitlines(), errors


@contextlib.contextmanager
def _owner(server: EmbeddedPostgres) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    with psycopg.connect(
        host=server.host,
        port=server.port,
        user=server.user,
        dbname="margin",
        options=PAST_THE_GUARD,
        autocommit=True,
    ) as connection:
        yield connection


@pytest.fixture(scope="module")
def traded() -> Iterator[Path]:
    """Yield the directory of an engine that has traded and was stopped."""
    with home() as directory:
        with running(directory) as runner:
            assert runner.buy(1, "0.1").status == 200
            pause = {"state": "reduce-only", "reason": "the desk asked for it"}
            assert runner.send("PUT", "/controls/accounts/1", pause).status == 200
            code, lines, errors = _verify(directory)
            assert code == 0, errors
            found = CLEAN.fullmatch(lines[-1])
            assert found is not None, lines
            assert [int(number) > 0 for number in found.groups()] == [True, True, True]
        yield directory


@pytest.fixture
def server(traded: Path) -> Iterator[EmbeddedPostgres]:
    """Yield the PostgreSQL of that engine, which runs; what the command finds it joins."""
    server = EmbeddedPostgres(traded / ".data" / "postgres", durable=False)
    server.start()
    yield server
    server.stop()


def test_history_of_an_engine_that_is_stopped_is_verified_without_a_redis(traded: Path) -> None:
    seen = sorted((traded / ".data" / "valkey").iterdir())
    code, lines, errors = _verify(traded)
    assert code == 0, errors
    assert len(lines) == 1
    assert CLEAN.fullmatch(lines[0])
    assert sorted((traded / ".data" / "valkey").iterdir()) == seen


def test_account_is_told_line_by_line(traded: Path) -> None:
    code, lines, errors = _verify(traded, "--account", "1", "--show")
    assert code == 0, errors
    deposit, trade, switch, verified = lines
    moment = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"
    assert re.fullmatch(rf"{moment}  DEPOSIT \d+, balance \d+  \[event 1 id \d+\]  by engine from -", deposit)
    assert re.fullmatch(
        rf"{moment}  TRADE BUY 0\.1 BTC-PERP at 50000, balance [\d.]+  \[event 2 id \d+\]  by - from 127\.0\.0\.1",
        trade,
    )
    assert re.fullmatch(
        rf"{moment}  SWITCH reduce-only: the desk asked for it  \[control_changes id \d+\]  by - from 127\.0\.0\.1",
        switch,
    )
    assert verified == "verified 2 events of 1 accounts, 1 changes: no break"


def test_what_somebody_has_changed_is_named_and_the_status_says_so(traded: Path, server: EmbeddedPostgres) -> None:
    with _owner(server) as connection:
        ((event_id, source_ip),) = connection.execute(
            "select event_id, source_ip from events where (account_id, n) = (1, 2)"
        ).fetchall()
        connection.execute("update events set source_ip = '198.51.100.66' where (account_id, n) = (1, 2)")
        connection.execute("update control_changes set reason = 'nobody asked' where name = 'account:1'")
        try:
            code, lines, errors = _verify(traded, "--account", "1")
        finally:
            connection.execute("update events set source_ip = body ->> 'source_ip' where (account_id, n) = (1, 2)")
            connection.execute("update control_changes set reason = 'the desk asked for it' where name = 'account:1'")
    assert code == 1, errors
    assert lines[:3] == [
        f"BREAK account 1, event 2, id {event_id}: column source_ip of event 2 is not what its body says",
        f"  expected {source_ip}",
        "  found    198.51.100.66",
    ]
    assert re.fullmatch(
        r"BREAK control_changes account:1, change \d+: it does not have the hash of what it says", lines[3]
    )
    assert lines[-1] == "verified 2 events of 1 accounts, 1 changes: 2 breaks"
    assert _verify(traded, "--account", "1")[0] == 0


def test_what_a_store_says_reaches_the_terminal_as_text_alone(traded: Path, server: EmbeddedPostgres) -> None:
    """Whoever writes into history past the engine writes no line of this command, and moves no cursor."""
    forged = "asked\x1b[2J\rfor\nverified 9 events\u2028of 9\u202e accounts"
    shown = "asked?[2J?for?verified 9 events?of 9? accounts"
    with _owner(server) as connection:
        ((body,),) = connection.execute("select body::text from events where (account_id, n) = (1, 2)").fetchall()
        connection.execute("update control_changes set reason = %s where name = 'account:1'", [forged])
        connection.execute("update events set source_ip = %s where (account_id, n) = (1, 2)", [forged])
        connection.execute(
            "insert into control_changes (name, state, reason, previous_hash, hash) values (%s, 'paused', '', '', '')",
            [forged],
        )
        try:
            code, lines, errors = _verify(traded, "--account", "1", "--show")
            _, all_lines, _ = _verify(traded)
            connection.execute(
                "update events set source_ip = body ->> 'source_ip',"
                " body = jsonb_set(body, '{detail,symbol}', to_jsonb(%s::text)) where (account_id, n) = (1, 2)",
                [forged],
            )
            _, (_, trade, *_), _ = _verify(traded, "--account", "1", "--show")
        finally:
            connection.execute(
                "update events set source_ip = body ->> 'source_ip', body = %s::jsonb where (account_id, n) = (1, 2)",
                [body],
            )
            connection.execute("update control_changes set reason = 'the desk asked for it' where name = 'account:1'")
            connection.execute("delete from control_changes where name = %s", [forged])
    assert code == 1, errors
    assert f"SWITCH reduce-only: {shown}  [control_changes id " in lines[2]
    assert lines[5] == f"  found    {shown}"
    assert any(line.startswith(f"BREAK control_changes {shown}, change ") for line in all_lines)
    assert f"BUY 0.1 {shown} at 50000" in trade
    for line in (*lines, *all_lines, trade):
        assert line.isprintable(), line
    assert lines[-1].startswith("verified 2 events of 1 accounts, ")


def test_signal_stops_it_before_the_end(traded: Path, server: EmbeddedPostgres) -> None:
    with _owner(server) as connection:
        connection.execute(
            "insert into accounts (account_id, n, event_id, chain_hash, balance, positions, opened_at, changed_at)"
            " select id, 1, id, id, 1, '{}', now(), now() from generate_series(1000, %s) as id",
            [999 + MANY],
        )
        try:
            with start_command(_COMMAND, traded) as process:
                assert process.stdout is not None
                assert process.stdout.readline().startswith("BREAK account 1000, event 1: event 1 is missing")
                process.send_signal(signal.SIGINT)
                output, errors = process.communicate(timeout=_TIMEOUT_S)
        finally:
            connection.execute("delete from accounts where account_id >= 1000")
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert re.fullmatch(
        r"stopped after \d+ events of \d+ accounts, 0 changes: \d+ breaks so far", output.splitlines()[-1]
    )


def test_account_that_history_does_not_know_is_said_to_be_unknown(traded: Path) -> None:
    code, lines, errors = _verify(traded, "--account", "77777")
    assert (code, lines) == (1, [])
    assert errors.splitlines()[-1].startswith("margin: UNKNOWN_ACCOUNT: Account 77777")


@pytest.mark.parametrize("arguments", [("--show",), ("--account", "0"), ("--account", "x"), ("--account", str(2**63))])
def test_arguments_that_make_no_sense_are_refused(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    code, lines, errors = _verify(tmp_path, *arguments)
    assert (code, lines) == (2, [])
    assert "usage: margin_local.verify" in errors


def test_postgres_that_is_down_is_said_to_be_that(tmp_path: Path) -> None:
    code, lines, errors = _verify(tmp_path, POSTGRES_HOST="127.0.0.1", POSTGRES_PORT="1")
    assert (code, lines) == (1, [])
    assert "margin: POSTGRES_UNAVAILABLE: " in errors
