-- Every version of the rules of every symbol. One is in force when every account that holds the symbol is anchored to it, in every partition:
-- until then it is under way, at most one of a symbol at a time. A symbol without a version in force has the default rules, version 0.
create table instruments (
    symbol text not null,
    version bigint not null check (version > 0),
    terms jsonb not null,
    subject text,
    source_ip text,
    changed_at timestamptz not null default now(),
    effective_at timestamptz,
    primary key (symbol, version)
);
comment on table instruments is 'Rules of symbols: of the versions of a symbol that ever took effect, the highest is in force.';
comment on column instruments.effective_at is 'When it was in force everywhere; null while accounts are anchored to it.';
create unique index instruments_under_way on instruments (symbol) where effective_at is null;
