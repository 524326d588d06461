"""Fixtures: the template as it is written, transformed, and its functions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.template import documents

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.template.documents import Document, Function

RELEASE = "ab" * 32


@pytest.fixture(autouse=True, scope="session")
def _region() -> Iterator[None]:
    """Let the translator know a region; it asks nobody else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
        yield


@pytest.fixture(scope="session")
def template() -> Document:
    """Return the template as it is written."""
    return documents.read(documents.TEMPLATE)


@pytest.fixture(scope="session")
def deployed(template: Document) -> Document:
    """Return the template as CloudFormation gets it. Tests share it and change nothing."""
    return documents.transform(template, Release=RELEASE)


@pytest.fixture(scope="session")
def functions(template: Document, deployed: Document) -> list[Function]:
    """Return all functions."""
    return documents.functions(template, deployed)


@pytest.fixture(scope="session")
def nested() -> dict[str, Document]:
    """Return the templates of the nested stacks, by file name."""
    return {path.name: documents.read(path) for path in documents.NESTED}
