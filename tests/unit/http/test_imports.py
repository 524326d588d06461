"""What a function loads is what it needs: every import is paid for at each cold start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
HEAVY = (
    "fastapi",
    "starlette",
    "mangum",
    "pydantic",
    "redis",
    "psycopg",
    "boto3",
    "botocore.session",
    "opentelemetry",
    "aws_lambda_powertools.utilities.data_classes",
)


def loaded(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*(name for name in {HEAVY!r} if name in sys.modules))"
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, capture_output=True, text=True)
    return set(run.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import margin.lambda_entry",
        "import margin.observability",
        "from margin.lambda_entry import event_handler; event_handler(print)",
        "from margin.lambda_entry import queue_handler; queue_handler(print)",
        "import margin.caller, margin.exact_json, margin.errors, margin.time_budget",
    ],
)
def test_a_function_without_http_loads_nothing_heavy(statement: str) -> None:
    assert loaded(statement) == set()


def test_the_http_layer_loads_no_store_and_no_aws_client() -> None:
    both = loaded(
        "import margin.http; from margin.lambda_entry import http_handler; "
        "http_handler(margin.http.create_app(title='t', version='1', description='d'))"
    )
    assert both & {"redis", "psycopg", "boto3", "botocore.session"} == set()
    assert {"fastapi", "mangum"} <= both, "or this test sees nothing"


@pytest.mark.parametrize("module", ["trade_api", "liquidation_scan_handler", "liquidate_handler"])
def test_the_garbage_collector_works_once_a_function_is_loaded(module: str) -> None:
    code = f"import gc, margin.loading; assert not gc.isenabled(); import {module}; assert gc.isenabled()"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


@pytest.mark.parametrize("module", ["trade_api", "mark_price_api", "liquidation_scan_handler"])
def test_what_takes_long_is_loaded_without_the_garbage_collector(module: str) -> None:
    code = f"""
import gc, sys
class Watch:
    seen = {{}}
    def find_spec(self, name, path=None, target=None):
        self.seen.setdefault(name, gc.isenabled())
sys.meta_path.insert(0, Watch())
import {module}
watched = {{name: Watch.seen[name] for name in ("pydantic", "fastapi", "redis", "asyncio") if name in Watch.seen}}
assert {{"redis", "asyncio"}} <= watched.keys(), "or this test sees nothing"
assert not any(watched.values()), watched
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_the_handler_works_in_a_process_of_its_own_after_asyncio_run() -> None:
    code = """
import asyncio
from tests.unit.http.exchange import call
asyncio.run(asyncio.sleep(0))
assert call("GET", "/trades/1").status == 200
asyncio.run(asyncio.sleep(0))
assert call("GET", "/trades/1").status == 200
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=ROOT)
