"""The templates are clean: cfn-lint with the serverless rules finds nothing, before and after SAM's transform."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.template import documents

if TYPE_CHECKING:
    from tests.template.documents import Document

# What says nothing about a template that was transformed here and not on the way to a deployment.
OF_THE_TRANSFORM = {
    "W3002": "the nested stacks are files until they are packaged",
    "ES1001": "knows before the transform that a queue takes its failures itself, by its redrive policy",
}
WITHOUT_DEAD_LETTER_QUEUE = "Resources: {Queue: {Type: AWS::SQS::Queue}}\n"


@pytest.fixture(scope="module")
def findings(deployed: Document, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[str, str]]]:
    """Return what the linter finds, by file name: rule and text. One run for all: half of it is reading the rules."""
    from cfnlint.api import ManualArgs, lint_by_config  # noqa: PLC0415 - takes seconds

    folder = tmp_path_factory.mktemp("lint")
    (folder / "infra").symlink_to(documents.ROOT / "infra")
    (folder / "deployed.json").write_text(json.dumps(deployed, indent=1), encoding="utf-8")
    (folder / "queue.yaml").write_text(WITHOUT_DEAD_LETTER_QUEUE, encoding="utf-8")
    paths = [documents.TEMPLATE, *documents.NESTED, folder / "deployed.json", folder / "queue.yaml"]
    config = ManualArgs(
        templates=[str(path) for path in paths],
        append_rules=["cfn_lint_serverless.rules"],
        regions=["eu-central-1"],
    )
    found = defaultdict(list)
    for match in lint_by_config(config):
        found[Path(match.filename).name].append((match.rule.id, f"line {match.linenumber}: {match.message}"))
    return found


@pytest.mark.parametrize("path", [documents.TEMPLATE, *documents.NESTED], ids=lambda path: path.name)
def test_template_as_written_is_clean(findings: dict[str, list[tuple[str, str]]], path: Path) -> None:
    assert findings.get(path.name, []) == []


def test_transformed_template_is_clean(findings: dict[str, list[tuple[str, str]]]) -> None:
    found = findings["deployed.json"]
    assert {rule for rule, _ in found} >= set(OF_THE_TRANSFORM), "take what is not found any more off the list"
    assert [finding for finding in found if finding[0] not in OF_THE_TRANSFORM] == []


def test_serverless_rules_are_in_force(findings: dict[str, list[tuple[str, str]]]) -> None:
    assert [rule for rule, _ in findings["queue.yaml"]] == ["ES6000"]
