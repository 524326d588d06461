"""What Redis refuses to the engine's user: every command and every key that the engine has no use for."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis

import margin
from margin.config import PARTITIONS_MAX
from margin.errors import RedisUnavailableError
from tests import acl
from tests.actions import deposit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from margin.config import Settings
    from tests.integration.conftest import MakeEngine

CLIENTS = Path(margin.__file__).parent / "clients"
_CALL = re.compile(r"redis\.p?call\((?:[^',]* and '([A-Z]+)' or |[^',]*'floor' and '([A-Z]+)' or )?'([A-Z]+)'")
_DRIVERS_OWN = {"delete": "del"}
# What the driver sends by itself, or is not called as a method of its client.
_UNSEEN = {"select", "evalsha", "script|load", "multi", "exec"}
_NO_COMMANDS = {"execute", "aclose", "pipeline", "execute_command", "disconnect", "connection_pool", "from_pool"}


@pytest.fixture
def as_engine(store: redis.Redis, settings: Settings) -> Iterator[Any]:
    """Yield a client of whoever has the engine's credentials."""
    with redis.Redis(
        host=settings.redis_host,
        port=settings.redis_port,
        username=settings.redis_username,
        password=settings.redis_password,
        decode_responses=True,
    ) as client:
        store.hset("marker", "epoch", "1")
        yield client


@pytest.mark.parametrize(
    "command",
    [
        *("FLUSHALL", "FLUSHDB", "KEYS *", "CONFIG GET maxmemory-policy", "CONFIG SET maxmemory 1"),
        *("SCRIPT FLUSH", "SCRIPT KILL", "FUNCTION FLUSH", "FUNCTION STATS", "SHUTDOWN NOSAVE", "SAVE", "BGSAVE"),
        *("ACL WHOAMI", "ACL LIST", "ACL SETUSER more on nopass ~* +@all", "CLIENT LIST", "CLIENT KILL TYPE normal"),
        *("CLIENT PAUSE 1", "MONITOR", "REPLICAOF NO ONE", "SLOWLOG GET", "RANDOMKEY", "DBSIZE", "SWAPDB 0 1"),
        *("MOVE balances 1", "COPY balances pending", "RENAME balances pending", "DUMP balances", "SORT balances"),
        *("RESTORE balances 0 x", "MIGRATE h 1 balances 0 1", "OBJECT ENCODING balances", "SUBSCRIBE news"),
        *(
            "PUBLISH news x",
            "WAIT 0 1",
            "LATENCY DOCTOR",
            "MEMORY DOCTOR",
            "MODULE LIST",
            "CLUSTER INFO",
            "HVALS balances",
        ),
    ],
)
def test_command_that_the_engine_does_not_use_is_refused(as_engine: Any, command: str) -> None:
    with pytest.raises(redis.exceptions.NoPermissionError):
        as_engine.execute_command(*command.split())


@pytest.mark.parametrize(
    "name",
    [
        *("sessions", "balance", "balances2", "p0:balances", "position", ""),
        *("{q0}:balances", "{p}:balances", "{p0x}:balances", "{px0}:balances", "{p0}x:balances", "{p00000}:balances"),
        "{p-1}:balances",
    ],
)
def test_key_that_is_not_the_engines_is_neither_read_nor_written(as_engine: Any, store: redis.Redis, name: str) -> None:
    store.set(name, "another's")
    for command in (("GET", name), ("SET", name, "x"), ("DEL", name), ("HGET", name, "1")):
        with pytest.raises(redis.exceptions.NoPermissionError):
            as_engine.execute_command(*command)
    assert store.get(name) == "another's"


@pytest.mark.parametrize(
    "script",
    [
        "return redis.call('FLUSHALL')",
        "return redis.call('DBSIZE')",
        "return redis.call('GET', 'sessions')",
        "return redis.call('KEYS', '*')",
    ],
)
def test_script_may_no_more_than_its_caller(as_engine: Any, script: str) -> None:
    with pytest.raises(redis.exceptions.ResponseError, match=r"ACL failure in script|permission"):
        as_engine.eval(script, 1, "marker")


@pytest.mark.parametrize(
    "name",
    [
        *("balances", "position:1:BTC-PERP", "{p0}:balances", "{p10}:pending", "{p999}:funding"),
        f"{{p{PARTITIONS_MAX - 1}}}:triggers:BTC-PERP:floor",
    ],
)
def test_key_of_any_partition_is_the_engines(as_engine: Any, name: str) -> None:
    assert as_engine.exists(name) == 0


@pytest.fixture(params=["off", "with a password"])
def without_default_user(store: redis.Redis, request: pytest.FixtureRequest) -> Iterator[None]:
    """Keep everybody out who does not log in, as a deployment has to."""
    with acl.nobody_by_default(store, *{"off": ["off"], "with a password": ["resetpass", ">another"]}[request.param]):
        yield


@pytest.mark.usefixtures("without_default_user")
@pytest.mark.parametrize("command", ["GET marker", "FLUSHALL", "CONFIG GET maxmemory", "INFO"])
def test_who_takes_the_engines_user_off_is_nobody(as_engine: Any, command: str) -> None:
    # Past the client, which would log in once more.
    connection = as_engine.connection_pool.get_connection()
    connection.send_command("RESET")
    assert connection.read_response() == "RESET"
    connection.send_command(*command.split())
    with pytest.raises(redis.exceptions.AuthenticationError, match="Authentication required"):
        connection.read_response()
    connection.disconnect()


@pytest.mark.usefixtures("without_default_user")
def test_who_does_not_log_in_is_nobody(settings: Settings) -> None:
    with (
        redis.Redis(host=settings.redis_host, port=settings.redis_port, protocol=2) as client,
        pytest.raises(redis.exceptions.AuthenticationError, match="Authentication required"),
    ):
        client.ping()


@pytest.mark.usefixtures("without_default_user")
async def test_engine_needs_no_default_user(make_engine: MakeEngine) -> None:
    engine = await make_engine()
    assert (await deposit(engine, 1, "1")).final


async def test_engine_with_a_wrong_password_is_unavailable(make_engine: MakeEngine) -> None:
    engine = await make_engine(opened=False, redis_password="wrong")
    with pytest.raises(RedisUnavailableError):
        await engine.opening.open()


def test_rules_name_every_command_and_every_key_that_is_used_and_no_other() -> None:
    rules = acl.rules()
    assert rules[0] == "-@all"
    commands = {rule[1:] for rule in rules if rule.startswith("+")}
    assert commands == _commands_of_scripts() | _commands_of_clients() | _UNSEEN
    names = {rule[1:].removesuffix("*") for rule in rules if rule.startswith("~")}
    tags = {f"{{p{'[0-9]' * digits}}}:" for digits in range(1, len(str(PARTITIONS_MAX - 1)) + 1)}
    assert tags <= names
    assert names - tags == _keys()


def _commands_of_scripts() -> set[str]:
    texts = [path.read_text(encoding="utf-8") for path in CLIENTS.glob("*.lua")]
    calls = [call for text in texts for call in _CALL.findall(text)]
    assert len(calls) == sum(text.count("redis.call(") + text.count("redis.pcall(") for text in texts)
    return {name.lower() for call in calls for name in call if name}


def _commands_of_clients() -> set[str]:
    found = set()
    for path in CLIENTS.glob("*redis*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id in {"redis", "pipeline", "client"}
            ):
                found.add(node.func.attr)
    return {_DRIVERS_OWN.get(name, name) for name in found - _NO_COMMANDS - {"script_load"}}


def _keys() -> set[str]:
    named = {"marker"}
    for path in (*CLIENTS.glob("*.lua"), *CLIENTS.glob("*redis*.py")):
        text = path.read_text(encoding="utf-8")
        named |= set(re.findall(r"""\bkey\('([a-z_]+:?)""", text))
        named |= set(re.findall(r"""\.key\([^"\n]*f?"([a-z_]+:?)""", text))
        named |= set(re.findall(r"""^_PROGRESS = "([a-z_]+)"$""", text, re.MULTILINE))
    return named
