"""Credentials that somebody could read on the way, or hand to whoever answers, are settings that stop the start."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from margin.config import SettingError, Settings

ROOT = Path(__file__).parents[2]
FAR_REDIS = {"REDIS_HOST": "redis.example.com"}
FAR_POSTGRES = {"POSTGRES_HOST": "postgres.example.com"}
FULL = {"POSTGRES_SSLMODE": "verify-full"}
NEAR = ["127.0.0.1", "127.8.0.1", "localhost", "::1"]


def complaint(environment: dict[str, str]) -> str:
    """What stops the start; "" for nothing."""
    try:
        Settings.from_environment(environment)
    except SettingError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("mode", ["", "verify_full", "VERIFY-FULL", "verify-full ", "on"])
def test_mode_that_the_driver_does_not_know_is_refused_at_the_start(mode: str) -> None:
    assert "POSTGRES_SSLMODE" in complaint({"POSTGRES_SSLMODE": mode})


@pytest.mark.parametrize("mode", ["disable", "prefer", "require", "verify-ca", "verify-full"])
def test_mode_that_it_knows_is_taken(mode: str) -> None:
    assert Settings.from_environment({"POSTGRES_SSLMODE": mode}).postgres_sslmode == mode


@pytest.mark.parametrize("mode", ["disable", "prefer", "require", "verify-ca"])
@pytest.mark.parametrize(
    "credentials",
    [{"POSTGRES_IAM": "true"}, {"POSTGRES_SECRET": "margin/postgres"}, {"POSTGRES_FUNCTIONS_SECRET": "margin/f"}],
)
def test_credentials_of_postgresql_go_to_nobody_but_who_has_its_name(mode: str, credentials: dict[str, str]) -> None:
    (name,) = credentials
    refused = complaint({**FAR_POSTGRES, **credentials, "POSTGRES_SSLMODE": mode})
    assert name in refused
    assert "verify-full" in refused
    assert complaint({**FAR_POSTGRES, **credentials, **FULL}) == ""


@pytest.mark.parametrize("mode", ["disable", "prefer", "require"])
def test_authorities_of_postgresql_are_not_named_where_nobody_asks_them(mode: str) -> None:
    named = {**FAR_POSTGRES, "POSTGRES_SSLROOTCERT": "/opt/ca/global-bundle.pem"}
    assert "POSTGRES_SSLROOTCERT" in complaint({**named, "POSTGRES_SSLMODE": mode})
    assert complaint({**named, "POSTGRES_SSLMODE": "verify-ca"}) == ""
    assert complaint({**named, **FULL}) == ""


@pytest.mark.parametrize("setting", [{"REDIS_SECRET": "margin/redis"}, {"REDIS_CA": "/opt/ca/redis.pem"}])
def test_secret_and_authorities_of_redis_need_tls(setting: dict[str, str]) -> None:
    (name,) = setting
    refused = complaint({**FAR_REDIS, **setting})
    assert name in refused
    assert "REDIS_TLS" in refused
    assert complaint({**FAR_REDIS, **setting, "REDIS_TLS": "true"}) == ""


@pytest.mark.parametrize("host", ["127.0.0.1.example.com", "127.example.com", "localhost.example.com", "10.0.0.1", ""])
def test_host_that_only_looks_like_this_machine_is_another(host: str) -> None:
    assert complaint({"REDIS_HOST": host, "REDIS_SECRET": "margin/redis"})
    assert complaint({"POSTGRES_HOST": host, "POSTGRES_SECRET": "margin/postgres"})


@pytest.mark.parametrize("host", NEAR)
def test_stores_of_this_machine_may_go_without(host: str) -> None:
    given = {
        "REDIS_HOST": host,
        "REDIS_SECRET": "margin/redis",
        "POSTGRES_HOST": host,
        "POSTGRES_SECRET": "margin/postgres",
        "POSTGRES_SSLMODE": "disable",
        "AWS_LAMBDA_FUNCTION_NAME": "TradeFunction",
    }
    assert complaint(given) == ""


def test_folder_with_the_socket_of_postgresql_is_this_machine() -> None:
    assert complaint({"POSTGRES_HOST": "/run/postgresql", "POSTGRES_SECRET": "margin/postgres"}) == ""


def test_stores_of_the_containers_on_a_laptop_may_go_without() -> None:
    given = json.loads((ROOT / "infra" / "sam-local.json").read_text(encoding="utf-8"))["Parameters"]
    assert complaint({**given, "AWS_SAM_LOCAL": "true", "AWS_LAMBDA_FUNCTION_NAME": "TradeFunction"}) == ""


def test_passwords_that_are_given_may_go_without() -> None:
    assert (
        complaint({**FAR_REDIS, **FAR_POSTGRES, "REDIS_PASSWORD": "of-a-test", "POSTGRES_PASSWORD": "of-a-test"}) == ""
    )
