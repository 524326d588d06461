"""What is in the build, and what a function writes to its log."""

from __future__ import annotations

import struct
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.runtime.deployment import event

if TYPE_CHECKING:
    from pathlib import Path

    from tests.runtime.artefact import Artefact
    from tests.runtime.deployment import Deployment
    from tests.runtime.machine import Machine

pytestmark = pytest.mark.runtime

UNCHECKED_HASH = 0b01


def test_layer_ships_bytecode_that_is_never_checked_against_its_source(artefact: Artefact) -> None:
    sources = {path for path in artefact.layer.rglob("*.py") if "__pycache__" not in path.parts}
    compiled = {path.parents[1] / f"{path.name.partition('.')[0]}.py" for path in artefact.layer.rglob("*.pyc")}
    assert len(sources) > 500
    assert sources - compiled == set()
    flags = {struct.unpack("<I", path.read_bytes()[4:8])[0] for path in artefact.layer.rglob("*.pyc")}
    assert flags == {UNCHECKED_HASH}


def test_layer_holds_what_is_locked_and_no_tools(artefact: Artefact) -> None:
    names = {path.name for path in artefact.layer.iterdir()}
    assert {"margin", "fastapi", "psycopg_binary", "redis"} <= names
    assert names & {"bin", "boto3", "botocore", "pip", "pytest", "uvicorn"} == set()


def test_layer_loads_the_clusters_of_the_redis_driver_only_for_those_who_ask(
    machine: Machine, artefact: Artefact
) -> None:
    code = """
import margin.runtime, sys
assert sys.modules["redis"].__file__.startswith(sys.argv[1]), sys.modules["redis"].__file__
print(*(name for name in sys.modules if name.endswith((".cluster", ".sentinel")) and "commands" not in name))
import redis
print(redis.RedisCluster.__module__, redis.asyncio.Sentinel.__module__)
"""
    environment = {"PYTHONPATH": str(artefact.layer), "PATH": "/usr/bin:/bin"}
    command = [str(machine.python), "-W", "error", "-c", code, str(artefact.layer)]
    run = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    assert run.stdout.splitlines() == ["", "redis.cluster redis.asyncio.sentinel"]


def test_layer_and_functions_fit_into_lambda(artefact: Artefact) -> None:
    layer = _size_mb(artefact.directory / "MarginLayer")
    assert layer < 60
    assert max(layer + _size_mb(artefact.folder(name)) for name in artefact.functions) < 250


def test_log_is_json_with_the_ids_of_the_request(functions: Deployment) -> None:
    environment = functions.fresh("MarkPriceFunction")
    request = event("mark_price")
    request["headers"]["x-request-id"] = "of-the-caller"
    reply = functions.send(request, to=environment)
    (line,) = environment.lines("mark_price_set")
    assert line["correlation_id"] == "of-the-caller"
    assert line["function_request_id"] == reply.headers["x-request-id"]
    assert environment.metrics("MarkPrices") == [1]


def _size_mb(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20
