"""One execution environment of one function: Lambda's emulator with Lambda's runtime client in it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

from margin_local.servers.ports import HOST, choose_port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.runtime.machine import Machine

START_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 10.0
ATTEMPTS = 3
# Beyond the function's own timeout: loading it, on a busy machine.
PATIENCE_S = 30.0
LOG_TAIL = 4000
INIT = re.compile(r"INIT REPORT\(durationMs: ([0-9.]+)\)")
INVOKE = re.compile(r"INVOKE RTDONE\(.*duration: ([0-9.]+)(µs|ms|s)\)")
MS_IN = {"µs": 0.001, "ms": 1.0, "s": 1000.0}


class Emulator:
    """A function that is loaded at its first invocation and then kept, as Lambda keeps it.

    Parameters
    ----------
    machine : Machine
        The programs.
    folder, layer : Path
        The function's code, and what it finds in /opt/python.
    handler : str
        Its ``module.function``.
    variables : dict of str
        Its whole environment, but for what Lambda itself sets.
    timeout_s, memory_mb : int
        As in its configuration.
    log : Path
        What the emulator and the function write.
    """

    def __init__(
        self,
        machine: Machine,
        *,
        folder: Path,
        layer: Path,
        handler: str,
        variables: dict[str, str],
        timeout_s: int,
        memory_mb: int,
        log: Path,
    ) -> None:
        self.timeout_s = timeout_s
        self.log = log
        environment = {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "LANG": "en_US.UTF-8",
            "TZ": ":UTC",
            "LAMBDA_TASK_ROOT": str(folder),
            "PYTHONPATH": str(layer),
            # In Lambda nothing can be written beside the code.
            "PYTHONDONTWRITEBYTECODE": "1",
            "AWS_LAMBDA_FUNCTION_NAME": log.stem,
            "AWS_LAMBDA_FUNCTION_TIMEOUT": str(timeout_s),
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(memory_mb),
            "AWS_REGION": "eu-central-1",
            "AWS_DEFAULT_REGION": "eu-central-1",
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_SESSION_TOKEN": "testing",
            **variables,
        }
        for _ in range(ATTEMPTS):
            self._port = choose_port()
            command = [str(machine.emulator), "--log-level", "info"]
            command += ["--runtime-interface-emulator-address", f"{HOST}:{self._port}"]
            command += ["--runtime-api-address", f"{HOST}:{choose_port()}"]
            command += [str(machine.python), "-m", "awslambdaric", handler]
            with log.open("ab") as output:
                self._process = subprocess.Popen(
                    command,
                    cwd=folder,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            if self._listens():
                return
            self.stop()
        raise AssertionError(self.output()[-LOG_TAIL:])

    def invoke(self, event: Any) -> Any:
        """Return what the function answers; an error that it raises is answered as Lambda does, with its type."""
        request = urllib.request.Request(
            f"http://{HOST}:{self._port}/2015-03-31/functions/function/invocations",
            data=json.dumps(event).encode(),
            method="POST",
        )
        try:
            with urllib.request.urlopen(request, timeout=self.timeout_s + PATIENCE_S) as answer:  # noqa: S310
                return json.loads(answer.read())
        except OSError as error:
            error.add_note(self.output()[-LOG_TAIL:])
            raise

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Freeze the runtime's process, as Lambda does between two invocations."""
        pid = self._runtime_pid()
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def output(self) -> str:
        """Everything that was written so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def lines(self, message: str) -> list[dict[str, Any]]:
        """Return the function's own log lines that have this message."""
        found = [json.loads(line) for line in self.output().splitlines() if line.startswith('{"level"')]
        return [line for line in found if line["message"] == message]

    def metrics(self, name: str) -> list[float]:
        """Return the values that were published of a metric, one for each invocation that did."""
        published = [json.loads(line) for line in self.output().splitlines() if line.startswith('{"_aws"')]
        return [value for line in published for value in line.get(name, [])]

    @property
    def init_ms(self) -> float:
        """How long loading the function took."""
        (found,) = INIT.findall(self.output())
        return float(found)

    @property
    def invocations_ms(self) -> list[float]:
        """How long each invocation took, in order; the first one without loading."""
        return [float(number) * MS_IN[unit] for number, unit in INVOKE.findall(self.output())]

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            # Its session is its own: the emulator and what it started.
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _listens(self) -> bool:
        deadline = time.monotonic() + START_TIMEOUT_S
        while self._process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection((HOST, self._port), timeout=1):
                return True
            time.sleep(0.01)
        return False

    def _runtime_pid(self) -> int:
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                # After the name, which stands in brackets and may hold anything: state, parent.
                if int(stat.read_text(encoding="utf-8").rpartition(")")[2].split()[1]) == self._process.pid:
                    return int(stat.parent.name)
        message = "the function is not loaded"
        raise ProcessLookupError(message)
