"""The local engine as a child process, the way `make run` starts it, in a directory and an environment of its own."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.integration.local.conftest import await_condition, has_ended

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 15.0
HANG_S = 10.0
"""A request that takes this long hangs."""
_READY = re.compile(r"^ready http://127\.0\.0\.1:(\d+)$", re.MULTILINE)
_PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "VALKEY_BIN", "PG_BIN")


@dataclass(frozen=True)
class Answer:
    """An HTTP answer, and how long it took."""

    status: int
    headers: http.client.HTTPMessage
    text: str
    elapsed_s: float

    @property
    def json(self) -> Any:
        return json.loads(self.text)


def start_command(module: str, directory: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Start a command of the project in a directory, as make does, its output and its errors to be read."""
    given = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=directory,
        env={**given, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class Runner:
    """One run of the local engine; PORT=0 unless told otherwise, so that no two tests meet on a port."""

    def __init__(self, directory: Path, **environment: str) -> None:
        self.directory = directory
        self.port = 0
        self._output = directory / f"stdout-{time.monotonic_ns()}"
        self._errors = self._output.with_name(self._output.name.replace("stdout", "stderr"))
        given = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        with self._output.open("wb") as output, self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "margin_local"],
                cwd=directory,
                env={**given, "PORT": "0", **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
            )

    @property
    def stdout(self) -> str:
        return self._output.read_text(encoding="utf-8")

    @property
    def stderr(self) -> str:
        return self._errors.read_text(encoding="utf-8")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def await_ready(self) -> Runner:
        """Wait for the line that says where it listens; with DEBUG it is not the only one."""
        poll(lambda: _READY.search(self.stdout) is not None or self.process.poll() is not None, START_TIMEOUT_S)
        ready = _READY.search(self.stdout)
        assert ready is not None, f"{self.stdout}{self.stderr}"
        self.port = int(ready[1])
        return self

    def await_exit(self) -> int:
        return self.process.wait(STOP_TIMEOUT_S)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; kill it if that does not come."""
        self.process.send_signal(number)
        try:
            return self.await_exit()
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def kill(self) -> None:
        """End it with SIGKILL, which it cannot answer."""
        self.process.kill()
        self.process.wait()

    def server_pid(self, name: str) -> int:
        """Process id of an embedded server, "valkey" or "postgres"."""
        return int((self.directory / ".data" / name / "server.lock").read_text(encoding="ascii"))

    def send(
        self, method: str, path: str, body: Any = None, *, headers: dict[str, str] | None = None, key: str = ""
    ) -> Answer:
        """Send one request on a connection of its own; a body that is no bytes is sent as JSON."""
        sent = dict(headers or {})
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            sent.setdefault("Content-Type", "application/json")
        if key:
            sent["Idempotency-Key"] = key
        started = time.monotonic()
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=HANG_S)) as connection:
            connection.request(method, path, body, sent)
            response = connection.getresponse()
            text = response.read().decode()
        return Answer(response.status, response.headers, text, time.monotonic() - started)

    def get(self, path: str) -> Any:
        """The answer to a request that is expected to succeed."""
        answer = self.send("GET", path)
        assert answer.status == 200, answer.text
        return answer.json

    def post(self, path: str, **body: Any) -> Any:
        """The answer to a request that is expected to succeed."""
        answer = self.send("POST", path, body)
        assert answer.status == 200, answer.text
        return answer.json

    def buy(self, account_id: int, quantity: str = "0.001", *, key: str = "") -> Answer:
        order = {"account_id": account_id, "symbol": "BTC-PERP", "side": "BUY", "quantity": quantity, "price": 50000}
        return self.send("POST", "/trade", order, key=key)

    def trades(self, account_id: int) -> list[dict[str, Any]]:
        """All trades of an account, newest first."""
        path = f"/trades/{account_id}?limit=1000"
        page = self.get(path)
        rows = page["trades"]
        while page["next_cursor"]:
            page = self.get(f"{path}&cursor={page['next_cursor']}")
            rows += page["trades"]
        return list(rows)

    def healthy(self) -> bool:
        return self.send("GET", "/health").status == 200


@contextlib.contextmanager
def home() -> Iterator[Path]:
    """A working directory that PostgreSQL's user can enter when the tests run as root."""
    directory = Path(tempfile.mkdtemp(prefix="margin-runner-"))
    directory.chmod(0o755)
    try:
        yield directory
    finally:
        # A server that was orphaned a moment ago may still be writing its last file.
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def running(directory: Path, **environment: str) -> Iterator[Runner]:
    """A runner that is ready, and stopped afterwards, with all that it started."""
    runner = Runner(directory, **environment)
    try:
        yield runner.await_ready()
    finally:
        if runner.process.poll() is None:
            children = descendants(runner.process.pid)
            runner.stop()
            for pid in children:
                await_condition(lambda pid=pid: has_ended(pid))


def poll(condition: Callable[[], bool], timeout_s: float = HANG_S) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.02)


def descendants(pid: int) -> set[int]:
    """Process ids of the children of a process, and theirs."""
    children: dict[int, list[int]] = {}
    for child, parent in _parents():
        children.setdefault(parent, []).append(child)
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        for child in children.get(waiting.pop(), []):
            found.add(child)
            waiting.append(child)
    return found


def _parents() -> Iterator[tuple[int, int]]:
    if sys.platform == "linux":
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                yield int(stat.parent.name), int(stat.read_text(encoding="utf-8").rpartition(")")[2].split()[1])
        return
    listing = subprocess.run(["/bin/ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True)
    for line in listing.stdout.splitlines():
        child, parent = line.split()
        yield int(child), int(parent)


def signal_all(pids: set[int], number: signal.Signals) -> None:
    """Send a signal to processes of which some may have ended."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
