"""The local runner with AUTH=off and AUTH=jwt, the tokens that `make token` prints, and the clients that send them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from margin_local.access import WARNING
from margin_local.demo.engine_client import TOKEN_VARIABLE, EngineClient
from margin_local.demo.engine_process import EngineError
from margin_local.instruments import DONE, REFUSED
from margin_local.instruments import main as import_instruments
from tests.integration.local.runner import Runner, home, running
from tests.integration.local.test_runner_lifecycle import refused
from tests.tokens import AUDIENCE, ISSUER, claims, key_set, token

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[3]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLE = ROOT / "infra/local/instruments.example.json"


def shell(script: str, **environment: str) -> str:
    """Run a script in the repository's root, as somebody would there; its standard output."""
    given = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(
        ["sh", "-eu", "-c", script], cwd=ROOT, env={**given, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def make_token(directory: Path, arguments: str = "") -> str:
    output = shell(f"make token {arguments}", DATA_DIR=str(directory / ".data"))
    assert re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]+\n", output), "the token alone is on standard output"
    return output.strip()


def bearer(given: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {given}"}


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    """Yield a runner that wants tokens of this machine, with no further setting."""
    with home() as directory:
        make_token(directory)
        with running(directory, AUTH="jwt", DEBUG="true") as runner:
            yield runner


# --- AUTH=off ---


def test_open_engine_says_so_once_and_a_guarded_one_does_not(runner: Runner) -> None:
    assert WARNING not in runner.stderr
    with home() as directory, running(directory) as open_one:
        assert open_one.stderr == f"{WARNING}\n"
        assert open_one.get("/positions/1")["balance"] == "100000"


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])  # noqa: S104 - it is refused
def test_open_engine_does_not_listen_to_the_network(host: str) -> None:
    with home() as directory:
        line = refused(directory, HOST=host)
        assert line.startswith(f"margin: HOST={host} is reached from other machines")
        assert "set AUTH=jwt" in line
        assert not (directory / ".data").exists()


def test_open_engine_is_called_by_the_names_of_this_machine_alone() -> None:
    with home() as directory, running(directory) as runner:
        answer = runner.send("GET", "/positions/1", headers={"Host": "rebound.example.com"})
        assert (answer.status, answer.json["code"]) == (403, "FORBIDDEN")
        assert runner.send("GET", "/positions/1", headers={"Host": f"localhost:{runner.port}"}).status == 200


# --- AUTH=jwt ---


def test_address_in_history_is_the_peers_whatever_the_caller_says(runner: Runner) -> None:
    given = make_token(runner.directory)
    forged = {"X-Forwarded-For": "not an address; drop", "Forwarded": "for=192.0.2.60", "X-Real-Ip": "192.0.2.61"}
    answer = runner.send("POST", "/accounts/77/deposits", {"amount": "1"}, headers=bearer(given) | forged)
    assert answer.status == 200
    assert "server" not in answer.headers
    (line,) = [json.loads(text) for text in runner.stderr.splitlines() if '"deposit_executed"' in text][-1:]
    assert line["source_ip"] == "127.0.0.1"
    assert "not an address" not in runner.stderr


def test_guarded_engine_without_any_key_does_not_start() -> None:
    with home() as directory:
        line = refused(directory, AUTH="jwt")
        assert "AUTH_JWKS, AUTH_ISSUER and AUTH_AUDIENCE" in line
        assert "make token" in line
        assert not (directory / ".data").exists()


@pytest.mark.parametrize(
    ("environment", "complaint"),
    [
        ({"AUTH": "on"}, "AUTH must be"),
        ({"AUTH": "jwt", "AUTH_JWKS": "https://issuer.example.com/keys"}, "needs AUTH_ISSUER and AUTH_AUDIENCE"),
        ({"AUTH": "jwt", "AUTH_JWKS": "none", "AUTH_ISSUER": "i", "AUTH_AUDIENCE": "a"}, "AUTH_JWKS names no file"),
        ({"AUTH": "jwt", "AUTH_LEEWAY_S": "301"}, "AUTH_LEEWAY_S must be from 0 to 300"),
        ({"AUTH": "jwt", "AUTH_LEEWAY_S": "x"}, "AUTH_LEEWAY_S must be a whole number"),
    ],
)
def test_wrong_setting_is_one_line(environment: dict[str, str], complaint: str) -> None:
    with home() as directory:
        assert complaint in refused(directory, **environment)
        assert not (directory / ".data").exists()


def test_token_of_this_machine_opens_what_it_says_and_no_more(runner: Runner) -> None:
    nobody = runner.send("GET", "/positions/1")
    assert (nobody.status, nobody.json["code"]) == (401, "UNAUTHENTICATED")
    assert nobody.headers["WWW-Authenticate"] == "Bearer"
    given = bearer(make_token(runner.directory, 'SUB="desk 1" SCOPES="positions:read" ACCOUNTS="1 2"'))
    assert runner.send("GET", "/positions/1", headers=given).json["balance"] == "100000"
    assert runner.send("GET", "/positions/3", headers=given).json["code"] == "UNKNOWN_ACCOUNT"
    assert runner.send("GET", "/margin-report", headers=given).json["code"] == "FORBIDDEN"
    assert runner.send("GET", "/health").status == 200
    assert runner.send("GET", "/margin-report", headers=bearer(make_token(runner.directory))).status == 200


def test_token_of_another_machine_is_refused(runner: Runner, tmp_path: Path) -> None:
    answer = runner.send("GET", "/positions/1", headers=bearer(make_token(tmp_path)))
    assert (answer.status, answer.json["code"]) == (401, "UNAUTHENTICATED")


def test_nothing_of_a_token_is_written_even_with_debugging(runner: Runner) -> None:
    good = make_token(runner.directory, "SUB=somebody-to-look-for")
    for given in (good, good[:-4] + "AAAA", good.replace(".", "!", 1)):
        runner.send("GET", "/positions/1?looked-for=1", headers=bearer(given))
    assert "looked-for=1" in runner.stderr
    written = runner.stdout + runner.stderr
    assert [part for part in good.split(".") if part in written] == []
    assert "somebody-to-look-for" not in written


def test_engine_with_an_issuer_takes_its_tokens_from_anywhere() -> None:
    with home() as directory:
        (directory / "keys.json").write_bytes(key_set())
        settings = {"AUTH_JWKS": "keys.json", "AUTH_ISSUER": ISSUER, "AUTH_AUDIENCE": f"x,{AUDIENCE}"}
        with running(directory, AUTH="jwt", AUTH_SCOPE_PREFIX="margin/", **settings) as runner:
            given = token(claims(scope="margin/positions:read", account_ids="2"))
            assert runner.send("GET", "/positions/2", headers=bearer(given)).json["balance"] == "5000"
            without_prefix = token(claims(scope="positions:read", account_ids="2"))
            assert runner.send("GET", "/positions/2", headers=bearer(without_prefix)).status == 403


# --- what the README says ---


def test_commands_of_the_readme_work_as_they_stand(runner: Runner) -> None:
    if not shutil.which("curl"):
        pytest.skip("no curl on PATH")
    (export,) = re.findall(r"^export MARGIN_TOKEN=.*$", README, re.MULTILINE)
    (call,) = re.findall(r"^curl -H \"Authorization: Bearer .*$", README, re.MULTILINE)
    call = call.replace("curl ", "curl -q --silent --show-error --noproxy '*' ").replace(
        "http://localhost:8000", runner.url
    )
    assert runner.url in call
    answer = json.loads(shell(f"{export}\n{call}", DATA_DIR=str(runner.directory / ".data")))
    assert (answer["account_id"], answer["balance"]) == (1, "100000")


# --- the clients ---


def test_instruments_are_imported_with_a_token(
    runner: Runner, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--file", str(EXAMPLE), "--url", runner.url]
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    assert import_instruments(arguments) == REFUSED
    assert "401 UNAUTHENTICATED" in capsys.readouterr().err
    monkeypatch.setenv(TOKEN_VARIABLE, make_token(runner.directory, "SCOPES=admin"))
    assert import_instruments(arguments) == DONE


def test_demos_accounts_are_opened_through_a_guarded_api_with_a_token(runner: Runner) -> None:
    command = [sys.executable, "-m", "margin_local.api_accounts", runner.url, "--process", str(os.getpid())]
    given = {"PATH": os.environ["PATH"]}
    without = subprocess.run(command, env=given, capture_output=True, text=True, check=False)
    assert (without.returncode, "401 UNAUTHENTICATED" in without.stderr) == (1, True), without.stderr
    environment = {**given, TOKEN_VARIABLE: make_token(runner.directory)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("given", ["a b", "a\r\nX-Injected: 1", "ä"])
def test_client_sends_no_token_that_is_none(given: str) -> None:
    with pytest.raises(EngineError, match=TOKEN_VARIABLE):
        EngineClient("http://127.0.0.1:8000", given)


def test_client_sends_a_token_to_another_machine_only_encrypted() -> None:
    EngineClient("https://engine.example.com", "token")
    EngineClient("http://localhost:8000", "token")
    EngineClient("http://engine.example.com")
    with pytest.raises(EngineError, match="with https alone"):
        EngineClient("http://engine.example.com", "token")


def test_demo_verifies_a_guarded_engine_with_a_token(runner: Runner) -> None:
    command = [sys.executable, "-m", "margin_local.demo", "--accounts", "4", "--rows", "20", "--url", runner.url]
    given = {"PATH": os.environ["PATH"]}
    without = subprocess.run(command, env=given, cwd=runner.directory, capture_output=True, text=True, check=False)
    assert (without.returncode, "401 UNAUTHENTICATED" in without.stderr) == (1, True), without.stderr
    environment = {**given, TOKEN_VARIABLE: make_token(runner.directory)}
    done = subprocess.run(command, env=environment, cwd=runner.directory, capture_output=True, text=True, check=False)
    # The stores are not known to it, so that its checks are left out.
    assert done.returncode == 3, done.stderr
