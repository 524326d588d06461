"""The database's schema, as far as tests handle it whole."""

ALL_TABLES = "select tablename from pg_tables where schemaname = 'public' and tablename <> 'alembic_version'"

EMPTY_ALL_TABLES = """
    do $$ begin
        execute (
            select 'truncate ' || string_agg(quote_ident(tablename), ', ')
            from pg_tables
            where schemaname = 'public' and tablename <> 'alembic_version'
        );
    end $$
"""
