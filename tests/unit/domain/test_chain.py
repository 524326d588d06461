"""What makes a chain sound, link by link."""

from __future__ import annotations

import dataclasses
import json
from decimal import Decimal
from typing import Any

import pytest

from margin.domain.account import Account
from margin.domain.chain import (
    Head,
    Link,
    Mismatch,
    UnreadableError,
    account_of,
    fold,
    follow,
    leap,
    ledger_of,
    resume,
    shown,
    shown_positions,
)
from margin.domain.event import canonical, digest
from margin.domain.position import Position
from tests.chains import chain

NOTHING = Account(1, Decimal(0), {})
BTC = {"quantity": "0.1", "entry_cost": "5000"}


def links(count: int) -> list[Link]:
    """An unbroken chain of deposits of 1."""
    made = []
    for event in chain(1, count):
        body = json.loads(event.body)
        made.append(
            Link(
                account_id=1,
                n=body["n"],
                event_id=event.event_id,
                previous_event_id=body["previous_event_id"],
                hash=digest(event.body),
                body=body,
            )
        )
    return made


def with_body(link: Link, **fields: object) -> Link:
    """Change the body, and its hash with it."""
    body = {**link.body, **fields}
    return dataclasses.replace(link, body=body, hash=digest(canonical(body)))


def head_after(links: list[Link]) -> Head:
    head = Head.unopened(1)
    for link in links:
        followed = follow(head, link)
        assert isinstance(followed, Head)
        head = followed
    return head


def what(head: Head, link: Link) -> str:
    mismatch = follow(head, link)
    assert isinstance(mismatch, Mismatch)
    return mismatch.what


def test_unbroken_chain_is_followed_to_its_end() -> None:
    made = links(3)
    assert head_after(made) == Head(3, made[2].event_id, made[2].hash, Account(1, Decimal(3), {}))
    assert (Head.unopened(1).version, head_after(made).version) == ("", f"3:{made[2].event_id}")


def test_missing_event_is_named() -> None:
    made = links(3)
    assert follow(head_after(made[:1]), made[2]) == Mismatch("event 2 is missing", "2", "3")


def test_event_before_the_first_is_one_too_many() -> None:
    (first,) = links(1)
    assert what(Head.unopened(1), dataclasses.replace(first, n=0)) == "event 0 is one too many"


def test_body_that_was_edited_does_not_have_its_hash() -> None:
    (first,) = links(1)
    assert what(Head.unopened(1), dataclasses.replace(first, body={**first.body, "balance": "2"})).endswith(
        "hash of its body"
    )


@pytest.mark.parametrize(
    "fields", [{"account_id": 2}, {"n": 3}, {"previous_event_id": 7}, {"previous_hash": "another"}]
)
def test_event_that_names_another_predecessor_is_found(fields: dict[str, object]) -> None:
    made = links(2)
    assert what(head_after(made[:1]), with_body(made[1], **fields)) == "event 2 does not name the one before it"


def test_column_that_names_another_predecessor_is_found() -> None:
    made = links(2)
    changed = dataclasses.replace(made[1], previous_event_id=7)
    assert what(head_after(made[:1]), changed) == "event 2 does not name the one before it"


def test_ids_rise() -> None:
    made = links(2)
    changed = dataclasses.replace(made[1], event_id=made[0].event_id)
    assert what(head_after(made[:1]), changed) == "the id of event 2 does not rise"


@pytest.mark.parametrize(
    ("ledger", "expected"),
    [
        ([["cash", "1"], ["external", "-2"]], "the ledger of event 1 does not sum to zero"),
        ([["cash", "2"], ["external", "-2"]], "the cash of event 1 is not the change of its balance"),
        ([["fees", "1"], ["external", "-1"]], "the cash of event 1 is not the change of its balance"),
        ([], "the cash of event 1 is not the change of its balance"),
        ([["cash", "1"], ["mine", "-1"]], "event 1 cannot be read"),
        ([["cash", "1" * 150], ["cash", "0.1"]], "event 1 cannot be read"),
        ([["cash", 1.0], ["external", -1.0]], "event 1 cannot be read"),
    ],
)
def test_ledger_of_an_event_must_balance_and_be_what_it_did(ledger: list[list[Any]], expected: str) -> None:
    (first,) = links(1)
    assert what(Head.unopened(1), with_body(first, ledger=ledger)) == expected


PAID = {"symbol": "BTC-PERP", "quantity": "0.1", "index": "5", "amount": "-0.5"}
FUNDED = [["cash", "0.5"], ["external", "-1"], ["funding", "0.5"]]


def holder() -> tuple[Head, Link]:
    """Somebody with 0.1 that has paid no funding, and a deposit of 1 after it."""
    first, second = links(2)
    head = head_after([first])
    held = dataclasses.replace(
        head.account, positions={"BTC-PERP": Position("BTC-PERP", Decimal("0.1"), Decimal(5000))}
    )
    return dataclasses.replace(head, account=held), second


def test_funding_that_was_due_is_followed() -> None:
    head, link = holder()
    positions = {"BTC-PERP": {**BTC, "entry_funding": "0.5"}}
    after = follow(head, with_body(link, balance="1.5", positions=positions, ledger=FUNDED, funding=[PAID]))
    assert isinstance(after, Head)
    assert after.account.positions["BTC-PERP"].entry_funding == Decimal("0.5")


@pytest.mark.parametrize(
    ("funding", "expected"),
    [
        ([{**PAID, "amount": "-0.4"}], "the funding of BTC-PERP in event 2 is not what was due"),
        ([{**PAID, "index": "6"}], "the funding of BTC-PERP in event 2 is not what was due"),
        ([{**PAID, "quantity": "0.2"}], "event 2 settles funding of BTC-PERP that is not held"),
        ([{**PAID, "symbol": "ETH-PERP"}], "event 2 settles funding of ETH-PERP that is not held"),
        ([PAID, PAID], "event 2 settles funding of BTC-PERP that is not held"),
        ([], "the funding in the ledger of event 2 is not what its positions received and paid"),
        ([{"symbol": "BTC-PERP"}], "event 2 cannot be read"),
        ([{**PAID, "amount": -0.5}], "event 2 cannot be read"),
        ("BTC-PERP", "event 2 cannot be read"),
    ],
)
def test_funding_must_be_what_the_positions_before_it_owe(funding: Any, expected: str) -> None:
    head, link = holder()
    assert what(head, with_body(link, balance="1.5", ledger=FUNDED, funding=funding)) == expected


@pytest.mark.parametrize("body", [None, [], 7, "text", {}])
def test_body_that_is_no_event_is_a_mismatch_and_no_failure(body: object) -> None:
    (first,) = links(1)
    changed = dataclasses.replace(first, body=body, hash=digest(canonical(body)))
    assert what(Head.unopened(1), changed) == "event 1 does not name the one before it"


def test_behind_a_faulty_event_the_next_is_judged_by_itself() -> None:
    made = links(3)
    edited = dataclasses.replace(made[1], body={**made[1].body, "balance": "77"})
    head = resume(head_after(made[:1]), edited)
    assert (head.certain, head.account.balance) == (False, Decimal(77))
    followed = follow(head, made[2])
    assert isinstance(followed, Head)
    assert (followed.certain, followed.account.balance) == (True, Decimal(3))
    assert what(head, dataclasses.replace(made[2], body={})) == "event 3 does not have the hash of its body"


def test_behind_an_unreadable_event_the_state_before_it_is_kept() -> None:
    made = links(2)
    head = resume(head_after(made[:1]), dataclasses.replace(made[1], body=None))
    assert (head.n, head.account.balance) == (2, Decimal(1))


def test_behind_a_gap_the_next_event_is_judged_by_itself() -> None:
    made = links(3)
    head = leap(head_after(made[:1]), made[2])
    assert follow(head, made[2]) == head_after(made)
    assert what(head, dataclasses.replace(made[2], hash="none")) == "event 3 does not have the hash of its body"


def test_fold_opens_changes_and_closes_positions() -> None:
    opened = fold(NOTHING, {"balance": "5", "positions": {"BTC-PERP": BTC}})
    assert opened == Account(1, Decimal(5), {"BTC-PERP": Position("BTC-PERP", Decimal("0.1"), Decimal(5000))})
    assert fold(opened, {"balance": "6", "positions": {}}) == opened.with_balance_change(Decimal(1))
    assert fold(opened, {"balance": "5", "positions": {"BTC-PERP": None}}) == Account(1, Decimal(5), {})


@pytest.mark.parametrize(
    "body",
    [
        None,
        {"positions": {}},
        {"balance": "1"},
        {"balance": 1, "positions": {}},
        {"balance": "much", "positions": {}},
        {"balance": "NaN", "positions": {}},
        {"balance": "1e999999999", "positions": {}},
        {"balance": "1", "positions": [1]},
        {"balance": "1", "positions": {"BTC-PERP": {"quantity": "1"}}},
        {"balance": "1", "positions": {"BTC-PERP": {"quantity": "0", "entry_cost": "0"}}},
    ],
)
def test_state_that_the_engine_does_not_write_is_unreadable(body: Any) -> None:
    with pytest.raises(UnreadableError):
        fold(NOTHING, body)


def test_recorded_state_is_an_account() -> None:
    account = account_of(1, Decimal("7.5"), {"BTC-PERP": BTC})
    assert (account.balance, shown_positions(account.positions)) == (Decimal("7.5"), "BTC-PERP 0.1 for 5000")
    assert shown_positions({}) == "nothing"


def test_ledger_is_read_in_its_order() -> None:
    assert ledger_of({"ledger": [["cash", "1"], ["external", "-1"]]}) == [("cash", 1), ("external", -1)]


def test_what_is_shown_is_cut_off() -> None:
    assert shown("x" * 300) == "x" * 200 + "..."
    assert shown(5) == "5"
