"""Start, stop and restart of both embedded servers, and what happens when processes are killed."""

from __future__ import annotations

import os
import signal
import socket
import sys
from typing import TYPE_CHECKING

import pytest

from margin_local.servers import EmbeddedPostgres, EmbeddedServer, EmbeddedServerError, EmbeddedValkey, ports

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.integration.local.conftest import Kind, Launcher

    Launch = Callable[[Kind], Launcher]


@pytest.fixture
def taken_port() -> Iterator[int]:
    """Yield a port on which somebody else listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_started_server_serves_on_a_port_below_the_ephemeral_range(server: EmbeddedServer, kind: Kind) -> None:
    server.start()

    kind.write(server.port, "1")
    assert kind.read(server.port) == "1"
    assert server.alive()
    assert 1024 < server.port < 32768


def test_stopped_server_has_ended_and_keeps_its_data(server: EmbeddedServer, kind: Kind) -> None:
    server.start()
    pid = server.pid
    kind.write(server.port, "kept")
    server.stop()
    assert not server.alive()
    assert server.pid is None
    with pytest.raises(ProcessLookupError):
        os.kill(pid or 0, 0)

    server.start()

    assert kind.read(server.port) == "kept"


def test_stop_does_nothing_before_start_and_twice(server: EmbeddedServer) -> None:
    server.stop()
    server.start()
    server.stop()
    server.stop()

    assert not server.alive()


def test_start_of_a_started_server_is_refused(server: EmbeddedServer) -> None:
    server.start()

    with pytest.raises(EmbeddedServerError, match="started already"):
        server.start()
    assert server.alive()


def test_second_start_on_a_directory_is_refused_naming_the_owner(
    server: EmbeddedServer, kind: Kind, launch: Launch
) -> None:
    launcher = launch(kind)

    with pytest.raises(EmbeddedServerError, match=rf"in use by process {launcher.process.pid}\b"):
        server.start()
    kind.write(launcher.port, "undisturbed")
    assert kind.read(launcher.port) == "undisturbed"


def test_server_ends_with_its_killed_launcher(
    server: EmbeddedServer, kind: Kind, launch: Launch, await_end: Callable[[int], None]
) -> None:
    launcher = launch(kind)
    kind.write(launcher.port, "kept")

    launcher.kill()

    await_end(launcher.server_pid)
    await_end(launcher.keeper_pid)
    server.start()
    assert kind.read(server.port) == "kept"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the kernel has no parent death signal")
def test_server_ends_with_its_killed_keeper_and_is_restarted(
    server: EmbeddedServer, kind: Kind, await_end: Callable[[int], None]
) -> None:
    server.start()
    pid, port = server.pid, server.port
    assert pid is not None
    assert server._process is not None
    kind.write(port, "kept")

    os.kill(server._process.keeper_pid, signal.SIGKILL)

    await_end(pid)
    assert server.restart_if_dead()
    assert kind.read(port) == "kept"


def test_orphan_is_taken_over_and_loses_nothing(
    server: EmbeddedServer, kind: Kind, launch: Launch, await_end: Callable[[int], None]
) -> None:
    launcher = launch(kind)
    kind.write(launcher.port, "kept")
    # A frozen keeper does not notice its launcher's death, so that the server lives on.
    os.kill(launcher.keeper_pid, signal.SIGSTOP)
    launcher.kill()
    assert kind.read(launcher.port) == "kept"

    server.start()

    assert kind.read(server.port) == "kept"
    await_end(launcher.server_pid)


def test_restart_if_dead_brings_a_killed_server_back_on_its_port(
    server: EmbeddedServer, kind: Kind, kill: Callable[[EmbeddedServer], None]
) -> None:
    server.start()
    port = server.port
    kind.write(port, "kept")
    kill(server)

    assert server.restart_if_dead()

    assert server.port == port
    assert kind.read(port) == "kept"


def test_restart_if_dead_leaves_a_live_and_a_stopped_server_alone(server: EmbeddedServer) -> None:
    assert not server.restart_if_dead()
    server.start()
    pid = server.pid
    assert not server.restart_if_dead()
    assert server.pid == pid
    server.stop()
    assert not server.restart_if_dead()
    assert not server.alive()


def test_given_port_in_use_is_refused_in_one_line(kind: Kind, taken_port: int) -> None:
    server = kind.make(taken_port)

    with pytest.raises(EmbeddedServerError, match=f"port {taken_port} on 127.0.0.1 is in use") as refusal:
        server.start()

    assert "\n" not in str(refusal.value)
    assert not server.alive()


def test_chosen_port_taken_before_the_server_listens_is_chosen_again(
    server: EmbeddedServer, kind: Kind, taken_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    free_port = ports.choose_port()
    choices = iter([taken_port, free_port])
    monkeypatch.setattr(ports, "choose_port", lambda: next(choices))
    monkeypatch.setattr(ports, "port_is_free", lambda _port: True)

    server.start()

    assert server.port == free_port
    kind.write(server.port, "1")


def test_start_that_fails_shows_the_log_in_one_line_and_can_be_repeated(directory: Path) -> None:
    server = EmbeddedValkey(directory, options=("--no-such-option", "1"))

    for _ in range(2):
        with pytest.raises(
            EmbeddedServerError, match=r"ended while it started.*valkey\.log.*no-such-option"
        ) as failure:
            server.start()
        assert "\n" not in str(failure.value)


@pytest.mark.parametrize("port", [-1, 55_535, 70_000])
@pytest.mark.parametrize("server_type", [EmbeddedValkey, EmbeddedPostgres])
def test_port_out_of_range_is_refused(server_type: type[EmbeddedServer], port: int, directory: Path) -> None:
    with pytest.raises(EmbeddedServerError, match="out of range"):
        server_type(directory, port)


def test_unknown_fsync_policy_is_refused(directory: Path) -> None:
    with pytest.raises(EmbeddedServerError, match="always, everysec, no"):
        EmbeddedValkey(directory, fsync="sometimes")
