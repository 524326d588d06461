"""The page for operators names what there is: every alarm, and outputs of the stack that exist."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tests.template.documents import NESTED, ROOT, read, resources

if TYPE_CHECKING:
    from tests.template.documents import Document

PAGE = (ROOT / "infra" / "operations.md").read_text(encoding="utf-8")


def test_each_alarm_says_what_to_do_at_three_in_the_morning() -> None:
    table = PAGE.split("## At three in the morning")[1].split("\n## ")[0]
    told = {
        name for line in re.findall(r"^\| ([A-Z]\w+(?:, \w+)*) \|", table, re.MULTILINE) for name in line.split(", ")
    }
    alarms = {name for path in NESTED for name in resources(read(path), "AWS::CloudWatch::Alarm")}
    assert told == {name.removesuffix("Alarm") for name in alarms}


def test_outputs_are_those_of_the_template(template: Document) -> None:
    named = set(re.findall(r"[(`]output (\w+)", PAGE))
    assert named
    assert named <= template["Outputs"].keys()


def test_settings_are_parameters_of_the_template(template: Document) -> None:
    named = set(re.findall(r"`([A-Z][a-z]+[A-Z]\w+)=\w+`|`(\w+AlarmMs|\w+AlarmS|\w+Arn|\w+Concurrency)`", PAGE))
    names = {name for pair in named for name in pair if name}
    assert {"AlarmTopicArn", "LiquidateConcurrency", "SnapStart", "JournalAgeAlarmS"} <= names
    assert names <= template["Parameters"].keys()
