-- What the functions may, table by table: all that they do, and nothing else. A new table is out of their reach until it has a line here.
--
-- Executed after the migrations, whenever there are any to look for: once by whoever owns the tables. May be executed again at any time, by hand too
-- (the owner: psql -f grants.sql), as when the role was made later. A role is the whole server's: two databases share it.
do $$
declare
    allowed record;
    former record;
begin
    begin
        if to_regrole('margin_functions') is null then
            -- Logs in, but has no password: with one it is given one, with IAM tokens it is a member of rds_iam. Logins of one's own are made members:
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
    if to_regrole('rds_iam') is not null and not pg_has_role('margin_functions', 'rds_iam', 'member') then
        begin
            grant rds_iam to margin_functions;
        exception when insufficient_privilege then
            raise warning 'margin_functions cannot log in with IAM tokens: this user may not grant rds_iam to it.';
        end;
    end if;

    -- Rights of a release before go with it: all that the role has here is what follows.
    for former in
        select distinct relation.oid::regclass as name, relation.relkind
        from pg_class as relation
        left join pg_attribute as attribute on attribute.attrelid = relation.oid and attribute.attacl is not null
        where relation.relnamespace = 'public'::regnamespace and relation.relkind in ('r', 'p', 'v', 'S')
            and concat(relation.relacl::text, attribute.attacl::text) like '%margin_functions=%'
    loop
        execute format('revoke all on %s %s from margin_functions', case former.relkind when 'S' then 'sequence' else 'table' end, former.name);
    end loop;

    for allowed in select * from (values
        -- History: read, and added to. What is set after the fact is named column by column; triggers allow it once.
        ('events', 'select, insert'),
        ('trades', 'select, insert'),
        ('ledger_lines', 'select, insert'),
        ('liquidations', 'select, insert, update (settled)'),
        ('control_changes', 'select, insert'),
        ('openings', 'select, insert'),
        ('funding_rates', 'select, insert, update (applied_at, at_risk)'),
        ('instruments', 'select, insert, update (effective_at)'),
        ('settlement_steps', 'select, insert, update (spent, outcome, event_id)'),
        ('settlement_outcomes', 'select'),
        -- Samples of mark prices are forgotten when they are old. To lock a row asks for the right to update a column of it; a trigger refuses to.
        ('mark_price_samples', 'select, insert, delete, update (source)'),
        -- Chains of changes are linked and ended by triggers, with the rights of their owner.
        ('account_rebuilds', 'select, insert'),
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
    -- Ids are skipped when the drain says up to which it has read.
    grant usage, update on sequence control_changes_id_seq to margin_functions;
    -- Everybody may look into the schema unless somebody has taken that away.
    if not has_schema_privilege('margin_functions', 'public', 'usage') then
        grant usage on schema public to margin_functions;
    end if;
end $$;
