-- History: an unbroken chain of events for each account, and what is derived from them in the same statement.
-- Every primary key begins with account_id, so that a distributed PostgreSQL can shard on it. Amounts are plain numeric: exact, any scale.

create sequence epochs;
comment on sequence epochs is 'Each opening of a partition takes a new epoch; event ids are epoch * 2^32 + sequence.';

create table accounts (
    account_id bigint primary key check (account_id > 0),
    n bigint not null check (n > 0),
    event_id bigint not null,
    chain_hash text not null,
    balance numeric not null,
    positions jsonb not null,
    opened_at timestamptz not null,
    changed_at timestamptz not null
);
comment on table accounts is 'State after the last event of each account: what a rebuild of Redis loads.';
create index accounts_changed_at on accounts (changed_at);

create table events (
    account_id bigint not null references accounts,
    n bigint not null,
    event_id bigint not null,
    previous_event_id bigint not null,
    hash text not null,
    type text not null,
    key text not null,
    request_hash text not null,
    subject text,
    source_ip text,
    occurred_at timestamptz not null,
    recorded_at timestamptz not null default now(),
    body jsonb not null,
    primary key (account_id, n),
    unique (account_id, event_id),
    unique (account_id, key)
);
create index events_by_time on events (account_id, occurred_at desc);
comment on table events is 'The chain of each account. body is canonical JSON; hash is its SHA-256 and stands in the next body.';

create table trades (
    account_id bigint not null,
    id bigint not null,
    symbol text not null,
    side text not null check (side in ('BUY', 'SELL')),
    quantity numeric not null check (quantity > 0),
    price numeric not null check (price > 0),
    notional numeric not null,
    realised_pnl numeric not null,
    fee numeric not null,
    occurred_at timestamptz not null,
    primary key (account_id, id)
);
create index trades_by_symbol on trades (account_id, symbol, id desc);
create index trades_by_time on trades (account_id, occurred_at);

create table liquidations (
    account_id bigint not null,
    id bigint not null,
    equity numeric not null,
    maintenance_margin numeric not null,
    reason text not null,
    positions jsonb not null,
    shortfall numeric not null check (shortfall >= 0),
    occurred_at timestamptz not null,
    primary key (account_id, id)
);
create index liquidations_by_time on liquidations (occurred_at desc, id desc);

create table ledger_lines (
    account_id bigint not null,
    event_id bigint not null,
    line smallint not null,
    ledger_account text not null check (ledger_account in
        ('cash', 'house_pnl', 'fees', 'insurance', 'external', 'rounding', 'uncovered')),
    amount numeric not null check (amount <> 0),
    primary key (account_id, event_id, line)
);
comment on table ledger_lines is 'Double entry: the lines of each event sum to zero. cash is the account''s own; the others are sums over lines, never rows.';
create index ledger_lines_by_account on ledger_lines (ledger_account);
