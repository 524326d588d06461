"""The wheels of the layer are those of the functions' architecture, whoever builds and on which machine."""

from __future__ import annotations

import os
import re
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.template import documents
from tests.template.documents import Evaluation

if TYPE_CHECKING:
    from pathlib import Path

    from tests.template.documents import Document, Function

LAYER = documents.ROOT / "layers" / "margin"
WHEELS = {"arm64": "aarch64", "x86_64": "x86_64"}
# What a calling make hands down would change what the Makefile does.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "PYTHON"))}


def _plan(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Say what the Makefile would do there, as SAM calls it, without doing it."""
    command = ["make", "--dry-run", "--makefile", str(LAYER / "Makefile"), "build-MarginLayer"]
    environment = {**ENVIRONMENT, "ARTIFACTS_DIR": "/artefacts", **variables}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_every_architecture_of_the_template_has_wheels(template: Document) -> None:
    assert set(template["Parameters"]["Architecture"]["AllowedValues"]) == set(WHEELS)


@pytest.mark.parametrize("architecture", [*WHEELS, None], ids=[*WHEELS, "of the template"])
def test_layer_is_built_for_the_architecture_that_its_functions_have(
    template: Document, functions: list[Function], architecture: str | None
) -> None:
    given = {} if architecture is None else {"Architecture": architecture}
    evaluation = Evaluation(template, **given)
    metadata = evaluation.of(template["Resources"]["MarginLayer"]["Metadata"])
    layer = evaluation.of(template["Resources"]["MarginLayer"]["Properties"]["CompatibleArchitectures"])
    (of_functions,) = {tuple(evaluation.of(function.properties["Architectures"])) for function in functions}
    assert (metadata["BuildArchitecture"],) == tuple(layer) == of_functions
    plan = _plan(documents.ROOT / metadata["WorkingDirectory"])
    assert plan.returncode == 0, plan.stderr
    wheels = WHEELS[of_functions[0]]
    assert re.findall(r"--platform (\S+)", plan.stdout) == [f"manylinux_2_28_{wheels}", f"manylinux2014_{wheels}"]


def test_machine_and_environment_do_not_choose_the_wheels() -> None:
    plan = _plan(LAYER / "arm64", MARGIN_ARCHITECTURE="x86_64", ARCHITECTURE="x86_64", platforms="any")
    assert set(re.findall(r"--platform (\S+)", plan.stdout)) == {"manylinux_2_28_aarch64", "manylinux2014_aarch64"}


def test_layer_that_is_built_for_no_architecture_fails_and_says_so(tmp_path: Path) -> None:
    for folder in (tmp_path, LAYER):
        plan = _plan(folder)
        assert plan.returncode != 0
        assert "The layer is built in the folder of an architecture, layers/margin/arm64" in plan.stderr


def test_everything_that_the_layer_is_made_of_is_there() -> None:
    plan = _plan(LAYER / "arm64")
    made_of = set(re.findall(r"(\.\./\S+)", plan.stdout))
    assert made_of == {"../requirements.txt", "../margin", "../lazy_exports.py", "../sbom.py"}
    assert [path for path in made_of if not (LAYER / "arm64" / path).exists()] == []
