"""Every error the engine answers with, one tree.

::

    MarginError
    ├── InvalidRequestError      422  the request is malformed; names the field
    │   └── FutureTimestampError
    ├── UnauthenticatedError     401  who asks is not known
    ├── ForbiddenError           403  who asks may not do this
    ├── RefusedError             400  understood and refused by a rule
    │   ├── InsufficientMarginError
    │   ├── OutsidePriceBandError
    │   ├── NoMarkPriceError
    │   ├── StaleMarkPriceError
    │   ├── InLiquidationError
    │   ├── InsufficientWithdrawableError
    │   ├── LimitExceededError
    │   ├── NotActiveError
    │   ├── InvalidInstrumentError
    │   ├── InstrumentNotClosableError
    │   ├── FundingRateCapError
    │   ├── OrderRuleError
    │   │   ├── PriceOffTickError
    │   │   ├── QuantityOffLotError
    │   │   ├── QuantityTooSmallError
    │   │   ├── QuantityTooLargeError
    │   │   ├── PositionLimitError
    │   │   ├── NotReducingError
    │   │   └── InstrumentStatusError
    │   └── CursorInvalidError
    ├── NotFoundError            404
    │   ├── UnknownAccountError
    │   └── SnapshotExpiredError
    ├── ConflictError            409
    │   ├── IdempotencyKeyReusedError
    │   ├── ContentionError
    │   ├── EventsBlockedError
    │   ├── InstrumentChangeUnderWayError
    │   ├── HistoryForkError
    │   └── OlderMarkPriceError
    ├── RateLimitedError         429  too many requests, with Retry-After
    └── UnavailableError         503  with Retry-After
        ├── StateNotLoadedError
        │   ├── OpeningUnderWayError
        │   ├── EpochsExhaustedError
        │   └── HistoryLostError
        ├── RedisUnavailableError
        │   ├── RedisTimeoutError
        │   └── RedisRefusedError
        ├── PostgresUnavailableError
        ├── SecretUnavailableError
        ├── QueueUnavailableError
        └── OutcomeUnknownError

``code`` is what a program branches on and an operator looks up, ``status`` the HTTP status, ``retryable`` whether the
same request may succeed later unchanged. The module stands at the centre: domain, services and clients may all import
it.
"""

from __future__ import annotations

from typing import ClassVar


class MarginError(Exception):
    """Base of all errors of the engine.

    Parameters
    ----------
    detail : str
        One sentence: what was wrong and what would be right. Shown to the caller, so it never echoes raw input.
    """

    code: ClassVar[str] = "INTERNAL"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "The engine failed"
    retryable: ClassVar[bool] = False

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class InvalidRequestError(MarginError):
    """A field of the request does not have the form that the API documents."""

    code = "INVALID_REQUEST"
    status = 422
    title = "The request is malformed"

    def __init__(self, detail: str, field: str | None = None) -> None:
        super().__init__(detail)
        self.field = field


class FutureTimestampError(InvalidRequestError):
    """A price says that it is from a moment that is yet to come."""

    def __init__(self, detail: str, symbol: str = "") -> None:
        super().__init__(detail, "timestamp")
        self.symbol = symbol


class UnauthenticatedError(MarginError):
    """The request carries no token that says who sends it."""

    code = "UNAUTHENTICATED"
    status = 401
    title = "Not authenticated"


class ForbiddenError(MarginError):
    """The token does not allow the operation."""

    code = "FORBIDDEN"
    status = 403
    title = "Not allowed"


class RefusedError(MarginError):
    """A rule of the engine refuses a well-formed request."""

    code = "REFUSED"
    status = 400
    title = "The request was refused"


class InsufficientMarginError(RefusedError):
    """Equity after the trade would not cover the initial margin."""

    code = "INSUFFICIENT_MARGIN"
    title = "Insufficient margin"


class OutsidePriceBandError(RefusedError):
    """The trade's price is too far from the mark price."""

    code = "OUTSIDE_PRICE_BAND"
    title = "Price outside the band"


class NoMarkPriceError(RefusedError):
    """A symbol that must be valued has no mark price."""

    code = "NO_MARK_PRICE"
    title = "No mark price"


class StaleMarkPriceError(RefusedError):
    """A mark price is older than its instrument allows, and the request would add risk or take money out."""

    code = "STALE_MARK_PRICE"
    title = "Stale mark price"


class InLiquidationError(RefusedError):
    """The account has positions and no equity: only the engine acts on it until it is closed or funded."""

    code = "IN_LIQUIDATION"
    title = "The account is in liquidation"


class InsufficientWithdrawableError(RefusedError):
    """More was asked for than may leave the account."""

    code = "INSUFFICIENT_WITHDRAWABLE"
    title = "Insufficient withdrawable balance"


class LimitExceededError(RefusedError):
    """A documented limit would be exceeded."""

    code = "LIMIT_EXCEEDED"
    title = "Limit exceeded"


class NotActiveError(RefusedError):
    """A pause switch (engine, symbol or account) forbids the request now."""

    code = "NOT_ACTIVE"
    title = "Not active"


class FundingRateCapError(RefusedError):
    """The funding rate is beyond what the symbol's instrument allows."""

    code = "FUNDING_RATE_CAP"
    title = "Funding rate beyond the cap"


class InvalidInstrumentError(RefusedError):
    """Terms that are well-formed one by one are none of an instrument together."""

    code = "INVALID_INSTRUMENT"
    title = "The terms contradict each other"


class InstrumentNotClosableError(RefusedError):
    """An instrument can be closed only when its symbol trades no more, and nobody holds it."""

    code = "INSTRUMENT_NOT_CLOSABLE"
    title = "The instrument cannot be closed yet"


class OrderRuleError(RefusedError):
    """A rule of the symbol's instrument refuses the trade."""


class PriceOffTickError(OrderRuleError):
    """The price is no multiple of the tick size."""

    code = "PRICE_OFF_TICK"
    title = "Price is not on a tick"


class QuantityOffLotError(OrderRuleError):
    """The quantity is no multiple of the lot size."""

    code = "QUANTITY_OFF_LOT"
    title = "Quantity is no whole number of lots"


class QuantityTooSmallError(OrderRuleError):
    """The quantity is below the least of one trade."""

    code = "QUANTITY_TOO_SMALL"
    title = "Quantity is too small"


class QuantityTooLargeError(OrderRuleError):
    """The quantity is above the most of one trade."""

    code = "QUANTITY_TOO_LARGE"
    title = "Quantity is too large"


class PositionLimitError(OrderRuleError):
    """The trade would leave a larger position than the instrument allows."""

    code = "POSITION_LIMIT"
    title = "Position limit exceeded"


class NotReducingError(OrderRuleError):
    """The caller wants a trade that only reduces, and this one would not."""

    code = "REDUCE_ONLY"
    title = "The trade would not only reduce"


class InstrumentStatusError(OrderRuleError):
    """The instrument's status forbids the trade."""

    code = "INSTRUMENT_STATUS"
    title = "The instrument does not trade so"


class CursorInvalidError(RefusedError):
    """A cursor was not made by this endpoint."""

    code = "CURSOR_INVALID"
    title = "The cursor is not valid"


class NotFoundError(MarginError):
    """What the request names does not exist."""

    code = "NOT_FOUND"
    status = 404
    title = "Not found"


class UnknownAccountError(NotFoundError):
    """No deposit ever opened this account."""

    code = "UNKNOWN_ACCOUNT"
    title = "Unknown account"

    def __init__(self, account_id: int) -> None:
        super().__init__(f"Account {account_id} does not exist; the first deposit opens it.")


class SnapshotExpiredError(NotFoundError):
    """The report that a cursor points into is kept no longer."""

    code = "SNAPSHOT_EXPIRED"
    title = "The snapshot has expired"


class ConflictError(MarginError):
    """The request collides with another."""

    code = "CONFLICT"
    status = 409
    title = "Conflict"


class IdempotencyKeyReusedError(ConflictError):
    """An idempotency key came back with another request."""

    code = "IDEMPOTENCY_KEY_REUSED"
    title = "Idempotency key reused"


class ContentionError(ConflictError):
    """Others kept changing the account while this request was being decided."""

    code = "CONTENTION"
    title = "Contention not resolved"
    retryable = True


class EventsBlockedError(ConflictError):
    """History refuses an event of the account, whoever tries; nothing can pass it."""

    code = "EVENTS_BLOCKED"
    title = "Events are blocked"


class InstrumentChangeUnderWayError(ConflictError):
    """An earlier change of the instrument is not in force everywhere yet."""

    code = "INSTRUMENT_CHANGE_UNDER_WAY"
    title = "Another change is under way"
    retryable = True


class HistoryForkError(ConflictError):
    """History holds another event in this place: the request was undone and nothing of it remains."""

    code = "HISTORY_FORK"
    title = "Undone, retry"
    retryable = True


class OlderMarkPriceError(ConflictError):
    """A price says that it is older than the one that is stored; no price of the call was stored."""

    code = "OLDER_MARK_PRICE"
    title = "Older than the stored mark price"


class RateLimitedError(MarginError):
    """The account or the token sends more requests than it may; nothing was done.

    Parameters
    ----------
    detail : str
        Whose limit it is.
    retry_after_s : int
        Seconds after which a request passes.
    """

    code = "RATE_LIMITED"
    status = 429
    title = "Too many requests"
    retryable = True

    def __init__(self, detail: str, retry_after_s: int = 1) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class UnavailableError(MarginError):
    """A store cannot be used now."""

    code = "UNAVAILABLE"
    status = 503
    title = "Temporarily unavailable"
    retryable = True
    retry_after_s: ClassVar[int] = 1


class StateNotLoadedError(UnavailableError):
    """Redis does not hold the whole state of a partition: it was emptied, restarted or failed over."""

    code = "STATE_NOT_LOADED"
    title = "State is not loaded"
    retry_after_s = 2


class OpeningUnderWayError(StateNotLoadedError):
    """Another process is opening or rebuilding the state at this moment."""


class EpochsExhaustedError(StateNotLoadedError):
    """There were so many openings that a later epoch has no room in an event id."""

    code = "EPOCHS_EXHAUSTED"
    title = "No epoch is left"


class HistoryLostError(StateNotLoadedError):
    """Redis holds what history has lost: nothing is opened until somebody has decided which of them is right."""

    code = "HISTORY_LOST"
    title = "History has lost events"


class RedisUnavailableError(UnavailableError):
    """Redis did not answer in time or refused the connection."""

    code = "REDIS_UNAVAILABLE"
    title = "Redis is unavailable"


class RedisTimeoutError(RedisUnavailableError):
    """Redis did not answer in time; what was sent to it may still be executed."""


class RedisRefusedError(RedisUnavailableError):
    """Redis answered that it does not do what was asked: out of memory, read-only, too few replicas, not allowed."""


class PostgresUnavailableError(UnavailableError):
    """PostgreSQL did not answer in time or refused the connection."""

    code = "POSTGRES_UNAVAILABLE"
    title = "PostgreSQL is unavailable"


class SecretUnavailableError(UnavailableError):
    """A store's credentials cannot be read."""

    code = "SECRET_UNAVAILABLE"
    title = "A secret is unavailable"


class QueueUnavailableError(UnavailableError):
    """The queue of accounts to evaluate did not take them."""

    code = "QUEUE_UNAVAILABLE"
    title = "The queue is unavailable"


class OutcomeUnknownError(UnavailableError):
    """The reply of a commit was lost and could not be asked for: it may or may not have been executed."""

    code = "OUTCOME_UNKNOWN"
    title = "Outcome unknown"
