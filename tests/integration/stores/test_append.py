"""Appending to history: each event once, in its place, or a fork or gap that is told as such."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from margin.ports.history import Appended
from tests.chains import READ_AT, chain, chain_with_keys
from tests.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from margin.config import Settings
    from margin.domain.event import StoredEvent
    from margin.runtime import Engine
    from tests.integration.conftest import MakeEngine

    Query = Callable[..., list[tuple[Any, ...]]]

WRITERS = 30


async def _append(engine: Engine, events: Sequence[StoredEvent]) -> dict[int, Appended]:
    async with engine.history_store.reserve() as writer:
        return await writer.append(events, READ_AT)


def _ids(events: Sequence[StoredEvent]) -> tuple[int, ...]:
    return tuple(event.event_id for event in events)


def _stored(query: Query, account_id: int = 1) -> tuple[int, ...]:
    return tuple(
        row[0] for row in query("select event_id from events where account_id = %(id)s order by n", id=account_id)
    )


async def test_batch_is_stored_in_one_statement(make_engine: MakeEngine, settings: Settings, query: Query) -> None:
    async with Proxy(settings.postgres_host, settings.postgres_port) as proxy:
        engine = await make_engine(postgres_port=proxy.port)
        events = chain(1, 50)
        async with engine.history_store.reserve() as writer:
            before = proxy.round_trips
            assert await writer.append(events, READ_AT) == {1: Appended(_ids(events))}
            assert proxy.round_trips - before == 1
    assert _stored(query) == _ids(events)
    assert query("select count(distinct xmin::text) from events") == [(1,)]
    assert query("select n, event_id, balance from accounts") == [(50, 1050, 50)]
    assert query("select count(*), sum(amount) from ledger_lines") == [(100, 0)]


async def test_batches_of_several_accounts_are_judged_one_by_one(engine: Engine, query: Query) -> None:
    first, second = chain(1, 2), chain(2, 2)
    await _append(engine, chain(2, 2, id_offset=500_000, name="other"))
    third = chain(3, 4)
    appended = await _append(engine, [*first, *second, *third[2:]])
    assert appended == {1: Appended(_ids(first)), 2: Appended((), forked=True), 3: Appended((), gap=True)}
    assert _stored(query) == _ids(first)
    assert _stored(query, 3) == ()


async def test_same_batch_twice_is_stored_once_and_told_as_stored(engine: Engine, query: Query) -> None:
    events = chain(1, 3)
    assert await _append(engine, events) == await _append(engine, events) == {1: Appended(_ids(events))}
    assert _stored(query) == _ids(events)
    assert query("select count(*) from ledger_lines") == [(6,)]


@pytest.mark.parametrize("present", [1, 2, 3, 4])
async def test_batch_that_is_stored_in_part_is_completed(engine: Engine, query: Query, present: int) -> None:
    events = chain(1, 4)
    await _append(engine, events[:present])
    assert await _append(engine, events) == {1: Appended(_ids(events))}
    assert _stored(query) == _ids(events)
    assert query("select n, event_id, balance from accounts") == [(4, 1004, 4)]


async def test_overlapping_batches_of_many_writers_store_each_event_once_and_nobody_is_told_of_a_fork(
    make_engine: MakeEngine, query: Query
) -> None:
    engine = await make_engine(postgres_connections_max=WRITERS)
    events = chain(1, 40)
    await _append(engine, events[:5])
    batches = [events[writer % 6 : 10 + writer] for writer in range(WRITERS)]
    answers = await asyncio.gather(*(_append(engine, batch) for batch in batches))
    assert not any(answer[1].forked or answer[1].gap for answer in answers)
    for batch, answer in zip(batches, answers, strict=True):
        assert answer[1].stored == _ids(batch)[: len(answer[1].stored)]
    longest = max(answer[1].stored[-1] for answer in answers)
    assert longest == _ids(events)[10 + WRITERS - 2]
    assert _stored(query) == _ids(events)[: 10 + WRITERS - 1]
    assert query("select n, balance from accounts") == [(39, 39)]
    assert query("select count(*), sum(amount) from ledger_lines") == [(78, 0)]


async def test_same_first_event_of_many_writers_opens_the_account_once(make_engine: MakeEngine, query: Query) -> None:
    engine = await make_engine(postgres_connections_max=WRITERS)
    events = chain(1, 1)
    answers = await asyncio.gather(*(_append(engine, events) for _ in range(WRITERS)))
    assert answers == [{1: Appended(_ids(events))}] * WRITERS
    assert query("select count(*) from events") == [(1,)]


async def test_different_events_for_one_place_by_many_writers_let_one_in_and_tell_the_others_of_a_fork(
    make_engine: MakeEngine, query: Query
) -> None:
    engine = await make_engine(postgres_connections_max=WRITERS)
    (root,) = chain(1, 1)
    await _append(engine, [root])
    rivals = [
        chain(1, 1, after=root, n=2, id_offset=writer * 10_000, name=f"w{writer}-") for writer in range(1, WRITERS + 1)
    ]
    answers = [answer[1] for answer in await asyncio.gather(*(_append(engine, rival) for rival in rivals))]
    (winner,) = [answer for answer in answers if not answer.forked]
    assert _stored(query) == (root.event_id, *winner.stored)
    assert sum(answer == Appended((), forked=True) for answer in answers) == WRITERS - 1


async def test_other_event_in_the_place_is_a_fork_and_changes_nothing(engine: Engine, query: Query) -> None:
    events = chain(1, 3)
    await _append(engine, events)
    other = chain(1, 2, after=events[0], n=2, id_offset=500_000, name="other")
    assert await _append(engine, other) == {1: Appended((), forked=True)}
    assert _stored(query) == _ids(events)


async def test_event_after_another_predecessor_than_the_last_is_a_fork(engine: Engine, query: Query) -> None:
    events = chain(1, 2)
    await _append(engine, events)
    other = chain(1, 2, id_offset=500_000, name="other")
    (after_other,) = chain(1, 1, after=other[1], n=3)
    assert await _append(engine, [after_other]) == {1: Appended((), forked=True)}
    assert _stored(query) == _ids(events)


async def test_event_after_another_content_of_its_predecessor_is_a_fork(engine: Engine, query: Query) -> None:
    events = chain(1, 2)
    await _append(engine, events)
    same_id = chain(1, 1, after=events[0], n=2, name="other")
    (after_it,) = chain(1, 1, after=same_id[0], n=3)
    assert await _append(engine, [after_it]) == {1: Appended((), forked=True)}
    assert _stored(query) == _ids(events)


async def test_event_with_a_missing_predecessor_is_a_gap(engine: Engine, query: Query) -> None:
    events = chain(1, 4)
    await _append(engine, events[:1])
    assert await _append(engine, events[2:]) == {1: Appended((), gap=True)}
    assert _stored(query) == _ids(events[:1])


async def test_event_of_an_unknown_account_that_is_not_its_first_is_a_gap(engine: Engine, query: Query) -> None:
    assert await _append(engine, chain(1, 4)[2:]) == {1: Appended((), gap=True)}
    assert query("select count(*) from accounts") == [(0,)]


async def test_used_key_is_a_fork_for_its_event_and_its_predecessors_are_kept(engine: Engine, query: Query) -> None:
    events = chain(1, 2)
    await _append(engine, events)
    late = chain_with_keys(1, ["a", "b", "1", "c"], after=events[1], n=3)
    appended = (await _append(engine, late))[1]
    assert appended == Appended(_ids(late[:2]), forked=True, key_used_by=late[2].event_id)
    assert _stored(query) == _ids([*events, *late[:2]])
    assert query("select n, event_id from accounts") == [(4, 1004)]


async def test_other_event_with_the_id_of_the_stored_one_is_a_fork(engine: Engine, query: Query) -> None:
    events = chain(1, 2)
    await _append(engine, events)
    same_id = chain(1, 1, after=events[0], n=2, name="other")
    assert same_id[0].event_id == events[1].event_id
    assert await _append(engine, same_id) == {1: Appended((), forked=True)}


async def test_event_that_cannot_be_stored_is_rejected_and_its_predecessors_are_kept(
    engine: Engine, query: Query
) -> None:
    events = chain(1, 2)
    unstorable = chain(1, 2, after=events[1], n=3, subject="no text in PostgreSQL holds \0")
    others = chain(2, 2)
    appended = await _append(engine, [*events, *unstorable, *others])
    assert appended == {1: Appended(_ids(events), rejected=True), 2: Appended(_ids(others))}
    assert _stored(query) == _ids(events)
    assert query("select n from accounts order by account_id") == [(2,), (2,)]


async def test_stored_bodies_are_immutable_facts_that_name_their_predecessors(engine: Engine, query: Query) -> None:
    events = chain(1, 3)
    await _append(engine, events)
    rows = query("select previous_event_id, hash, body ->> 'previous_hash' from events order by n")
    assert [row[0] for row in rows] == [0, 1001, 1002]
    assert [row[2] for row in rows] == ["", rows[0][1], rows[1][1]]
