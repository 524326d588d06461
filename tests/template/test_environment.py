"""The environment that the template declares is the one that the code reads, name by name and value by value."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import TYPE_CHECKING

import pytest

from margin.config import SettingError, Settings
from tests.template import documents
from tests.template.documents import Evaluation

if TYPE_CHECKING:
    from tests.template.documents import Document, Function

SETTINGS = {field.name.upper() for field in dataclasses.fields(Settings)}
NOT_DECLARED = {
    "AUTH_AUDIENCE": "of the local engine: in AWS the API verifies tokens",
    "AUTH_ISSUER": "of the local engine: in AWS the API verifies tokens",
    "AUTH_JWKS": "of the local engine: in AWS the API verifies tokens",
    "AUTH_LEEWAY_S": "of the local engine: in AWS the API verifies tokens",
    "AWS_LAMBDA_FUNCTION_NAME": "Lambda sets it",
    "AWS_SAM_LOCAL": "SAM sets it, in containers on a laptop",
    "DATA_DIR": "of the local engine",
    "DEBUG": "of the local engine",
    "HOST": "of the local engine",
    "PORT": "of the local engine",
}
# Read by pydantic and OpenTelemetry themselves.
OF_LIBRARIES = {"PYDANTIC_DISABLE_PLUGINS", "OTEL_PROPAGATORS"}
# What differs by deployment; everything else is as in the code, where it was tested.
BY_DEPLOYMENT = {
    "APP_NAME",
    "AUTH_SCOPE_PREFIX",
    "IDEMPOTENCY_KEYS_MAX",
    "LIQUIDATIONS_QUEUE_URL",
    "LOG_LEVEL",
    "PARTITIONS",
    "POSTGRES_DATABASE",
    "POSTGRES_FUNCTIONS_SECRET",
    "POSTGRES_HOST",
    "POSTGRES_IAM",
    "POSTGRES_PORT",
    "POSTGRES_SECRET",
    "POSTGRES_SSLMODE",
    "POSTGRES_SSLROOTCERT",
    "POSTGRES_USER",
    "RATE_LIMIT_ACCOUNT_BURST",
    "RATE_LIMIT_ACCOUNT_PER_S",
    "RATE_LIMIT_TOKEN_BURST",
    "RATE_LIMIT_TOKEN_PER_S",
    "REDIS_CA",
    "REDIS_HOST",
    "REDIS_PORT",
    "REDIS_SECRET",
    "REDIS_TLS",
    "REDIS_USERNAME",
}
# Where the code may look at the environment.
READERS = {
    "layers/margin/margin/runtime.py": "makes Settings of it",
    "layers/margin/margin/lambda_entry.py": "makes Settings of it before there is an engine: do callers need a token",
    "functions/token_claims/token_claims_handler.py": "is none of the engine's, and reads the name of its table alone",
}
CREATED = {"CreateData": "yes", "CreateNetwork": "yes"}
GIVEN = {
    "RedisHost": "redis.example.com",
    "RedisSecretName": "margin/redis",
    "PostgresHost": "postgres.example.com",
    "PostgresSecretName": "margin/postgres",
    "PostgresOwnerSecretName": "margin/owner",
}


def _settings(function: Function, document: Document, parameters: dict[str, str]) -> Settings:
    variables = Evaluation(document, **parameters).of(function.variables)
    # Ports of created stores are known by a deployment alone.
    return Settings.from_environment(
        {n: "1" if "Data.Outputs" in str(v) and n.endswith("PORT") else str(v) for n, v in variables.items()}
    )


def test_every_variable_that_is_read_is_declared_and_every_declared_one_is_read(functions: list[Function]) -> None:
    declared = set().union(*(function.variables for function in functions))
    assert declared - OF_LIBRARIES == SETTINGS - set(NOT_DECLARED)
    assert set(NOT_DECLARED) <= SETTINGS


def test_nothing_but_settings_reads_the_environment() -> None:
    sources = [path for folder in ("layers", "functions") for path in (documents.ROOT / folder).rglob("*.py")]
    readers = {
        path.relative_to(documents.ROOT).as_posix()
        for path in sources
        if re.search(r"\bos\.environ\b|\bgetenv\b|\bimport environ\b", path.read_text(encoding="utf-8"))
    }
    assert readers == set(READERS)


@pytest.mark.parametrize("parameters", [GIVEN, CREATED], ids=["stores given", "stores created"])
def test_every_function_can_read_its_environment(
    functions: list[Function], deployed: Document, parameters: dict[str, str]
) -> None:
    for function in functions:
        assert _settings(function, deployed, parameters).redis_host not in {"", "127.0.0.1"}, function.name


def test_values_that_no_deployment_changes_are_those_of_the_code(functions: list[Function], deployed: Document) -> None:
    defaults = Settings()
    for function in functions:
        settings = _settings(function, deployed, GIVEN)
        changed = {name for name in SETTINGS if getattr(settings, name.lower()) != getattr(defaults, name.lower())}
        assert changed <= BY_DEPLOYMENT, function.name


def test_every_function_wants_a_token_and_no_parameter_changes_that(template: Document, deployed: Document) -> None:
    declared = {name: f["Environment"]["Variables"]["AUTH"] for name, f in _functions_of(deployed).items()}
    assert declared == dict.fromkeys(_functions_of(template), "jwt")
    assert template["Globals"]["Function"]["Environment"]["Variables"]["AUTH"] == "jwt"
    own = [f.get("Environment", {}).get("Variables", {}) for f in _functions_of(template).values()]
    assert [variables for variables in own if "AUTH" in variables] == []


def _functions_of(document: Document) -> Document:
    return documents.resources(document, documents.FUNCTION, "AWS::Serverless::Function")


def test_laptop_alone_is_open_to_all() -> None:
    given = json.loads((documents.ROOT / "infra" / "sam-local.json").read_text(encoding="utf-8"))["Parameters"]
    assert given["AUTH"] == "off"
    on_a_laptop = {"AUTH": "off", "AWS_LAMBDA_FUNCTION_NAME": "TradeFunction", "AWS_SAM_LOCAL": "true"}
    assert Settings.from_environment(on_a_laptop).auth == "off"
    with pytest.raises(SettingError, match="AUTH=off"):
        Settings.from_environment({**on_a_laptop, "AWS_SAM_LOCAL": "false"})


@pytest.mark.parametrize(
    ("parameters", "prefix"), [({}, ""), ({"ScopePrefix": "api/"}, "api/"), ({"CreateIssuer": "yes"}, "margin/")]
)
def test_scopes_have_the_prefix_of_their_issuer(
    functions: list[Function], deployed: Document, parameters: dict[str, str], prefix: str
) -> None:
    for function in functions:
        assert _settings(function, deployed, GIVEN | parameters).auth_scope_prefix == prefix, function.name


def test_limits_are_in_force_unless_they_are_taken_away(functions: list[Function], deployed: Document) -> None:
    none = dict.fromkeys(
        [
            "RateLimitAccountPerS",
            "RateLimitAccountBurst",
            "RateLimitTokenPerS",
            "RateLimitTokenBurst",
            "IdempotencyKeysMax",
        ],
        "0",
    )
    for function in functions:
        assert _limits(_settings(function, deployed, GIVEN)) == (50, 100, 200, 400, 100_000), function.name
        assert _limits(_settings(function, deployed, GIVEN | none)) == (0, 0, 0, 0, 0), function.name


def _limits(settings: Settings) -> tuple[int, ...]:
    account = settings.rate_limit_account_per_s, settings.rate_limit_account_burst
    return *account, settings.rate_limit_token_per_s, settings.rate_limit_token_burst, settings.idempotency_keys_max


def test_passwords_come_from_secrets_and_never_from_the_template(template: Document, functions: list[Function]) -> None:
    given = {function.variables[name] for function in functions for name in ("REDIS_PASSWORD", "POSTGRES_PASSWORD")}
    assert given == {""}
    assert [name for name, parameter in template["Parameters"].items() if parameter.get("NoEcho")] == []
    assert [name for name in template["Parameters"] if "password" in name.lower()] == []


def test_all_log_in_to_the_proxy_with_tokens_and_the_migration_alone_as_the_owner(
    functions: list[Function], deployed: Document
) -> None:
    for function in functions:
        settings = _settings(function, deployed, CREATED)
        how = (settings.postgres_host, settings.postgres_iam, settings.postgres_secret)
        assert how == ("Data.Outputs.PostgresProxyHost", True, ""), function.name
        migrates = function.name == "MigrateFunction"
        assert settings.postgres_user == ("margin" if migrates else "margin_functions"), function.name
        functions_secret = "Data.Outputs.PostgresFunctionsSecretArn" if migrates else ""
        assert settings.postgres_functions_secret == functions_secret, function.name
        assert settings.redis_secret == "Data.Outputs.RedisSecretArn", function.name


@pytest.mark.parametrize("parameters", [GIVEN, CREATED], ids=["stores given", "stores created"])
def test_both_stores_are_believed_only_with_their_names_and_the_public_authorities(
    functions: list[Function], deployed: Document, parameters: dict[str, str]
) -> None:
    for function in functions:
        settings = _settings(function, deployed, parameters)
        assert (settings.redis_tls, settings.redis_ca) == (True, ""), function.name
        assert (settings.postgres_sslmode, settings.postgres_sslrootcert) == ("verify-full", ""), function.name


def test_other_authorities_can_be_named(functions: list[Function], deployed: Document) -> None:
    paths = {"RedisCa": "/opt/ca/redis.pem", "PostgresSslRootCert": "/opt/ca/global-bundle.pem"}
    for function in functions:
        settings = _settings(function, deployed, GIVEN | paths)
        assert (settings.redis_ca, settings.postgres_sslrootcert) == tuple(paths.values()), function.name


def test_all_functions_use_the_stores_that_are_given(functions: list[Function], deployed: Document) -> None:
    with_tokens = {**GIVEN, "PostgresIamResourceId": "prx-1"}
    for function in functions:
        settings = _settings(function, deployed, GIVEN)
        assert (settings.redis_host, settings.redis_secret) == ("redis.example.com", "margin/redis"), function.name
        assert settings.postgres_host == "postgres.example.com", function.name
        migrates = function.name == "MigrateFunction"
        login = (settings.postgres_user, settings.postgres_secret)
        assert login == (("margin", "margin/owner") if migrates else ("margin_functions", "margin/postgres"))
        assert settings.postgres_iam is False, function.name
        settings = _settings(function, deployed, with_tokens)
        expected = (False, "margin/owner") if migrates else (True, "")
        assert (settings.postgres_iam, settings.postgres_secret) == expected, function.name
        settings = _settings(function, deployed, {**with_tokens, "PostgresOwnerSecretName": ""})
        assert (settings.postgres_iam, settings.postgres_secret) == (True, ""), function.name


def test_only_those_who_cross_triggers_are_told_of_the_queue(functions: list[Function]) -> None:
    told = {
        function.name: function.variables["LIQUIDATIONS_QUEUE_URL"]
        for function in functions
        if "LIQUIDATIONS_QUEUE_URL" in function.variables
    }
    queue = {"Ref": "LiquidationsQueue"}
    assert told == {"MarkPriceFunction": queue, "FundingFunction": queue}
