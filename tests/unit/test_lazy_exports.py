"""The layer's redis-py offers exactly what the installed one does, and loads clusters only for those who ask."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
REWRITE = ROOT / "layers" / "margin" / "lazy_exports.py"
PACKAGES = ("redis", "redis.asyncio")
CLUSTERS = {"redis.cluster", "redis.sentinel", "redis.asyncio.cluster", "redis.asyncio.sentinel"}

# What stands behind names of the packages; those that they have after they were imported, where none are given.
OFFERED = """
def described(value):
    if isinstance(value, type(json)):
        return ["module", value.__name__]
    if hasattr(value, "__qualname__"):
        return [value.__module__, value.__qualname__]
    return repr(value)

offered = {}
for package in PACKAGES:
    module = importlib.import_module(package)
    names = NAMES[package] if NAMES else [*module.__all__, *dir(module)]
    offered[package] = {name: described(getattr(module, name)) for name in names if not name.startswith("_")}
print(json.dumps(offered))
"""

# The modules that can be imported when nothing else of the driver was.
IMPORTABLE = """
def imports(module):
    for name in [name for name in sys.modules if name.partition(".")[0] == "redis"]:
        del sys.modules[name]
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True

modules = [f"{package}.{module.name}" for package in PACKAGES
           for module in pkgutil.iter_modules(importlib.import_module(package).__path__)]
print(json.dumps([module for module in modules if imports(module)]))
"""


@pytest.fixture(scope="module")
def rewritten(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that holds redis-py as the layer's build makes it."""
    folder = tmp_path_factory.mktemp("layer")
    spec = importlib.util.find_spec("redis")
    assert spec is not None
    assert spec.origin is not None
    shutil.copytree(Path(spec.origin).parent, folder / "redis", ignore=shutil.ignore_patterns("__pycache__"))
    assert _rewrite(folder, *PACKAGES) == ""
    return folder


def _rewrite(folder: Path, *packages: str) -> str:
    command = [sys.executable, str(REWRITE), str(folder), *packages]
    return subprocess.run(command, check=True, capture_output=True, text=True).stderr


def _run(code: str, folder: Path | None) -> Any:
    """Run code that prints JSON, with the driver of ``folder`` or the installed one."""
    head = f"import importlib, json, pkgutil, sys\nPACKAGES = {PACKAGES!r}\n"
    environment = {**os.environ, "PYTHONPATH": str(folder or "")}
    command = [sys.executable, "-W", "error", "-c", head + code]
    run = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return json.loads(run.stdout)


def test_rewritten_driver_offers_every_name_of_the_installed_one(rewritten: Path) -> None:
    installed = _run(f"NAMES = None\n{OFFERED}", None)
    assert len(installed["redis"]) > 50
    names = {package: list(offered) for package, offered in installed.items()}
    assert _run(f"NAMES = {names!r}\n{OFFERED}", rewritten) == installed


def test_every_module_of_the_rewritten_driver_can_be_imported_first(rewritten: Path) -> None:
    installed = _run(IMPORTABLE, None)
    assert set(installed) >= CLUSTERS
    assert set(installed) - set(_run(IMPORTABLE, rewritten)) == set()


def test_engine_loads_the_rewritten_driver_without_its_clusters(rewritten: Path) -> None:
    loaded = "import margin.runtime\nprint(json.dumps(list(sys.modules)))"
    assert set(_run(loaded, None)) >= CLUSTERS, "or this test sees nothing"
    modules = set(_run(loaded, rewritten))
    assert modules & CLUSTERS == set()
    assert {"redis", "redis.asyncio.client", "redis.asyncio.connection"} <= modules
    where = _run("import redis\nprint(json.dumps(redis.__file__))", rewritten)
    assert Path(where).is_relative_to(rewritten)


@pytest.mark.parametrize("name", ["nothing", "client_", "__wrapped__"])
def test_name_that_the_driver_does_not_have_is_missing_in_the_rewritten_one_too(rewritten: Path, name: str) -> None:
    code = f"import redis, redis.asyncio\nprint(json.dumps([hasattr(package, {name!r}) for package in "
    assert _run(code + "(redis, redis.asyncio)]))", rewritten) == [False, False]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import os\n", "line 1 is neither a re-export nor a value"),
        ("from package.a import b\nb.patch()\n", "line 2 is neither a re-export nor a value"),
        ("if True:\n    from package.a import b\n", "line 1 is neither a re-export nor a value"),
        ("from .a import b\n", "line 1 imports in a form that is not rewritten"),
        ("from package.a import *\n", "line 1 imports in a form that is not rewritten"),
        ("from package.a import b as c\n", "line 1 imports in a form that is not rewritten"),
        ("from other import b\n", "line 1 imports another package"),
        ("from package.a import b\nc = b\n", "it uses itself what it re-exports: b"),
        ("from package.a import b\ndef c():\n    return b\n", "it uses itself what it re-exports: b"),
    ],
)
def test_package_that_does_more_than_re_export_stays_as_it_is(tmp_path: Path, source: str, reason: str) -> None:
    path = tmp_path / "package" / "__init__.py"
    path.parent.mkdir()
    path.write_text(source, encoding="utf-8")
    assert _rewrite(tmp_path, "package") == f"package stays as it is, and loads all that it has: {reason}\n"
    assert path.read_text(encoding="utf-8") == source


def test_error_of_a_module_that_is_loaded_late_is_its_own(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text('"""Text."""\nfrom package.a import b\n', encoding="utf-8")
    (package / "a.py").write_text("import that_is_not_installed\n", encoding="utf-8")
    assert _rewrite(tmp_path, "package") == ""
    code = """
import package
errors = []
for name in ("a", "b"):
    try:
        getattr(package, name)
    except ModuleNotFoundError as error:
        errors.append(error.name)
print(json.dumps([package.__doc__, errors]))
"""
    assert _run(code, tmp_path) == ["Text.", ["that_is_not_installed"] * 2]
