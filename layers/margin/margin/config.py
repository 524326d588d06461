"""Settings of the engine: the one place that reads the environment.

Every variable has a default that is right on a laptop; a wrong value stops the start with a sentence that names the
variable.
"""

from __future__ import annotations

import dataclasses
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PARTITIONS_MAX = 1024
HISTORY_INLINE = "inline"
HISTORY_DRAIN = "drain"

_POLICY_MAX = 1_000_000
_PERCENT_MAX = 100
_DECIMALS_MAX = 8
_DAYS_MAX = 36_500

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

    redis_host: str = "127.0.0.1"
    redis_port: int = 6379
    redis_password: str = dataclasses.field(default="", repr=False)
    redis_db: int = 0
    redis_tls: bool = False
    redis_secret: str = ""
    redis_timeout_s: float = 0.8
    redis_connections_max: int = 64

    postgres_host: str = "127.0.0.1"
    postgres_port: int = 5432
    postgres_user: str = "postgres"
    postgres_password: str = dataclasses.field(default="", repr=False)
    postgres_database: str = "margin"
    postgres_sslmode: str = "prefer"
    postgres_secret: str = ""
    postgres_iam: bool = False
    postgres_connect_timeout_s: float = 1.0
    postgres_timeout_s: float = 1.5
    postgres_connections_max: int = 8

    secret_ttl_s: int = 300
    liquidations_queue_url: str = ""

    partitions: int = 1
    history: str = HISTORY_INLINE
    idempotency_ttl_s: int = 86_400
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
        if not 1 <= settings.partitions <= PARTITIONS_MAX:
            message = f"PARTITIONS must be from 1 to {PARTITIONS_MAX}, not {settings.partitions}"
            raise SettingError(message)
        if settings.history not in {HISTORY_INLINE, HISTORY_DRAIN}:
            message = f"HISTORY must be {HISTORY_INLINE} or {HISTORY_DRAIN}, not {settings.history!r}"
            raise SettingError(message)
        if settings.sweep_cycle_s < 0:
            message = "SWEEP_CYCLE_S must be zero (all accounts at each scan) or above"
            raise SettingError(message)
        if not 0 <= settings.mark_history_days <= _DAYS_MAX:
            message = f"MARK_HISTORY_DAYS must be from 0 (for ever) to {_DAYS_MAX}"
            raise SettingError(message)
        for name in ("liquidation_buffer", "liquidation_remaining_notional_min"):
            if not 0 <= getattr(settings, name) < _POLICY_MAX:
                message = f"{name.upper()} must be zero or above, and below {_POLICY_MAX}"
                raise SettingError(message)
        if not 0 < settings.margin_warning_pct <= _PERCENT_MAX:
            message = (
                f"MARGIN_WARNING_PCT must be above 0, and at most {_PERCENT_MAX}, which is where liquidation begins"
            )
            raise SettingError(message)
        for name in ("redis_timeout_s", "postgres_connect_timeout_s", "postgres_timeout_s", "idempotency_ttl_s"):
            if getattr(settings, name) <= 0:
                message = f"{name.upper()} must be above zero"
                raise SettingError(message)
        return settings


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
