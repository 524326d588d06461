"""Any single field that is changed in history is found: of an event, of what is derived from it, of a change."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from margin.domain.change_chain import Change, ChangeHead, chained_hash, chained_text
from margin.ports.audit import ChangeChain
from margin.services.verification import VerificationService
from tests.fakes.audit import FakeHistoryAudit
from tests.property.test_reconcile_properties import SIZES, history_mutations, steps, trade_through

if TYPE_CHECKING:
    from typing import Any

    from margin.services.verification import Break, VerificationReport

NAMES = ("engine", "account:1")

texts = st.text(max_size=12)
fields = st.dictionaries(
    st.sampled_from(["name", "state", "reason", "subject", "source_ip"]), st.none() | texts, min_size=1
)


async def verify(history: FakeHistoryAudit) -> tuple[VerificationReport, list[Break]]:
    found: list[Break] = []
    sizes = dataclasses.replace(SIZES, changes=2)
    report = await VerificationService(history, sizes).verify(found=found.append)
    assert report.complete
    return report, found


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(script=st.lists(steps, max_size=25), data=st.data())
async def test_any_single_field_of_events_and_derived_rows_that_is_changed_is_found(
    script: list[tuple[Any, ...]], data: st.DataObject
) -> None:
    exchange = await trade_through(script)
    history = FakeHistoryAudit(exchange.history_store)
    report, found = await verify(history)
    assert found == []
    assert report.events == sum(len(chain) for chain in exchange.history_store.chains.values())
    count = sum(1 for _ in history_mutations(history))
    for number in data.draw(st.lists(st.integers(0, count - 1), min_size=20, max_size=20)):
        history = FakeHistoryAudit(exchange.history_store)
        name, change = list(history_mutations(history))[number]
        change()
        assert (await verify(history))[1], name


def chained(history: FakeHistoryAudit, drawn: list[dict[str, str | None]]) -> None:
    """Give history changes with these fields, in turn to each name, as the store would."""
    for n, values in enumerate(drawn, start=1):
        name = NAMES[n % len(NAMES)]
        head = history.change_heads.get((ChangeChain.CONTROLS, name), ChangeHead(name, 0, "", 0))
        written = {"name": name, "id": str(n), **{key: value for key, value in values.items() if key != "name"}}
        change = Change(name=name, n=n, fields=written, previous_hash=head.hash, hash=chained_hash(head.hash, written))
        history.change_rows[ChangeChain.CONTROLS].append(change)
        history.change_heads[ChangeChain.CONTROLS, name] = ChangeHead(name, n, change.hash, head.changes + 1)


@settings(deadline=None, max_examples=150)
@given(drawn=st.lists(fields, min_size=1, max_size=8), data=st.data())
async def test_any_single_field_of_a_change_that_is_changed_is_found(
    drawn: list[dict[str, str | None]], data: st.DataObject
) -> None:
    exchange = await trade_through([])
    history = FakeHistoryAudit(exchange.history_store)
    chained(history, drawn)
    report, found = await verify(history)
    assert (report.changes, found) == (len(drawn), [])
    rows = history.change_rows[ChangeChain.CONTROLS]
    place = data.draw(st.integers(0, len(rows) - 1))
    row = rows[place]
    column = data.draw(st.sampled_from(["hash", "previous_hash", *row.fields]))
    value = data.draw(texts if column in {"hash", "previous_hash"} else texts | st.none())
    if column in {"hash", "previous_hash"}:
        assume(value != getattr(row, column))
        rows[place] = dataclasses.replace(row, **{column: value})
    else:
        assume(value != row.fields[column])
        rows[place] = dataclasses.replace(row, fields={**row.fields, column: value})
    _, found = await verify(history)
    assert f"control_changes {row.name}, change {row.n}" in {one.where for one in found}


@settings(deadline=None, max_examples=150)
@given(drawn=st.lists(fields, min_size=1, max_size=8), data=st.data())
async def test_any_change_that_is_deleted_or_moved_to_another_place_is_found(
    drawn: list[dict[str, str | None]], data: st.DataObject
) -> None:
    exchange = await trade_through([])
    history = FakeHistoryAudit(exchange.history_store)
    chained(history, drawn)
    rows = history.change_rows[ChangeChain.CONTROLS]
    one = rows.pop(data.draw(st.integers(0, len(rows) - 1)))
    if data.draw(st.booleans()):
        # Behind the others, as if it were the newest.
        rows.append(dataclasses.replace(one, n=len(drawn) + 1))
        assume(len([row for row in rows if row.name == one.name]) > 1)
    _, found = await verify(history)
    assert found


@given(one=fields, other=fields)
def test_different_changes_are_never_the_same_text(one: dict[str, str | None], other: dict[str, str | None]) -> None:
    stated = [{name: value for name, value in each.items() if value is not None} for each in (one, other)]
    assert (chained_text(one) == chained_text(other)) == (list(stated[0].items()) == list(stated[1].items()))
