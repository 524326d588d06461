"""Imports point one way, and every function stands alone, as Lambda loads it."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
FUNCTIONS = ROOT / "functions"
# A process of its own: the linter sets up logging and the import path of the one it runs in.
LINT_IMPORTS = "from importlinter.cli import lint_imports_command; lint_imports_command()"


def _modules() -> list[Path]:
    """List what a function's folder offers for import: the Python files and the packages at its top."""
    files = [path for path in FUNCTIONS.glob("*/*.py") if path.stem != "__init__"]
    return files + [path.parent for path in FUNCTIONS.glob("*/*/__init__.py")]


def _imported_roots(source: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
            yield node.module.partition(".")[0]


def test_every_import_contract_is_kept() -> None:
    command = [sys.executable, "-c", LINT_IMPORTS, "--no-cache", "--no-logo"]
    linter = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert linter.returncode == 0, linter.stdout + linter.stderr


def test_module_names_are_unique_across_functions() -> None:
    names = Counter(module.stem for module in _modules())
    assert [name for name, times in names.items() if times > 1] == []


def test_no_function_imports_a_module_of_another() -> None:
    folder_of = {module.stem: module.relative_to(FUNCTIONS).parts[0] for module in _modules()}
    foreign = [
        f"{source.relative_to(ROOT)} imports {name}"
        for source in FUNCTIONS.rglob("*.py")
        for name in _imported_roots(source)
        if name == "functions" or folder_of.get(name, own := source.relative_to(FUNCTIONS).parts[0]) != own
    ]
    assert foreign == []


def test_every_function_folder_is_on_the_path_of_the_editable_install() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["dev-mode-dirs"])
    folders = {f"functions/{module.relative_to(FUNCTIONS).parts[0]}" for module in _modules()}
    assert folders - listed == set()
    assert {folder for folder in listed if not (ROOT / folder).is_dir()} == set()
