"""The environment that the template declares is the one that the code reads, name by name and value by value."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING

import pytest

from margin.config import Settings
from tests.template import documents
from tests.template.documents import Evaluation

if TYPE_CHECKING:
    from tests.template.documents import Document, Function

SETTINGS = {field.name.upper() for field in dataclasses.fields(Settings)}
NOT_DECLARED = {
    "AWS_LAMBDA_FUNCTION_NAME": "Lambda sets it",
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
    "LIQUIDATIONS_QUEUE_URL",
    "LOG_LEVEL",
    "PARTITIONS",
    "POSTGRES_DATABASE",
    "POSTGRES_HOST",
    "POSTGRES_IAM",
    "POSTGRES_PORT",
    "POSTGRES_SECRET",
    "POSTGRES_SSLMODE",
    "POSTGRES_USER",
    "REDIS_HOST",
    "REDIS_PORT",
    "REDIS_SECRET",
    "REDIS_TLS",
}
# Where the code may look at the environment: the one place that makes Settings of it.
READERS = {"layers/margin/margin/runtime.py"}
CREATED = {"CreateData": "yes", "CreateNetwork": "yes"}
GIVEN = {
    "RedisHost": "redis.example.com",
    "RedisSecretName": "margin/redis",
    "PostgresHost": "postgres.example.com",
    "PostgresSecretName": "margin/postgres",
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
    assert readers == READERS


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


def test_passwords_come_from_secrets_and_never_from_the_template(template: Document, functions: list[Function]) -> None:
    given = {function.variables[name] for function in functions for name in ("REDIS_PASSWORD", "POSTGRES_PASSWORD")}
    assert given == {""}
    assert [name for name, parameter in template["Parameters"].items() if parameter.get("NoEcho")] == []
    assert [name for name in template["Parameters"] if "password" in name.lower()] == []


def test_functions_log_in_to_the_proxy_with_tokens_and_the_migration_to_the_database_with_its_password(
    functions: list[Function], deployed: Document
) -> None:
    for function in functions:
        settings = _settings(function, deployed, CREATED)
        how = (settings.postgres_host, settings.postgres_iam, settings.postgres_secret)
        expected = ("Data.Outputs.PostgresProxyHost", True, "")
        if function.name == "MigrateFunction":
            expected = ("Data.Outputs.PostgresHost", False, "Data.Outputs.PostgresSecretArn")
        assert how == expected, function.name
        assert settings.redis_secret == "Data.Outputs.RedisSecretArn", function.name
        assert (settings.redis_tls, settings.postgres_sslmode) == (True, "require"), function.name


def test_all_functions_use_the_stores_that_are_given(functions: list[Function], deployed: Document) -> None:
    with_tokens = {**GIVEN, "PostgresIamResourceId": "prx-1"}
    for function in functions:
        settings = _settings(function, deployed, GIVEN)
        assert (settings.redis_host, settings.redis_secret) == ("redis.example.com", "margin/redis"), function.name
        assert (settings.postgres_host, settings.postgres_secret) == ("postgres.example.com", "margin/postgres")
        assert settings.postgres_iam is False, function.name
        settings = _settings(function, deployed, with_tokens)
        assert (settings.postgres_iam, settings.postgres_secret) == (True, ""), function.name


def test_only_those_who_cross_triggers_are_told_of_the_queue(functions: list[Function]) -> None:
    told = {
        function.name: function.variables["LIQUIDATIONS_QUEUE_URL"]
        for function in functions
        if "LIQUIDATIONS_QUEUE_URL" in function.variables
    }
    queue = {"Ref": "LiquidationsQueue"}
    assert told == {"MarkPriceFunction": queue, "FundingFunction": queue}
