"""The servers of one scenario: a Valkey and a PostgreSQL of its own, and processes that serve on them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import migrate_schema
from margin.config import Settings
from margin_local.servers import EmbeddedPostgres, EmbeddedServer, EmbeddedValkey
from tests.database import FUNCTIONS
from tests.faults import serve
from tests.faults.points import FaultPoint
from tests.integration.local.runner import descendants, signal_all

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from tests.faults.points import Fault

_START_TIMEOUT_S = 30.0
_STOP_TIMEOUT_S = 15.0
_DEAD_TIMEOUT_S = 10.0
_POLL_S = 0.005
_UNFORESEEN = re.compile(r'Traceback \(most recent call last\)|"exception":')
_PROJECT = Path(__file__).parents[2]


class ProcessEndedError(Exception):
    """A process that was to serve has ended instead."""


class ServingProcess:
    """One process that serves the API; started anew it listens on the same port.

    Parameters
    ----------
    environment : mapping of str to str
        With the addresses of the stores.
    log_path : Path
        Where its standard error goes.
    """

    def __init__(self, environment: Mapping[str, str], log_path: Path) -> None:
        self._environment = dict(environment)
        self._log_path = log_path
        self._process: asyncio.subprocess.Process | None = None
        self._listening: asyncio.Task[None] | None = None
        self._lines: dict[str, asyncio.Queue[str]] = {}
        self.host, self.port = "127.0.0.1", 0

    async def start(self, faults: Sequence[Fault] = ()) -> None:
        """Start it, with faults armed, and return when it answers.

        Raises
        ------
        ProcessEndedError
        """
        self._lines = {mark: asyncio.Queue() for mark in (serve.READY, serve.ARRIVED, serve.REPORT)}
        self._process = await _run(self._environment | {"PORT": str(self.port)}, self._log_path, *map(str, faults))
        self._listening = asyncio.create_task(self._listen(self._process))
        async with asyncio.timeout(_START_TIMEOUT_S):
            url = await self._hear(serve.READY)
        self.port = int(url.rpartition(":")[2])

    def arm(self, fault: Fault) -> None:
        """Let a fault happen from now on."""
        self._say(f"arm {fault}")

    async def arrived(self) -> FaultPoint:
        """Wait until somebody stands at the gate."""
        return FaultPoint(await self._hear(serve.ARRIVED))

    def disarm(self) -> None:
        """Open the gate, and let nothing happen any more."""
        self._say("open")

    async def report(self) -> dict[str, Any]:
        """What was reached and what happened, as `serve` tells it."""
        self._say("report")
        return dict(json.loads(await self._hear(serve.REPORT)))

    async def kill(self) -> None:
        """End it with SIGKILL."""
        self._signal(signal.SIGKILL)
        await self.ended()

    def freeze(self) -> None:
        """Stop it in its tracks."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it run on."""
        self._signal(signal.SIGCONT)

    async def ended(self) -> int:
        """Wait until it has ended, however."""
        assert self._process is not None
        assert self._listening is not None
        status = await self._process.wait()
        await self._listening
        return status

    async def stop(self) -> None:
        """End it in order; kill it if that takes too long. Nothing to do where it has ended."""
        if self._process is None or self._listening is None:
            return
        # One that has ended by itself is not signalled: that would take its status from who waits for it.
        if not self._listening.done():
            self.thaw()
            self._signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(_STOP_TIMEOUT_S):
                await self.ended()
        except TimeoutError:
            await self.kill()

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def _say(self, line: str) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())

    async def _hear(self, mark: str) -> str:
        assert self._listening is not None
        hearing = asyncio.ensure_future(self._lines[mark].get())
        await asyncio.wait({hearing, self._listening}, return_when=asyncio.FIRST_COMPLETED)
        if not hearing.done():
            hearing.cancel()
            raise ProcessEndedError(f"the process ended: {_tail(self._log_path)}")
        return hearing.result()

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            text = line.decode().rstrip("\n")
            for mark, queue in self._lines.items():
                if text.startswith(mark):
                    queue.put_nowait(text.removeprefix(mark))


class House:
    """Starts the stores; use it as an asynchronous context, which stops all that was started.

    Parameters
    ----------
    keep : bool
        Leave the directory with data and logs where it is.
    """

    def __init__(self, *, keep: bool = False) -> None:
        self.keep = keep
        self.directory = Path(tempfile.mkdtemp(prefix="margin-faults-"))
        # PostgreSQL runs as another user where this one is root.
        self.directory.chmod(0o755)
        self.valkey = EmbeddedValkey(self.directory / "valkey", binary=_program("VALKEY_BIN"))
        self.postgres = EmbeddedPostgres(self.directory / "postgres", bin_directory=_program("PG_BIN"))
        self.processes: list[ServingProcess] = []
        self._frozen: set[int] = set()

    async def __aenter__(self) -> Self:
        try:
            await asyncio.gather(asyncio.to_thread(self.valkey.start), asyncio.to_thread(self.postgres.start))
            owner = dataclasses.replace(self.settings, postgres_user=self.postgres.user)
            await asyncio.to_thread(migrate_schema.migrate, owner)
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    @property
    def settings(self) -> Settings:
        """Of an engine on the stores."""
        return Settings(
            redis_host=self.valkey.host,
            redis_port=self.valkey.port,
            postgres_host=self.postgres.host,
            postgres_port=self.postgres.port,
            postgres_user=FUNCTIONS,
            postgres_database=self.postgres.database,
        )

    async def add_process(self, **settings: Any) -> ServingProcess:
        """Start a process that serves, with some settings of its own."""
        environment = _environment(dataclasses.replace(self.settings, **settings))
        process = ServingProcess(environment, self.directory / f"engine-{len(self.processes)}.log")
        self.processes.append(process)
        await process.start()
        return process

    async def remove_processes(self) -> None:
        """Stop all processes that serve."""
        await asyncio.gather(*(process.stop() for process in self.processes))
        self.processes.clear()

    async def drain(self, *faults: Fault) -> int:
        """Drain once in a process of its own, and return how it ended."""
        log_path = self.directory / "drain.log"
        process = await _run(_environment(self.settings), log_path, "--drain", *map(str, faults))
        await process.communicate()
        return int(process.returncode or 0)

    async def kill(self, server: EmbeddedServer) -> None:
        """End a store and all its processes with SIGKILL."""
        assert server.pid is not None
        signal_all({server.pid, *descendants(server.pid)}, signal.SIGKILL)
        async with asyncio.timeout(_DEAD_TIMEOUT_S):
            while server.alive():  # noqa: ASYNC110 - the end of another's child is no event
                await asyncio.sleep(_POLL_S)

    async def restart(self, server: EmbeddedServer) -> None:
        """Start a store that was killed, and return when it serves."""
        assert await asyncio.to_thread(server.restart_if_dead)

    def freeze(self, server: EmbeddedServer) -> None:
        """Stop a store and all its processes in their tracks."""
        assert server.pid is not None
        # The first one first: it could start others meanwhile.
        os.kill(server.pid, signal.SIGSTOP)
        self._frozen |= {server.pid, *descendants(server.pid)}
        signal_all(self._frozen, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let all that is frozen run on."""
        signal_all(self._frozen, signal.SIGCONT)
        self._frozen.clear()

    def copy_redis(self) -> Path:
        """Copy what Redis has on disk at this moment; its last write may be cut off, as at a loss of power."""
        copy = self.directory / "valkey-copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.valkey.directory / "appendonlydir", copy)
        return copy

    async def put_redis_back(self, copy: Path) -> None:
        """Kill Redis and start it on a copy."""
        await self.kill(self.valkey)
        shutil.rmtree(self.valkey.directory / "appendonlydir")
        shutil.copytree(copy, self.valkey.directory / "appendonlydir")
        await self.restart(self.valkey)

    def exceptions_logged(self) -> list[str]:
        """Say in which logs of the processes something nobody foresaw was written down."""
        logs = sorted(self.directory.glob("*.log"))
        unforeseen = [log for log in logs if _UNFORESEEN.search(log.read_text(encoding="utf-8", errors="replace"))]
        return [f"{log} holds an exception" for log in unforeseen]

    async def _stop(self) -> None:
        self.thaw()
        try:
            await self.remove_processes()
        finally:
            await asyncio.gather(asyncio.to_thread(self.valkey.stop), asyncio.to_thread(self.postgres.stop))
            if not self.keep:
                shutil.rmtree(self.directory, ignore_errors=True)


async def _run(environment: Mapping[str, str], log_path: Path, *arguments: str) -> asyncio.subprocess.Process:
    with log_path.open("ab") as log:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "tests.faults.serve", *arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            cwd=_PROJECT,
            env=environment,
            # Ctrl-C is for the one who started it, and who stops it.
            process_group=0,
        )


def _environment(settings: Settings) -> dict[str, str]:
    """Take this process's environment without any setting of an engine, and add those of the new one."""
    names = {field.name: field.name.upper() for field in dataclasses.fields(Settings)}
    inherited = {name: value for name, value in os.environ.items() if name not in names.values()}
    defaults = Settings()
    told = [name for name in names if name.endswith("_host") or getattr(settings, name) != getattr(defaults, name)]
    return {**inherited, **{names[name]: str(getattr(settings, name)) for name in told}}


def _program(variable: str) -> Path | None:
    value = os.environ.get(variable)
    return Path(value) if value else None


def _tail(log_path: Path) -> str:
    return " | ".join(log_path.read_text(encoding="utf-8", errors="replace").splitlines()[-3:]) or "it said nothing"
