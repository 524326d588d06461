"""What `sam build` makes of the template: a folder for each function and one for the layer."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
from typing import TYPE_CHECKING, Any
from unittest import mock

from tests.runtime.machine import ROOT
from tests.template import documents
from tests.template.documents import Evaluation

if TYPE_CHECKING:
    from pathlib import Path

    from tests.runtime.machine import Machine
    from tests.template.documents import Document, Function

LAYER = "MarginLayer"
# The nested stack that has a function.
ISSUER = "Issuer"
BUILD_TIMEOUT_S = 300


@dataclasses.dataclass(frozen=True)
class Artefact:
    """A build, and the template that it was made with."""

    directory: Path
    deployed: Document
    functions: dict[str, Function]

    def folder(self, name: str) -> Path:
        """The code of a function."""
        return self.directory / name

    @property
    def layer(self) -> Path:
        """What a function finds in /opt/python."""
        return self.directory / LAYER / "python"

    def variables(self, name: str, parameters: dict[str, str], **changes: str) -> dict[str, str]:
        """Return the environment that a deployment with these parameters gives a function.

        ``changes`` set other values of variables that the template declares; others it must not have.
        """
        declared = self.functions[name].variables
        assert set(changes) <= set(declared), "the template declares no such variable"
        given: dict[str, Any] = Evaluation(self.deployed, **parameters).of(declared)
        return {variable: str(value) for variable, value in given.items()} | changes

    def function_of(self, method: str, path: str) -> str:
        """Return the function that the API hands a request to."""
        for name, function in self.functions.items():
            for its_method, route in function.routes:
                if method == its_method and re.fullmatch(re.sub(r"\{[^}]+\}", "[^/]+", route), path):
                    return name
        message = f"the template has no route for {method} {path}"
        raise LookupError(message)


def build(machine: Machine, directory: Path) -> Artefact:
    """Run `sam build` for this machine's architecture, from nothing, into ``directory``."""
    command = ["sh", str(ROOT / "infra" / "local" / "sam.sh"), "build", "--no-cached", "--build-dir", str(directory)]
    command += ["--parameter-overrides", f"Architecture={machine.architecture}"]
    built = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=BUILD_TIMEOUT_S,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert built.returncode == 0, built.stderr[-4000:]
    return _read(directory)


def of_the_issuer(artefact: Artefact) -> Artefact:
    """Return the part of a build that the nested stack of the issuer is; its functions have no layer."""
    return _read(artefact.directory / ISSUER)


def _read(directory: Path) -> Artefact:
    template = documents.read(directory / "template.yaml")
    with mock.patch.dict(os.environ, AWS_DEFAULT_REGION="eu-central-1"):  # The translator asks for it.
        deployed = documents.transform(template)
    functions = {function.name: function for function in documents.functions(template, deployed)}
    return Artefact(directory, deployed, functions)
