-- Each payment of funding, in the order in which it moved its symbol's index. The index is kept beside it, so that every partition of Redis can be
-- brought up from wherever it stands. May be executed again where the migration was broken off.
create table if not exists funding_rates (
    symbol text not null,
    n bigint not null check (n > 0),
    rate numeric not null,
    mark_price numeric not null check (mark_price > 0),
    rise numeric not null,
    funding_index numeric not null,
    occurred_at timestamptz not null,
    recorded_at timestamptz not null default now(),
    key text not null,
    request_hash text not null,
    subject text,
    source_ip text,
    applied_at timestamptz,
    at_risk bigint check (at_risk >= 0),
    primary key (symbol, n),
    unique (symbol, key),
    check (rise = rate * mark_price)
);
comment on table funding_rates is 'Payments of funding. rise is what a payment adds to the funding index, in quote currency for one unit long.';
comment on column funding_rates.applied_at is 'When it was known to be in every partition of Redis; null until then.';
comment on column funding_rates.at_risk is 'How many accounts it brought to evaluation, as far as that is known.';
create index if not exists funding_rates_not_applied on funding_rates (symbol) where applied_at is null;
create index if not exists funding_rates_by_time on funding_rates (recorded_at desc, symbol, n desc);

alter table ledger_lines drop constraint if exists ledger_lines_ledger_account_check;
alter table ledger_lines add constraint ledger_lines_ledger_account_check check (ledger_account in
    ('cash', 'house_pnl', 'fees', 'insurance', 'funding', 'external', 'rounding', 'uncovered')) not valid;
