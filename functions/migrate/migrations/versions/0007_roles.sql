-- What is written into history stays as it is, whoever asks: these triggers hold for the owner of the tables and for superusers too. Nothing fires at
-- an insertion, so the write path pays nothing.
--
-- Who has to change history all the same (a law may ask for it) is its owner, and does it where it can be seen: in one transaction
--     alter table events disable trigger append_only; ... ; alter table events enable trigger append_only;
-- which is DDL (log_statement = 'ddl' logs it), locks out everybody else, and breaks the hash chain of every account that it touches.

-- Of a row, the columns that the trigger names may be set once, after the fact: from null or false to something. All else is refused.
create function refuse_change() returns trigger language plpgsql as $$
declare
    set_once text[] := tg_argv;
    name text;
begin
    if tg_op = 'UPDATE' then
        -- As text, so that not even the scale of an amount changes unseen.
        if (to_jsonb(old) - set_once)::text = (to_jsonb(new) - set_once)::text then
            foreach name in array set_once loop
                if to_jsonb(old) -> name not in ('null', 'false') and to_jsonb(old) -> name <> to_jsonb(new) -> name then
                    raise exception using errcode = 'MA001',
                        message = format('%I.%I is set already: history is append-only', tg_table_name, name);
                end if;
            end loop;
            return new;
        end if;
    end if;
    raise exception using errcode = 'MA001',
        message = format('%I is append-only: %s is refused, history is never changed', tg_table_name, lower(tg_op));
end $$;
comment on function refuse_change is 'Of a trigger: refuses to change or remove rows, but for the columns that it names, each of which may be set once.';

do $$
declare
    guarded record;
begin
    for guarded in select * from (values
        ('events', '{}'::text[]),
        ('trades', '{}'),
        ('ledger_lines', '{}'),
        ('liquidations', '{settled}'),
        ('control_changes', '{}'),
        ('openings', '{}'),
        ('funding_rates', '{applied_at,at_risk}'),
        ('instruments', '{effective_at}'),
        ('settlement_steps', '{spent,outcome,event_id}')
    ) as guarded (name, set_once)
    loop
        execute format(
            'create trigger append_only before update or delete on %I for each row execute function refuse_change(%s)',
            guarded.name,
            (select string_agg(quote_literal(one), ', ') from unnest(guarded.set_once) as one)
        );
        execute format(
            'create trigger append_only_whole before truncate on %I for each statement execute function refuse_change()',
            guarded.name
        );
    end loop;
end $$;

-- A sample of a mark price may be forgotten when it is old, but not altered. What is younger than a day is never old: MARK_HISTORY_DAYS is 1 at the least.
create trigger append_only before update on mark_price_samples for each row execute function refuse_change();
create trigger append_only_for_a_day before delete on mark_price_samples
    for each row when (old.at >= now() - interval '1 day') execute function refuse_change();
create trigger append_only_whole before truncate on mark_price_samples for each statement execute function refuse_change();

-- `accounts` refuses such an id since the beginning. A row of one here would belong to nobody and still be in the sums over all accounts, of which the
-- insurance fund is one. Rows that are there are not looked at, so the tables are locked for a moment only; `reconcile` finds them.
alter table events add check (account_id > 0) not valid;
alter table trades add check (account_id > 0) not valid;
alter table liquidations add check (account_id > 0) not valid;
alter table ledger_lines add check (account_id > 0) not valid;
