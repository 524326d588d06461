"""An exchange on fakes for each test."""

from __future__ import annotations

import pytest

from tests.fakes import Exchange


@pytest.fixture
async def exchange() -> Exchange:
    """Return an opened, empty exchange."""
    return await Exchange().open()
