"""What only the embedded PostgreSQL does: making its data, its databases, giving up root."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import psycopg
import pytest

from margin_local.servers import EmbeddedPostgres, EmbeddedServerError, relocation
from margin_local.servers.account import Account

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from margin_local.servers import EmbeddedServer

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has to give up its rights")


def _value(server: EmbeddedPostgres, query: str) -> str:
    with psycopg.connect(host=server.host, port=server.port, user=server.user, dbname=server.database) as connection:
        row = connection.execute(query).fetchone()
    assert row is not None
    return str(row[0])


def test_first_start_clears_what_an_interrupted_one_left_and_makes_the_database(directory: Path) -> None:
    (directory / "data.new").mkdir()
    (directory / "data.new" / "half").write_text("made", encoding="utf-8")
    server = EmbeddedPostgres(directory, database="other", durable=False)
    try:
        server.start()
        assert _value(server, "SELECT current_database()") == "other"
    finally:
        server.stop()
    assert sorted(path.name for path in directory.iterdir()) == [
        "data",
        "databases",
        "owner.lock",
        "port",
        "postgres.log",
        "server.lock",
    ]


def test_failed_initdb_leaves_no_data_and_says_why(directory: Path) -> None:
    programs = directory / "bin"
    programs.mkdir()
    for name in ("initdb", "postgres"):
        (programs / name).write_text("#!/bin/sh\necho no space left >&2\nexit 3\n", encoding="utf-8")
        (programs / name).chmod(0o755)
    server = EmbeddedPostgres(directory / "server", bin_directory=programs)

    with pytest.raises(EmbeddedServerError, match=r"initdb failed \(3\): no space left"):
        server.start()

    assert not (directory / "server" / "data").exists()


def test_another_database_is_made_in_existing_data(postgres_directory: Path) -> None:
    server = EmbeddedPostgres(postgres_directory, database="second", durable=False)
    try:
        server.start()
        assert _value(server, "SELECT count(*) FROM pg_database WHERE datname IN ('margin', 'second')") == "2"
    finally:
        server.stop()


@pytest.mark.parametrize("name", ["", "Margin", "a b", "x; DROP TABLE y", "a" * 64])
def test_database_name_that_would_need_quoting_is_refused(name: str, directory: Path) -> None:
    with pytest.raises(EmbeddedServerError, match="cannot be used"):
        EmbeddedPostgres(directory, database=name)


@pytest.mark.parametrize(("durable", "setting"), [(True, "on"), (False, "off")])
def test_durability_is_chosen_at_each_start(postgres_directory: Path, durable: bool, setting: str) -> None:
    server = EmbeddedPostgres(postgres_directory, durable=durable)
    try:
        server.start()
        names = "'fsync', 'synchronous_commit', 'full_page_writes'"
        assert _value(server, f"SELECT string_agg(DISTINCT setting, ',') FROM pg_settings WHERE name IN ({names})") == (  # noqa: S608
            setting
        )
    finally:
        server.stop()


def test_stale_pid_file_with_a_living_process_id_does_not_stop_the_start(postgres_directory: Path) -> None:
    # The number of a process that lives and is no server, as after a container's restart.
    (postgres_directory / "data" / "postmaster.pid").write_text(
        f"{os.getppid()}\n{postgres_directory}/data\n0\n5432\n", encoding="utf-8"
    )
    server = EmbeddedPostgres(postgres_directory, durable=False)
    try:
        server.start()
        assert server.alive()
    finally:
        server.stop()


def test_data_link_to_nowhere_is_refused_and_not_begun_anew(directory: Path) -> None:
    (directory / "data").symlink_to(directory / "gone")

    with pytest.raises(EmbeddedServerError, match="which is missing"):
        EmbeddedPostgres(directory).start()

    assert (directory / "data").is_symlink()


@needs_root
def test_root_starts_it_as_the_owner_of_the_data(
    postgres_directory: Path, kill: Callable[[EmbeddedServer], None]
) -> None:
    Account("somebody", 54_321, 54_321).give(postgres_directory / "data")
    server = EmbeddedPostgres(postgres_directory, durable=False)
    try:
        server.start()
        kill(server)
        assert server.restart_if_dead()
        assert (postgres_directory / "data" / "postmaster.pid").stat().st_uid == 54_321
    finally:
        server.stop()


@needs_root
def test_root_in_a_private_directory_has_the_data_placed_elsewhere(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = directory / "private"
    private.mkdir(mode=0o700)
    monkeypatch.setattr(relocation, "_PARENTS", (directory,))
    # The wheel counts as out of reach too, so that its programs are copied.
    monkeypatch.setattr(Account, "can_read", lambda _account, _path: False)
    server = EmbeddedPostgres(private / "server", durable=False)
    for _ in range(2):
        try:
            server.start()
            assert _value(server, "SELECT 1") == "1"
        finally:
            server.stop()
    place = (private / "server" / "data").readlink()

    assert place.parent == directory / "margin-engine"
    assert place.stat().st_mode & 0o777 == 0o700
    assert private.stat().st_mode & 0o777 == 0o700


@needs_root
def test_root_is_told_when_existing_data_cannot_be_reached(postgres_directory: Path) -> None:
    postgres_directory.chmod(0o700)
    try:
        with pytest.raises(EmbeddedServerError, match=r"user .* cannot enter the directories above"):
            EmbeddedPostgres(postgres_directory).start()
    finally:
        postgres_directory.chmod(0o755)
