"""Fixtures for the embedded servers: both kinds behind one face, their directories, launchers in other processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
import redis

from margin_local.servers import EmbeddedPostgres, EmbeddedServer, EmbeddedValkey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_DEADLINE_S = 10.0
_LAUNCHER = """
import json, sys
from pathlib import Path
from margin_local import servers
server = getattr(servers, sys.argv[1])(Path(sys.argv[2]))
server.start()
print(json.dumps([server.pid, server.port, server._process.keeper_pid]), flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True)
class Kind:
    """One kind of server: how to make it, how to write a value and how to read it."""

    server_type: type[EmbeddedServer]
    write: Callable[[int, str], None]
    read: Callable[[int], str]
    directory: Path

    def make(self, port: int = 0) -> EmbeddedServer:
        return self.server_type(self.directory, port)


@dataclass(frozen=True)
class Launcher:
    """Another process that has started a server."""

    process: subprocess.Popen[str]
    server_pid: int
    port: int
    keeper_pid: int

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def _write_valkey(port: int, value: str) -> None:
    with redis.Redis(host="127.0.0.1", port=port) as client:
        client.set("key", value)


def _read_valkey(port: int) -> str:
    with redis.Redis(host="127.0.0.1", port=port, decode_responses=True) as client:
        return str(client.get("key"))


def _connect(port: int) -> psycopg.Connection:
    return psycopg.connect(host="127.0.0.1", port=port, user="postgres", dbname="margin", autocommit=True)


def _write_postgres(port: int, value: str) -> None:
    with _connect(port) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS kept (id int PRIMARY KEY, value text)")
        connection.execute(
            "INSERT INTO kept VALUES (1, %s) ON CONFLICT (id) DO UPDATE SET value = excluded.value", [value]
        )


def _read_postgres(port: int) -> str:
    with _connect(port) as connection:
        row = connection.execute("SELECT value FROM kept").fetchone()
    assert row is not None
    return str(row[0])


@pytest.fixture
def directory() -> Iterator[Path]:
    """Yield a directory that PostgreSQL's user can enter when the tests run as root."""
    path = Path(tempfile.mkdtemp(prefix="margin-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def postgres_directory(server_directory: Path) -> Path:
    """Return the directory of a PostgreSQL that ran and was stopped. Tests share it, since a new one takes a second."""
    server = EmbeddedPostgres(server_directory / "restarted", durable=False)
    server.start()
    server.stop()
    return server.directory


@pytest.fixture(params=["valkey", "postgres"])
def kind(request: pytest.FixtureRequest, directory: Path) -> Kind:
    if request.param == "valkey":
        return Kind(EmbeddedValkey, _write_valkey, _read_valkey, directory / "server")
    return Kind(EmbeddedPostgres, _write_postgres, _read_postgres, request.getfixturevalue("postgres_directory"))


@pytest.fixture
def server(kind: Kind) -> Iterator[EmbeddedServer]:
    """Yield a server of each kind that is not started yet, and stop it afterwards."""
    embedded = kind.make()
    yield embedded
    embedded.stop()


@pytest.fixture
def launch() -> Iterator[Callable[[Kind], Launcher]]:
    """Yield a function that starts a server from another process, which waits; all of it is ended afterwards."""
    launched: list[Launcher] = []

    def start(kind: Kind) -> Launcher:
        process = subprocess.Popen(
            [sys.executable, "-c", _LAUNCHER, kind.server_type.__name__, str(kind.directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        launched.append(Launcher(process, *json.loads(process.stdout.readline())))
        return launched[-1]

    yield start
    for launcher in launched:
        with launcher.process:
            launcher.kill()
        if not has_ended(launcher.keeper_pid):
            # Where a test has frozen it, it ends its server and itself once it runs again.
            os.kill(launcher.keeper_pid, signal.SIGCONT)
        await_condition(partial(has_ended, launcher.keeper_pid))


@pytest.fixture
def await_end() -> Callable[[int], None]:
    """Return a function that waits until a process has ended."""
    return lambda pid: await_condition(lambda: has_ended(pid))


@pytest.fixture
def kill(await_end: Callable[[int], None]) -> Callable[[EmbeddedServer], None]:
    """Return a function that kills a server and waits until that is known."""

    def kill_server(embedded: EmbeddedServer) -> None:
        assert embedded.pid is not None
        os.kill(embedded.pid, signal.SIGKILL)
        await_condition(lambda: not embedded.alive())

    return kill_server


def await_condition(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.005)


def has_ended(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    try:
        # Ended, but not waited for: in a container the first process may never do so.
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return sys.platform == "linux"
