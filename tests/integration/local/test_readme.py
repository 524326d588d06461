"""The README's examples, run as they stand: each `bash` block with curl, against the `json` block after it."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from tests.integration.local.runner import Runner, home, running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Send = Callable[[Runner, list[str]], str]

README = Path(__file__).parents[3] / "README.md"
BASE = "http://localhost:8000"
OF_THEIR_MOMENT = {
    *("id", "trade_id", "entry_id", "change_id", "request_id"),
    *("timestamp", "as_of", "changed_at", "next_cursor"),
    *("stamp_us", "observed_us", "now_us", "mark_age_s"),
}
_BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Example:
    """A curl command's arguments, and the answer that the text promises."""

    arguments: list[str]
    answer: Any


def examples(text: str) -> list[Example]:
    """Take the examples out of a Markdown text, in order."""
    blocks = [*_BLOCK.findall(text), ("", "")]
    found = []
    for (kind, command), (next_kind, answer) in itertools.pairwise(blocks):
        words = shlex.split(command.replace("\\\n", " "), comments=True) if kind == "bash" else []
        if words[:1] != ["curl"]:
            continue
        assert words.count("curl") == 1, f"one command for each block, so that its answer can follow: {command}"
        assert next_kind == "json", f"no json block with the answer follows: {command}"
        found.append(Example(words[1:], json.loads(answer)))
    assert found, "there is no curl example"
    return found


def comparable(value: Any, name: str = "") -> Any:
    """Replace what is another at every run by its type."""
    if name in OF_THEIR_MOMENT:
        return type(value).__name__
    if isinstance(value, dict):
        return {key: comparable(item, key) for key, item in value.items()}
    if isinstance(value, list):
        return [comparable(item) for item in value]
    return value


def send_with_curl(runner: Runner, arguments: list[str]) -> str:
    """Run the real curl, with nothing of this machine's own settings."""
    words = [word.replace(BASE, runner.url) for word in arguments]
    done = subprocess.run(
        ["curl", "-q", "--silent", "--show-error", "--max-time", "10", "--noproxy", "*", *words],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def send_without_curl(runner: Runner, arguments: list[str]) -> str:
    """Send what curl would send; an argument that is not known here is an error."""
    method, url, body, headers = "", "", None, {}
    words = iter(arguments)
    for word in words:
        if word in {"-X", "--request"}:
            method = next(words)
        elif word in {"-H", "--header"}:
            name, _, value = next(words).partition(":")
            headers[name] = value.strip()
        elif word in {"-d", "--data"}:
            body = next(words).encode()
        else:
            assert word.startswith(f"{BASE}/"), f"unknown argument: {word}"
            url = word
    parts = urlsplit(url)
    path = f"{parts.path}?{parts.query}" if parts.query else parts.path
    return runner.send(method or ("POST" if body else "GET"), path, body, headers=headers).text


SEND = {"curl": send_with_curl, "without curl": send_without_curl}


def check(text: str, runner: Runner, send: Send) -> None:
    for example in examples(text):
        answer = json.loads(send(runner, example.arguments))
        assert comparable(answer) == comparable(example.answer), shlex.join(example.arguments)


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    with home() as directory, running(directory) as runner:
        yield runner


def test_every_example_of_the_readme_answers_what_it_says(runner: Runner) -> None:
    check(README.read_text(encoding="utf-8"), runner, send_with_curl if shutil.which("curl") else send_without_curl)


SMALL = """
Not an example:

```bash
make run
```

An example that changes nothing:

```bash
# Without a price
curl -X POST "http://localhost:8000/mark-price" \\
  -H "Content-Type: application/json" \\
  -d '{
    "symbol": "BTC-PERP"
  }'
```

```json
{"type": "urn:margin:problem:invalid-request", "title": "The request is malformed", "status": 422,
 "detail": "price: is required.", "code": "INVALID_REQUEST", "request_id": "another", "field": "price"}
```

```bash
curl http://localhost:8000/health
```

```json
{"status": "healthy"}
```
"""


@pytest.mark.parametrize("name", SEND)
def test_examples_are_sent_alike_with_and_without_curl(runner: Runner, tmp_path: Path, name: str) -> None:
    if name == "curl" and not shutil.which("curl"):
        pytest.skip("no curl on PATH")
    file = tmp_path / "small.md"
    file.write_text(SMALL, encoding="utf-8")
    text = file.read_text(encoding="utf-8")
    assert len(examples(text)) == 2
    check(text, runner, SEND[name])


@pytest.mark.parametrize("name", SEND)
def test_an_answer_that_differs_fails(runner: Runner, name: str) -> None:
    if name == "curl" and not shutil.which("curl"):
        pytest.skip("no curl on PATH")
    with pytest.raises(AssertionError, match="health"):
        check(SMALL.replace('{"status": "healthy"}', '{"status": "ill"}'), runner, SEND[name])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no curl example"),
        ("```bash\nmake run\n```\n", "no curl example"),
        ("```bash\ncurl http://localhost:8000/health\n```\n", "no json block"),
        ("```bash\ncurl a\n```\n```sh\nls\n```\n```json\n{}\n```\n", "no json block"),
        ("```bash\ncurl a\ncurl b\n```\n```json\n{}\n```\n", "one command"),
    ],
)
def test_a_text_without_complete_examples_fails(text: str, reason: str) -> None:
    with pytest.raises(AssertionError, match=reason):
        examples(text)
