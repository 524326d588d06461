"""Passwords that are exchanged while the engine works: no request is lost, and nobody hammers Secrets Manager."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import socket
import time
import uuid
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import sql

from functions_password import set_functions_password
from margin.caller import NOBODY
from margin.clients import rotating_secret
from margin.clients.rotating_secret import RotatingSecret
from margin.domain.order import Order
from margin.domain.position import Side
from margin.errors import PostgresUnavailableError, RedisUnavailableError, SecretUnavailableError
from margin_local.servers.ports import HOST
from tests import acl
from tests.actions import deposit, mark
from tests.database import FUNCTIONS, OWNER
from tests.integration.conftest import admin
from tests.runtime.aws import REGION, Aws

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from margin.runtime import Engine
    from margin_local.servers import EmbeddedPostgres
    from tests.integration.conftest import MakeEngine

ROLE = "margin_rotated"
ACCOUNTS = range(1, 7)
ROUNDS = 3
TRADES_BETWEEN = 30
PATIENCE_S = 30.0


@pytest.fixture(scope="module")
def aws(server_directory: Path) -> Iterator[Aws]:
    """Yield a Secrets Manager."""
    aws = Aws(server_directory / "moto.log")
    yield aws
    aws.stop()


@pytest.fixture(autouse=True)
def secrets_manager(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have the engine's calls go there."""
    for name, value in {
        "AWS_ENDPOINT_URL": aws.url,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
    }.items():
        monkeypatch.setenv(name, value)
    rotating_secret._client.cache_clear()
    yield
    rotating_secret._client.cache_clear()


class Rotation:
    """The rotation of one store's secret, step by step, as a rotation function does it.

    Parameters
    ----------
    aws : Aws
        Where the secret is.
    set_password : callable
        Has the store take a password in the place of the one before.
    drop_connections : callable
        Ends the engine's connections on the server's side.
    """

    def __init__(
        self, aws: Aws, username: str, set_password: Callable[[str], object], drop_connections: Callable[[], object]
    ) -> None:
        self.name = f"margin-{uuid.uuid4().hex}"
        self._drop_connections = drop_connections
        self._secrets = aws.secrets
        self._username = username
        self._set_password = set_password
        password = secrets.token_urlsafe()
        set_password(password)
        text = self._text(password)
        self._version: str = self._secrets.create_secret(Name=self.name, SecretString=text)["VersionId"]

    def _text(self, password: str) -> str:
        return f'{{"username": "{self._username}", "password": "{password}"}}'

    def begin(self) -> None:
        """Create the pending version, and set it in the store: the current one is refused from here on."""
        password, self._next = secrets.token_urlsafe(), str(uuid.uuid4())
        self._secrets.put_secret_value(
            SecretId=self.name,
            ClientRequestToken=self._next,
            SecretString=self._text(password),
            VersionStages=["AWSPENDING"],
        )
        self._set_password(password)

    def drop_connections(self) -> None:
        """End the engine's connections, so that it needs new ones."""
        self._drop_connections()

    def finish(self) -> None:
        """Make the pending version the current one."""
        self._secrets.update_secret_version_stage(
            SecretId=self.name,
            VersionStage="AWSCURRENT",
            MoveToVersionId=self._next,
            RemoveFromVersionId=self._version,
        )
        self._version = self._next


@pytest.fixture
def role(postgres_server: EmbeddedPostgres) -> Iterator[psycopg.Connection[Any]]:
    """Yield a connection of the owner, on a server that asks a member of the functions' role for its password."""
    with admin(postgres_server) as connection:
        connection.execute(f"create role {ROLE} login in role {FUNCTIONS}".encode())
        try:
            with _asked_for_password(connection, ROLE):
                yield connection
        finally:
            connection.execute(f"drop role {ROLE}".encode())


@contextlib.contextmanager
def _asked_for_password(connection: psycopg.Connection[Any], role: str) -> Iterator[None]:
    """Have the server trust everybody but one role."""
    ((path,),) = connection.execute("show hba_file").fetchall()
    rules = Path(path)
    before = rules.read_text(encoding="utf-8")
    _write_rules(connection, rules, f"host all {role} 127.0.0.1/32 scram-sha-256\n{before}")
    try:
        yield
    finally:
        _write_rules(connection, rules, before)


def _write_rules(connection: psycopg.Connection[Any], rules: Path, text: str) -> None:
    ((loaded_at,),) = connection.execute("select pg_conf_load_time()").fetchall()
    rules.write_text(text, encoding="utf-8")
    connection.execute("select pg_reload_conf()")
    deadline_s = time.monotonic() + PATIENCE_S
    # They are read by the process that takes connections, which is not this session's.
    while connection.execute("select pg_conf_load_time()").fetchall() == [(loaded_at,)]:
        assert time.monotonic() < deadline_s


@pytest.fixture
def postgres_rotation(aws: Aws, role: psycopg.Connection[Any]) -> Rotation:
    """Return the rotation of PostgreSQL's secret."""

    def set_password(password: str) -> None:
        role.execute(sql.SQL("alter role {} password {}").format(sql.Identifier(ROLE), sql.Literal(password)))

    def drop_connections() -> None:
        # Those that were used before: what dies between a commit and the first use of a new one is answered with 202.
        used = "select pg_terminate_backend(pid) from pg_stat_activity where usename = %s and query <> ''"
        role.execute(used, [ROLE])

    return Rotation(aws, ROLE, set_password, drop_connections)


@pytest.fixture
def redis_rotation(aws: Aws, store: Any) -> Rotation:
    """Return the rotation of Redis's secret."""

    def set_password(password: str) -> None:
        store.execute_command("ACL", "SETUSER", acl.USERNAME, "resetpass", f">{password}")

    def drop_connections() -> None:
        store.execute_command("CLIENT", "KILL", "USER", acl.USERNAME)

    return Rotation(aws, acl.USERNAME, set_password, drop_connections)


@pytest.fixture
async def rotated(make_engine: MakeEngine, redis_rotation: Rotation, postgres_rotation: Rotation) -> Engine:
    """Return an opened engine that has its passwords from secrets and keeps them for five minutes."""
    engine = await make_engine(
        redis_secret=redis_rotation.name,
        redis_password="",
        postgres_secret=postgres_rotation.name,
        secret_ttl_s=300,
    )
    for account_id in ACCOUNTS:
        await deposit(engine, account_id, "100000")
    await mark(engine, "50000")
    return engine


class Load:
    """Trades of several accounts at once, one after the other on each, until told to stop."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._stopping = False
        self.answers: Counter[str] = Counter()

    async def trade(self, account_id: int) -> None:
        """Trade to and fro."""
        number = 0
        while not self._stopping:
            number += 1
            order = Order(account_id, "BTC-PERP", (Side.SELL, Side.BUY)[number % 2], Decimal("0.1"), Decimal(50000))
            try:
                outcome = await self._engine.trading.trade(order, key=f"{account_id}-{number}", caller=NOBODY)
            except Exception as error:  # noqa: BLE001 - every answer but one is counted as what it is
                self.answers[repr(error)] += 1
            else:
                self.answers["200" if outcome.final else "202"] += 1

    def stop(self) -> None:
        """Let the trades under way come to their end."""
        self._stopping = True

    async def some_more(self) -> None:
        """Wait until some more trades were answered."""
        until = self.answers.total() + TRADES_BETWEEN
        async with asyncio.timeout(PATIENCE_S):
            while self.answers.total() < until:  # noqa: ASYNC110 - each answer is looked at anyway
                await asyncio.sleep(0.005)


@pytest.mark.parametrize("of", ["redis", "postgres", "both"])
async def test_rotation_under_load_loses_no_request(
    rotated: Engine, redis_rotation: Rotation, postgres_rotation: Rotation, of: str
) -> None:
    rotations = {"redis": [redis_rotation], "postgres": [postgres_rotation]}.get(
        of, [redis_rotation, postgres_rotation]
    )
    load = Load(rotated)
    trades = [asyncio.create_task(load.trade(account_id)) for account_id in ACCOUNTS]
    await load.some_more()
    for _ in range(ROUNDS):
        for step in (Rotation.begin, Rotation.drop_connections, Rotation.finish, Rotation.drop_connections):
            for rotation in rotations:
                await asyncio.to_thread(step, rotation)
            await load.some_more()
    load.stop()
    await asyncio.gather(*trades)
    assert set(load.answers) == {"200"}
    assert load.answers["200"] > TRADES_BETWEEN * ROUNDS * 4


@pytest.fixture
def calls() -> list[str]:
    """Return the stages that are read from Secrets Manager, one entry a call."""
    return _calls_from_now_on()


def _calls_from_now_on() -> list[str]:
    read: list[str] = []
    events = rotating_secret._client().meta.events
    events.register(
        "provide-client-params.secrets-manager.GetSecretValue", lambda params, **_: read.append(params["VersionStage"])
    )
    return read


@pytest.fixture
def fall_silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[str]]]:
    """Yield a function that has Secrets Manager take calls and answer none; it returns those that are made then."""
    with socket.create_server((HOST, 0)) as silent:

        def begin() -> list[str]:
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{HOST}:{silent.getsockname()[1]}")
            rotating_secret._client.cache_clear()
            return _calls_from_now_on()

        yield begin


async def test_password_that_is_simply_wrong_is_refused_and_asked_for_twice_however_many_need_it(
    make_engine: MakeEngine, redis_rotation: Rotation, store: Any, calls: list[str]
) -> None:
    store.execute_command("ACL", "SETUSER", acl.USERNAME, "resetpass", ">another")
    engine = await make_engine(opened=False, redis_secret=redis_rotation.name, redis_password="")
    outcomes = await asyncio.gather(
        *(engine.margin.account_margin(account_id) for account_id in ACCOUNTS), return_exceptions=True
    )
    assert {type(outcome) for outcome in outcomes} == {RedisUnavailableError}
    # One for the first connections, then the two stages.
    assert calls == ["AWSCURRENT", "AWSCURRENT", "AWSPENDING"]
    with pytest.raises(RedisUnavailableError):
        await engine.margin.account_margin(1)
    assert len(calls) == 3


async def test_postgresql_password_that_is_simply_wrong_is_asked_for_twice(
    make_engine: MakeEngine, postgres_rotation: Rotation, role: psycopg.Connection[Any], calls: list[str]
) -> None:
    role.execute(f"alter role {ROLE} password 'another'".encode())
    engine = await make_engine(opened=False, postgres_secret=postgres_rotation.name)
    for _ in range(5):
        with pytest.raises(PostgresUnavailableError):
            await engine.history_store.accounts(0, 1)
    assert calls == ["AWSCURRENT", "AWSCURRENT", "AWSPENDING"]


async def test_password_that_another_rotation_replaced_twice_meanwhile_is_found(
    rotated: Engine, redis_rotation: Rotation, postgres_rotation: Rotation
) -> None:
    for rotation in (redis_rotation, postgres_rotation):
        rotation.begin()
        rotation.finish()
        # What is kept is two behind now, and what is current is refused as well.
        rotation.begin()
        rotation.drop_connections()
    assert (await deposit(rotated, 1, "1")).final


async def test_kept_password_is_replaced_when_it_is_old_enough(
    redis_rotation: Rotation, calls: list[str], store: Any
) -> None:
    del store
    secret = RotatingSecret(redis_rotation.name, 0)
    first = secret.value()
    redis_rotation.begin()
    assert secret.value() == first
    redis_rotation.finish()
    assert secret.value() != first
    assert calls == ["AWSCURRENT"] * 3


async def test_kept_passwords_are_used_on_while_secrets_manager_does_not_answer(
    make_engine: MakeEngine,
    redis_rotation: Rotation,
    postgres_rotation: Rotation,
    fall_silent: Callable[[], list[str]],
) -> None:
    engine = await make_engine(
        redis_secret=redis_rotation.name, redis_password="", postgres_secret=postgres_rotation.name, secret_ttl_s=0
    )
    for account_id in ACCOUNTS:
        await deposit(engine, account_id, "1")
    calls = fall_silent()
    for _ in range(2):
        redis_rotation.drop_connections()
        postgres_rotation.drop_connections()
        async with asyncio.timeout(PATIENCE_S):
            outcomes = await asyncio.gather(*(deposit(engine, account_id, "1") for account_id in ACCOUNTS))
        assert {outcome.final for outcome in outcomes} == {True}
    # One for each store: while it is under way, and for a while after it, the others do without.
    assert calls == ["AWSCURRENT", "AWSCURRENT"]


@pytest.mark.parametrize("store_of", ["redis", "postgres"])
async def test_without_a_kept_password_one_call_fails_for_all_who_wait_and_for_those_who_come_after_it(
    make_engine: MakeEngine,
    redis_rotation: Rotation,
    postgres_rotation: Rotation,
    fall_silent: Callable[[], list[str]],
    store_of: str,
) -> None:
    engine = await make_engine(
        opened=False, redis_secret=redis_rotation.name, redis_password="", postgres_secret=postgres_rotation.name
    )
    calls = fall_silent()

    async def read() -> object:
        if store_of == "redis":
            return await engine.margin.account_margin(1)
        return await engine.history_store.accounts(0, 1)

    for _ in range(2):
        async with asyncio.timeout(PATIENCE_S):
            outcomes = await asyncio.gather(*(read() for _ in range(8)), return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {SecretUnavailableError}
    assert calls == ["AWSCURRENT"]


@pytest.mark.parametrize("loss", ["nobody listens", "no password any more"])
async def test_kept_password_outlives_a_secret_that_cannot_be_read(
    redis_rotation: Rotation, aws: Aws, monkeypatch: pytest.MonkeyPatch, loss: str
) -> None:
    secret = RotatingSecret(redis_rotation.name, 0)
    first = secret.value()
    if loss == "nobody listens":
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        rotating_secret._client.cache_clear()
    else:
        aws.secrets.put_secret_value(SecretId=redis_rotation.name, SecretString="no json")
    calls = _calls_from_now_on()
    assert [secret.value(), secret.value()] == [first, first]
    assert calls == ["AWSCURRENT"]


async def test_password_that_a_migration_sets_is_never_a_kept_one(
    make_engine: MakeEngine, aws: Aws, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"margin-{uuid.uuid4().hex}"
    aws.put_secret(name, username=FUNCTIONS, password="first")
    engine = await make_engine(opened=False, postgres_functions_secret=name)
    assert engine.functions_password() == "first"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    rotating_secret._client.cache_clear()
    with pytest.raises(SecretUnavailableError):
        engine.functions_password()


async def test_refused_password_is_the_only_one_where_secrets_manager_is_down(
    rotated: Engine, redis_rotation: Rotation, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis_rotation.begin()
    redis_rotation.drop_connections()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    rotating_secret._client.cache_clear()
    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(RedisUnavailableError):
            await rotated.margin.account_margin(1)


@pytest.mark.parametrize("text", ["no json", "[]", '"text"', '{"user": "x"}'])
async def test_secret_that_holds_no_password_makes_the_store_unavailable(
    make_engine: MakeEngine, aws: Aws, text: str
) -> None:
    name = f"margin-{uuid.uuid4().hex}"
    aws.secrets.create_secret(Name=name, SecretString=text)
    engine = await make_engine(opened=False, redis_secret=name, postgres_secret=name)
    with pytest.raises(SecretUnavailableError):
        await engine.margin.account_margin(1)
    with pytest.raises(SecretUnavailableError):
        await engine.history_store.accounts(0, 1)


async def test_secret_that_does_not_exist_makes_the_store_unavailable(make_engine: MakeEngine) -> None:
    engine = await make_engine(opened=False, redis_secret="nobody-knows", postgres_secret="nobody-knows")
    with pytest.raises(SecretUnavailableError):
        await engine.margin.account_margin(1)
    with pytest.raises(SecretUnavailableError):
        await engine.history_store.accounts(0, 1)


# --- the password of the functions' role, which a proxy logs in with


async def test_migration_gives_the_functions_role_the_password_of_its_secret(
    make_engine: MakeEngine, postgres_server: EmbeddedPostgres, aws: Aws
) -> None:
    name, password = f"margin-{uuid.uuid4().hex}", "not the owner's @:/%#'"
    aws.secrets.create_secret(Name=name, SecretString=json.dumps({"username": FUNCTIONS, "password": password}))
    migrating = await make_engine(opened=False, postgres_user=OWNER, postgres_functions_secret=name)
    set_functions_password(migrating.settings, migrating.functions_password())
    with admin(postgres_server) as connection, _asked_for_password(connection, FUNCTIONS):
        kept = connection.execute("select rolpassword from pg_authid where rolname = %s", [FUNCTIONS]).fetchall()
        assert kept[0][0].startswith("SCRAM-SHA-256$")
        engine = await make_engine(opened=False, postgres_password=password)
        assert await engine.history_store.accounts(0, 1) == []
        engine = await make_engine(opened=False, postgres_password="another")
        with pytest.raises(PostgresUnavailableError):
            await engine.history_store.accounts(0, 1)


async def test_secret_without_a_password_ends_the_migration(make_engine: MakeEngine, aws: Aws) -> None:
    name = f"margin-{uuid.uuid4().hex}"
    aws.secrets.create_secret(Name=name, SecretString="{}")
    engine = await make_engine(opened=False, postgres_functions_secret=name)
    with pytest.raises(SecretUnavailableError):
        engine.functions_password()
    assert (await make_engine(opened=False)).functions_password() == ""
