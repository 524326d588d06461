"""Secrets are found in files, what is listed as none is not, and the repository itself is clean."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from margin_local.supply_chain.locks import ROOT
from margin_local.supply_chain.secret_scan import (
    ALLOWED,
    Allowance,
    Finding,
    ListError,
    files_of_the_repository,
    read_allowances,
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
