"""An engine for one replay: stores of its own, `python -m margin_local` on them, all gone at the end."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from margin.config import Settings
from margin_local.stores import LocalStores
from migrate_schema import migrate

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["EngineError", "RunningEngine", "own_engine", "stores_of_environment"]

_READY = "ready "
_READY_TIMEOUT_S = 60.0
_READY_POLL_S = 0.02
_STOP_TIMEOUT_S = 15.0
_KILL_TIMEOUT_S = 5.0
_LOG_TAIL_LINES = 3
# Where the servers' programs are is the machine's matter, not the engine's: it holds for every engine on it.
_OF_THE_MACHINE = ("VALKEY_BIN", "PG_BIN")


class EngineError(Exception):
    """The engine does not start, or does not answer as it should."""


@dataclass(frozen=True, slots=True)
class RunningEngine:
    """Where an engine answers, and where its stores are, if that is known."""

    url: str
    stores: Settings | None


@contextlib.contextmanager
def own_engine(environment: Mapping[str, str], *, crossed_inline_max: int) -> Iterator[RunningEngine]:
    """Start an engine in a temporary directory and stop it afterwards, however the replay ends.

    The stores belong to this process and the engine is told where they are, as it would be in production: so whoever
    verifies afterwards can read them.

    Parameters
    ----------
    environment : mapping of str to str
        Only what it says about the machine is used (PATH, VALKEY_BIN, PG_BIN), never a setting of another engine.
    crossed_inline_max : int
        Up to how many accounts that a mark price reached are evaluated before its answer.

    Raises
    ------
    EngineError, EmbeddedServerError
    """
    directory = Path(tempfile.mkdtemp(prefix="margin-demo-"))
    # Started by root, PostgreSQL runs as another user, who has to pass through here.
    directory.chmod(0o755)
    given = Settings(data_dir=str(directory), port=0, crossed_inline_max=crossed_inline_max)
    stores = LocalStores(given, {name: environment[name] for name in _OF_THE_MACHINE if name in environment})
    try:
        settings = stores.start()
        # The engine is given its stores, so it would migrate as the one whom it logs in as, who may not.
        migrate(stores.owner(settings))
        with _engine_process(settings, directory) as url:
            yield RunningEngine(url, settings)
    finally:
        stores.stop()
        shutil.rmtree(directory, ignore_errors=True)


def stores_of_environment(environment: Mapping[str, str]) -> Settings | None:
    """Where the stores of a running engine are: None unless the usual variables name both.

    Raises
    ------
    SettingError
    """
    if "REDIS_HOST" in environment and "POSTGRES_HOST" in environment:
        return Settings.from_environment(environment)
    return None


@contextlib.contextmanager
def _engine_process(settings: Settings, directory: Path) -> Iterator[str]:
    log_path = directory / "engine.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "margin_local"],
            # Not the caller's working directory: there may be a .env in it.
            cwd=directory,
            env=_variables(settings),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            # Ctrl-C is for the demo, which stops the engine when it no longer needs it.
            process_group=0,
        )
    try:
        yield _await_ready(process, log_path)
    finally:
        _stop(process)


def _variables(settings: Settings) -> dict[str, str]:
    """Take this process's environment without any setting of an engine, and add those of the new one."""
    names = {field.name: field.name.upper() for field in dataclasses.fields(Settings)}
    inherited = {name: value for name, value in os.environ.items() if name not in names.values()}
    defaults = Settings()
    # The stores' addresses are set in any case: without them the engine would start stores of its own.
    told = [name for name in names if name.endswith("_host") or getattr(settings, name) != getattr(defaults, name)]
    return {**inherited, **{names[name]: str(getattr(settings, name)) for name in told}}


def _await_ready(process: subprocess.Popen[bytes], log_path: Path) -> str:
    deadline_s = time.monotonic() + _READY_TIMEOUT_S
    while time.monotonic() < deadline_s:
        ended = process.poll() is not None
        lines = log_path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        for line in lines:
            if line.startswith(_READY) and line.endswith("\n"):
                return line.removeprefix(_READY).strip()
        if ended:
            raise EngineError(f"the engine did not start: {_tail(lines)}")
        time.sleep(_READY_POLL_S)
    raise EngineError(f"the engine was not ready after {_READY_TIMEOUT_S:.0f} s")


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    try:
        process.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(_KILL_TIMEOUT_S)


def _tail(lines: list[str]) -> str:
    return " | ".join(line.strip() for line in lines[-_LOG_TAIL_LINES:]) or "it said nothing"
