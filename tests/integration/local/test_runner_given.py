"""The local runner on given servers, with passwords and partitions; and what only a real HTTP server meets."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import redis

from margin.config import Settings
from margin_local.servers import EmbeddedValkey, ports
from tests.integration.api.stores import Stores
from tests.integration.local.runner import HANG_S, Runner, descendants, home, poll, running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from margin_local.servers import EmbeddedPostgres

PARTITIONS = 4
NAME = "margin_given"
PASSWORD = "p@ss word/1"
DOTENV = """\
# Values of a file are overruled by the environment.
REDIS_HOST=127.0.0.1
REDIS_PORT={redis_port}
REDIS_PASSWORD="{password}"
REDIS_DB=3
POSTGRES_HOST=127.0.0.1
POSTGRES_PORT={postgres_port}
POSTGRES_USER={name}
POSTGRES_PASSWORD="{password}"
POSTGRES_DATABASE={name}
PARTITIONS=4
APP_NAME=Named in the file
APP_VERSION=1.2.3-file
DEBUG=true
"""


@pytest.fixture(scope="module")
def given_redis() -> Iterator[int]:
    """Yield the port of a Valkey that wants a password."""
    with home() as directory:
        server = EmbeddedValkey(directory / "valkey", fsync="no")
        server.start()
        try:
            with redis.Redis(port=server.port) as client:
                client.config_set("requirepass", PASSWORD)
            yield server.port
        finally:
            server.stop()


@pytest.fixture(scope="module")
def given_postgres(postgres_server: EmbeddedPostgres) -> int:
    """Return the port of a PostgreSQL with a database of a user who needs a password."""
    address = {"host": postgres_server.host, "port": postgres_server.port}
    with psycopg.connect(**address, user="postgres", dbname="postgres", autocommit=True) as connection:
        connection.execute(f"create role {NAME} login password '{PASSWORD}'")
        connection.execute(f"create database {NAME} owner {NAME}")
        row = connection.execute("show hba_file").fetchone()
        assert row is not None
        rules = Path(row[0])
        with rules.open("r+", encoding="utf-8") as file:
            others = file.read()
            file.seek(0)
            file.write(f"host all {NAME} 127.0.0.1/32 scram-sha-256\n{others}")
        connection.execute("select pg_reload_conf()")
    return postgres_server.port


@pytest.fixture(scope="module")
def runner(given_redis: int, given_postgres: int) -> Iterator[Runner]:
    with home() as directory:
        text = DOTENV.format(redis_port=given_redis, postgres_port=given_postgres, password=PASSWORD, name=NAME)
        (directory / ".env").write_text(text, encoding="utf-8")
        with running(directory, APP_NAME="Named in the environment") as runner:
            yield runner


@pytest.fixture(scope="module")
def stores(runner: Runner, given_redis: int, given_postgres: int) -> Iterator[Stores]:
    settings = Settings(
        redis_port=given_redis,
        redis_password=PASSWORD,
        redis_db=3,
        postgres_port=given_postgres,
        postgres_user=NAME,
        postgres_password=PASSWORD,
        postgres_database=NAME,
    )
    stores = Stores(settings)
    yield stores
    stores.close()


@pytest.fixture
def unchanged(stores: Stores) -> Iterator[None]:
    """See to it that the test writes nothing to either store."""
    before = stores.contents()
    yield
    assert stores.contents() == before


def test_given_servers_are_used_and_none_is_started(runner: Runner, stores: Stores) -> None:
    assert descendants(runner.process.pid) == set()
    assert not (runner.directory / ".data").exists()
    assert runner.get("/health") == {"status": "healthy"}
    assert stores.rows()["accounts"] >= 3


def test_the_environment_wins_over_the_file_and_the_file_over_defaults(runner: Runner) -> None:
    info = runner.get("/openapi.json")["info"]
    assert (info["title"], info["version"]) == ("Named in the environment", "1.2.3-file")


def test_debug_writes_a_line_for_each_request(runner: Runner) -> None:
    runner.send("GET", "/health?debugging=1")
    poll(lambda: "GET /health?debugging=1" in runner.stderr)


def test_four_partitions_hold_their_accounts_and_liquidate_in_one_price(runner: Runner, stores: Stores) -> None:
    accounts = range(400, 408)
    for account_id in accounts:
        runner.post(f"/accounts/{account_id}/deposits", amount="15000")
    runner.post("/mark-price", symbol="PART-PERP", price="50000")
    order = {"symbol": "PART-PERP", "side": "BUY", "quantity": "1", "price": "50000"}
    for account_id in accounts:
        runner.post("/trade", account_id=account_id, **order)
    for account_id in accounts:
        balances = {tag: stores.redis.hget(f"{{p{tag}}}:balances", str(account_id)) for tag in range(PARTITIONS)}
        assert {tag for tag, balance in balances.items() if balance == b"15000"} == {account_id % PARTITIONS}

    first = runner.get("/margin-report?limit=6")
    rest = runner.get(f"/margin-report?limit=1000&cursor={first['next_cursor']}")
    reported = [row["account_id"] for row in first["accounts_detail"] + rest["accounts_detail"]]
    assert sorted(reported[:8]) == list(accounts)
    assert len(reported) == len(set(reported)) == first["total_accounts"]
    assert runner.post("/mark-price", symbol="PART-PERP", price="38000")["at_risk"] == 8

    for account_id in accounts:
        (held,) = runner.get(f"/positions/{account_id}")["positions"]
        (liquidation,) = runner.get(f"/liquidations?account_id={account_id}")["liquidations"]
        assert liquidation["positions"][0]["remaining"] == held["quantity"] == "0.71770334"
        assert len(runner.trades(account_id)) == 1
        closing = {"symbol": "PART-PERP", "side": "SELL", "quantity": held["quantity"], "price": "38000"}
        runner.post("/trade", account_id=account_id, **closing)
        assert runner.post(f"/accounts/{account_id}/withdrawals", amount="3000")["balance"] == "0"


# --- what only a real HTTP server meets ---

POSTS = ("/trade", "/mark-price", "/mark-prices", "/accounts/1/deposits", "/accounts/1/withdrawals")
GETS = ("/positions/1", "/margin-report", "/trades/1", "/liquidations", "/health", "/mark-prices")


def raw(runner: Runner, request: bytes) -> tuple[int, dict[str, str], str]:
    """Send bytes as they are; status, headers and body of the answer. The answer may come before all was sent."""
    with socket.create_connection(("127.0.0.1", runner.port), timeout=HANG_S) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(request)
        response = http.client.HTTPResponse(connection, method=request.split(b" ", maxsplit=1)[0].decode())
        with contextlib.closing(response):
            response.begin()
            headers = {name.lower(): value for name, value in response.getheaders()}
            return response.status, headers, response.read().decode()


def assert_problem(answer: tuple[int, dict[str, str], str], status: int, code: str, field: str | None = None) -> None:
    assert answer[0] == status, answer
    assert answer[1]["content-type"] == "application/problem+json"
    problem: dict[str, Any] = json.loads(answer[2])
    assert (problem["status"], problem["code"], problem.get("field")) == (status, code, field)


def request(method: str, path: str, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *headers, "Connection: close"]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("path", POSTS)
def test_two_megabytes_are_413(runner: Runner, path: str) -> None:
    body = b'{"padding": "' + b"x" * 2_000_000 + b'"}'
    answer = raw(runner, request("POST", path, body, "Content-Type: application/json"))
    assert_problem(answer, 413, "BODY_TOO_LARGE")


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("path", POSTS)
def test_two_megabytes_of_unannounced_length_are_413(runner: Runner, path: str) -> None:
    chunks = b"".join(b"%x\r\n%s\r\n" % (50_000, b" " * 50_000) for _ in range(40)) + b"0\r\n\r\n"
    head = request("POST", path, b"", "Content-Type: application/json", "Transfer-Encoding: chunked")
    assert_problem(raw(runner, head + chunks), 413, "BODY_TOO_LARGE")


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("path", POSTS)
def test_a_body_without_content_type_is_415(runner: Runner, path: str) -> None:
    assert_problem(raw(runner, request("POST", path, b'{"amount": 1}')), 415, "UNSUPPORTED_MEDIA_TYPE")


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("path", sorted({*POSTS, *GETS}))
@pytest.mark.parametrize("method", ["DELETE", "PUT", "OPTIONS"])
def test_another_method_is_405(runner: Runner, path: str, method: str) -> None:
    answer = raw(runner, request(method, path))
    assert_problem(answer, 405, "METHOD_NOT_ALLOWED")
    allowed = {method for method, paths in (("GET", GETS), ("POST", POSTS)) if path in paths}
    assert answer[1]["allow"] == ", ".join(sorted(allowed))


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("path", sorted({*POSTS, *GETS}))
def test_head_is_405_without_a_body(runner: Runner, path: str) -> None:
    status, headers, body = raw(runner, request("HEAD", path))
    assert (status, headers["content-type"], body) == (405, "application/problem+json", "")


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    "path",
    [
        *("/", "//", "/nothing", "/trade/", "/positions", "/positions/", "/positions/1/", "//positions/1"),
        *(
            "/positions/..%2F1",
            "/positions/1%2F2",
            "/trades/1/..",
            "/.env",
            "/%2e%2e/%2e%2e/etc/passwd",
            "/%00",
            "/%FF",
        ),
    ],
)
def test_an_unknown_path_is_404(runner: Runner, path: str) -> None:
    assert_problem(raw(runner, request("GET", path)), 404, "UNKNOWN_PATH")


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("path", ["/positions/{}", "/trades/{}"])
@pytest.mark.parametrize(
    "account",
    [
        *("%00", "%FF", "%C3%28", "%", "%zz", "1%00", "1%0d%0aX-Injected:%201", "%0A1", "%D9%A1", "1%20", "%7B1%7D"),
        *("1;x=1", "1:2", "*", "%2A", "..", "%25", "1%3Flimit=1", "0x1", "1" * 2000),
    ],
)
def test_junk_for_an_account_is_422(runner: Runner, path: str, account: str) -> None:
    answer = raw(runner, request("GET", path.format(account)))
    assert_problem(answer, 422, "INVALID_REQUEST", "path.account_id")
    assert "x-injected" not in answer[1]


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    "query", ["cursor=%FF", "cursor=%00", "limit=%31%00", "limit=1&limit=1", "limit=+1", "cursor=%zz"]
)
def test_junk_in_the_query_is_422(runner: Runner, query: str) -> None:
    answer = raw(runner, request("GET", f"/liquidations?{query}"))
    assert_problem(answer, 422, "INVALID_REQUEST", f"query.{query.partition('=')[0]}")


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("keys", [["a", "b"], ["a", "a"], ["a,b"], ["\xff"], ["x" * 5000]])
def test_a_bad_or_repeated_idempotency_key_is_422(runner: Runner, keys: list[str]) -> None:
    headers = ["Content-Type: application/json", *(f"Idempotency-Key: {key}" for key in keys)]
    answer = raw(runner, request("POST", "/accounts/1/deposits", b'{"amount": 1}', *headers))
    assert_problem(answer, 422, "INVALID_REQUEST", "header.Idempotency-Key")


@pytest.mark.usefixtures("unchanged")
def test_a_client_that_leaves_half_way_through_its_body_changes_nothing(runner: Runner) -> None:
    half = request("POST", "/accounts/1/deposits", b'{"amount": 1}', "Content-Type: application/json")[:-1]
    with socket.create_connection(("127.0.0.1", runner.port), timeout=HANG_S) as connection:
        connection.sendall(half)
    assert runner.get("/health") == {"status": "healthy"}


def test_a_database_that_cannot_be_reached_is_one_line(given_redis: int) -> None:
    environment = {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": str(given_redis), "REDIS_PASSWORD": PASSWORD}
    with home() as directory:
        port = str(ports.choose_port())
        runner = Runner(directory, POSTGRES_HOST="127.0.0.1", POSTGRES_PORT=port, **environment)
        assert runner.await_exit() == 1
        (line,) = runner.stderr.splitlines()
        assert "PostgreSQL cannot be reached" in line
        assert runner.stdout == ""
