"""`make sam-local` as a child process, with containers, a network, volumes and ports that no other run has."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).resolve().parents[2]
# The first start installs SAM and pulls images.
START_TIMEOUT_S = 600.0
STOP_TIMEOUT_S = 60.0
INVOKE_TIMEOUT_S = 120.0
REQUEST_TIMEOUT_S = 30.0


def reason_to_skip() -> str | None:
    """Say what this machine lacks, None if nothing."""
    if shutil.which("docker") is None:
        return "Docker is not installed"
    if subprocess.run(["docker", "info"], capture_output=True, check=False, timeout=30).returncode:
        return "no Docker engine answers"
    found = subprocess.run(["sh", ROOT / "infra/local/python313.sh"], capture_output=True, text=True, check=False)
    return None if found.returncode == 0 else found.stderr.strip()


@dataclass(frozen=True)
class Answer:
    """An HTTP answer."""

    status: int
    body: Any


class SamLocal:
    """One run of infra/local/sam-local.sh. `start` it, and `remove` it whatever happened."""

    def __init__(self, directory: Path) -> None:
        self.name = f"margin-test-{os.getpid()}"
        self.port, redis_port, self.postgres_port = _free_ports(3)
        self._output = directory / "output"
        self._environment = {
            **os.environ,
            "PORT": str(self.port),
            "COMPOSE_PROJECT_NAME": self.name,
            "BACKEND_NETWORK": self.name,
            "REDIS_PORT": str(redis_port),
            "POSTGRES_PORT": str(self.postgres_port),
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Serve the API."""
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                ["sh", "infra/local/sam-local.sh", "start-api"],
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        end = time.monotonic() + START_TIMEOUT_S
        while f"ready http://127.0.0.1:{self.port} " not in self.output:
            assert self._process.poll() is None, f"ended before it was ready:\n{self.output}"
            assert time.monotonic() < end, f"not ready after {START_TIMEOUT_S} s:\n{self.output}"
            time.sleep(0.2)

    def stop(self) -> int:
        """End it as Ctrl-C does, and return its exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(STOP_TIMEOUT_S)

    def remove(self) -> None:
        """Remove whatever is left, the data too."""
        if self._process is not None and self._process.poll() is None:
            try:
                self.stop()
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(STOP_TIMEOUT_S)
        self._run("down", "-v", timeout_s=STOP_TIMEOUT_S)
        (ROOT / f".aws-sam/local-{self.port}.log").unlink(missing_ok=True)

    @property
    def output(self) -> str:
        """What it printed."""
        return self._output.read_text(errors="replace")

    def get(self, path: str) -> Answer:
        return self._send("GET", path)

    def post(self, path: str, body: Mapping[str, object], *, key: str | None = None) -> Answer:
        return self._send("POST", path, json.dumps(body), {"Idempotency-Key": key} if key else {})

    def invoke(self, function: str, event: Path) -> Any:
        """Run one function on one event in a container of its own, and return its answer."""
        return json.loads(self._run("invoke", function, str(event), timeout_s=INVOKE_TIMEOUT_S))

    def containers(self) -> list[str]:
        """Ids of all its containers: the stores', and those of functions."""
        return docker("ps", "--all", "--quiet", "--filter", f"network={self.name}").split()

    def function_containers(self) -> list[str]:
        """Ids of the containers of functions."""
        return docker(
            "ps", "--quiet", "--filter", f"network={self.name}", "--filter", "label=sam.cli.container.type=lambda"
        ).split()

    def networks(self) -> list[str]:
        return docker("network", "ls", "--quiet", "--filter", f"name={self.name}").split()

    def volumes(self) -> list[str]:
        return docker("volume", "ls", "--quiet", "--filter", f"name={self.name}").split()

    def _run(self, *arguments: str, timeout_s: float) -> str:
        command = ["sh", "infra/local/sam-local.sh", *arguments]
        done = subprocess.run(
            command, cwd=ROOT, env=self._environment, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        assert done.returncode == 0, f"{arguments} ended with {done.returncode}:\n{done.stderr}"
        return done.stdout

    def _send(
        self, method: str, path: str, body: str | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=REQUEST_TIMEOUT_S)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json", **(headers or {})})
            response = connection.getresponse()
            return Answer(response.status, json.loads(response.read()))
        finally:
            connection.close()


def docker(*arguments: str) -> str:
    """Run a command of Docker's and return what it prints."""
    return subprocess.run(
        ["docker", *arguments], capture_output=True, text=True, timeout=STOP_TIMEOUT_S, check=True
    ).stdout


def _free_ports(count: int) -> list[int]:
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(server.getsockname()[1]) for server in servers]
    for server in servers:
        server.close()
    return ports
