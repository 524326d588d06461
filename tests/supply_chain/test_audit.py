"""The audit of locked packages, against a server of advisories on loopback that speaks as the OSV database does."""

from __future__ import annotations

import datetime as dt
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from margin_local.supply_chain import advisories, audit
from margin_local.supply_chain.acceptances import read_acceptances
from margin_local.supply_chain.entries import ListError

if TYPE_CHECKING:
    from collections.abc import Iterator

TODAY = dt.datetime.now(tz=dt.UTC).date()
HASH = f"--hash=sha256:{'0' * 64}"
SOON = TODAY + dt.timedelta(days=30)


class Advisories:
    """Knows one vulnerability, of somelib below 2.0."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.asked.append((query["package"]["name"], query["version"]))
                body = json.dumps(outer.answer(*outer.asked[-1])).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1/query"
        self._thread = threading.Thread(target=self.server.serve_forever)
        self._thread.start()

    def answer(self, name: str, version: str) -> dict[str, Any]:
        if name != "somelib" or not version.startswith("1."):
            return {}
        events = [{"introduced": "0"}, {"fixed": "2.0"}]
        affected = {
            "package": {"name": name, "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": events}],
        }
        return {"vulns": [{"id": "PYSEC-1", "aliases": ["CVE-2026-1"], "summary": "Bad.", "affected": [affected]}]}

    def close(self) -> None:
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> Iterator[Advisories]:
    source = Advisories()
    monkeypatch.setenv("AUDIT_OSV_URL", source.url)
    monkeypatch.delenv("REQUIRE_AUDIT", raising=False)
    for proxy in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(proxy, raising=False)
    yield source
    source.close()


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    path = tmp_path / "requirements.txt"
    path.write_text(f"Some.Lib==3 {HASH}\nsomelib==1.5 ; sys_platform == 'win32' \\\n    {HASH}\n", encoding="utf-8")
    return path


def accepting(directory: Path, **changes: Any) -> list[str]:
    """Arguments that accept the one vulnerability, with changes."""
    entry = {"id": '"CVE-2026-1"', "package": '"SomeLib"', "reason": '"Never called."', "expires": SOON} | changes
    path = directory / "accepted.toml"
    path.write_text(
        "[[accepted]]\n" + "".join(f"{name} = {value}\n" for name, value in entry.items()), encoding="utf-8"
    )
    return ["--accepted", str(path)]


def test_a_known_vulnerability_fails_the_audit_and_names_the_fix_and_the_lock(
    source: Advisories, lock: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit.main([str(lock)]) == 1
    printed = capsys.readouterr().out
    assert f"somelib 1.5: PYSEC-1, CVE-2026-1, fixed in 2.0, in {lock}" in printed
    assert sorted(source.asked) == [("some-lib", "3"), ("somelib", "1.5")]


def test_packages_of_two_versions_are_asked_for_in_both(source: Advisories, tmp_path: Path) -> None:
    paths = [tmp_path / "one.txt", tmp_path / "two.txt"]
    for path, version in zip(paths, ("1.5", "2.0"), strict=True):
        path.write_text(f"somelib=={version} {HASH}\n", encoding="utf-8")
    assert audit.main([str(path) for path in paths]) == 1
    assert sorted(source.asked) == [("somelib", "1.5"), ("somelib", "2.0")]


def test_without_vulnerabilities_the_audit_passes(
    source: Advisories, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "requirements.txt"
    path.write_text(f"somelib==2.0 {HASH}\n", encoding="utf-8")
    assert audit.main([str(path)]) == 0
    assert "1 packages asked" in capsys.readouterr().out


def test_an_accepted_vulnerability_passes_and_shows_the_reason(
    source: Advisories, lock: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit.main([*accepting(tmp_path), str(lock)]) == 0
    assert f"accepted until {SOON}: Never called." in capsys.readouterr().out


def test_an_acceptance_that_is_over_fails(
    source: Advisories, lock: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    yesterday = TODAY - dt.timedelta(days=1)
    assert audit.main([*accepting(tmp_path, expires=yesterday), str(lock)]) == 1
    assert "which is over" in capsys.readouterr().out


@pytest.mark.parametrize("changes", [{"id": '"CVE-2026-2"'}, {"package": '"some-lib"'}])
def test_an_acceptance_of_something_else_covers_nothing(
    source: Advisories, lock: Path, tmp_path: Path, changes: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit.main([*accepting(tmp_path, **changes), str(lock)]) == 1
    assert "not found any more: remove the entry" in capsys.readouterr().out


@pytest.mark.parametrize(
    "changes",
    [
        {"reason": '" "'},
        {"reason": '""'},
        {"expires": '"2027-01-01"'},
        {"expires": "2027-01-01T00:00:00Z"},
        {"expires": TODAY + dt.timedelta(days=181)},
        {"until": '"x"'},
    ],
)
def test_an_acceptance_without_a_reason_or_a_near_end_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    _, path = accepting(tmp_path, **changes)
    with pytest.raises(ListError):
        read_acceptances(Path(path), TODAY)
    assert audit.main(["--accepted", path]) == 2


def test_a_source_that_cannot_be_reached_is_skipped_and_said_so_and_fails_when_it_is_required(
    source: Advisories, lock: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source.server.shutdown()
    source.server.server_close()
    assert audit.main([str(lock)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("skipped: the audit of 2 packages")
    assert lines[-1].startswith("AUDIT SKIPPED: NOBODY KNOWS WHETHER THE 2 LOCKED PACKAGES ARE VULNERABLE")
    monkeypatch.setenv("REQUIRE_AUDIT", "1")
    assert audit.main([str(lock)]) == 1


def test_packages_that_a_source_does_not_know_are_not_taken_for_safe() -> None:
    dependencies: list[dict[str, Any]] = [
        {"name": "known", "version": "1.0", "vulns": []},
        {"name": "unknown", "skip_reason": "Dependency not found and could not be audited"},
    ]
    answer = advisories.answer("an index", dependencies, [("known", "1.0"), ("unknown", "1.0")])
    assert answer.unknown == {("unknown", "1.0")}


def test_the_list_of_the_repository_can_be_used() -> None:
    assert isinstance(read_acceptances(audit.ACCEPTED, TODAY), list)
