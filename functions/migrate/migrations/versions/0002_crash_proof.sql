-- Pause switches, openings and last mark prices outlive Redis; keys are unique for ever only where history acknowledged the event.

create table control_changes (
    id bigint generated always as identity primary key,
    name text not null,
    state text not null check (state in ('active', 'reduce-only', 'paused')),
    reason text not null,
    subject text,
    source_ip text,
    changed_at timestamptz not null default now()
);
create index control_changes_by_name on control_changes (name, id desc);
comment on table control_changes is 'Every change of a pause switch; the one with the highest id of a name is in force.';

create table openings (
    epoch bigint not null,
    partition integer not null,
    partitions integer not null check (partition < partitions),
    run_id text not null,
    accounts bigint not null,
    loaded bigint not null,
    opened_at timestamptz not null default now(),
    primary key (epoch, partition)
);
comment on table openings is 'When the state of a partition was opened, on which server, how many accounts it had and how many were put back.';

-- What was read from Redis before the state was opened anew must not reach history after it was compared: Redis may have lost it. An append
-- names the epoch that it read under and holds a shared lock; an opening waits for those and raises the fence. Locks are advisory, because a row that
-- every trade locks is written by every trade. The function is volatile: it sees what was committed while it waited.
create table fences (
    partition integer not null,
    partitions integer not null,
    epoch bigint not null,
    primary key (partition, partitions)
);
comment on table fences is 'History takes no event that was read under an earlier epoch than this from a partition of so many.';

create function fence_of(partition integer, partitions integer) returns bigint language plpgsql volatile as $$
begin
    perform pg_advisory_xact_lock_shared(730546121, fence_of.partitions * 1024 + fence_of.partition);
    return coalesce((
        select fences.epoch from fences
        where fences.partition = fence_of.partition and fences.partitions = fence_of.partitions
    ), 0);
end $$;

create function raise_fence(partition integer, partitions integer, epoch bigint) returns bigint language plpgsql volatile as $$
declare
    raised bigint;
begin
    perform pg_advisory_xact_lock(730546121, raise_fence.partitions * 1024 + raise_fence.partition);
    insert into fences as present (partition, partitions, epoch)
    values (raise_fence.partition, raise_fence.partitions, raise_fence.epoch)
    on conflict on constraint fences_pkey do update set epoch = greatest(present.epoch, excluded.epoch)
    returning present.epoch into raised;
    return raised;
end $$;

create table mark_prices (
    symbol text primary key,
    price numeric not null check (price > 0),
    stamp_us bigint not null
);
comment on table mark_prices is 'Last mark price of each symbol, as of the last drain: what an emptied Redis gets back, as stale.';

-- An event that Redis alone acknowledged (HISTORY=drain) has a key that is unique for as long as Redis remembers it; any other, for ever.
alter table events
    add column acknowledged_by text not null default 'history' check (acknowledged_by in ('history', 'redis'));
alter table events drop constraint events_account_id_key_key;
create unique index events_by_key on events (account_id, key) where acknowledged_by = 'history';
