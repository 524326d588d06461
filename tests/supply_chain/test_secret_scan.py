"""Secrets are found in files, what is listed as none is not, and the repository itself is clean."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from margin_local.supply_chain.entries import ListError
from margin_local.supply_chain.locks import ROOT, locks
from margin_local.supply_chain.secret_scan import (
    ALLOWED,
    UNREADABLE,
    Allowance,
    Finding,
    files_of_the_repository,
    locks_of_the_script,
    main,
    read_allowances,
    unreadable,
)

if TYPE_CHECKING:
    from pathlib import Path

# Put together here, so that the scan of the repository does not find them in this file.
PLANTED = {
    "AWS Access Key": "key = AKIA" + "IOSFODNN7" + "EXAMPLQ",
    "Private Key": "-----BEGIN RSA " + "PRIVATE KEY-----\nMIIEow\n",
    "GitHub Token": "ghp_" + "wWPw5k4aXcaT4" + "fNP0UcnZwJUVFk6LO0pINUx",
    "JSON Web Token": "eyJ0eXAiOiJKV1QiLCJhbGciOiJIUzI1NiJ9" + ".eyJuYW1lIjoiSmFjayJ9" + ".dq3bKXoFBOa7Zk9zdW5lcg",
    "Basic Auth Credentials": "postgres" + "://margin:S3" + "cure9Pass@db.internal/margin",
    "Secret Keyword": 'password = "' + 'Xk9vQ2mZ"',
    "Base64 High Entropy String": 'value = "c3VwZXIgbG9uZyBzdHJpbmcgc2hvdWxkIGNhdXNl' + 'IGVub3VnaCBlbnRyb3B5"',
}


def scan(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "margin_local.supply_chain.secret_scan", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize("kind", PLANTED)
def test_a_planted_secret_is_found_with_its_place_and_is_not_printed(tmp_path: Path, kind: str) -> None:
    planted = tmp_path / "settings.txt"
    planted.write_text(f"first line\n{PLANTED[kind]}\n", encoding="utf-8")
    found = scan(str(planted))
    assert found.returncode == 1
    assert f"settings.txt:2: {kind} (digest " in found.stderr
    assert PLANTED[kind].splitlines()[0] not in found.stdout + found.stderr


UNREADABLE_FILES = {
    "UTF-16": ("settings.txt", PLANTED["Secret Keyword"].encode("utf-16")),
    "UTF-16 without a mark": ("settings.txt", PLANTED["Secret Keyword"].encode("utf-16-le")),
    "Latin-1": ("settings.txt", f"# schl\u00fcssel\n{PLANTED['Secret Keyword']}".encode("latin-1")),
    "a byte of zero": ("settings.txt", f"\0{PLANTED['Secret Keyword']}".encode()),
    "a picture": ("drawing.svg", PLANTED["Secret Keyword"].encode()),
    "a lock": ("poetry.lock", PLANTED["Secret Keyword"].encode()),
    "a folder packed": ("keys.tar.gz", b"\x1f\x8b"),
}


@pytest.mark.parametrize("case", UNREADABLE_FILES)
def test_a_file_that_cannot_be_looked_into_is_not_taken_for_clean(tmp_path: Path, case: str) -> None:
    name, content = UNREADABLE_FILES[case]
    (tmp_path / name).write_bytes(content)
    found = scan(str(tmp_path / name))
    assert found.returncode == 1
    assert f"{name}:1: {UNREADABLE} (digest " in found.stderr


def test_a_file_that_cannot_be_looked_into_is_allowed_as_it_is_and_not_otherwise(tmp_path: Path) -> None:
    picture = tmp_path / "drawing.svg"
    picture.write_text("<svg/>", encoding="utf-8")
    (found,) = unreadable([str(picture)], ROOT)
    allowed = tmp_path / "allowed.toml"
    entry = f"[[allowed]]\nfiles = '*.svg'\nkind = '{UNREADABLE}'\ndigests = ['{found.digest}']\nreason = 'a drawing'"
    allowed.write_text(entry, encoding="utf-8")
    assert main(["--allowed", str(allowed), str(picture)]) == 0
    picture.write_text(f"<svg/>{PLANTED['Secret Keyword']}", encoding="utf-8")
    assert main(["--allowed", str(allowed), str(picture)]) == 1
    allowed.write_text(entry.replace(f"digests = ['{found.digest}']", ""), encoding="utf-8")
    assert main(["--allowed", str(allowed), str(picture)]) == 2


def test_no_locks_are_left_out_but_those_whose_digests_are_compared() -> None:
    named = locks_of_the_script()
    assert "layers/margin/requirements.txt" in named
    assert named == {str(path.relative_to(ROOT)) for path in locks()}
    assert named.isdisjoint(files_of_the_repository())


def test_a_lock_that_nobody_compares_is_looked_into(tmp_path: Path) -> None:
    script = tmp_path / "infra" / "local" / "locks.sh"
    script.parent.mkdir(parents=True)
    script.write_text("layer=layers/margin/requirements.txt\n", encoding="utf-8")
    for folder in ("layers/margin", "layers/another"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "requirements.txt").write_text("", encoding="utf-8")
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    assert files_of_the_repository(tmp_path) == ["infra/local/locks.sh", "layers/another/requirements.txt"]


def test_a_file_without_secrets_is_clean(tmp_path: Path) -> None:
    innocent = tmp_path / "settings.txt"
    innocent.write_text("POSTGRES_PASSWORD=${POSTGRES_PASSWORD}\nversion = 1\n", encoding="utf-8")
    found = scan(str(innocent))
    assert (found.returncode, found.stderr) == (0, "")


def test_the_repository_holds_no_secret_and_allows_nothing_that_is_not_there() -> None:
    found = scan()
    assert (found.returncode, found.stderr) == (0, "")


def test_every_kind_of_file_is_looked_into() -> None:
    files = files_of_the_repository()
    assert {
        "README.md",
        "template.yaml",
        "infra/local/sam.sh",
        ".ci/run",
        "tests/supply_chain/test_secret_scan.py",
    } <= set(files)
    assert len(files) > 500


def test_a_folder_without_git_is_not_taken_for_clean(tmp_path: Path) -> None:
    with pytest.raises(ListError):
        files_of_the_repository(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "allowed = 1",
        "[[allowed]]\nfiles = 'a'\nkind = 'Private Key'\ndigests = ['0']",
        "[[allowed]]\nfiles = 'a'\nkind = 'Private Key'\nreason = ' '\ndigests = ['0']",
        "[[allowed]]\nfiles = 'tests/*'\nkind = 'Private Key'\nreason = 'a whole folder'",
        "[[allowed]]\nfiles = 'a'\nkind = 'Private Key'\nreason = 'r'\ndigests = '0'",
        "[[allowed]]\nfiles = 'a'\nkind = 'Private Key'\nreason = 'r'\ndigests = ['0']\nsince = 1",
    ],
)
def test_an_allowance_without_a_reason_or_too_wide_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "allowed.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ListError):
        read_allowances(path)
    assert scan("--allowed", str(path), "README.md").returncode == 2


def test_no_allowance_covers_keys_or_tokens() -> None:
    kinds = {allowance.kind for allowance in read_allowances(ALLOWED)}
    assert kinds <= {"Secret Keyword", "Base64 High Entropy String", "Hex High Entropy String"}


def test_an_allowance_covers_its_own_strings_alone() -> None:
    allowance = Allowance("events/*.json", "Secret Keyword", frozenset({"d1"}))
    assert allowance.covers(Finding("events/trade.json", 3, "Secret Keyword", "d1"))
    assert not allowance.covers(Finding("events/trade.json", 3, "Secret Keyword", "d2"))
    assert not allowance.covers(Finding("events/trade.json", 3, "Private Key", "d1"))
    assert not allowance.covers(Finding("infra/trade.json", 3, "Secret Keyword", "d1"))
