-- Shortfalls are settled in steps, each an event on some account's chain. A step is planned here first, so that whoever goes on after a crash
-- knows which event to look for. The numbers of steps have no gaps: of two that were planned on one state of the fund, the second finds its
-- number taken. What became of a step is told by the chain; `outcome` repeats it, and says alone that a step was given up.
create table settlement_steps (
    id bigint primary key check (id > 0),
    account_id bigint not null,
    liquidation_id bigint not null,
    number integer not null check (number > 0),
    type text not null check (type in ('SETTLEMENT', 'DELEVERAGING')),
    key text not null,
    executed_on bigint not null,
    after_n bigint not null,
    after_event_id bigint not null,
    epoch bigint not null,
    hold text not null,
    amount numeric not null check (amount > 0),
    uncovered numeric not null check (uncovered >= 0),
    symbol text,
    bankrupt_quantity numeric,
    liquidation_price numeric,
    bankruptcy_price numeric,
    quantity numeric check (quantity > 0),
    shared_notional numeric,
    source_number integer,
    spent boolean not null default false,
    outcome text check (outcome in ('executed', 'void')),
    event_id bigint,
    planned_at timestamptz not null default now(),
    unique (account_id, liquidation_id, number),
    check ((type = 'DELEVERAGING') = (symbol is not null and quantity is not null))
);
comment on table settlement_steps is 'Planned payments of the insurance fund and deleveragings; each happens right after one event of its account, or never.';
comment on column settlement_steps.spent is 'Of a deleveraging: what it raised was paid out, or it never happened. Set after the fact: nothing is decided on it alone.';
create unique index settlement_steps_open on settlement_steps (account_id, liquidation_id) where outcome is null;
create index settlement_steps_by_event on settlement_steps (executed_on, after_n);
create index settlement_steps_unspent on settlement_steps (account_id, liquidation_id) where type = 'DELEVERAGING' and not spent;

create view settlement_outcomes as
    select step.id, step.account_id, step.liquidation_id, step.number, step.type, step.key, step.executed_on, step.after_n, step.after_event_id,
        step.epoch, step.hold, step.amount, step.uncovered, step.symbol, step.bankrupt_quantity, step.liquidation_price, step.bankruptcy_price,
        step.quantity, step.shared_notional, step.source_number, step.spent, step.outcome as noted,
        coalesce(
            step.outcome,
            case when event.key = step.key then 'executed' when event.key is not null then 'void' end
        ) as outcome,
        coalesce(step.event_id, case when event.key = step.key then event.event_id end) as event_id
    from settlement_steps as step
    left join events as event
        on step.outcome is null and event.account_id = step.executed_on and event.n = step.after_n + 1;
comment on view settlement_outcomes is 'Steps with what became of them, as the chains say at this moment.';

-- So that what is open is found among all that was ever settled.
alter table liquidations add column settled boolean not null default false;
comment on column liquidations.settled is 'The events of the account come to the whole shortfall. Set after the fact.';
create index liquidations_unsettled on liquidations (occurred_at, id) where shortfall > 0 and not settled;
create index events_of_settlements on events (account_id) where type = 'SETTLEMENT';
create index ledger_lines_of_the_fund on ledger_lines (ledger_account) include (amount)
    where ledger_account in ('insurance', 'uncovered');

-- Behind which shortfall the next run begins.
create table settlement_place (
    only_one boolean primary key default true check (only_one),
    at_us bigint not null,
    liquidation_id bigint not null
);
