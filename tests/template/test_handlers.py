"""Every handler that the template names can be imported with what Lambda has: its folder, the layer, and boto3."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import sysconfig
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from tests.template import documents

if TYPE_CHECKING:
    from pathlib import Path

    from tests.template.documents import Function

LAYER = documents.ROOT / "layers" / "margin"
# Deployed by infra/cognito.yaml, without the layer.
OF_THE_ISSUER = "token_claims"
# Lambda's own.
RUNTIME = {"boto3", "botocore", "jmespath", "python-dateutil", "s3transfer", "six", "urllib3"}

# Without `site` no .pth file is read, so that the editable install of this project is out of the way; what the
# environment holds beside the packages that Lambda has cannot be imported. A function's own modules are forgotten
# before the next one is imported; those of the layer, and what it depends on, are the same for all.
IMPORT = """
import importlib, json, sys, traceback

class Absent:
    def __init__(self, names):
        self.names = frozenset(names)
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"{name} is not in Lambda", name=name)

given = json.loads(sys.stdin.read())
sys.path += given["shared"]
sys.meta_path.insert(0, Absent(given["absent"]))
errors = {}
for handler, folder in given["handlers"].items():
    sys.path.insert(0, folder)
    module, attribute = handler.split(".")
    try:
        assert callable(getattr(importlib.import_module(module), attribute))
    except Exception:
        errors[handler] = traceback.format_exc()[-800:]
    sys.path.remove(folder)
    for name, loaded in list(sys.modules.items()):
        if (getattr(loaded, "__file__", None) or "").startswith(folder):
            del sys.modules[name]
print(json.dumps({"imported": len(given["handlers"]), "errors": errors}))
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


def _absent(folder: Path) -> frozenset[str]:
    """Return what can be imported here and not in Lambda."""
    present = _locked(LAYER / "requirements.txt") | _locked(folder / "requirements.txt") | RUNTIME
    return frozenset(module for module, names in _providers().items() if not names & present)


def test_every_handler_is_importable_with_layer_and_folder_alone(functions: list[Function]) -> None:
    site = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    groups: dict[frozenset[str], dict[str, str]] = defaultdict(dict)
    for function in functions:
        folder = documents.ROOT / "functions" / function.folder
        groups[_absent(folder)][function.properties["Handler"]] = str(folder)
    outcomes = []
    for absent, handlers in groups.items():
        given = {"handlers": handlers, "shared": [str(LAYER), *site], "absent": sorted(absent)}
        outcomes.append(_imported(given))
    assert {handler: error for outcome in outcomes for handler, error in outcome["errors"].items()} == {}
    assert sum(outcome["imported"] for outcome in outcomes) == len(functions)


def _imported(given: dict[str, object], **variables: str) -> dict[str, Any]:
    command = [sys.executable, "-I", "-S", "-c", IMPORT]
    process = subprocess.run(
        command,
        input=json.dumps(given),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, **variables},
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


def test_trigger_of_the_issuer_is_importable_with_its_folder_alone(nested: dict[str, documents.Document]) -> None:
    function = nested["cognito.yaml"]["Resources"]["TokenClaimsFunction"]["Properties"]
    folder = documents.ROOT / "infra" / function["CodeUri"]
    site = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    absent = sorted(module for module, names in _providers().items() if not names & RUNTIME)
    given = {"handlers": {function["Handler"]: str(folder.resolve())}, "shared": site, "absent": absent}
    assert folder.resolve().name == OF_THE_ISSUER
    assert "margin" not in given["shared"]
    assert _imported(given, ACCOUNTS_TABLE="accounts") == {"imported": 1, "errors": {}}


def test_every_folder_of_functions_is_deployed(functions: list[Function]) -> None:
    folders = {path.parent.name for path in (documents.ROOT / "functions").glob("*/*.py")}
    assert {function.folder for function in functions} | {OF_THE_ISSUER} == folders


def test_layer_and_runtime_are_all_that_a_handler_sees() -> None:
    assert "fastapi" not in _absent(documents.ROOT / "functions" / "trade")
    assert {"hypothesis", "moto", "pytest", "uvicorn"} <= _absent(documents.ROOT / "functions" / "trade")
