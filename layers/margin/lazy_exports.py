"""Makes packages of the layer load what they re-export when it is first asked for, instead of when they are imported.

::

    python lazy_exports.py FOLDER PACKAGE...

The layer's Makefile runs it on redis-py, whose two packages load clusters, sentinels and notifications wherever any of
their modules is imported. A package's ``__init__.py`` keeps every name: only its imports of names from its own modules
go, and a ``__getattr__`` (PEP 562) makes them when a name is missing. Nothing of this is known when a function runs,
where a rewritten package and an untouched one look the same. A package that does anything else when it is imported is
left as it is, and a line says so.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

# Follows the statements that were kept; the table of names is put in front.
_ON_DEMAND = '''

def __getattr__(name):
    """Import what the package offers under this name: something of one of its modules, or a module."""
    import importlib

    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _EXPORTS:
        value = getattr(importlib.import_module(_EXPORTS[name]), name)
    else:
        module = f"{__name__}.{name}"
        try:
            value = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *_EXPORTS})
'''


class NotOnlyExportsError(ValueError):
    """The package does something else than to re-export when it is imported."""


def lazy(source: str, package: str) -> str:
    """Rewrite the text of a package's ``__init__.py``.

    Parameters
    ----------
    source : str
        The text.
    package : str
        The package's full name.

    Raises
    ------
    NotOnlyExportsError
        Beside re-exports of its own modules there is more than functions, and values made of nothing but themselves.
    """
    exports: dict[str, str] = {}
    kept: list[ast.stmt] = []
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.ImportFrom):
            exports |= _exports(statement, package)
        elif isinstance(statement, ast.Assign | ast.FunctionDef) or _is_docstring(statement):
            kept.append(statement)
        else:
            message = f"line {statement.lineno} is neither a re-export nor a value"
            raise NotOnlyExportsError(message)
    # A function or a value looks a name up without `__getattr__`.
    used = {node.id for statement in kept for node in ast.walk(statement) if isinstance(node, ast.Name)}
    if used & exports.keys():
        message = f"it uses itself what it re-exports: {', '.join(sorted(used & exports.keys()))}"
        raise NotOnlyExportsError(message)
    lines = [ast.get_source_segment(source, statement) or "" for statement in kept]
    table = "\n".join(f'    "{name}": "{module}",' for name, module in exports.items())
    return "\n\n".join([*lines, f"_EXPORTS = {{\n{table}\n}}"]) + _ON_DEMAND


def _exports(statement: ast.ImportFrom, package: str) -> dict[str, str]:
    """Return the module of each name that the statement imports; modules of the package itself are found without."""
    module = statement.module or ""
    names = [alias.name for alias in statement.names]
    if statement.level or "*" in names or any(alias.asname for alias in statement.names):
        message = f"line {statement.lineno} imports in a form that is not rewritten"
        raise NotOnlyExportsError(message)
    if module == package:
        return {}
    if not f"{module}.".startswith(f"{package.partition('.')[0]}."):
        message = f"line {statement.lineno} imports another package"
        raise NotOnlyExportsError(message)
    return dict.fromkeys(names, module)


def _is_docstring(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def main(folder: str, *packages: str) -> None:
    """Rewrite packages that are installed in ``folder``."""
    for package in packages:
        path = Path(folder, *package.split("."), "__init__.py")
        try:
            path.write_text(lazy(path.read_text(encoding="utf-8"), package), encoding="utf-8")
        except NotOnlyExportsError as error:
            sys.stderr.write(f"{package} stays as it is, and loads all that it has: {error}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
