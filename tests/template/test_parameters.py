"""What people set and see: parameters, their groups, the environments of samconfig.toml, outputs and tags."""

from __future__ import annotations

import re
import tomllib
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from margin.config import SettingError, Settings
from tests.template import documents
from tests.template.documents import Evaluation

if TYPE_CHECKING:
    from tests.template.documents import Document, Function

STATEFUL = {"AWS::ElastiCache::ReplicationGroup", "AWS::RDS::DBCluster"}
INTERFACE = "AWS::CloudFormation::Interface"


@pytest.fixture
def every_template(template: Document, nested: dict[str, Document]) -> dict[str, Document]:
    return {"template.yaml": template, **nested}


@pytest.fixture
def environments() -> dict[str, dict[str, dict[str, Any]]]:
    """Return the settings of the SAM CLI: environment, command, name."""
    settings = tomllib.loads((documents.ROOT / "samconfig.toml").read_text(encoding="utf-8"))
    tables = {name: table for name, table in settings.items() if isinstance(table, dict)}
    return {name: {command: t["parameters"] for command, t in table.items()} for name, table in tables.items()}


def test_every_parameter_is_described_and_shown_once(every_template: dict[str, Document]) -> None:
    for file, document in every_template.items():
        groups = document["Metadata"][INTERFACE]["ParameterGroups"]
        shown = [name for group in groups for name in group["Parameters"]]
        assert sorted(shown) == sorted(document["Parameters"]), file
        for name, parameter in document["Parameters"].items():
            assert re.fullmatch(r"[A-Z].+\.", parameter.get("Description", ""), re.DOTALL), f"{file} {name}"


def test_every_output_is_described(every_template: dict[str, Document]) -> None:
    outputs = {name: output for d in every_template.values() for name, output in d.get("Outputs", {}).items()}
    assert [name for name, output in outputs.items() if not output.get("Description")] == []


def test_outputs_name_the_api_the_functions_and_the_queues(template: Document, deployed: Document) -> None:
    outputs = template["Outputs"]
    functions = documents.resources(template, "AWS::Serverless::Function")
    queues = documents.resources(deployed, "AWS::SQS::Queue")
    assert documents.mentions(outputs["ApiUrl"]["Value"], "Api")
    shown = [output["Value"] for output in outputs.values()]
    assert [name for name in (*functions, *queues) if {"Ref": name} not in shown] == []


def test_everything_that_can_be_tagged_is(functions: list[Function]) -> None:
    for function in functions:
        tags = {tag["Key"]: tag["Value"] for tag in function.properties["Tags"]}
        assert (tags["Application"], tags["Environment"]) == ("margin", {"Ref": "Environment"}), function.name


def test_architecture_is_arm64_unless_said_otherwise(template: Document) -> None:
    assert template["Parameters"]["Architecture"]["Default"] == "arm64"


def test_settings_of_the_cli_name_parameters_that_exist(
    template: Document, environments: dict[str, dict[str, dict[str, Any]]]
) -> None:
    assert set(environments) == {"default", "local", "dev", "prod"}
    for environment, commands in environments.items():
        for command, settings in commands.items():
            given = [text for text in settings.get("parameter_overrides", []) if not text.startswith("file://")]
            for name, value in (text.split("=", 1) for text in given):
                parameter = template["Parameters"][name]
                assert value in map(str, parameter.get("AllowedValues", [value])), f"{environment} {command} {name}"
                assert re.fullmatch(parameter.get("AllowedPattern", ".*"), value), f"{environment} {command} {name}"


AMOUNTS = {"LiquidationBuffer", "LiquidationRemainingNotionalMin"}
NUMBERS = [
    *("0", "0.0", "0.00000000", "0.00000001", "0.000000001", "0.1", "1", "10", "9.99999999", "9.999999999"),
    *("80", "99.99999999", "99.999999999", "100", "100.0", "100.00000000", "100.00000001", "101", "1000"),
    *("999999", "999999.99999999", "999999.999999999", "1000000", "1000000.0", "10000000", "-1", "-0.00000001"),
    *("", " ", "ten", "NaN", "Infinity", "0,1", "1.", "1..0"),
]


@pytest.mark.parametrize("value", NUMBERS)
@pytest.mark.parametrize("name", [*sorted(AMOUNTS), "MarginWarningPct"])
def test_number_is_refused_by_the_deployment_where_the_functions_would_not_start_with_it(
    template: Document, name: str, value: str
) -> None:
    variable = re.sub(r"(?<!^)(?=[A-Z])", "_", name).upper()
    parameter = template["Parameters"][name]
    try:
        settings = Settings.from_environment({variable: value})
    except SettingError:
        starts = False
    else:
        starts = getattr(settings, variable.lower()) == Decimal(value)
    # A full stop must be followed by something, which the setting does not want.
    assert bool(re.fullmatch(parameter["AllowedPattern"], value)) is (starts and value != "1.")


@pytest.mark.parametrize("days", [-1, 0, 1, 90, 36_500, 36_501])
def test_days_of_mark_prices_are_refused_by_the_deployment_where_the_drain_would_not_start_with_them(
    template: Document, days: int
) -> None:
    parameter = template["Parameters"]["MarkHistoryDays"]
    try:
        starts = Settings.from_environment({"MARK_HISTORY_DAYS": str(days)}).mark_history_days == days
    except SettingError:
        starts = False
    assert (parameter["MinValue"] <= days <= parameter["MaxValue"]) is starts


@pytest.mark.parametrize("environment", ["dev", "prod"])
def test_environment_can_be_deployed(
    template: Document, environments: dict[str, dict[str, dict[str, Any]]], environment: str
) -> None:
    deploy = environments[environment]["deploy"]
    given = dict(text.split("=", 1) for text in deploy["parameter_overrides"] if not text.startswith("file://"))
    evaluation = Evaluation(template, **{**given, "Release": "ab" * 32})
    for name, rule in template["Rules"].items():
        if evaluation.of(rule.get("RuleCondition", True)):
            assert all(evaluation.of(assertion["Assert"]) for assertion in rule["Assertions"]), name
    assert given["Environment"] == environment
    assert deploy["capabilities"].split() == ["CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND"]
    assert deploy["resolve_s3"] is True
    assert f"Environment={environment}" in deploy["tags"]


def test_stores_must_be_created_or_named(template: Document) -> None:
    rule = template["Rules"]["StoresAreNamed"]
    evaluations = Evaluation(template), Evaluation(template, RedisHost="redis", PostgresHost="postgres")
    verdicts = [[e.of(assertion["Assert"]) for assertion in rule["Assertions"]] for e in evaluations]
    assert evaluations[0].of(rule["RuleCondition"]) is True
    assert verdicts == [[False, False], [True, True]]


def test_nobodys_account_is_in_the_files() -> None:
    for path in (documents.TEMPLATE, *documents.NESTED, documents.ROOT / "samconfig.toml"):
        assert re.findall(r"(?<![0-9a-f])\d{12}(?![0-9a-f])", path.read_text(encoding="utf-8")) == [], path.name


def test_functions_join_a_network_only_where_there_is_one(functions: list[Function], deployed: Document) -> None:
    for function in functions:
        assert "VpcConfig" not in Evaluation(deployed).of(function.properties), function.name
        given = Evaluation(deployed, SubnetIds="subnet-1,subnet-2", SecurityGroupIds="sg-1").of(function.properties)
        assert given["VpcConfig"] == {"SubnetIds": "subnet-1,subnet-2", "SecurityGroupIds": "sg-1"}, function.name
        created = Evaluation(deployed, CreateNetwork="yes").of(function.properties)
        assert created["VpcConfig"]["SecurityGroupIds"] == ["Network.Outputs.FunctionsSecurityGroupId"], function.name


def test_nested_stacks_are_made_only_when_asked_for(template: Document) -> None:
    stacks = {name: r for name, r in template["Resources"].items() if r["Type"] == "AWS::CloudFormation::Stack"}
    assert {name: stack.get("Condition") for name, stack in stacks.items()} == {
        "Network": "CreatesNetwork",
        "Data": "CreatesData",
        "Observability": None,
    }
    assert {path.name for path in documents.NESTED} == {
        s["Properties"]["TemplateURL"].split("/")[1] for s in stacks.values()
    }


def test_data_outlives_its_stack_as_a_snapshot(nested: dict[str, Document]) -> None:
    kept = {
        r["Type"]: (r.get("DeletionPolicy"), r.get("UpdateReplacePolicy"))
        for r in nested["data.yaml"]["Resources"].values()
        if r["Type"] in STATEFUL
    }
    assert kept == dict.fromkeys(STATEFUL, ("Snapshot", "Snapshot"))


def test_created_stores_lose_nothing_and_speak_tls(nested: dict[str, Document]) -> None:
    data = nested["data.yaml"]["Resources"]
    redis, proxy = data["Redis"]["Properties"], data["Proxy"]["Properties"]
    assert data["RedisParameters"]["Properties"]["Properties"] == {
        "cluster-enabled": "no",
        "maxmemory-policy": "noeviction",
    }
    assert redis["CacheParameterGroupName"] == {"Ref": "RedisParameters"}
    assert (redis["Engine"], redis["TransitEncryptionEnabled"], redis["AtRestEncryptionEnabled"]) == (
        "valkey",
        True,
        True,
    )
    assert documents.mentions(redis["AuthToken"], "RedisSecret")
    assert data["Postgres"]["Properties"]["StorageEncrypted"] is True
    assert data["Postgres"]["Properties"]["ManageMasterUserPassword"] is True
    assert data["PostgresParameters"]["Properties"]["Parameters"]["rds.force_ssl"] == "1"
    assert (proxy["RequireTLS"], proxy["Auth"][0]["IAMAuth"]) == (True, "REQUIRED")


def test_stores_admit_the_functions_alone(nested: dict[str, Document]) -> None:
    groups = documents.resources(nested["data.yaml"], "AWS::EC2::SecurityGroup")
    rules = [rule for group in groups.values() for rule in group["SecurityGroupIngress"]]
    assert len(rules) == 4
    assert [rule for rule in rules if "CidrIp" in rule] == []
    admitted = {rule["SourceSecurityGroupId"]["Ref"] for rule in rules}
    assert admitted == {"FunctionsSecurityGroupId", "ProxySecurityGroup"}
