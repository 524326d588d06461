"""Every handler that the template names can be imported with what Lambda has: its folder, the layer, and boto3."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

from tests.template import documents

if TYPE_CHECKING:
    from tests.template.documents import Function

LAYER = documents.ROOT / "layers" / "margin"
# Lambda's own.
RUNTIME = {"boto3", "botocore", "jmespath", "python-dateutil", "s3transfer", "six", "urllib3"}

# Without `site` no .pth file is read, so that the editable install of this project is out of the way; what the
# environment holds beside the layer's packages cannot be imported.
IMPORT = """
import importlib, json, sys

class Absent:
    def __init__(self, names):
        self.names = frozenset(names)
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"{name} is not in Lambda", name=name)

given = json.loads(sys.stdin.read())
sys.path[:0] = given["ahead"]
sys.path += given["behind"]
sys.meta_path.insert(0, Absent(given["absent"]))
module, attribute = given["handler"].split(".")
assert callable(getattr(importlib.import_module(module), attribute))
"""


def _locked(lock: Path) -> set[str]:
    """Return the names of the packages that a lock installs, in their normal form."""
    if not lock.is_file():
        return set()
    lines = re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==", lock.read_text(encoding="utf-8"), re.MULTILINE)
    return {_normal(name) for name in lines}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@functools.cache
def _providers() -> dict[str, set[str]]:
    """Return which packages of this environment provide each importable name."""
    provided = importlib.metadata.packages_distributions().items()
    return {module: {_normal(name) for name in names} for module, names in provided}


def _absent(folder: Path) -> list[str]:
    """List what can be imported here and not in Lambda."""
    present = _locked(LAYER / "requirements.txt") | _locked(folder / "requirements.txt") | RUNTIME
    return [module for module, names in _providers().items() if not names & present]


def _start(function: Function) -> subprocess.Popen[str]:
    folder = documents.ROOT / "functions" / function.folder
    given = {
        "handler": function.properties["Handler"],
        "ahead": [str(folder), str(LAYER)],
        "behind": sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}),
        "absent": _absent(folder),
    }
    command = [sys.executable, "-I", "-S", "-B", "-c", IMPORT]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(given))
    process.stdin.close()
    process.stdin = None
    return process


def test_every_handler_is_importable_with_layer_and_folder_alone(functions: list[Function]) -> None:
    running = [(function.properties["Handler"], _start(function)) for function in functions]
    outcomes = [(handler, *process.communicate(timeout=60)[:1], process.returncode) for handler, process in running]
    assert len(outcomes) == len(functions)
    assert [(handler, output[-800:]) for handler, output, code in outcomes if code] == []


def test_every_folder_of_functions_is_deployed(functions: list[Function]) -> None:
    folders = {path.parent.name for path in (documents.ROOT / "functions").glob("*/*.py")}
    assert {function.folder for function in functions} == folders


def test_layer_and_runtime_are_all_that_a_handler_sees() -> None:
    assert "fastapi" not in _absent(documents.ROOT / "functions" / "trade")
    assert {"hypothesis", "moto", "pytest", "uvicorn"} <= set(_absent(documents.ROOT / "functions" / "trade"))
