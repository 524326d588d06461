"""An embedded PostgreSQL."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Any

from margin_local.servers import relocation
from margin_local.servers.account import Account, server_account
from margin_local.servers.binaries import find_postgres, postgres_for
from margin_local.servers.embedded import EmbeddedServer
from margin_local.servers.error import EmbeddedServerError

if TYPE_CHECKING:
    from pathlib import Path

_DATABASE_NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_PID_FILE_STATUS_LINE = 7
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    # A socket's path may have 107 bytes at most, which a deep directory exceeds.
    "unix_socket_directories": "",
    "max_connections": "100",
    "shared_buffers": "32MB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_destination": "stderr",
    "logging_collector": "off",
    "log_checkpoints": "off",
}
# What is lost is the data of a test run, at a loss of power; a killed server loses up to 0.6 s of commits.
_NOT_DURABLE = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
_DURABLE = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}


class EmbeddedPostgres(EmbeddedServer):
    """A PostgreSQL server on the loopback address, where every local user is trusted.

    Started by root it runs as the owner of its data, at first ``nobody``; where that user cannot reach `directory`, the
    data is placed elsewhere and linked (`relocation`).

    Parameters
    ----------
    directory : Path
        Where ``data``, its locks and ``postgres.log`` are.
    port : int, default 0
        The port; 0 chooses a free one.
    database : str, default "margin"
        The database, made at the first start that names it: lower-case letters, digits and underscores.
    durable : bool, default True
        Whether a commit is on disk before it is answered. Tests say False, for speed.
    bin_directory : Path, optional
        The directory of ``initdb`` and ``postgres`` (``PG_BIN``), in place of the wheel's or the machine's.

    Raises
    ------
    EmbeddedServerError
        If the port or the database's name is not one of those.
    """

    user: str = "postgres"
    _title = "PostgreSQL"
    _log_name = "postgres.log"
    # "Fast" shutdown: open sessions are ended. SIGTERM would wait for them.
    _stop_signal = signal.SIGINT

    def __init__(
        self,
        directory: Path,
        port: int = 0,
        *,
        database: str = "margin",
        durable: bool = True,
        bin_directory: Path | None = None,
    ) -> None:
        super().__init__(directory, port)
        if not _DATABASE_NAME.fullmatch(database):
            raise EmbeddedServerError(
                f"database={database!r} cannot be used: give lower-case letters, digits and underscores"
            )
        self.database = database
        self._durable = durable
        self._requested_bin = bin_directory
        self._bin = bin_directory
        self._data = self.directory / "data"

    def _prepare(self, lock_fd: int, deadline: float) -> Account | None:
        link = self.directory / "data"
        if link.is_symlink() and not link.exists():
            raise EmbeddedServerError(
                f"{link} points to {link.readlink()}, which is missing: restore that, or remove the link to begin anew"
            )
        account = server_account(link)
        self._bin = find_postgres(self._requested_bin)
        if account is not None:
            self._bin = postgres_for(account, self._bin)
        if not link.exists():
            self._create(link, account, lock_fd, deadline)
        self._data = link.resolve()
        if account is not None:
            self._give_data(account)
        # Under the lock there is no server, so the file is stale. Left there, it would stop the start whenever its
        # process id is in use again, which in a container it soon is.
        (self._data / "postmaster.pid").unlink(missing_ok=True)
        self._create_database(self._data, account, lock_fd, deadline)
        return account

    def _command(self, port: int) -> list[str]:
        settings = _SETTINGS | (_DURABLE if self._durable else _NOT_DURABLE) | {"port": str(port)}
        arguments = [argument for name, value in settings.items() for argument in ("-c", f"{name}={value}")]
        return [f"{self._bin}/postgres", "-D", str(self._data), *arguments]

    def _ready(self, port: int, pid: int) -> bool:  # noqa: ARG002 - the file below is this very server's
        try:
            lines = (self._data / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return False
        if len(lines) <= _PID_FILE_STATUS_LINE or lines[0] != str(pid):
            return False
        return lines[_PID_FILE_STATUS_LINE].strip() == "ready"

    def _create(self, link: Path, account: Account | None, lock_fd: int, deadline: float) -> None:
        """Make the data directory under another name and rename it: it is there whole, or not at all."""
        (self.directory / "databases").unlink(missing_ok=True)
        new = link.with_name("data.new")
        if new.is_symlink():
            shutil.rmtree(new.resolve(), ignore_errors=True)
            new.unlink()
        elif new.exists():
            shutil.rmtree(new)
        if account is None or account.can_reach(new):
            new.mkdir(mode=0o700)
        else:
            new.symlink_to(relocation.place_data(link))
        target = new.resolve()
        if account is not None:
            account.give(target)
        initdb = [f"{self._bin}/initdb", "-D", str(target), "-U", self.user, "-A", "trust", "-E", "UTF8"]
        initdb += ["--locale=C", "--no-instructions", *([] if self._durable else ["--no-sync"])]
        self._run(initdb, account, lock_fd, deadline)
        self._create_database(target, account, lock_fd, deadline)
        new.rename(link)
        if self._durable:
            folder = os.open(self.directory, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def _create_database(self, data: Path, account: Account | None, lock_fd: int, deadline: float) -> None:
        """Make the database where this directory never had it, in single-user mode: no client is needed."""
        # Not in the data directory: its owner could make it a link, through which root would then write.
        made = self.directory / "databases"
        names = made.read_text(encoding="utf-8").split() if made.exists() else []
        if self.database in names:
            return
        output = self._run(
            [f"{self._bin}/postgres", "--single", "-D", str(data), "postgres"],
            account,
            lock_fd,
            deadline,
            text=f"CREATE DATABASE {self.database}\n",
        )
        if re.search(r"(ERROR|FATAL|PANIC):", output) and "already exists" not in output:
            raise EmbeddedServerError(f"cannot create database {self.database}: {_one_line(output)}")
        made.write_text("".join(f"{name}\n" for name in (*names, self.database)), encoding="utf-8")

    def _give_data(self, account: Account) -> None:
        if not account.can_reach(self._data):
            raise EmbeddedServerError(
                f"user {account.name}, whom root runs PostgreSQL as, cannot enter the directories above {self._data}:"
                " move it to where every user can, or run as an ordinary user"
            )
        if self._data.stat().st_uid != account.uid:
            account.give(self._data)

    def _run(self, command: list[str], account: Account | None, lock_fd: int, deadline: float, text: str = "") -> str:
        """Run a program of PostgreSQL to its end and return its output; it holds the lock as long as it runs."""
        owner: dict[str, Any] = (
            {} if account is None else {"user": account.uid, "group": account.gid, "extra_groups": []}
        )
        try:
            result: subprocess.CompletedProcess[str] = subprocess.run(  # noqa: S603 - PostgreSQL's own programs
                command,
                input=text,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
                env=self._environment(),
                cwd="/",
                pass_fds=[lock_fd],
                timeout=max(1.0, deadline - time.monotonic()),
                check=False,
                **owner,
            )
        except subprocess.TimeoutExpired as error:
            raise EmbeddedServerError(f"{command[0]} did not end in time") from error
        if result.returncode != 0:
            raise EmbeddedServerError(f"{command[0]} failed ({result.returncode}): {_one_line(result.stdout)}")
        return result.stdout


def _one_line(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return " | ".join(lines[-5:])
