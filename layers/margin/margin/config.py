"""Settings of the engine: the one place that reads the environment.

Every variable has a default that is right on a laptop; a wrong value stops the start with a sentence that names the
variable.
"""

from __future__ import annotations

import dataclasses
import re
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

PARTITIONS_MAX = 1024
HISTORY_INLINE = "inline"
HISTORY_DRAIN = "drain"
AUTH_JWT = "jwt"
AUTH_OFF = "off"

_POLICY_MAX = 1_000_000
_PERCENT_MAX = 100
_DECIMALS_MAX = 8
_DAYS_MAX = 36_500
_LEEWAY_S_MAX = 300
_RATE_MAX = 1_000_000

_LOOPBACK = re.compile(r"127(\.(25[0-5]|2[0-4][0-9]|1?[0-9]{1,2})){3}")
_SSLMODES = ("disable", "prefer", "require", "verify-ca", "verify-full")
_ASKS_AUTHORITIES = ("verify-ca", "verify-full")

_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"", "0", "false", "no", "off"})


class SettingError(ValueError):
    """An environment variable has a value that the engine cannot use."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings, typed. Units stand last in the names.

    ``redis_timeout_s`` and the two PostgreSQL ones bound every outside call, so that with one store down or frozen a
    caller has an answer within 3 s, which stays below the function's own timeout.
    """

    app_name: str = "margin"
    app_version: str = "0.1.0"
    debug: bool = False
    host: str = "127.0.0.1"
    port: int = 8000
    data_dir: str = ".data"
    log_level: str = "INFO"
    aws_lambda_function_name: str = ""
    aws_sam_local: bool = False

    auth: str = AUTH_JWT
    auth_scope_prefix: str = ""
    auth_jwks: str = ""
    auth_issuer: str = ""
    auth_audience: str = ""
    auth_leeway_s: int = 10

    redis_host: str = "127.0.0.1"
    redis_port: int = 6379
    redis_username: str = ""
    redis_password: str = dataclasses.field(default="", repr=False)
    redis_db: int = 0
    redis_tls: bool = False
    redis_ca: str = ""
    redis_secret: str = ""
    redis_timeout_s: float = 0.8
    redis_connections_max: int = 64

    postgres_host: str = "127.0.0.1"
    postgres_port: int = 5432
    postgres_user: str = "postgres"
    postgres_password: str = dataclasses.field(default="", repr=False)
    postgres_database: str = "margin"
    postgres_sslmode: str = "prefer"
    postgres_sslrootcert: str = ""
    postgres_secret: str = ""
    postgres_functions_secret: str = ""
    postgres_iam: bool = False
    postgres_connect_timeout_s: float = 1.0
    postgres_timeout_s: float = 1.5
    postgres_connections_max: int = 8

    secret_ttl_s: int = 300
    liquidations_queue_url: str = ""

    partitions: int = 1
    history: str = HISTORY_INLINE
    idempotency_ttl_s: int = 86_400
    idempotency_keys_max: int = 0
    rate_limit_account_per_s: int = 0
    rate_limit_account_burst: int = 0
    rate_limit_token_per_s: int = 0
    rate_limit_token_burst: int = 0
    crossed_inline_max: int = 100
    sweep_cycle_s: int = 900
    crossed_queued_max: int = 10_000
    liquidation_buffer: Decimal = Decimal("0.1")
    liquidation_remaining_notional_min: Decimal = Decimal(10)
    margin_warning_pct: Decimal = Decimal(80)
    auto_deleveraging: bool = True
    mark_history_days: int = 90
    report_ttl_s: int = 300
    report_accounts_max: int = 50_000

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings:
        """Read the settings from ``environment``: the variable of a field is its name in capitals.

        Raises
        ------
        SettingError
            When a value is not of its field's type or outside its bounds; the message names the variable.
        """
        values: dict[str, Any] = {
            field.name: _READERS[str(field.type)](field.name.upper(), environment[field.name.upper()])
            for field in dataclasses.fields(cls)
            if field.name.upper() in environment
        }
        settings = cls(**values)
        for wrong in (_wrong_choices, _wrong_tls, _wrong_numbers, _wrong_limits):
            for complaint in wrong(settings):
                raise SettingError(complaint)
        return settings


def _wrong_choices(settings: Settings) -> Iterator[str]:
    if settings.history not in {HISTORY_INLINE, HISTORY_DRAIN}:
        yield f"HISTORY must be {HISTORY_INLINE} or {HISTORY_DRAIN}, not {settings.history!r}"
    if settings.auth not in {AUTH_JWT, AUTH_OFF}:
        yield f"AUTH must be {AUTH_JWT} or {AUTH_OFF}, not {settings.auth!r}"
    if settings.auth == AUTH_OFF and settings.aws_lambda_function_name and not settings.aws_sam_local:
        yield f"AUTH={AUTH_OFF} is for a laptop: in AWS every function wants callers with a token, AUTH={AUTH_JWT}"


def _wrong_tls(settings: Settings) -> Iterator[str]:
    if settings.postgres_sslmode not in _SSLMODES:
        yield f"POSTGRES_SSLMODE must be one of {', '.join(_SSLMODES)}, not {settings.postgres_sslmode!r}"
    if not (settings.redis_tls or _is_this_machine(settings.redis_host)):
        for name in ("redis_secret", "redis_ca"):
            if getattr(settings, name):
                yield f"REDIS_TLS must be true: with {name.upper()}, nobody may listen, or answer in the place of Redis"
    if _is_this_machine(settings.postgres_host):
        return
    if settings.postgres_sslmode != "verify-full":
        for name in ("postgres_iam", "postgres_secret", "postgres_functions_secret"):
            if getattr(settings, name):
                yield f"POSTGRES_SSLMODE must be verify-full: {name.upper()} is for nobody but the server of that name"
    if settings.postgres_sslrootcert and settings.postgres_sslmode not in _ASKS_AUTHORITIES:
        yield "POSTGRES_SSLMODE must be verify-full: POSTGRES_SSLROOTCERT names authorities that are not asked"


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host; of names, only ``localhost`` is known to be one.

    Examples
    --------
    >>> [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "127.example.com")]
    [True, True, True, False, False]
    """
    return host in {"localhost", "::1"} or _LOOPBACK.fullmatch(host) is not None


def _is_this_machine(host: str) -> bool:
    """Whether what is sent there stays here: on the loopback, or in the folder of a socket."""
    return is_loopback(host) or host.startswith("/")


def _wrong_numbers(settings: Settings) -> Iterator[str]:
    if not 1 <= settings.partitions <= PARTITIONS_MAX:
        yield f"PARTITIONS must be from 1 to {PARTITIONS_MAX}, not {settings.partitions}"
    if not 0 <= settings.auth_leeway_s <= _LEEWAY_S_MAX:
        yield f"AUTH_LEEWAY_S must be from 0 to {_LEEWAY_S_MAX} seconds"
    if settings.sweep_cycle_s < 0:
        yield "SWEEP_CYCLE_S must be zero (all accounts at each scan) or above"
    if not 0 <= settings.mark_history_days <= _DAYS_MAX:
        yield f"MARK_HISTORY_DAYS must be from 0 (for ever) to {_DAYS_MAX}"
    if not 0 < settings.margin_warning_pct <= _PERCENT_MAX:
        yield f"MARGIN_WARNING_PCT must be above 0, and at most {_PERCENT_MAX}, which is where liquidation begins"
    for name in ("liquidation_buffer", "liquidation_remaining_notional_min"):
        if not 0 <= getattr(settings, name) < _POLICY_MAX:
            yield f"{name.upper()} must be zero or above, and below {_POLICY_MAX}"
    for name in ("redis_timeout_s", "postgres_connect_timeout_s", "postgres_timeout_s", "idempotency_ttl_s"):
        if getattr(settings, name) <= 0:
            yield f"{name.upper()} must be above zero"


def _wrong_limits(settings: Settings) -> Iterator[str]:
    for name in ("rate_limit_account", "rate_limit_token"):
        limit = (getattr(settings, f"{name}_per_s"), getattr(settings, f"{name}_burst"))
        if limit != (0, 0) and not all(0 < number <= _RATE_MAX for number in limit):
            variable = name.upper()
            yield f"{variable}_PER_S and {variable}_BURST must both be zero (no limit), or from 1 to {_RATE_MAX}"
    if settings.idempotency_keys_max < 0:
        yield "IDEMPOTENCY_KEYS_MAX must be zero (no limit) or above"


def _text(_name: str, value: str) -> str:
    return value


def _integer(name: str, value: str) -> int:
    try:
        return int(value)
    except ValueError:
        message = f"{name} must be a whole number, for example {name}=8"
        raise SettingError(message) from None


def _seconds(name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        message = f"{name} must be a number of seconds, for example {name}=1.5"
        raise SettingError(message) from None


def _decimal(name: str, value: str) -> Decimal:
    try:
        number = Decimal(value)
    except InvalidOperation:
        number = Decimal("NaN")
    exponent = number.as_tuple().exponent
    if not isinstance(exponent, int) or exponent < -_DECIMALS_MAX:
        message = f"{name} must be a number with at most {_DECIMALS_MAX} decimals, for example {name}=0.1"
        raise SettingError(message)
    return number


def _switch(name: str, value: str) -> bool:
    if value.lower() in _TRUE:
        return True
    if value.lower() in _FALSE:
        return False
    message = f"{name} must be true or false"
    raise SettingError(message)


_READERS: dict[str, Callable[[str, str], object]] = {
    "str": _text,
    "int": _integer,
    "float": _seconds,
    "Decimal": _decimal,
    "bool": _switch,
}
