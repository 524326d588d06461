"""Lists of exceptions: TOML files with nothing but entries of one kind."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


class ListError(Exception):
    """A list of exceptions cannot be used; the message says which entry, and what is wrong with it."""


def read_entries(path: Path, kind: str) -> list[tuple[str, Any]]:
    """Read the entries ``[[kind]]`` of a file, each with how to name it in a message.

    Raises
    ------
    ListError
        The file cannot be read, or holds something else.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ListError(f"{path.name} cannot be read: {error}") from error
    entries = document.pop(kind, [])
    if document or not isinstance(entries, list):
        raise ListError(f"{path.name} holds something else than entries [[{kind}]].")
    return [(f"{path.name}, entry {number}", entry) for number, entry in enumerate(entries, start=1)]
