-- Step 4 of the write path as before (see 0002_append_events.sql), and a row in liquidations for a DELEVERAGING too: its record has the same fields.
create function append_events_and_deleveragings(
    partition integer, partitions integer, epoch bigint, event_ids bigint[], hashes text[], bodies jsonb[]
)
returns setof bigint language plpgsql volatile as $$
#variable_conflict use_column
begin
    if fence_of(partition, partitions) > epoch then
        return next 0::bigint;
        return;
    end if;
    return query
    with incoming as (
        select
            given.event_id,
            given.hash,
            given.body,
            (given.body ->> 'account_id')::bigint as account_id,
            (given.body ->> 'n')::bigint as n,
            (given.body ->> 'previous_event_id')::bigint as previous_event_id,
            timestamptz 'epoch' + (given.body ->> 'at_us')::bigint * interval '1 microsecond' as occurred_at
        from unnest(event_ids, hashes, bodies) as given (event_id, hash, body)
    ),
    batches as (
        select
            account_id,
            min(n) as first_n,
            max(n) as last_n,
            (array_agg(previous_event_id order by n))[1] as previous_event_id,
            (array_agg(body ->> 'previous_hash' order by n))[1] as previous_hash,
            (array_agg(event_id order by n desc))[1] as event_id,
            (array_agg(hash order by n desc))[1] as hash,
            (array_agg(body ->> 'balance' order by n desc))[1]::numeric as balance,
            min(occurred_at) as first_at,
            max(occurred_at) as last_at
        from incoming
        group by account_id
    ),
    changes as (
        select incoming.account_id, jsonb_object_agg(changed.key, changed.value order by incoming.n) as positions
        from incoming, jsonb_each(incoming.body -> 'positions') as changed
        group by incoming.account_id
    ),
    opened as (
        insert into accounts (account_id, n, event_id, chain_hash, balance, positions, opened_at, changed_at)
        select account_id, last_n, event_id, hash, balance,
            jsonb_strip_nulls(coalesce(changes.positions, '{}')), first_at, last_at
        from batches left join changes using (account_id)
        where first_n = 1
        order by account_id
        on conflict (account_id) do nothing
        returning account_id
    ),
    -- Rows are locked in one order by everybody, so that two drains wait for each other but never in a circle.
    locked as (
        select accounts.account_id
        from accounts join batches using (account_id)
        where first_n > 1
        order by accounts.account_id
        for update of accounts
    ),
    advanced as (
        update accounts
        set n = batches.last_n,
            event_id = batches.event_id,
            chain_hash = batches.hash,
            balance = batches.balance,
            positions = jsonb_strip_nulls(accounts.positions || coalesce(changes.positions, '{}')),
            changed_at = batches.last_at
        from locked join batches using (account_id) left join changes using (account_id)
        where accounts.account_id = locked.account_id
            and accounts.n = batches.first_n - 1
            and accounts.event_id = batches.previous_event_id
            and accounts.chain_hash = batches.previous_hash
        returning accounts.account_id
    ),
    taken as (
        select incoming.*
        from incoming
        where account_id in (select account_id from opened union all select account_id from advanced)
    ),
    chained as (
        insert into events
            (account_id, n, event_id, previous_event_id, hash, type, key, acknowledged_by, request_hash, subject, source_ip,
            occurred_at, body)
        select account_id, n, event_id, previous_event_id, hash, body ->> 'type', body ->> 'key',
            coalesce(body ->> 'acknowledged_by', 'history'), body ->> 'request_hash', body ->> 'subject',
            body ->> 'source_ip', occurred_at, body
        from taken
    ),
    traded as (
        insert into trades (account_id, id, symbol, side, quantity, price, notional, realised_pnl, fee, occurred_at)
        select taken.account_id, taken.event_id, trade.symbol, trade.side, trade.quantity, trade.price, trade.notional,
            trade.realised_pnl, trade.fee, taken.occurred_at
        from taken, jsonb_to_record(taken.body -> 'detail') as trade
            (symbol text, side text, quantity numeric, price numeric, notional numeric, realised_pnl numeric, fee numeric)
        where taken.body ->> 'type' = 'TRADE'
    ),
    liquidated as (
        insert into liquidations (account_id, id, equity, maintenance_margin, reason, positions, shortfall, occurred_at)
        select taken.account_id, taken.event_id, liquidation.equity, liquidation.maintenance_margin, liquidation.reason,
            liquidation.positions, liquidation.shortfall, taken.occurred_at
        from taken, jsonb_to_record(taken.body -> 'detail') as liquidation
            (equity numeric, maintenance_margin numeric, reason text, positions jsonb, shortfall numeric)
        where taken.body ->> 'type' in ('LIQUIDATION', 'DELEVERAGING')
    ),
    booked as (
        insert into ledger_lines (account_id, event_id, line, ledger_account, amount)
        select taken.account_id, taken.event_id, entry.line, entry.pair ->> 0, (entry.pair ->> 1)::numeric
        from taken, jsonb_array_elements(taken.body -> 'ledger') with ordinality as entry (pair, line)
    )
    select opened.account_id from opened union all select advanced.account_id from advanced;
end $$;

-- While two releases run side by side the older one drains what the newer one has executed.
create or replace function append_events(
    partition integer, partitions integer, epoch bigint, event_ids bigint[], hashes text[], bodies jsonb[]
)
returns setof bigint language plpgsql volatile as $$
begin
    return query select append_events_and_deleveragings(partition, partitions, epoch, event_ids, hashes, bodies);
end $$;
