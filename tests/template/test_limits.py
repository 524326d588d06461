"""Everything has a limit, and the limits are in order: who waits gives up later than whom it waits for."""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING

import pytest

from tests.template import documents
from tests.template.documents import Evaluation

if TYPE_CHECKING:
    from tests.template.documents import Document, Function

# An HTTP API waits no longer for a function, whatever it is told.
API_TIMEOUT_S = 30
SCHEDULE_S = 60


def test_who_waits_gives_up_last(functions: list[Function]) -> None:
    for function in functions:
        cache_s = float(function.variables["REDIS_TIMEOUT_S"])
        statement_s = float(function.variables["POSTGRES_TIMEOUT_S"])
        database_s = float(function.variables["POSTGRES_CONNECT_TIMEOUT_S"]) + statement_s
        assert function.properties["Timeout"] > database_s > statement_s > cache_s > 0, function.name
        if function.routes:
            assert function.properties["Timeout"] < API_TIMEOUT_S, function.name


def test_no_api_route_shortens_the_gateways_timeout(deployed: Document) -> None:
    paths = deployed["Resources"]["Api"]["Properties"]["Body"]["paths"]
    integrations = [o["x-amazon-apigateway-integration"] for path in paths.values() for o in path.values()]
    assert {integration.get("timeoutInMillis", API_TIMEOUT_S * 1000) for integration in integrations} == {30_000}


def test_scheduled_functions_end_before_the_schedule_starts_them_again(
    functions: list[Function], deployed: Document
) -> None:
    targets = [s["Target"]["Arn"]["Ref"] for s in documents.resources(deployed, "AWS::Scheduler::Schedule").values()]
    scheduled = {deployed["Resources"][target]["Properties"]["FunctionName"]["Ref"] for target in targets}
    timeouts = {f.name: f.properties["Timeout"] for f in functions if f.name in scheduled}
    reconcile_s = timeouts.pop("ReconcileFunction")
    assert timeouts
    assert all(timeout < SCHEDULE_S for timeout in timeouts.values())
    assert reconcile_s < min(_reconcile_rates_s(deployed))


def test_slowest_schedule_is_not_called_silent(deployed: Document, nested: dict[str, Document]) -> None:
    alarm = documents.resources(nested["observability.yaml"], "AWS::CloudWatch::Alarm")["ReconcileSilenceAlarm"]
    assert max(_reconcile_rates_s(deployed)) < alarm["Period"] * alarm["EvaluationPeriods"]


def _reconcile_rates_s(deployed: Document) -> list[int]:
    """Every rate that the reconciling can be given, in seconds."""
    unit_s = {"minutes": 60, "hour": 3600, "hours": 3600}
    rates = deployed["Parameters"]["ReconcileSchedule"]["AllowedValues"]
    found = [re.fullmatch(r"rate\((\d+) (\w+)\)", rate) for rate in rates]
    return [int(match[1]) * unit_s[match[2]] for match in found if match]


def test_deployment_waits_longer_for_the_migration_than_it_runs(functions: list[Function], deployed: Document) -> None:
    (timeout,) = (f.properties["Timeout"] for f in functions if f.name == "MigrateFunction")
    assert 3600 >= deployed["Resources"]["Migration"]["Properties"]["ServiceTimeout"] > timeout


def test_proxy_refuses_before_the_function_gives_up(functions: list[Function], nested: dict[str, Document]) -> None:
    (targets,) = documents.resources(nested["data.yaml"], "AWS::RDS::DBProxyTargetGroup").values()
    borrow_s = targets["ConnectionPoolConfigurationInfo"]["ConnectionBorrowTimeout"]
    assert all(borrow_s < float(function.variables["POSTGRES_TIMEOUT_S"]) for function in functions)


def test_every_function_has_memory_tracing_and_a_log_of_its_own(functions: list[Function], deployed: Document) -> None:
    groups = documents.resources(deployed, "AWS::Logs::LogGroup")
    logs = [function.properties["LoggingConfig"]["LogGroup"]["Ref"] for function in functions]
    assert sorted(logs) == sorted(set(groups) - {"ApiLog"})
    for function in functions:
        assert function.properties["MemorySize"] >= 512, function.name
        assert function.properties["TracingConfig"] == {"Mode": "Active"}, function.name


def test_every_log_group_has_retention(deployed: Document, nested: dict[str, Document]) -> None:
    for document in (deployed, *nested.values()):
        for name, group in documents.resources(document, "AWS::Logs::LogGroup").items():
            assert group["RetentionInDays"] == {"Ref": "LogRetentionDays"}, name


@pytest.mark.parametrize(("snap_start", "provisioned"), list(itertools.product(["no", "yes"], ["0", "2"])))
def test_snap_start_never_comes_with_provisioned_concurrency(
    functions: list[Function], deployed: Document, snap_start: str, provisioned: str
) -> None:
    evaluation = Evaluation(deployed, SnapStart=snap_start, ProvisionedConcurrency=provisioned)
    for function in functions:
        alias = deployed["Resources"].get(f"{function.name}Aliaslive", {}).get("Properties", {})
        snapped = evaluation.of(function.properties).get("SnapStart", {"ApplyOn": "None"})["ApplyOn"] != "None"
        kept_ready = "ProvisionedConcurrencyConfig" in evaluation.of(alias)
        assert snapped == (snap_start == "yes" and bool(function.routes)), function.name
        assert kept_ready == (provisioned == "2" and snap_start == "no" and bool(function.routes)), function.name


def test_asking_for_both_is_refused(template: Document) -> None:
    rule = template["Rules"]["SnapStartStandsAlone"]
    both = Evaluation(template, SnapStart="yes", ProvisionedConcurrency="2")
    assert (both.of(rule["RuleCondition"]), both.of(rule["Assertions"][0]["Assert"])) == (True, False)


def test_concurrency_is_reserved_only_when_asked_for(functions: list[Function], deployed: Document) -> None:
    off, on = Evaluation(deployed), Evaluation(deployed, ReservedConcurrency="20", LiquidateConcurrency="7")
    name = "ReservedConcurrentExecutions"
    reserved = {function.name: on.of(function.properties).get(name) for function in functions}
    assert [function.name for function in functions if name in off.of(function.properties)] == []
    assert {reserved[function.name] for function in functions if function.routes} == {"20"}
    assert {name: value for name, value in reserved.items() if value != "20"} == {
        "LiquidationScanFunction": 1,
        "JournalDrainFunction": 1,
        "ReconcileFunction": 1,
        "SettleFunction": 1,
        "LiquidateFunction": "7",
        "MigrateFunction": None,
        "RebuildFunction": None,
    }
