"""What both embedded servers have in common: locks, port, start, restart, stop."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from margin_local.servers import lock, ports
from margin_local.servers.error import EmbeddedServerError
from margin_local.servers.process import KeptProcess

if TYPE_CHECKING:
    import signal
    from pathlib import Path

    from margin_local.servers.account import Account

_READY_POLL_S = 0.01
_RESTART_TIMEOUT_S = 20.0
_STOP_TIMEOUT_S = 10.0
_PORTS_TRIED_MAX = 10
_LOG_TAIL_BYTES = 4096
_LOG_TAIL_LINES = 5
_ENVIRONMENT = ("PATH", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")


class EmbeddedServer(ABC):
    """One server process that lives no longer than this one.

    Safe to use from several threads.

    Parameters
    ----------
    directory : Path
        Where its data, its locks and its log are; made where it is missing. One server per directory.
    port : int, default 0
        The port on `host`; 0 chooses a free one at the first start and keeps it for restarts.

    Raises
    ------
    EmbeddedServerError
        If the port is out of range.
    """

    host: str = ports.HOST
    _title: ClassVar[str]
    _log_name: ClassVar[str]
    _stop_signal: ClassVar[signal.Signals]

    def __init__(self, directory: Path, port: int = 0) -> None:
        # Real, not just absolute: an orphan may have to be known by the path in its command line.
        self.directory = directory.resolve()
        self._requested_port = ports.check_port(port)
        self._port = port
        self._process: KeptProcess | None = None
        self._owner_fd: int | None = None
        self._launcher_pid = 0
        self._mutex = threading.RLock()

    @property
    def port(self) -> int:
        """The port: real after `start`, before it what was asked for."""
        return self._port

    @property
    def pid(self) -> int | None:
        """The server's process id while it runs."""
        process = self._process
        return process.pid if process is not None and process.alive() else None

    @property
    def log_path(self) -> Path:
        """The log of the present run. That of the run before is beside it, with ``.old``, and no other is kept."""
        return self.directory / self._log_name

    def start(self, timeout_s: float = 20.0) -> None:
        """Start the server and return when it serves.

        An orphan of an earlier launcher in the same directory is stopped first, in order: nothing that it acknowledged
        is lost.

        Parameters
        ----------
        timeout_s : float, default 20
            How long all this may take.

        Raises
        ------
        EmbeddedServerError
            If it runs already, another launcher uses the directory, the port is taken, the programs are missing, or the
            server fails; then with the last lines of its log.
        """
        deadline = time.monotonic() + timeout_s
        with self._mutex:
            if self._owner_fd is not None:
                raise EmbeddedServerError(f"{self._title} in {self.directory} is started already: stop it first")
            try:
                self.directory.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise EmbeddedServerError(f"cannot make {self.directory}: {error.strerror}") from error
            self._owner_fd = lock.lock_owner(self.directory)
            self._launcher_pid = os.getpid()
            atexit.register(self._stop_at_exit)
            try:
                self._launch(self._requested_port, deadline)
            except BaseException:
                self._release()
                raise

    def alive(self) -> bool:
        """Tell whether the server runs."""
        return self.pid is not None

    def restart_if_dead(self) -> bool:
        """Start the server again, on the same port, where it was started and has died since.

        Returns
        -------
        bool
            True when it had died and was started again.

        Raises
        ------
        EmbeddedServerError
            As `start`. It may be called again then.
        """
        with self._mutex:
            if self._owner_fd is None or self.alive():
                return False
            if self._process is not None:
                self._process.stop(_STOP_TIMEOUT_S)
            self._launch(self._port, time.monotonic() + _RESTART_TIMEOUT_S)
            return True

    def stop(self, timeout_s: float = 10.0) -> None:
        """Stop the server in order and release its directory; does nothing where it is stopped.

        Parameters
        ----------
        timeout_s : float, default 10
            After this long it is killed. Nothing acknowledged is lost by that either.
        """
        with self._mutex:
            if self._process is not None:
                self._process.stop(timeout_s)
            self._release()

    def join(self, timeout_s: float = 20.0) -> None:
        """Find the server that another launcher runs in the directory: its port is this one's then, and nothing else.

        `stop` and `restart_if_dead` leave it alone. It is awaited while its launcher starts it.

        Parameters
        ----------
        timeout_s : float, default 20
            How long to wait for it.

        Raises
        ------
        EmbeddedServerError
            If none answers.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            pid, port = self._told_port()
            if pid == lock.server_pid(self.directory) and self._ready(port, pid):
                self._port = port
                return
            if time.monotonic() >= deadline:
                raise EmbeddedServerError(
                    f"{self._title} in {self.directory} is run by another process and does not answer: stop it"
                )
            time.sleep(_READY_POLL_S)

    @abstractmethod
    def _prepare(self, lock_fd: int, deadline: float) -> Account | None:
        """Make ready what the server needs, and return whom to run it as; the lock is held."""

    @abstractmethod
    def _command(self, port: int) -> list[str]:
        """Return the server's program and arguments."""

    @abstractmethod
    def _ready(self, port: int, pid: int) -> bool:
        """Tell whether the process serves on the port: this process, not another that took the port before it."""

    @staticmethod
    def _environment() -> dict[str, str]:
        # Only what a program needs to find its libraries: the launcher's secrets are no business of the servers, and
        # PGDATA, PGPORT and the like are meant for somebody else's. The C locale gives messages that can be matched,
        # and on macOS PostgreSQL does not start without any.
        return {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ} | {"LC_ALL": "C", "TZ": "UTC"}

    def _launch(self, port: int, deadline: float) -> None:
        lock_fd = lock.lock_server(self.directory, self._stop_signal, max(0.0, deadline - time.monotonic()))
        try:
            account = self._prepare(lock_fd, deadline)
            for _ in range(_PORTS_TRIED_MAX):
                candidate = port or ports.choose_port()
                if not ports.port_is_free(candidate):
                    continue
                if self._try_port(candidate, lock_fd, account, deadline):
                    self._port = candidate
                    self._tell_port()
                    return
                if port:
                    break
        except OSError as error:
            raise EmbeddedServerError(f"cannot start {self._title} in {self.directory}: {error}") from error
        finally:
            # The server has its own copy.
            os.close(lock_fd)
        taken = f"port {port} on {self.host} is in use" if port else "every port that was chosen was taken meanwhile"
        raise EmbeddedServerError(f"cannot start {self._title}: {taken}: stop what listens there, or give another port")

    def _tell_port(self) -> None:
        """Leave word for `join`: which process serves on which port."""
        new = self.directory / "port.new"
        new.write_text(f"{self.pid} {self._port}\n", encoding="ascii")
        new.replace(self.directory / "port")

    def _told_port(self) -> tuple[int, int]:
        try:
            pid, port = (self.directory / "port").read_text(encoding="ascii").split()
        except (OSError, ValueError):
            return 0, 0
        return int(pid), int(port)

    def _try_port(self, port: int, lock_fd: int, account: Account | None, deadline: float) -> bool:
        """Start on one port; return False when another process holds it."""
        log_fd = self._open_log()
        try:
            process = KeptProcess(
                self._command(port),
                environment=self._environment(),
                stop_signal=self._stop_signal,
                log_fd=log_fd,
                lock_fd=lock_fd,
                account=account,
            )
        finally:
            os.close(log_fd)
        serves = False
        try:
            serves = self._await_ready(process, port, deadline)
        finally:
            if serves:
                self._process = process
            else:
                process.stop(_STOP_TIMEOUT_S)
        return serves

    def _await_ready(self, process: KeptProcess, port: int, deadline: float) -> bool:
        """Return True once the process serves, and False when it ended because another holds the port."""
        while not self._ready(port, process.pid):
            alive = process.alive()
            if alive and time.monotonic() < deadline:
                time.sleep(_READY_POLL_S)
                continue
            log = self._log_tail()
            if not alive and "Address already in use" in log:
                return False
            what = "was not ready in time" if alive else "ended while it started"
            raise EmbeddedServerError(f"{self._title} {what}; the end of {self.log_path}: {log or 'empty'}")
        return True

    def _open_log(self) -> int:
        # The log of one run is small; keeping two bounds it, and the one before tells why a server died.
        with contextlib.suppress(FileNotFoundError):
            self.log_path.replace(self.log_path.with_name(f"{self._log_name}.old"))
        return os.open(self.log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def _log_tail(self) -> str:
        with self.log_path.open("rb") as log:
            log.seek(max(0, self.log_path.stat().st_size - _LOG_TAIL_BYTES))
            lines = log.read().decode("utf-8", "replace").splitlines()
        return " | ".join(line.strip() for line in lines[-_LOG_TAIL_LINES:] if line.strip())

    def _release(self) -> None:
        self._process = None
        if self._owner_fd is not None:
            os.close(self._owner_fd)
            self._owner_fd = None
        atexit.unregister(self._stop_at_exit)

    def _stop_at_exit(self) -> None:
        # A child forked by the launcher inherits this handler, but not the server.
        if os.getpid() == self._launcher_pid:
            self.stop(_STOP_TIMEOUT_S)
