"""`make deploy` and `make destroy`: what they call and what they write, with a SAM CLI that only notes its calls."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
FOLDERS = ("functions", "infra", "layers")
FILES = ("samconfig.toml", "template.yaml")
SAM = """#!/bin/sh
[ "$1" = --version ] && echo "SAM CLI, version 1.170.0" && exit
echo "$*" >>"$CALLS"
[ "$1" != "${FAILING:-}" ] || exit 3
"""
# Whatever infra/local/python313.sh asks, this is the right one.
PYTHON = '#!/bin/sh\necho "$0"\n'
STORES_THAT_EXIST = (
    "e\nredis.internal\nmargin/redis\ndb.internal\n\n\nmargin/db\n\nmargin/owner\nsubnet-1,subnet-2\nsg-1\n"
)
ISSUER_THAT_EXISTS = "e\nhttps://issuer.example.com/\nmargin,https://api.example.com\n\n"
NO_TOPIC = "\n"


class Project:
    """A copy of what is deployed, and programs that note their calls."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "project"
        self._programs = directory / "bin"
        self._calls = directory / "calls"
        self._failing = ""
        for name in FOLDERS:
            shutil.copytree(ROOT / name, self.directory / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in FILES:
            shutil.copy(ROOT / name, self.directory / name)
        self._programs.mkdir()
        for name, text in {"sam": SAM, "python3.13": PYTHON}.items():
            (self._programs / name).write_text(text)
            (self._programs / name).chmod(0o755)
        (self.directory / ".venv/bin").mkdir(parents=True)
        (self.directory / ".venv/bin/python").symlink_to(sys.executable)

    def run(self, *arguments: str, answers: str = "") -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "PATH": f"{self._programs}{os.pathsep}{os.environ['PATH']}",
            "PYTHON313": str(self._programs / "python3.13"),
            "CALLS": str(self._calls),
            "FAILING": self._failing,
        }
        command = ["sh", "infra/local/deploy.sh", *arguments]
        return subprocess.run(
            command, cwd=self.directory, env=environment, input=answers, capture_output=True, text=True, check=False
        )

    def make_fail(self, command: str) -> None:
        """Let SAM fail at a command from now on."""
        self._failing = command

    @property
    def calls(self) -> list[str]:
        return self._calls.read_text().splitlines() if self._calls.exists() else []

    @property
    def settings(self) -> dict[str, dict[str, dict[str, dict[str, object]]]]:
        return tomllib.loads((self.directory / "samconfig.toml").read_text())


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.mark.parametrize("environment", ["dev", "prod"])
def test_a_known_environment_is_built_for_its_architecture_and_deployed(project: Project, environment: str) -> None:
    done = project.run("deploy", environment)
    assert done.returncode == 0, done.stderr
    assert project.calls == [
        f"build --config-env {environment} --parameter-overrides Architecture=arm64",
        f"deploy --config-env {environment}",
    ]


def test_the_architecture_is_that_of_the_settings(project: Project) -> None:
    settings = project.directory / "samconfig.toml"
    settings.write_text(settings.read_text().replace('"Environment=dev"', '"Environment=dev",\n"Architecture=x86_64"'))
    assert project.run("deploy", "dev").returncode == 0
    assert project.calls[0] == "build --config-env dev --parameter-overrides Architecture=x86_64"


def test_further_options_reach_sam(project: Project) -> None:
    assert project.run("deploy", "dev", "--no-execute-changeset").returncode == 0
    assert project.calls[-1] == "deploy --config-env dev --no-execute-changeset"


def test_the_release_is_the_digest_of_what_is_deployed(project: Project) -> None:
    assert project.run("deploy", "dev").returncode == 0
    digest = subprocess.run(
        [sys.executable, "infra/release_digest.py"], cwd=project.directory, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert (project.directory / ".aws-sam/release.yaml").read_text() == f'Release: "{digest}"\n'


def test_an_unknown_environment_is_asked_for_and_written_before_its_release(project: Project) -> None:
    done = project.run("deploy", "staging", answers=STORES_THAT_EXIST + ISSUER_THAT_EXISTS + NO_TOPIC)
    assert done.returncode == 0, done.stderr
    assert project.calls[-1] == "deploy --config-env staging"
    deploy = project.settings["staging"]["deploy"]["parameters"]
    assert deploy["parameter_overrides"] == [
        "file://.aws-sam/release.yaml",
        "Environment=staging",
        "RedisHost=redis.internal",
        "RedisSecretName=margin/redis",
        "PostgresHost=db.internal",
        "PostgresUser=margin_functions",
        "PostgresDatabase=margin",
        "PostgresSecretName=margin/db",
        "PostgresOwner=margin",
        "PostgresOwnerSecretName=margin/owner",
        "SubnetIds=subnet-1,subnet-2",
        "SecurityGroupIds=sg-1",
        "JwtIssuer=https://issuer.example.com/",
        "JwtAudience=margin,https://api.example.com",
    ]
    assert deploy.keys() == project.settings["prod"]["deploy"]["parameters"].keys()
    release = (project.directory / ".aws-sam/release.yaml").read_text()

    again = project.run("deploy", "staging")
    assert again.returncode == 0, again.stderr
    assert (project.directory / ".aws-sam/release.yaml").read_text() == release


def test_an_unknown_environment_may_create_its_stores_and_its_issuer(project: Project) -> None:
    assert project.run("deploy", "staging", answers="\n\n\n").returncode == 0
    overrides = project.settings["staging"]["deploy"]["parameters"]["parameter_overrides"]
    assert overrides == [
        "file://.aws-sam/release.yaml",
        "Environment=staging",
        "CreateNetwork=yes",
        "CreateData=yes",
        "CreateIssuer=yes",
    ]


def test_operator_is_told_who_has_to_be_given_accounts_where_the_issuer_is_created(project: Project) -> None:
    assert "aws dynamodb put-item" in project.run("deploy", "dev").stdout
    known = project.run("deploy", "staging", answers=STORES_THAT_EXIST + ISSUER_THAT_EXISTS + NO_TOPIC)
    assert known.returncode == 0
    assert "dynamodb" not in known.stdout


def test_operator_is_told_nothing_of_a_deployment_that_failed(project: Project) -> None:
    project.make_fail("deploy")
    done = project.run("deploy", "dev")
    assert (done.returncode, "dynamodb" in done.stdout) == (3, False)


@pytest.mark.parametrize(
    "answers", ["", "e\nredis.internal\n", 'e\nx"\n]\n', "what\n", "c\nwhat\n", "c\ne\nhttp:// \n"]
)
def test_answers_that_are_missing_or_malformed_write_nothing(project: Project, answers: str) -> None:
    before = (project.directory / "samconfig.toml").read_text()
    done = project.run("deploy", "staging", answers=answers)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].split("make: ")[1]
    assert (project.directory / "samconfig.toml").read_text() == before
    assert project.calls == []


def test_settings_without_stores_are_refused(project: Project) -> None:
    settings = project.directory / "samconfig.toml"
    settings.write_text(settings.read_text().replace('"CreateData=yes",', ""))
    done = project.run("deploy", "dev")
    assert (done.returncode, project.calls) == (1, [])
    assert "names no stores" in done.stderr


@pytest.mark.parametrize("given", ["", '"JwtIssuer=https://issuer.example.com",', '"JwtAudience=margin",'])
def test_settings_without_an_issuer_are_refused(project: Project, given: str) -> None:
    settings = project.directory / "samconfig.toml"
    settings.write_text(settings.read_text().replace('"CreateIssuer=yes",', given))
    done = project.run("deploy", "dev")
    assert (done.returncode, project.calls) == (1, [])
    assert "names nobody who issues tokens" in done.stderr


@pytest.mark.parametrize("name", ["Dev", "dev prod", "-x", "local", "default"])
def test_a_name_that_is_none_is_refused(project: Project, name: str) -> None:
    for action in ("deploy", "destroy"):
        assert project.run(action, name).returncode == 1
    assert project.calls == []


def test_an_environment_is_destroyed_when_its_name_is_typed(project: Project) -> None:
    done = project.run("destroy", "dev", answers="dev\n")
    assert done.returncode == 0, done.stderr
    assert "snapshot" in done.stdout
    assert project.calls == ["delete --config-env dev --no-prompts"]


@pytest.mark.parametrize("answers", ["", "\n", "yes\n", "prod\n"])
def test_nothing_is_destroyed_otherwise(project: Project, answers: str) -> None:
    done = project.run("destroy", "dev", answers=answers)
    assert (done.returncode, project.calls) == (1, [])


def test_a_protected_environment_is_not_destroyed(project: Project) -> None:
    done = project.run("destroy", "prod", answers="prod\n")
    assert (done.returncode, project.calls) == (1, [])
    assert "DeletionProtection=no" in done.stderr
