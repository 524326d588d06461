"""Who may call an operation: declared beside its route, checked in one place before anything is read or changed.

::

    @router.get("/positions/{account_id}")
    @of_account(Scope.POSITIONS_READ)
    async def get_positions(account_id: AccountIdPath) -> PositionsAnswer: ...

A route that declares nothing is refused when it is made. The token needs one of the scopes, and:

- `of_account`: the account that the request names; where it names none, all accounts;
- `of_all_accounts`: all accounts, because the operation shows or changes them all;
- `of_market`: no account, because the operation is about none;
- `open_to_all`: no token.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from enum import Enum, unique
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args, get_origin

from margin.errors import ForbiddenError, UnknownAccountError
from margin.http.authentication import present_caller
from margin.http.wire import ACCOUNT_NUMBER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from margin.caller import Caller, Scope

Endpoint = TypeVar("Endpoint", bound="Callable[..., Any]")

_ATTRIBUTE = "margin_access"
_ACCOUNT = "account_id"


class ForeignAccountError(UnknownAccountError):
    """The account is another's; the answer is that of an account that does not exist, the log knows better."""


@unique
class Reach(Enum):
    """Which accounts an operation is about."""

    ACCOUNT = "account"
    ALL_ACCOUNTS = "all accounts"
    MARKET = "market"


@dataclasses.dataclass(frozen=True, slots=True)
class Access:
    """Scopes of which a token needs one (none: the operation is open to all), and which accounts it must be for."""

    scopes: tuple[Scope, ...]
    reach: Reach

    @property
    def is_open(self) -> bool:
        """Whether no token is needed."""
        return not self.scopes

    def require_scope(self, caller: Caller) -> None:
        """Refuse a token without the right to the operation.

        Raises
        ------
        ForbiddenError
        """
        if not caller.has_any(self.scopes):
            message = f"The token needs {' or '.join(f'the scope {scope}' for scope in self.scopes)}."
            raise ForbiddenError(message)
        if self.reach is Reach.ALL_ACCOUNTS and caller.accounts is not None:
            message = "This concerns all accounts: the token needs the claim account_ids with the value *."
            raise ForbiddenError(message)

    def require_account(self, caller: Caller, account_id: int | None) -> None:
        """Refuse an account that the token is not for, as if it did not exist.

        Raises
        ------
        ForeignAccountError
        ForbiddenError
            The request is about all accounts because it names none, and the token is not for all.
        """
        if account_id is None:
            if caller.accounts is not None:
                message = "Name one of your accounts with account_id: the token is not for all accounts."
                raise ForbiddenError(message)
        elif not caller.may_use(account_id):
            raise ForeignAccountError(account_id)


def of_account(*scopes: Scope) -> Callable[[Endpoint], Endpoint]:
    """Declare an operation on the account that the parameter or the body's field ``account_id`` names."""
    return _declaring(scopes, Reach.ACCOUNT)


def of_all_accounts(*scopes: Scope) -> Callable[[Endpoint], Endpoint]:
    """Declare an operation that shows or changes all accounts."""
    return _declaring(scopes, Reach.ALL_ACCOUNTS)


def of_market(*scopes: Scope) -> Callable[[Endpoint], Endpoint]:
    """Declare an operation on the market alone."""
    return _declaring(scopes, Reach.MARKET)


def open_to_all(endpoint: Endpoint) -> Endpoint:
    """Declare an operation that needs no token."""
    return _declare(endpoint, Access((), Reach.MARKET))


def access_of(endpoint: Callable[..., Any]) -> Access:
    """Return what an endpoint declares.

    Raises
    ------
    TypeError
        Nothing.
    """
    access = getattr(endpoint, _ATTRIBUTE, None)
    if not isinstance(access, Access):
        message = f"{endpoint!r} does not say who may call it: see margin.http.access"
        raise TypeError(message)
    return access


def _declaring(scopes: tuple[Scope, ...], reach: Reach) -> Callable[[Endpoint], Endpoint]:
    if not scopes:
        message = "name the scopes that allow the operation, or say @open_to_all"
        raise TypeError(message)
    return functools.partial(_declare, access=Access(scopes, reach))


def _declare(endpoint: Endpoint, access: Access) -> Endpoint:
    """Note on an endpoint who may call it, behind a check of the account that it takes, where it takes one.

    Raises
    ------
    TypeError
        It takes an account and is not declared so, or the other way round; or it takes accounts where nobody looks.
    """
    parameter = _account_parameter(endpoint)
    if (parameter is not None) is not (access.reach is Reach.ACCOUNT):
        message = f"{endpoint!r} must be declared with @of_account if, and only if, it takes an account_id"
        raise TypeError(message)
    declared = endpoint if parameter is None else _checking_account(endpoint, access, parameter)
    setattr(declared, _ATTRIBUTE, access)
    return declared


def _checking_account(endpoint: Endpoint, access: Access, parameter: str) -> Endpoint:
    @functools.wraps(endpoint)
    async def checked(**arguments: Any) -> Any:
        value = arguments[parameter]
        access.require_account(present_caller.get(), value if parameter == _ACCOUNT else value.account_id)
        return await endpoint(**arguments)

    return checked  # type: ignore[return-value]  # its signature is the endpoint's


def _account_parameter(endpoint: Callable[..., Any]) -> str | None:
    """Name of the parameter that is an account's number, or a body with one.

    Raises
    ------
    TypeError
        The endpoint takes accounts in several places, or in one where the check would not look.
    """
    try:
        signature = inspect.signature(endpoint, eval_str=True)
    except NameError:  # the application refuses such an endpoint
        signature = inspect.signature(endpoint)
    named = {name: list(_accounts_in(name, parameter.annotation)) for name, parameter in signature.parameters.items()}
    found = [(name, place) for name, places in named.items() for place in places]
    if len(found) > 1 or any(place not in {_ACCOUNT, f"{name}.{_ACCOUNT}"} for name, place in found):
        message = f"{endpoint!r} takes accounts in {', '.join(place for _, place in found)}: one alone is checked"
        raise TypeError(message)
    return found[0][0] if found else None


def _accounts_in(place: str, annotation: Any, metadata: Sequence[object] = ()) -> Iterator[str]:
    """Places of accounts in a type, by name or by what checks them; "?" stands for one of several, or for none."""
    if get_origin(annotation) is Annotated:
        annotation, *more = get_args(annotation)
        metadata = (*metadata, *more)
    fields = getattr(annotation, "model_fields", None)
    if _ACCOUNT in place.rpartition(".")[2] or ACCOUNT_NUMBER in metadata:
        yield place
    elif fields is not None:
        for name, field in fields.items():
            yield from _accounts_in(f"{place}.{name}", field.annotation, field.metadata)
    else:
        for argument in get_args(annotation):
            yield from _accounts_in(f"{place}?", argument)
