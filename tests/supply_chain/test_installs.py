"""Nothing is installed that is not in a lock, with the digest of every file that may be taken for it."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING

import pytest

from margin_local.supply_chain.locks import ROOT, locks, pin_of, pinned, requirements

if TYPE_CHECKING:
    from pathlib import Path

FETCHES = re.compile(
    r"\bpip3? (install|download|wheel)\b|\buv (pip (?!compile)|add|sync|tool|run)|\b(pipx|uvx|easy_install)\b"
)
# The project itself, from its own folder, with what is installed already: nothing is fetched.
OWN = ("infra/local/environment.sh", "install --no-build-isolation --editable .")


def commands(script: Path) -> list[str]:
    """List the commands of a script, each on one line, with its words one space apart."""
    lines = script.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    return [" ".join(line.split()) for line in lines if not line.lstrip().startswith("#")]


def installs(script: Path) -> list[str]:
    """List what a script installs; a command that takes ``"$@"`` stands in a function, whose calls count instead."""
    lines = commands(script)
    fetching = [line for line in lines if FETCHES.search(line)]
    open_ended = [line for line in fetching if '"$@"' in line and "--require-hashes" not in line]
    calls = [line for line in lines if line.startswith("install ")] if open_ended else []
    return [line for line in fetching if line not in open_ended] + calls


def scripts() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=30)
    names = listed.stdout.split("\0")
    return [ROOT / name for name in names if name.endswith((".sh", ".mk", "Makefile")) or name.startswith(".ci/")]


def test_every_install_of_every_script_requires_hashes() -> None:
    found = [(str(script.relative_to(ROOT)), line) for script in scripts() for line in installs(script)]
    assert OWN in found
    places = [name for name, line in found if "--require-hashes" in line]
    assert sorted(places) == [
        "infra/local/environment.sh",
        "infra/local/lambda.sh",
        "infra/local/sam.sh",
        "infra/local/sam.sh",
        "layers/margin/Makefile",
    ]
    assert [each for each in found if each != OWN and "--require-hashes" not in each[1]] == []


@pytest.mark.parametrize(
    "text",
    [
        "python -m pip install requests",
        "pip3 download requests",
        "uv pip install requests",
        "uvx ruff",
        'install() {\n    pip install "$@"\n}\ninstall requests',
        "python -m pip install \\\n    requests",
    ],
)
def test_an_install_without_hashes_is_seen(tmp_path: Path, text: str) -> None:
    script = tmp_path / "script.sh"
    script.write_text(text, encoding="utf-8")
    (found,) = installs(script)
    assert "--require-hashes" not in found


@pytest.mark.parametrize("lock", locks(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_package_of_a_lock_is_one_version_with_digests(lock: Path) -> None:
    locked = requirements(lock)
    assert locked
    for requirement, digests in locked.items():
        assert requirement.url is None
        assert pin_of(requirement)[1]
        assert digests, requirement
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", digest) for digest in digests), requirement


def test_the_locks_are_those_that_make_lock_writes() -> None:
    script = (ROOT / "infra/local/locks.sh").read_text(encoding="utf-8")
    written = set(re.findall(r"^\w+=(\S+requirements\S*\.txt)$", script, re.MULTILINE))
    assert {str(path.relative_to(ROOT)) for path in locks()} == written


def test_sam_installs_for_the_migrate_function_alone_from_a_lock_that_makes_pip_check_hashes() -> None:
    # SAM does not say --require-hashes; pip does so itself for a file in which one requirement has a digest.
    (lock,) = (ROOT / "functions").glob("*/requirements.txt")
    assert lock.parent.name == "migrate"
    assert all(requirements(lock).values())


def test_parts_that_share_a_package_have_the_same_version_of_it() -> None:
    layer, migrate = ROOT / "layers/margin/requirements.txt", ROOT / "functions/migrate/requirements.txt"
    run, dev = (ROOT / "infra/local" / f"requirements-{level}.txt" for level in ("run", "dev"))
    assert pinned([layer, migrate]).keys() <= pinned([run]).keys() <= pinned([dev]).keys()
