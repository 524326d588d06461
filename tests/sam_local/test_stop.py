"""The end of `make sam-local`; the last of these tests, since the others need it running."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.sam_local.containers import SamLocal

pytestmark = pytest.mark.sam_local


def test_only_the_data_is_left(sam_local: SamLocal) -> None:
    assert sam_local.get("/health").status == 200
    assert sam_local.function_containers()

    assert sam_local.stop() == 0
    assert sam_local.containers() == []
    assert sam_local.networks() == []
    assert len(sam_local.volumes()) == 2

    sam_local.remove()
    assert sam_local.volumes() == []
