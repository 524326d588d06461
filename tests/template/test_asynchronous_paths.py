"""Work that nobody waits for: wherever it fails, it ends in a queue, and an alarm watches that queue."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from margin.observability import NAMESPACE, GaugeName, MetricName
from tests.template import documents

if TYPE_CHECKING:
    from tests.template.documents import Document, Function

ALARMS = "observability.yaml"
PUBLISHED_METRICS = {metric.value for metric in (*MetricName, *GaugeName)}
ALARMING_METRICS = {
    "FundingNotApplied",
    "HistoryBlocked",
    "HistoryPendingAgeS",
    "InsuranceFundDeficit",
    "InstrumentsNotCompleted",
    "LiquidationMisses",
    "MarkAgeS",
    "MarkPricesSetAside",
    "ReconcileAgeS",
    "ReconcileDifferences",
    "UncoveredShortfallsQuote",
}
REQUIRED_ALARMS = {
    ("AWS/ApiGateway", "5xx"),
    ("AWS/ApiGateway", "Latency"),
    ("AWS/Lambda", "Errors"),
    ("AWS/Lambda", "Invocations"),
    ("AWS/SQS", "ApproximateAgeOfOldestMessage"),
    ("AWS/SQS", "ApproximateNumberOfMessagesVisible"),
    ("AWS/Scheduler", "InvocationDroppedCount"),
    ("AWS/Scheduler", "TargetErrorCount"),
    *((NAMESPACE, metric) for metric in ALARMING_METRICS),
}
Metric = tuple[str, str, dict[str, Any]]


def _queue_of(arn: Any) -> str:
    """Return the logical id of the queue whose ARN this is."""
    name, attribute = arn["Fn::GetAtt"]
    assert attribute == "Arn"
    return name


def _alarm_metrics(alarm: Document) -> list[Metric]:
    """List what an alarm watches: namespace, metric, dimensions."""
    metrics = [alarm, *(m["MetricStat"]["Metric"] for m in alarm.get("Metrics", []) if "MetricStat" in m)]
    return [
        (m["Namespace"], m["MetricName"], {d["Name"]: d["Value"] for d in m["Dimensions"]})
        for m in metrics
        if "MetricName" in m
    ]


@pytest.fixture
def alarms(nested: dict[str, Document]) -> dict[str, Document]:
    return documents.resources(nested[ALARMS], "AWS::CloudWatch::Alarm")


@pytest.fixture
def failure_queues(deployed: Document) -> dict[str, set[str]]:
    """Return the queues that take failures, by what sends them there."""
    found: dict[str, set[str]] = {"schedules": set(), "invocations": set(), "queues": set()}
    for schedule in documents.resources(deployed, "AWS::Scheduler::Schedule").values():
        found["schedules"].add(_queue_of(schedule["Target"]["DeadLetterConfig"]["Arn"]))
    for invocation in documents.resources(deployed, "AWS::Lambda::EventInvokeConfig").values():
        found["invocations"].add(_queue_of(invocation["DestinationConfig"]["OnFailure"]["Destination"]))
    for queue in documents.resources(deployed, "AWS::SQS::Queue").values():
        if "RedrivePolicy" in queue:
            found["queues"].add(_queue_of(queue["RedrivePolicy"]["deadLetterTargetArn"]))
    return found


def test_every_function_without_route_is_started_by_something_that_keeps_failures(
    functions: list[Function], deployed: Document
) -> None:
    polled = documents.resources(deployed, "AWS::Lambda::EventSourceMapping").values()
    kept = [*documents.resources(deployed, "AWS::Lambda::EventInvokeConfig").values(), *polled]
    asynchronous = {function.name for function in functions if not function.routes}
    assert asynchronous == {
        name for name in (f.name for f in functions) if any(name in json.dumps(entry["FunctionName"]) for entry in kept)
    }


def test_scheduled_work_is_retried_and_its_failures_are_kept(deployed: Document) -> None:
    schedules = documents.resources(deployed, "AWS::Scheduler::Schedule")
    invocations = documents.resources(deployed, "AWS::Lambda::EventInvokeConfig")
    assert {name: schedule["ScheduleExpression"] for name, schedule in schedules.items()} == {
        "LiquidationScanFunctionEveryMinute": "rate(1 minute)",
        "JournalDrainFunctionEveryMinute": "rate(1 minute)",
        "SettleFunctionEveryMinute": "rate(1 minute)",
        "ReconcileFunctionRegularly": {"Ref": "ReconcileSchedule"},
    }
    for name, schedule in schedules.items():
        assert documents.mentions(schedule["Name"], "AWS::StackName"), name
        assert schedule["Target"]["RetryPolicy"]["MaximumRetryAttempts"] >= 1, name
        alias = schedule["Target"]["Arn"]["Ref"]
        function = deployed["Resources"][alias]["Properties"]["FunctionName"]["Ref"]
        assert [i["Qualifier"] for i in invocations.values() if i["FunctionName"]["Ref"] == function] == ["live"], name


def test_queued_work_is_retried_message_by_message(deployed: Document, functions: list[Function]) -> None:
    timeouts = {function.name: function.properties["Timeout"] for function in functions}
    (mapping,) = documents.resources(deployed, "AWS::Lambda::EventSourceMapping").values()
    queue = documents.resources(deployed, "AWS::SQS::Queue")[_queue_of(mapping["EventSourceArn"])]
    function = deployed["Resources"][mapping["FunctionName"]["Ref"]]["Properties"]["FunctionName"]["Ref"]
    assert mapping["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
    assert mapping["ScalingConfig"]["MaximumConcurrency"] == {"Ref": "LiquidateConcurrency"}
    assert queue["VisibilityTimeout"] >= 6 * timeouts[function]
    attempts_s = queue["RedrivePolicy"]["maxReceiveCount"] * queue["VisibilityTimeout"]
    assert queue["MessageRetentionPeriod"] > attempts_s, "a message would vanish before it counts as failed"


def test_failures_stay_for_two_weeks(deployed: Document, failure_queues: dict[str, set[str]]) -> None:
    queues = documents.resources(deployed, "AWS::SQS::Queue")
    ends = set.union(*failure_queues.values())
    assert set(queues) - ends == {"LiquidationsQueue"}
    assert {queues[name]["MessageRetentionPeriod"] for name in ends} == {14 * 86_400}


def test_who_reports_failures_may_send_them(deployed: Document) -> None:
    for invocation in documents.resources(deployed, "AWS::Lambda::EventInvokeConfig").values():
        function = deployed["Resources"][invocation["FunctionName"]["Ref"]]["Properties"]
        role = deployed["Resources"][function["Role"]["Fn::GetAtt"][0]]["Properties"]
        queue = _queue_of(invocation["DestinationConfig"]["OnFailure"]["Destination"])
        assert documents.mentions(role["Policies"], queue), function["Handler"]


def test_every_queue_of_failures_has_an_alarm(
    template: Document, alarms: dict[str, Document], failure_queues: dict[str, set[str]]
) -> None:
    given = template["Resources"]["Observability"]["Properties"]["Parameters"]
    watched = {
        given[dimensions["QueueName"]["Ref"]]["Fn::GetAtt"][0]
        for alarm in alarms.values()
        for _namespace, metric, dimensions in _alarm_metrics(alarm)
        if metric == "ApproximateNumberOfMessagesVisible" and alarm["Threshold"] == 0
    }
    assert all(failure_queues.values())
    assert watched == set.union(*failure_queues.values())


def test_every_scheduled_function_has_alarms_for_failure_and_silence(
    template: Document, deployed: Document, alarms: dict[str, Document]
) -> None:
    given = template["Resources"]["Observability"]["Properties"]["Parameters"]
    watched: dict[str, set[str]] = {"Errors": set(), "Invocations": set()}
    for alarm in alarms.values():
        for namespace, metric, dimensions in _alarm_metrics(alarm):
            if namespace == "AWS/Lambda":
                watched[metric].add(given[dimensions["FunctionName"]["Ref"]]["Ref"])
    scheduled = {
        deployed["Resources"][schedule["Target"]["Arn"]["Ref"]]["Properties"]["FunctionName"]["Ref"]
        for schedule in documents.resources(deployed, "AWS::Scheduler::Schedule").values()
    }
    assert watched == {"Errors": scheduled | {"LiquidateFunction"}, "Invocations": scheduled}


def test_silence_of_a_schedule_counts_as_failure(alarms: dict[str, Document]) -> None:
    silent = [alarm for alarm in alarms.values() if alarm.get("MetricName") == "Invocations"]
    assert [alarm["TreatMissingData"] for alarm in silent] == ["breaching"] * 4


def test_every_required_alarm_is_there(alarms: dict[str, Document]) -> None:
    watched = {(namespace, metric) for alarm in alarms.values() for namespace, metric, _ in _alarm_metrics(alarm)}
    assert watched - {("AWS/ApiGateway", "Count")} == REQUIRED_ALARMS


def test_every_alarm_says_what_is_wrong_and_goes_to_the_topic(nested: dict[str, Document]) -> None:
    for document in nested.values():
        for name, alarm in documents.resources(document, "AWS::CloudWatch::Alarm").items():
            described = alarm["AlarmDescription"]
            assert len(str(described)) > 30, name
            silent, loud = (documents.Evaluation(document, AlarmTopicArn=arn).of(alarm) for arn in ("", "topic"))
            assert ("AlarmActions" in silent, "OKActions" in silent) == (False, False), name
            assert (loud["AlarmActions"], loud["OKActions"]) == (["topic"], ["topic"]), name


def test_alarms_on_the_engines_metrics_use_its_names_and_dimension(alarms: dict[str, Document]) -> None:
    own = [m for alarm in alarms.values() for m in _alarm_metrics(alarm) if m[0] == NAMESPACE]
    assert {metric for _, metric, _ in own} <= PUBLISHED_METRICS
    assert {json.dumps(dimensions) for _, _, dimensions in own} == {json.dumps({"service": {"Ref": "Application"}})}


def test_dashboard_is_json_and_shows_metrics_that_exist(nested: dict[str, Document]) -> None:
    document = nested[ALARMS]
    (dashboard,) = documents.resources(document, "AWS::CloudWatch::Dashboard").values()
    text = dashboard["DashboardBody"]["Fn::Sub"]
    assert set(re.findall(r"\$\{([^}]+)\}", text)) <= {*document["Parameters"], "AWS::Region"}
    widgets = json.loads(documents.Evaluation(document).of(dashboard["DashboardBody"]))["widgets"]
    shown = set()
    for widget in widgets:
        namespace, metric = "", ""
        for entry in widget["properties"]["metrics"]:
            if entry[0] != "...":
                namespace = namespace if entry[0] == "." else entry[0]
                metric = metric if entry[1] == "." else entry[1]
            shown.add((namespace, metric))
    own = {metric for namespace, metric in shown if namespace == NAMESPACE}
    assert own <= PUBLISHED_METRICS
    assert own >= ALARMING_METRICS
