"""The templates are clean: cfn-lint with the serverless rules finds nothing, before and after SAM's transform."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from cfnlint.api import ManualArgs, lint_file

from tests.template import documents

if TYPE_CHECKING:
    from pathlib import Path

    from tests.template.documents import Document

RULES = ["cfn_lint_serverless.rules"]
# What says nothing about a template that was transformed here and not on the way to a deployment.
OF_THE_TRANSFORM = {
    "W3002": "the nested stacks are files until they are packaged",
    "ES1001": "SAM-aware only before the transform: a queue takes its failures itself, by its redrive policy",
}


def _findings(path: Path, ignored: list[str]) -> list[str]:
    config = ManualArgs(append_rules=RULES, regions=["eu-central-1"], ignore_checks=ignored)
    return [f"{found.rule.id} line {found.linenumber}: {found.message}" for found in lint_file(path, config=config)]


@pytest.mark.parametrize("path", [documents.TEMPLATE, *documents.NESTED], ids=lambda path: path.name)
def test_template_as_written_is_clean(path: Path) -> None:
    assert _findings(path, []) == []


def test_transformed_template_is_clean(deployed: Document, tmp_path: Path) -> None:
    path = tmp_path / "deployed.json"
    path.write_text(json.dumps(deployed), encoding="utf-8")
    (tmp_path / "infra").symlink_to(documents.ROOT / "infra")
    assert _findings(path, list(OF_THE_TRANSFORM)) == []


def test_serverless_rules_are_in_force(tmp_path: Path) -> None:
    path = tmp_path / "queue.yaml"
    path.write_text("Resources: {Queue: {Type: AWS::SQS::Queue}}\n", encoding="utf-8")
    assert [finding.split()[0] for finding in _findings(path, [])] == ["ES6000"]
