"""`make instruments`: a venue's table goes into a running engine whole, or nothing of it does."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from margin_local.instruments import BAD_FILE, DONE, REFUSED, main, read_instruments
from margin_local.servers import ports
from tests.integration.local.runner import Runner, home

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "infra/local/instruments.example.json"
VENUES = sorted((ROOT / "tests/data/venues").glob("*.json"))
TIER = {"notional_cap": None, "initial_rate": "0.1", "maintenance_rate": "0.05"}


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    with home() as directory:
        runner = Runner(directory).await_ready()
        yield runner
        runner.stop()


def _file(directory: Path, document: Any) -> Path:
    path = directory / "instruments.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document), encoding="utf-8")
    return path


def _get(runner: Runner, path: str) -> Any:
    with urllib.request.urlopen(f"{runner.url}{path}") as answer:  # noqa: S310 - loopback
        return json.load(answer)


def _listed(runner: Runner) -> list[dict[str, Any]]:
    return list(_get(runner, "/instruments?limit=1000")["instruments"])


def test_example_is_imported_whole_and_again_changes_nothing(
    runner: Runner, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--file", str(EXAMPLE), "--url", runner.url]) == DONE
    first = capsys.readouterr().out
    assert first.splitlines()[0].startswith("[1/2] BTC-PERP: version 1, in force; changed: tick_size, lot_size,")
    assert first.splitlines()[-1] == f"2 instruments are as in {EXAMPLE}"
    imported = {one["symbol"]: one for one in _listed(runner)}
    for terms in json.loads(EXAMPLE.read_text(encoding="utf-8"))["instruments"]:
        answered = imported[terms["symbol"]]
        assert {name: answered[name] for name in terms if name != "tiers"} == {
            name: value for name, value in terms.items() if name != "tiers"
        }
        rates = [{name: tier[name] for name in terms["tiers"][0]} for tier in answered["tiers"]]
        assert rates == terms["tiers"]
    assert main(["--file", str(EXAMPLE), "--url", runner.url]) == DONE
    assert capsys.readouterr().out.splitlines()[:2] == [
        "[1/2] BTC-PERP: unchanged, version 1",
        "[2/2] ETH-PERP: unchanged, version 1",
    ]


@pytest.mark.parametrize("path", VENUES, ids=lambda path: path.stem)
def test_published_tables_of_venues_are_imported(runner: Runner, path: Path) -> None:
    assert main(["--file", str(path), "--url", runner.url]) == DONE
    for symbol, terms in read_instruments(path).items():
        tiers = _get(runner, f"/instruments/{symbol}")["tiers"]
        assert [{name: tier[name] for name in terms["tiers"][0]} for tier in tiers] == terms["tiers"]


def test_numbers_keep_all_their_digits(runner: Runner, directory: Path) -> None:
    path = _file(directory, '[{"symbol": "DIGITS-PERP", "max_quantity": 123456789012.12345678}]')
    assert main(["--file", str(path), "--url", runner.url]) == DONE
    assert _get(runner, "/instruments/DIGITS-PERP")["max_quantity"] == "123456789012.12345678"


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "is not JSON"),
        ([], "must hold a list of 1 to 1000 instruments"),
        ({"tables": []}, "must hold a list of 1 to 1000 instruments"),
        ([{"tiers": [TIER]}], "instrument 1: it must be an object with a symbol"),
        ([{"symbol": "GOOD"}, {"symbol": "bad one"}], "instrument 2: it must be an object with a symbol"),
        ([{"symbol": "A"}, {"symbol": "A"}], "has A twice"),
        ([{"symbol": "A", "taker_fee": "2"}], "instrument 1 (A): taker_fee: must be at least 0 and less than 1"),
        ([{"symbol": "A", "leverage": 50}], "instrument 1 (A): leverage: Extra inputs are not permitted"),
        (
            [{"symbol": "A", "tiers": [{**TIER, "notional_cap": "5"}]}],
            "instrument 1 (A): These are not the terms of an instrument: the last tier, and only it, has no notional",
        ),
    ],
)
def test_file_that_is_not_right_is_refused_and_nothing_of_it_is_sent(
    runner: Runner, directory: Path, capsys: pytest.CaptureFixture[str], document: Any, message: str
) -> None:
    before = _listed(runner)
    if isinstance(document, list) and document and "symbol" in document[0]:
        document = [{"symbol": "NEVER-SENT", "tick_size": "0.1"}, *document]
        message = message.replace("instrument 2", "instrument 3").replace("instrument 1", "instrument 2")
    assert main(["--file", str(_file(directory, document)), "--url", runner.url]) == BAD_FILE
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.endswith("; nothing was sent\n")
    assert _listed(runner) == before


def test_file_that_is_not_there_is_said_so(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--file", str(directory / "none.json")]) == BAD_FILE
    assert "cannot be read: No such file or directory" in capsys.readouterr().err


def test_what_the_engine_refuses_is_said_and_the_rest_is_imported(
    runner: Runner, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = [{"symbol": "SOL-PERP", "status": "closed"}, {"symbol": "XRP-PERP", "tick_size": "0.1"}]
    assert main(["--file", str(_file(directory, document)), "--url", runner.url]) == REFUSED
    captured = capsys.readouterr()
    assert "[1/2] SOL-PERP: REFUSED, 400 INSTRUMENT_NOT_CLOSABLE: SOL-PERP is active;" in captured.out
    assert "[2/2] XRP-PERP: version 1, in force; changed: tick_size" in captured.out
    assert captured.err == "margin: 1 of 2 instruments were refused\n"


def test_engine_that_does_not_answer_is_said_so(capsys: pytest.CaptureFixture[str]) -> None:
    url = f"http://127.0.0.1:{ports.choose_port()}"
    assert main(["--file", str(EXAMPLE), "--url", url]) == REFUSED
    assert f"{url} does not answer GET /instruments/BTC-PERP" in capsys.readouterr().err
