"""The keeper: a small process between the launcher and the server, so that no server outlives its launcher.

It is run as a script by the interpreter alone (``python -I -S keeper.py SPEC``) and imports nothing of the project. It
starts the server as its child and waits for the first of three things: the server ends; the launcher asks for a stop
over the *lifeline*, a socket pair; the lifeline breaks because the launcher died, by ``kill -9`` too.

Why a process and not ``PR_SET_PDEATHSIG`` set by the launcher: that signal comes when the starting *thread* ends, it
exists on Linux only, and setting it needs code between fork and exec, which is unsound in a process with threads. The
keeper has one thread and lives as long as the server, so that here it is sound; it covers the keeper's own death.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

_GRACE_S = 10.0
_PR_SET_PDEATHSIG = 1
# The lifeline tells of the launcher's death at once. Looking at the parent too covers a launcher that has forked: its
# children hold their copy of the lifeline open.
_PARENT_POLL_S = 1.0
_KILL_POLL_S = 0.05
_STOP_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


class KeeperSpec(TypedDict):
    """What the launcher tells the keeper, as one JSON argument."""

    command: list[str]
    environment: dict[str, str]
    stop_signal: int
    launcher_pid: int
    lifeline_fd: int
    lock_fd: int
    uid: int | None
    gid: int | None


def keep(spec: KeeperSpec) -> int:
    """Start the server, report its process id over the lifeline, and stay until it has ended.

    Parameters
    ----------
    spec : KeeperSpec
        The server's command and the descriptors that the keeper inherited.

    Returns
    -------
    int
        The server's exit status, 128 + n for signal n, as a shell has it.
    """
    wake_fd = _wake_on_signals()
    with socket.socket(fileno=spec["lifeline_fd"]) as lifeline:
        try:
            server = _start(spec)
        except (OSError, subprocess.SubprocessError) as error:
            _tell(lifeline, {"error": str(error)})
            return 1
        # By the keeper and not the launcher, which may die in between: a server that holds the lock is always known.
        os.ftruncate(spec["lock_fd"], 0)
        os.pwrite(spec["lock_fd"], f"{server.pid}\n".encode("ascii"), 0)
        # Closed here, so that locked means exactly: the server lives.
        os.close(spec["lock_fd"])
        _tell(lifeline, {"pid": server.pid})
        status = _wait(server, lifeline, wake_fd, spec)
    return status if status >= 0 else 128 - status


def _wait(server: subprocess.Popen[bytes], lifeline: socket.socket, wake_fd: int, spec: KeeperSpec) -> int:
    watched: list[socket.socket | int] = [lifeline, wake_fd]
    kill_at: float | None = None
    while (status := server.poll()) is None:
        readable, _, _ = select.select(watched, [], [], _PARENT_POLL_S if kill_at is None else _KILL_POLL_S)
        grace_s: float | None = None
        if wake_fd in readable and any(number in _STOP_SIGNALS for number in os.read(wake_fd, 512)):
            grace_s = _GRACE_S
        if lifeline in readable:
            message = _hear(lifeline)
            grace_s = float(message) if message else _GRACE_S
            watched.remove(lifeline)
        elif os.getppid() != spec["launcher_pid"]:
            grace_s = _GRACE_S
        if kill_at is None and grace_s is not None:
            kill_at = time.monotonic() + grace_s
            server.send_signal(spec["stop_signal"])
        elif kill_at is not None and time.monotonic() >= kill_at:
            server.kill()
    return status


def _start(spec: KeeperSpec) -> subprocess.Popen[bytes]:
    owner: dict[str, Any] = (
        {} if spec["uid"] is None else {"user": spec["uid"], "group": spec["gid"], "extra_groups": []}
    )
    return subprocess.Popen(  # noqa: S603 - the launcher's own command
        spec["command"],
        env=spec["environment"],
        stdin=subprocess.DEVNULL,
        pass_fds=[spec["lock_fd"]],
        preexec_fn=_die_with_keeper(spec["stop_signal"]),  # noqa: PLW1509 - this process has one thread
        **owner,
    )


def _die_with_keeper(stop_signal: int) -> Callable[[], None] | None:
    """Return what the child runs before it becomes the server: on Linux it asks for a signal when the keeper dies."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl
    keeper_pid = os.getpid()

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, stop_signal)
        # The keeper may have died before the request was made; then no signal will come.
        if os.getppid() != keeper_pid:
            os._exit(1)

    return ask


def _wake_on_signals() -> int:
    """Turn signals, the end of the child included, into bytes on a descriptor that `select` can watch."""
    read_fd, write_fd = os.pipe()
    os.set_blocking(write_fd, False)
    signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, *_STOP_SIGNALS):
        signal.signal(number, _note)
    return read_fd


def _note(_number: int, _frame: FrameType | None) -> None:
    """Do nothing: the byte on the wake-up descriptor says it all."""


def _tell(lifeline: socket.socket, message: dict[str, str | int]) -> None:
    # A launcher that is gone cannot be told; the broken lifeline is noticed next.
    with contextlib.suppress(OSError):
        lifeline.sendall(json.dumps(message).encode("ascii") + b"\n")


def _hear(lifeline: socket.socket) -> bytes:
    try:
        return lifeline.recv(64)
    except OSError:
        return b""


if __name__ == "__main__":
    sys.exit(keep(json.loads(sys.argv[1])))
