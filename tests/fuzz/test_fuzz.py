"""The API does what its document says, in a short look that is the same each time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.fuzz.run import run_passes

if TYPE_CHECKING:
    from pathlib import Path

SEED = 20_260_131
EXAMPLES = 5


def test_every_answer_is_as_documented_with_every_right_with_few_and_without_a_token(tmp_path: Path) -> None:
    report = tmp_path / "report.txt"
    with report.open("w", encoding="utf-8") as output:
        results = run_passes(SEED, examples=EXAMPLES, output=output)
    assert [result.name for result in results if not result.passed] == [], report.read_text(encoding="utf-8")
