-- Who, what, when and from where of what belongs to no account's chain, in chains of their own: one for each switch, symbol, partition, rebuilt
-- account, and one for the schema. The hash of a row is the SHA-256 of the hash before it in its chain, a line feed, and the text of every column
-- that never changes: name, '=', length in bytes, ':', value, line feed; nulls are left out. It is computed here, on insert, so that no code path and no older
-- release leaves it out, and in `margin.domain.change_chain` by whoever verifies.

alter table openings add column subject text, add column source_ip text;
comment on column openings.subject is 'Who had it opened; null of those from before it was kept.';

alter table mark_price_samples add column subject text, add column source_ip text;
comment on column mark_price_samples.subject is 'Who sent the price; null where nobody knows.';

create table account_rebuilds (
    id bigint generated always as identity primary key,
    account_id bigint not null,
    dropped text not null,
    restored text not null,
    subject text,
    source_ip text,
    rebuilt_at timestamptz not null default now()
);
create index account_rebuilds_by_account on account_rebuilds (account_id, id);
comment on table account_rebuilds is 'Accounts whose state in Redis was made anew: the version that was there, and the one that history has; empty for none.';

create table schema_changes (
    id bigint generated always as identity primary key,
    name text not null default 'schema',
    revision text not null,
    subject text default session_user,
    source_ip text default host(inet_client_addr()),
    applied_at timestamptz not null default now()
);
comment on table schema_changes is 'Migrations from 0008 on: the role that applied each, and from where.';

create table chain_heads (
    chain text not null,
    name text not null,
    n bigint not null,
    hash text not null,
    changes bigint not null check (changes > 0),
    primary key (chain, name)
);
comment on table chain_heads is 'Where each chain of changes ends and how many it has, so that one whose end is deleted is seen to be short.';

create function chained_field(name text, value text) returns text language sql stable strict
return name || '=' || octet_length(convert_to(value, 'UTF8')) || ':' || value || E'\n';

create function chained_moment(moment timestamptz) returns text language sql stable strict
return trunc(extract(epoch from moment) * 1000000)::text;

create function chained_text(change control_changes) returns text language sql stable
return concat(
    chained_field('name', change.name), chained_field('id', change.id::text), chained_field('state', change.state),
    chained_field('reason', change.reason), chained_field('subject', change.subject),
    chained_field('source_ip', change.source_ip), chained_field('changed_at', chained_moment(change.changed_at))
);

create function chained_text(change instruments) returns text language sql stable
return concat(
    chained_field('symbol', change.symbol), chained_field('version', change.version::text),
    chained_field('terms', change.terms::text), chained_field('subject', change.subject),
    chained_field('source_ip', change.source_ip), chained_field('changed_at', chained_moment(change.changed_at))
);

create function chained_text(change funding_rates) returns text language sql stable
return concat(
    chained_field('symbol', change.symbol), chained_field('n', change.n::text), chained_field('rate', change.rate::text),
    chained_field('mark_price', change.mark_price::text), chained_field('rise', change.rise::text),
    chained_field('funding_index', change.funding_index::text),
    chained_field('occurred_at', chained_moment(change.occurred_at)),
    chained_field('recorded_at', chained_moment(change.recorded_at)), chained_field('key', change.key),
    chained_field('request_hash', change.request_hash), chained_field('subject', change.subject),
    chained_field('source_ip', change.source_ip)
);

create function chained_text(change openings) returns text language sql stable
return concat(
    chained_field('partition', change.partition::text), chained_field('epoch', change.epoch::text),
    chained_field('partitions', change.partitions::text), chained_field('run_id', change.run_id),
    chained_field('accounts', change.accounts::text), chained_field('loaded', change.loaded::text),
    chained_field('opened_at', chained_moment(change.opened_at)), chained_field('subject', change.subject),
    chained_field('source_ip', change.source_ip)
);

create function chained_text(change account_rebuilds) returns text language sql stable
return concat(
    chained_field('account_id', change.account_id::text), chained_field('id', change.id::text),
    chained_field('dropped', change.dropped), chained_field('restored', change.restored),
    chained_field('subject', change.subject), chained_field('source_ip', change.source_ip),
    chained_field('rebuilt_at', chained_moment(change.rebuilt_at))
);

create function chained_text(change schema_changes) returns text language sql stable
return concat(
    chained_field('name', change.name), chained_field('id', change.id::text),
    chained_field('revision', change.revision), chained_field('subject', change.subject),
    chained_field('source_ip', change.source_ip), chained_field('applied_at', chained_moment(change.applied_at))
);

create function chained_hash(previous_hash text, own text) returns text language sql stable
return encode(sha256(convert_to(previous_hash || E'\n' || own, 'UTF8')), 'hex');

-- What follows runs with the rights of its owner. So nobody else may call it, or have a trigger of their own call it, and it does nothing for a table
-- that is not named here: the columns of another one can have types that run code where they are converted. pg_catalog comes first in its
-- search_path and temporary objects last; calls that a function of exactly these types could take over name pg_catalog.
create function is_chained(relation oid) returns boolean language sql immutable
return relation in (
    'control_changes'::regclass::oid, 'instruments'::regclass::oid, 'funding_rates'::regclass::oid,
    'openings'::regclass::oid, 'account_rebuilds'::regclass::oid, 'schema_changes'::regclass::oid
);

-- Links a new row to the end of its chain; the arguments are the columns of the chain's name and of the place in it, and the sequence that places are
-- drawn from, if they are. The end is what chain_heads says, not the last row that is there: where somebody has deleted that, a switch can still be
-- set, and the gap stays for all to see. Rows behind the end are those that the same statement has inserted.
create function link_change() returns trigger language plpgsql security definer as $$
declare
    given jsonb;
    chain_name text;
    place bigint;
    head chain_heads%rowtype;
    newest_place bigint;
    newest_hash text;
    place_max bigint;
begin
    if not is_chained(tg_relid) then
        raise exception '% is no chain of changes', tg_relid::regclass using errcode = 'insufficient_privilege';
    end if;
    given := pg_catalog.to_jsonb(new);
    chain_name := given ->> tg_argv[0];
    place := given ->> tg_argv[1];
    -- Held until the row is visible, so that the next one of this chain is linked to it.
    perform pg_advisory_xact_lock(730546122, hashtext(tg_table_name::text || ' '::text || chain_name));
    select * into head from chain_heads where chain = tg_table_name::text and name = chain_name;
    execute pg_catalog.format(
        'select hash, %5$I from %1$I.%2$I where %3$I = ($1).%4$I and %5$I > $2 order by %5$I desc limit 1',
        tg_table_schema, tg_table_name, tg_argv[0], tg_argv[0], tg_argv[1]
    ) into newest_hash, newest_place using new, coalesce(head.n, -1::bigint);
    -- Behind a place that is far ahead there would be none for anybody else: one row would stop a switch for good.
    if tg_nargs > 2 then
        execute pg_catalog.format('select last_value from %I.%I', tg_table_schema, tg_argv[2]) into place_max;
    else
        place_max := coalesce(newest_place, head.n, 0::bigint) + 1::bigint;
    end if;
    if place > place_max then
        raise exception '% of % is ahead of its chain: % comes after %', tg_argv[1], tg_table_name, place, place_max
            using errcode = 'MA002';
    end if;
    new.previous_hash := coalesce(newest_hash, head.hash, '');
    new.hash := chained_hash(new.previous_hash, chained_text(new));
    return new;
end $$;

-- After the insert, because one that meets a row of the same key may insert nothing. Of two that were linked to the same row the second finds the
-- end moved, whatever the isolation: a chain has no forks.
create function move_chain_head() returns trigger language plpgsql security definer as $$
declare
    given jsonb;
begin
    if not is_chained(tg_relid) then
        raise exception '% is no chain of changes', tg_relid::regclass using errcode = 'insufficient_privilege';
    end if;
    given := pg_catalog.to_jsonb(new);
    insert into chain_heads as head (chain, name, n, hash, changes)
    values (tg_table_name::text, given ->> tg_argv[0], (given ->> tg_argv[1])::bigint, new.hash, 1)
    on conflict on constraint chain_heads_pkey do update
    set n = excluded.n, hash = excluded.hash, changes = head.changes + 1::bigint
    where head.n < excluded.n and head.hash = new.previous_hash;
    if not found then
        raise exception '% of % is not linked to the end of its chain', tg_table_name, given ->> tg_argv[0]
            using errcode = 'serialization_failure';
    end if;
    return null;
end $$;

create function record_schema_change() returns trigger language plpgsql security definer as $$
begin
    if tg_relid <> 'alembic_version'::regclass::oid then
        raise exception '% says nothing of migrations', tg_relid::regclass using errcode = 'insufficient_privilege';
    end if;
    insert into schema_changes (revision) values (new.version_num);
    return null;
end $$;

-- Where history came back older than Redis it would give out ids a second time. The functions may not set the sequence: set to its end, it would stop
-- every switch for good. They have it skip what an exchange can have lost, counted from the last change that was written down.
create function skip_control_ids(up_to bigint) returns bigint language plpgsql security definer as $$
declare
    drawn bigint;
    skipped_max constant bigint := 16777216;
begin
    -- The lock of the one that writes a change down: no number is drawn meanwhile.
    perform pg_advisory_xact_lock(7305461211);
    -- One is drawn as well, because a sequence that is set to less than it has given out would give that out twice.
    drawn := nextval('control_changes_id_seq'::regclass);
    if up_to <= drawn then
        return drawn;
    end if;
    if up_to - skipped_max > coalesce((select max(id) from control_changes), 0::bigint) then
        raise exception 'change % of a switch is more than an exchange can have lost', up_to using errcode = 'MA002';
    end if;
    return setval('control_changes_id_seq'::regclass, up_to);
end $$;
comment on function skip_control_ids is 'Gives no change of a switch an id up to this one any more.';

-- Rows that are there already get their links; other triggers on these tables refuse updates. Nobody reads or writes these tables meanwhile, nor
-- samples of mark prices: 4 s for 100000 payments of funding on a small machine, the better part of a minute for a million. Payments of funding,
-- switches, instruments, openings and a function that starts and reads the rules wait, and after their lock_timeout of 3 s are refused with 503
-- and come again; trades of functions that run do not wait.
do $$
declare
    chained record;
    change record;
    last_name text;
    last_hash text;
begin
    for chained in
        select oid::regprocedure as name from pg_proc where pronamespace = current_schema()::regnamespace and proname in
            ('link_change', 'move_chain_head', 'record_schema_change', 'skip_control_ids')
    loop
        execute format('alter function %s set search_path = pg_catalog, %I, pg_temp', chained.name, current_schema());
        execute format('revoke all on function %s from public', chained.name);
    end loop;
    for chained in
        select * from (values
            ('control_changes', 'name', 'id', 'control_changes_id_seq'),
            ('instruments', 'symbol', 'version', null),
            ('funding_rates', 'symbol', 'n', null),
            ('openings', 'partition', 'epoch', 'epochs'),
            ('account_rebuilds', 'account_id', 'id', 'account_rebuilds_id_seq'),
            ('schema_changes', 'name', 'id', 'schema_changes_id_seq')
        ) as chains (relation, name, n, drawn_from)
    loop
        execute format('alter table %I add column previous_hash text, add column hash text', chained.relation);
        execute format('alter table %I disable trigger user', chained.relation);
        last_name := null;
        for change in execute format(
            'select ctid as place, %2$I::text as name, %3$I as n, chained_text(change) as own from %1$I as change order by %2$I, %3$I',
            chained.relation, chained.name, chained.n
        ) loop
            if change.name is distinct from last_name then
                last_name := change.name;
                last_hash := '';
            end if;
            execute format('update %I set previous_hash = $1, hash = $2 where ctid = $3', chained.relation)
                using last_hash, chained_hash(last_hash, change.own), change.place;
            last_hash := chained_hash(last_hash, change.own);
        end loop;
        execute format(
            'insert into chain_heads (chain, name, n, hash, changes)
            select distinct on (%2$I) %1$L, %2$I::text, %3$I, hash, count(*) over (partition by %2$I)
            from %1$I order by %2$I, %3$I desc',
            chained.relation, chained.name, chained.n
        );
        execute format('alter table %I alter column previous_hash set not null, alter column hash set not null', chained.relation);
        execute format('alter table %I enable trigger user', chained.relation);
        execute format(
            'create trigger link_change before insert on %I for each row execute function link_change(%s)',
            chained.relation, concat_ws(', ', quote_literal(chained.name), quote_literal(chained.n), quote_literal(chained.drawn_from))
        );
        execute format(
            'create trigger move_chain_head after insert on %I for each row execute function move_chain_head(%L, %L)',
            chained.relation, chained.name, chained.n
        );
    end loop;
end $$;

create trigger record_schema_change after insert or update on alembic_version
    for each row execute function record_schema_change();

create trigger append_only before update or delete on account_rebuilds for each row execute function refuse_change();
create trigger append_only_whole before truncate on account_rebuilds for each statement execute function refuse_change();
create trigger append_only before update or delete on schema_changes for each row execute function refuse_change();
create trigger append_only_whole before truncate on schema_changes for each statement execute function refuse_change();
-- An end moves with each change; the functions, which may not write here, move it by inserting one.
create trigger append_only before delete on chain_heads for each row execute function refuse_change();
create trigger append_only_whole before truncate on chain_heads for each statement execute function refuse_change();
