"""The long looks of `make faults`, short: they find a wrong index and say so, and stop when they are told to."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.long_looks import LONG_LOOKS, look_along_joint_paths
from tests.faults.table import render_looks
from tests.property.joint_paths import Walk
from tests.property.trigger_indexes import freezing_the_others

PROJECT = Path(__file__).parents[2]
SHORT = Walk(seed=0, accounts=200, steps=60)
DEADLINE_S = 60


def test_a_look_along_joint_paths_counts_and_finds_nothing_wrong() -> None:
    seen = look_along_joint_paths(4, print, SHORT)
    assert seen.wrong == []
    assert re.match(r"200 accounts x 60 steps: 12,000 evaluated, [\d,]+ crossed, [\d,]+ below margin", seen.figures)


def test_a_wrong_index_is_found_and_told_with_step_and_account() -> None:
    seen = look_along_joint_paths(4, print, SHORT, freezing_the_others)
    assert seen.wrong
    assert all(re.fullmatch(r"step \d+: account \d+ was missed", sentence) for sentence in seen.wrong)
    (_, _, row) = render_looks([(LONG_LOOKS["joint-paths"], seen, 1.4)]).splitlines()
    assert row.endswith(f"| {len(seen.wrong)} | 1 |")


@pytest.mark.parametrize("name", LONG_LOOKS)
def test_ctrl_c_stops_a_look_and_says_so(name: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.faults", "--scenario", name],
        cwd=PROJECT,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == f"{LONG_LOOKS[name].title}\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130, errors
    assert errors.endswith("faults: stopped\n")
