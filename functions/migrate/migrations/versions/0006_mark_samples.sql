-- Mark prices as they were: of each symbol at most one for each run of the drain. They are there to be looked at; nothing is decided by them.
create table mark_price_samples (
    symbol text not null,
    at timestamptz not null,
    price numeric not null check (price > 0),
    source text,
    primary key (symbol, at)
);
comment on column mark_price_samples.at is 'When Redis stored the price. No two prices of a symbol have the same.';
comment on column mark_price_samples.source is 'Where the price is from, as its sender said.';
-- Finds what is too old to be kept.
create index mark_price_samples_by_age on mark_price_samples (at);
