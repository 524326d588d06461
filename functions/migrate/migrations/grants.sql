-- What the functions may, table by table: all that they do, and nothing else. A new table is out of their reach until it has a line here.
--
-- Executed after the migrations, whenever there are any to look for: once by whoever owns the tables. May be executed again at any time, by hand too
-- (the owner: psql -f grants.sql), as when the role was made later. A role is the whole server's: two databases share it.
do $$
declare
    allowed record;
    former record;
    opened record;
begin
    begin
        if to_regrole('margin_functions') is null then
            -- Logs in, but has no password: it is given one, or, where functions log in to the database itself with IAM tokens, made a member of rds_iam.
            -- Not by itself: a member has no use of a password any more, which a proxy logs in with. Logins of one's own are made members:
            -- grant margin_functions to ...
            create role margin_functions login;
        end if;
    exception
        when duplicate_object or unique_violation then
            null; -- Another database of the server was quicker.
        when insufficient_privilege then
            raise warning using
                message = 'The role margin_functions is missing, and this user may not create it: the functions can only log in as the owner of history.',
                hint = 'As a user who may: create role margin_functions login; then migrate again.';
            return;
    end;
    -- Who can make an object, if only a temporary one, can try to have somebody else run the code of it.
    for opened in select * from (values
        ('temporary', 'database', current_database()::text, has_database_privilege('margin_functions', current_database(), 'temporary'),
            'may make temporary tables'),
        ('create', 'database', current_database()::text, has_database_privilege('margin_functions', current_database(), 'create'),
            'may make schemas'),
        ('create', 'schema', 'public', has_schema_privilege('margin_functions', 'public', 'create'),
            'may make objects in the schema public')
    ) as opened (privilege, kind, name, held, meaning) where held
    loop
        begin
            execute format('revoke %s on %s %I from public, margin_functions', opened.privilege, opened.kind, opened.name);
        exception when insufficient_privilege then
            null; -- Whether it is still there is asked below.
        end;
        if (case opened.kind
            when 'schema' then has_schema_privilege('margin_functions', opened.name, opened.privilege)
            else has_database_privilege('margin_functions', opened.name, opened.privilege)
        end) then
            raise warning using
                message = format('margin_functions %s, and this user may not take that away.', opened.meaning),
                hint = format('As the owner of the %s: revoke %s on %1$s %3$I from public, margin_functions', opened.kind, opened.privilege, opened.name);
        end if;
    end loop;

    -- A role may give its own sessions defaults, which hold for everybody who logs in as it: read only, or no patience with locks. Defaults that
    -- somebody wants are the database's, or those of a login of one's own.
    for former in
        select setdatabase, array_to_string(setconfig, ', ') as settings from pg_db_role_setting
        where setrole = to_regrole('margin_functions')
            and setdatabase in (0, (select oid from pg_database where datname = current_database()))
    loop
        begin
            execute format(
                'alter role margin_functions %s reset all',
                case when former.setdatabase <> 0 then format('in database %I', current_database()) end
            );
        exception when insufficient_privilege then
            raise warning using
                message = format('margin_functions has defaults of its own: %s; this user may not take them away.', former.settings),
                hint = 'As a user who may: alter role margin_functions reset all, or in database ... reset all.';
        end;
    end loop;

    -- Rights of a release before go with it: all that the role has here is what follows.
    for former in
        select distinct relation.oid::regclass::text as name, case relation.relkind when 'S' then 'sequence' else 'table' end as kind
        from pg_class as relation
        left join pg_attribute as attribute on attribute.attrelid = relation.oid and attribute.attacl is not null
        where relation.relnamespace = 'public'::regnamespace and relation.relkind in ('r', 'p', 'v', 'm', 'f', 'S')
            and concat(relation.relacl::text, attribute.attacl::text) like '%margin_functions=%'
        union all
        select oid::regprocedure::text, 'routine'
        from pg_proc
        where pronamespace = 'public'::regnamespace and proacl::text like '%margin_functions=%'
    loop
        execute format('revoke all on %s %s from margin_functions', former.kind, former.name);
    end loop;

    for allowed in select * from (values
        -- History: read, and added to. What is set after the fact is named column by column; triggers allow it once.
        ('events', 'select, insert'),
        ('trades', 'select, insert'),
        ('ledger_lines', 'select, insert'),
        ('liquidations', 'select, insert, update (settled)'),
        -- What PostgreSQL itself says of a change, its id, when it was made and its hash, the functions do not.
        ('control_changes', 'select, insert (name, state, reason, subject, source_ip)'),
        ('openings', 'select, insert (epoch, partition, partitions, run_id, accounts, loaded, subject, source_ip)'),
        ('funding_rates',
            'select, update (applied_at, at_risk), insert (symbol, n, rate, mark_price, rise, funding_index, occurred_at, key, request_hash, '
            'subject, source_ip)'),
        ('instruments', 'select, insert (symbol, version, terms, subject, source_ip), update (effective_at)'),
        ('settlement_steps', 'select, insert, update (spent, outcome, event_id)'),
        ('settlement_outcomes', 'select'),
        -- Samples of mark prices are forgotten when they are old. To lock a row asks for the right to update a column of it; a trigger refuses to.
        ('mark_price_samples', 'select, insert, delete, update (source)'),
        -- Chains of changes are linked and ended by triggers, with the rights of their owner.
        ('account_rebuilds', 'select, insert (account_id, dropped, restored, subject, source_ip)'),
        ('schema_changes', 'select'),
        ('chain_heads', 'select'),
        -- Where things stand now.
        ('accounts', 'select, insert, update (n, event_id, chain_hash, balance, positions, changed_at)'),
        ('mark_prices', 'select, insert, update (price, stamp_us)'),
        ('fences', 'select, insert, update (epoch)'),
        ('settlement_place', 'select, insert, update (at_us, liquidation_id)'),
        -- Which migrations there are, for a process that finds nothing to migrate.
        ('alembic_version', 'select')
    ) as allowed (name, rights)
    loop
        execute format('grant %s on %I to margin_functions', allowed.rights, allowed.name);
    end loop;
    grant usage on sequence epochs to margin_functions;
    grant execute on function skip_control_ids(bigint) to margin_functions;
    -- Everybody may look into the schema unless somebody has taken that away.
    if not has_schema_privilege('margin_functions', 'public', 'usage') then
        grant usage on schema public to margin_functions;
    end if;
end $$;
