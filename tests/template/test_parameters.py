"""What people set and see: parameters, their groups, the environments of samconfig.toml, outputs and tags."""

from __future__ import annotations

import json
import re
import tomllib
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from margin.config import SettingError, Settings
from tests import acl
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


@pytest.mark.parametrize("tls", ["true", "false"])
@pytest.mark.parametrize(
    "given",
    [{}, {"RedisSecretName": "margin/redis"}, {"RedisCa": "/opt/ca/redis.pem"}],
    ids="".join,
)
def test_redis_without_tls_is_refused_by_the_deployment_where_the_functions_would_not_start_with_it(
    template: Document, given: dict[str, str], tls: str
) -> None:
    variables = {"RedisSecretName": "REDIS_SECRET", "RedisCa": "REDIS_CA"}
    environment = {"REDIS_HOST": "redis.example.com", "REDIS_TLS": tls}
    starts = _starts(environment | {variables[name]: value for name, value in given.items()})
    assert _is_deployed(template, "CredentialsGoToTheRightServer", RedisTls=tls, **given) is starts


@pytest.mark.parametrize("mode", ["disable", "prefer", "require", "verify-ca", "verify-full"])
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"PostgresSecretName": "margin/postgres"},
        {"PostgresOwnerSecretName": "margin/owner"},
        {"PostgresIamResourceId": "prx-1"},
        {"PostgresSslRootCert": "/opt/ca/global-bundle.pem"},
    ],
    ids="".join,
)
def test_weaker_tls_is_refused_by_the_deployment_where_the_functions_would_not_start_with_it(
    template: Document, given: dict[str, str], mode: str
) -> None:
    variables = {
        "PostgresSecretName": {"POSTGRES_SECRET": "margin/postgres"},
        "PostgresOwnerSecretName": {"POSTGRES_SECRET": "margin/owner"},
        "PostgresIamResourceId": {"POSTGRES_IAM": "true"},
        "PostgresSslRootCert": {"POSTGRES_SSLROOTCERT": "/opt/ca/global-bundle.pem"},
    }
    environment = {"POSTGRES_HOST": "postgres.example.com", "POSTGRES_SSLMODE": mode}
    for name in given:
        environment |= variables[name]
    assert _is_deployed(template, "CredentialsGoToTheRightServer", PostgresSslMode=mode, **given) is _starts(
        environment
    )


def _is_deployed(template: Document, rule: str, **parameters: str) -> bool:
    evaluation = Evaluation(template, **parameters)
    assert evaluation.of(template["Rules"][rule]["RuleCondition"]) is True
    return all(evaluation.of(assertion["Assert"]) for assertion in template["Rules"][rule]["Assertions"])


def _starts(environment: dict[str, str]) -> bool:
    try:
        Settings.from_environment(environment)
    except SettingError:
        return False
    return True


def test_issuer_must_be_created_or_named_and_never_both(template: Document) -> None:
    def refused(**given: str) -> list[str]:
        evaluation = Evaluation(template, **given)
        rules = [template["Rules"][name] for name in ("IssuerIsNamed", "IssuerIsOne")]
        in_force = [rule for rule in rules if evaluation.of(rule["RuleCondition"])]
        assertions = [assertion for rule in in_force for assertion in rule["Assertions"]]
        return [a["AssertDescription"].split()[0] for a in assertions if not evaluation.of(a["Assert"])]

    one = {"JwtIssuer": "https://issuer.example.com/", "JwtAudience": "margin"}
    assert refused() == ["JwtIssuer", "JwtAudience"]
    assert refused(JwtIssuer=one["JwtIssuer"]) == ["JwtAudience"]
    assert refused(**one) == []
    assert refused(CreateIssuer="yes") == []
    assert refused(CreateIssuer="yes", JwtAudience="a-client-of-my-own") == []
    assert refused(CreateIssuer="yes", ScopePrefix="margin/", **one) == ["JwtIssuer", "ScopePrefix"]


FIFTY = ",".join(f"client-{n}" for n in range(50))


@pytest.mark.parametrize(
    ("name", "accepted", "refused"),
    [
        (
            "JwtIssuer",
            [
                *(
                    "",
                    "https://issuer.example.com",
                    "https://issuer.example.com/",
                    "https://issuer.example.com:8443/a/b",
                ),
                "https://cognito-idp.eu-central-1.amazonaws.com/eu-central-1_EXAMPLE",
            ],
            [
                *("http://issuer.example.com", "issuer.example.com", "https://", "https://a.example.com/?a=b"),
                *("https://a.example.com/ ", "https://user@a.example.com/", "https://a.example.com/#a"),
            ],
        ),
        (
            "JwtAudience",
            ["", "margin", "margin,https://api.example.com/", FIFTY],
            [f"{FIFTY},one-more", "a,", ",a", "a, b"],
        ),
        ("ScopePrefix", ["", "margin/", "api://margin/", "https://api.example.com/"], ["margin /", 'a"b', "a\\b"]),
    ],
)
def test_issuer_audience_and_prefix_are_refused_by_the_deployment_where_the_gateway_would_refuse_them(
    template: Document, name: str, accepted: list[str], refused: list[str]
) -> None:
    pattern = template["Parameters"][name]["AllowedPattern"]
    assert [value for value in accepted if not re.fullmatch(pattern, value)] == []
    assert [value for value in refused if re.fullmatch(pattern, value)] == []


LIMITS = {"RateLimitAccount": "rate_limit_account", "RateLimitToken": "rate_limit_token"}


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize(
    "numbers", [(0, 0), (1, 1), (50, 100), (1_000_000, 1_000_000), (0, 1), (1, 0), (1_000_001, 1), (-1, 1)]
)
def test_rate_limit_is_refused_by_the_deployment_where_the_functions_would_not_start_with_it(
    template: Document, limit: str, numbers: tuple[int, int]
) -> None:
    given = dict(zip((f"{limit}PerS", f"{limit}Burst"), numbers, strict=True))
    evaluation = Evaluation(template, **{name: str(number) for name, number in given.items()})
    assertions = template["Rules"]["LimitsComeInPairs"]["Assertions"]
    parameters = template["Parameters"]
    deploys = all(evaluation.of(assertion["Assert"]) for assertion in assertions) and all(
        parameters[name]["MinValue"] <= number <= parameters[name]["MaxValue"] for name, number in given.items()
    )
    variables = zip((f"{LIMITS[limit]}_per_s", f"{LIMITS[limit]}_burst"), numbers, strict=True)
    try:
        Settings.from_environment({variable.upper(): str(number) for variable, number in variables})
    except SettingError:
        starts = False
    else:
        starts = True
    assert deploys is starts


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
        "Issuer": "CreatesIssuer",
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
    assert "AuthToken" not in redis
    assert redis["UserGroupIds"] == [{"Ref": "RedisUsers"}]
    assert data["RedisUsers"]["Properties"]["UserIds"] == [{"Ref": "RedisUser"}]
    assert data["Postgres"]["Properties"]["StorageEncrypted"] is True
    assert data["Postgres"]["Properties"]["ManageMasterUserPassword"] is True
    assert data["PostgresParameters"]["Properties"]["Parameters"]["rds.force_ssl"] == "1"
    assert (proxy["RequireTLS"], [one["IAMAuth"] for one in proxy["Auth"]]) == (True, ["REQUIRED", "REQUIRED"])


def test_created_database_logs_every_change_of_a_definition(nested: dict[str, Document]) -> None:
    """Whoever gets past the guard of history has to change one."""
    data = nested["data.yaml"]["Resources"]
    assert data["PostgresParameters"]["Properties"]["Parameters"]["log_statement"] == "ddl"
    assert data["Postgres"]["Properties"]["DBClusterParameterGroupName"] == {"Ref": "PostgresParameters"}


def test_user_of_the_created_redis_may_what_the_rules_say(nested: dict[str, Document]) -> None:
    user = nested["data.yaml"]["Resources"]["RedisUser"]["Properties"]
    assert user["AccessString"].split() == ["on", *acl.rules()]
    assert user["UserName"] == acl.USERNAME
    assert documents.mentions(user["AuthenticationMode"]["Passwords"], "RedisSecret")
    secret = nested["data.yaml"]["Resources"]["RedisSecret"]["Properties"]["GenerateSecretString"]
    assert json.loads(secret["SecretStringTemplate"]) == {"username": acl.USERNAME}


def test_stores_admit_the_functions_alone(nested: dict[str, Document]) -> None:
    groups = documents.resources(nested["data.yaml"], "AWS::EC2::SecurityGroup")
    rules = [rule for group in groups.values() for rule in group["SecurityGroupIngress"]]
    assert len(rules) == 3
    assert [rule for rule in rules if "CidrIp" in rule] == []
    admitted = {rule["SourceSecurityGroupId"]["Ref"] for rule in rules}
    assert admitted == {"FunctionsSecurityGroupId", "ProxySecurityGroup"}
