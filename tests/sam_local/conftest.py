"""Fixtures: one run of `make sam-local` for all tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.sam_local.containers import SamLocal, reason_to_skip

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def sam_local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SamLocal]:
    """Yield the API in containers, ready; nothing of it is left afterwards."""
    if reason := reason_to_skip():
        pytest.skip(f"make sam-local needs a Docker engine and Python 3.13: {reason}")
    containers = SamLocal(tmp_path_factory.mktemp("sam-local"))
    try:
        containers.start()
        yield containers
    finally:
        containers.remove()
