"""`make sam-local` and `make build` on a machine that lacks something: one line that says what, and nothing started."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
# All that the scripts call before they would start something.
TOOLS = ("sh", "cat", "dirname", "mkdir", "sed", "tail", "uname")


class Machine:
    """A PATH that holds hardly anything."""

    def __init__(self, directory: Path) -> None:
        self._programs = directory / "bin"
        self._home = directory / "home"
        self._programs.mkdir()
        self._home.mkdir()
        for name in TOOLS:
            found = shutil.which(name)
            assert found, name
            (self._programs / name).symlink_to(found)

    def add(self, name: str, script: str) -> None:
        (self._programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (self._programs / name).chmod(0o755)

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", *command],
            cwd=ROOT,
            env={"PATH": str(self._programs), "HOME": str(self._home), **environment},
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_docker_is_missing(machine: Machine) -> None:
    done = machine.run("infra/local/sam-local.sh", "start-api")
    assert done.returncode == 1
    assert done.stderr.startswith("make: Docker is needed and was not found")
    assert len(done.stderr.splitlines()) == 1


def test_docker_has_no_engine(machine: Machine) -> None:
    machine.add("docker", "echo 'Cannot connect to the Docker daemon' >&2; exit 1")
    done = machine.run("infra/local/sam-local.sh", "start-api")
    assert done.returncode == 1
    assert done.stderr.startswith("make: No Docker engine answers")
    assert len(done.stderr.splitlines()) == 1


def test_compose_is_missing(machine: Machine) -> None:
    machine.add("docker", '[ "$1" = info ]')
    done = machine.run("infra/local/sam-local.sh", "start-api")
    assert done.returncode == 1
    assert done.stderr.startswith("make: Docker Compose is needed and was not found")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(not (ROOT / ".venv/bin/python").exists(), reason="make has not made .venv")
@pytest.mark.parametrize("name", ["PORT", "REDIS_PORT", "POSTGRES_PORT"])
def test_a_port_is_taken(machine: Machine, name: str) -> None:
    for tool in ("docker", "rm"):
        machine.add(tool, "exit 0")
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_server(("127.0.0.1", 0)) as free:
        port, free_port = str(server.getsockname()[1]), str(free.getsockname()[1])
        free.close()
        ports = {"PORT": free_port, "REDIS_PORT": free_port, "POSTGRES_PORT": free_port, name: port}
        done = machine.run("infra/local/sam-local.sh", "start-api", **ports)
    assert done.returncode == 1
    assert done.stderr.startswith(f"make: Port {port} is taken")
    assert f"{name}=" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_python_313_is_missing(machine: Machine) -> None:
    done = machine.run("infra/local/sam.sh", "build")
    assert done.returncode == 3
    assert done.stderr.startswith("Python 3.13 with pip and venv is needed")
    assert "PYTHON313=" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_sam_cli_of_the_machine_is_taken_when_it_is_recent(machine: Machine) -> None:
    machine.add("python3.13", f'[ "$1" = -c ] && echo {sys.executable}')
    machine.add("sam", '[ "$1" = --version ] && echo "SAM CLI, version 1.160.1" || echo "$SAM_CLI_TELEMETRY $*"')
    done = machine.run("infra/local/sam.sh", "deploy", "--guided", MAKEFLAGS="x")
    assert (done.returncode, done.stdout) == (0, "0 deploy --guided\n"), done.stderr


def test_commands_without_an_account_get_no_credentials(machine: Machine) -> None:
    machine.add("python3.13", f'[ "$1" = -c ] && echo {sys.executable}')
    machine.add("sam", '[ "$1" = --version ] && echo "SAM CLI, version 1.160.1" || echo "${AWS_ACCESS_KEY_ID:-none}"')
    secret = {"AWS_ACCESS_KEY_ID": "AKIAEXAMPLE", "AWS_PROFILE": "work"}
    assert machine.run("infra/local/sam.sh", "local", "invoke", **secret).stdout == "none\n"
    assert machine.run("infra/local/sam.sh", "deploy", **secret).stdout == "AKIAEXAMPLE\n"


def test_the_region_is_known_to_sam_under_either_name(machine: Machine) -> None:
    machine.add("python3.13", f'[ "$1" = -c ] && echo {sys.executable}')
    machine.add("sam", '[ "$1" = --version ] && echo "SAM CLI, version 1.160.1" || echo "$AWS_DEFAULT_REGION"')
    assert machine.run("infra/local/sam.sh", "deploy", AWS_REGION="eu-central-1").stdout == "eu-central-1\n"
    assert machine.run("infra/local/sam.sh", "deploy", AWS_DEFAULT_REGION="eu-west-1").stdout == "eu-west-1\n"
