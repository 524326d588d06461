"""A server process with its keeper, seen from the launcher."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from margin_local.servers import keeper
from margin_local.servers.error import EmbeddedServerError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from margin_local.servers.account import Account

_KEEPER_START_S = 10.0
_KEEPER_END_S = 5.0


class KeptProcess:
    """A server that is running, or was.

    Parameters
    ----------
    command : Sequence[str]
        The server's program and arguments.
    environment : Mapping[str, str]
        The server's whole environment.
    stop_signal : signal.Signals
        What makes it stop in order.
    log_fd : int
        Where it and the keeper write their output. Stays the caller's.
    lock_fd : int
        The lock of `lock.lock_server`, which it inherits. Stays the caller's.
    account : Account, optional
        The user to run it as, when not this one.

    Raises
    ------
    EmbeddedServerError
        If the program cannot be executed.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        stop_signal: signal.Signals,
        log_fd: int,
        lock_fd: int,
        account: Account | None = None,
    ) -> None:
        self._lifeline, keepers_end = socket.socketpair()
        spec = keeper.KeeperSpec(
            command=list(command),
            environment=dict(environment),
            stop_signal=int(stop_signal),
            launcher_pid=os.getpid(),
            lifeline_fd=keepers_end.fileno(),
            lock_fd=lock_fd,
            uid=account.uid if account else None,
            gid=account.gid if account else None,
        )
        with keepers_end:
            self._keeper = subprocess.Popen(  # noqa: S603 - this interpreter and a file beside this one
                # -I and -S: a clean interpreter, which starts in 20 ms.
                [sys.executable, "-I", "-S", str(Path(keeper.__file__).resolve()), json.dumps(spec)],
                stdin=subprocess.DEVNULL,
                stdout=log_fd,
                stderr=log_fd,
                # The server must not hold a directory, and its user may not be able to enter this one.
                cwd="/",
                pass_fds=[keepers_end.fileno(), lock_fd],
                # Ctrl-C in a terminal goes to the launcher, which stops its servers after its own work.
                start_new_session=True,
            )
        self.pid = self._hear_pid(command[0])

    @property
    def keeper_pid(self) -> int:
        """The keeper's process id."""
        return self._keeper.pid

    def alive(self) -> bool:
        """Tell whether the server runs: its keeper ends with it."""
        return self._keeper.poll() is None

    def stop(self, timeout_s: float) -> None:
        """Stop the server in order, kill it after the timeout, and return when it has ended; idempotent.

        Parameters
        ----------
        timeout_s : float
            How long the server may take before it is killed.
        """
        if self.alive():
            # Where this fails the keeper has just ended, and the server with it.
            with contextlib.suppress(OSError):
                self._lifeline.sendall(f"{timeout_s:.3f}".encode("ascii"))
            try:
                self._keeper.wait(timeout_s + _KEEPER_END_S)
            except subprocess.TimeoutExpired:
                # The keeper itself hangs, so it has not waited for its child, whose number is therefore still its own.
                os.kill(self.pid, signal.SIGKILL)
                self._keeper.kill()
        self._keeper.wait()
        self._lifeline.close()

    def _hear_pid(self, program: str) -> int:
        self._lifeline.settimeout(_KEEPER_START_S)
        answer = b""
        try:
            while not answer.endswith(b"\n") and (part := self._lifeline.recv(4096)):
                answer += part
        except OSError:
            answer = b""
        report = json.loads(answer) if answer.endswith(b"\n") else {"error": "its keeper did not answer"}
        if "pid" in report:
            return int(report["pid"])
        self._keeper.kill()
        self._keeper.wait()
        self._lifeline.close()
        raise EmbeddedServerError(f"cannot run {program}: {report['error']}")
